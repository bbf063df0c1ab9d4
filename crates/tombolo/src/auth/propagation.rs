//! Answers an operator who asks when a block of a user took effect here.
//!
//! Invariant: the answer is of this process alone, and says what its checks would do with the next request.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Signal};
use tombolo_event::ServiceName;
use tombolo_event::propagation::{Asked, InEffect, SUBJECT};

use super::Way;
use super::feed::Heard;

/// How long the bus may take to say where its topic ends.
const TAILS_BOUND: std::time::Duration = std::time::Duration::from_secs(2);

/// Who answers, and by what it knows.
pub(crate) struct Propagation {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) service: String,
    pub(crate) replica: u32,
    pub(crate) way: Way,
    /// What was heard, of which topic.
    pub(crate) heard: Option<(ServiceName, Arc<Heard>)>,
}

impl Propagation {
    /// Answers until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.listen() => {}
        }
    }

    async fn listen(&self) {
        let mut attempt = 0;
        loop {
            if let Ok(mut signals) = self.bus.listen(SUBJECT, None).await {
                attempt = 0;
                while let Some(signal) = signals.next().await {
                    self.answer(signal).await;
                }
            }
            sleep(crate::RETRY.jittered(attempt)).await;
            attempt += 1;
        }
    }

    async fn answer(&self, signal: Signal) {
        let Some(reply_to) = signal.reply_to else { return };
        let Ok(asked) = serde_json::from_slice::<Asked>(&signal.payload) else { return };
        let in_effect = InEffect {
            service: self.service.clone(),
            replica: self.replica,
            way: self.way.to_string(),
            has_heard_all: self.has_heard_all().await,
            known: self.heard.as_ref().and_then(|(_, heard)| heard.known(&asked.user)),
        };
        let payload = serde_json::to_vec(&in_effect).map(Bytes::from).unwrap_or_default();
        if let Err(error) = self.bus.signal(&reply_to, Signal { reply_to: None, payload }).await {
            tracing::debug!("an operator who asks about a user is not answered: {error}");
        }
    }

    /// Whether everything was heard that the bus has now.
    async fn has_heard_all(&self) -> bool {
        let Some((topic, heard)) = &self.heard else { return true };
        match timeout(TAILS_BOUND, self.bus.tails(topic)).await {
            Ok(Ok(tails)) => heard.has_reached(&tails),
            Ok(Err(error)) => error.kind() == tombolo_bus::Kind::UnknownTopic,
            Err(_) => false,
        }
    }
}
