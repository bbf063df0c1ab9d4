//! One try of a call: recorded, then made, with no transaction open.
//!
//! Invariant: nothing is called before the try is recorded under the lease, so that a worker which lost it begins no
//! call, and a call that ends the process is counted.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Extensions;
use tokio::time::{Instant, timeout};
use tombolo_db::{Claim, Database, EffectCall};
use tombolo_event::{Envelope, IdempotencyKey, TraceContext, barrier};

use super::calls::{Ended, Made};
use crate::current::Current;
use crate::effect::{Attempt, Caller};
use crate::handler::{HandlerError, reject};
use crate::life::Repeat;
use crate::worker::apply::{no_handler, panic_text};
use crate::{App, Error, Kind};

/// Everything that one try needs.
pub(super) struct Trying<D: Database> {
    pub(super) database: D,
    pub(super) claim: Claim,
    /// The call, this try counted.
    pub(super) call: EffectCall,
    /// The stored event.
    pub(super) bytes: Bytes,
    /// None if the program no longer handles its type.
    pub(super) caller: Option<Arc<Caller<D>>>,
    pub(super) app: App<D>,
    pub(super) states: Arc<Extensions>,
    pub(super) bound: Duration,
    /// Whether its event is parked, whose tries are recorded with it.
    pub(super) is_parked: bool,
    /// Whether it is made twice, as after a crash before its completion was stored.
    pub(super) repeat: Repeat,
}

impl<D: Database> Trying<D> {
    pub(super) async fn make(self) -> Made {
        Made { lease_epoch: self.claim.lease_epoch, ended: self.end().await }
    }

    async fn end(&self) -> Ended {
        if !self.is_parked
            && let Err(error) = self.database.record_call(&self.claim, &self.call).await
        {
            return Ended::NotMade(error);
        }
        barrier::reach("effect.after-record");
        if let Some(json) = &self.call.result {
            // It returned before; what failed was its completion.
            return Ended::Returned(json.clone());
        }
        let mut called = self.called(self.call.attempts).await;
        barrier::reach("effect.after-call");
        if self.repeat != Repeat::Never {
            called = self.called(self.call.attempts + 1).await;
        }
        called.map_or_else(Ended::Failed, Ended::Returned)
    }

    async fn called(&self, number: u32) -> Result<String, HandlerError> {
        let envelope = Envelope::decode(self.bytes.clone())?;
        let Some(caller) = &self.caller else { return Err(no_handler(&envelope.event_type)) };
        let trace = envelope.trace.map_or_else(TraceContext::begin, TraceContext::child);
        let correlation = envelope.correlation.clone().unwrap_or_else(|| envelope.id.to_string());
        let mut current = Current::within(trace, Some(correlation));
        current.deadline = Some(Instant::now() + self.bound);
        let call = current.scope(async {
            let attempt = self.attempt(&envelope, number);
            caller.call(&envelope, self.call.sequence, &self.app, &self.states, attempt).await
        });
        match timeout(self.bound, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(called)) => called,
            Ok(Err(panic)) => Err(reject(format!("the call panicked: {}", panic_text(&*panic)))),
            Err(_) => Err(self.too_long().into()),
        }
    }

    fn attempt(&self, envelope: &Envelope, number: u32) -> Attempt {
        let service = self.app.service().as_str();
        let key = IdempotencyKey::of(service, &self.claim.subscription, envelope.id);
        Attempt { key, number }
    }

    fn too_long(&self) -> Error {
        let message = format!(
            "the call took longer than {:?}; bound it where it waits, or let the effect take longer with `.within(…)`",
            self.bound
        );
        Error::new(Kind::Deadline, message)
    }
}
