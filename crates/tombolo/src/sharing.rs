//! Sharing the partitions of subscriptions with the other replicas of the service: the leases of this process, kept by
//! one renewal for all of them.
//!
//! Beside the path: a worker claims when its session begins, and begins a new session when the shares have changed. A
//! replica that joins, leaves or gives something up tells the others, so that shares move within moments.
//!
//! Invariant: what another replica says is a hint to look into the database, which alone decides; the renewal that
//! comes anyway is the net under it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as Quick, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Signal};
use tombolo_db::{Claimed, Holder, Leases, Share, Standing};
use tombolo_event::ServiceName;
use uuid::Uuid;

use crate::settings::Lease;
use crate::{Error, Kind, Result};

/// How long telling the other replicas may hold up a worker.
const SIGNAL_BOUND: Duration = Duration::from_millis(500);

/// The leases of this process.
pub(crate) struct Sharing {
    leases: Arc<dyn Leases>,
    holder: Holder,
    lease: Lease,
    bus: Arc<dyn Bus>,
    subject: String,
    /// Claims and renewals one after the other, so that what is told of a claim is not older than the claim.
    turn: Mutex<()>,
    told: Quick<BTreeMap<String, watch::Sender<Told>>>,
    look: Notify,
}

/// What was heard last of a subscription's leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Kept { held: usize, due: usize },
    Lost,
}

/// What a worker hears of the partitions that it holds.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    subscription: String,
    claimed: usize,
    told: watch::Receiver<Told>,
}

impl Sharing {
    pub(crate) fn new(
        leases: Arc<dyn Leases>,
        holder: Holder,
        lease: Lease,
        bus: Arc<dyn Bus>,
        service: &ServiceName,
    ) -> Self {
        let subject = format!("leases.{service}");
        Self {
            leases,
            holder,
            lease,
            bus,
            subject,
            turn: Mutex::default(),
            told: Quick::default(),
            look: Notify::new(),
        }
    }

    /// Which replica this is to the leases.
    pub(crate) fn replica(&self) -> Uuid {
        self.holder.replica
    }

    /// Has this process and the others look at their leases, which may have changed.
    pub(crate) async fn look(&self) {
        self.look.notify_one();
        self.tell_others().await;
    }

    /// Claims this replica's share of a subscription.
    pub(crate) async fn claim(&self, subscription: &str, share: Share) -> Result<(Claimed, Membership)> {
        let turn = self.turn.lock().await;
        let claimed = self.leases.claim(subscription, self.holder, share, self.lease.0).await?;
        let held = claimed.claims.len();
        let (tell, told) = watch::channel(Told::Kept { held, due: held });
        self.told().insert(subscription.to_owned(), tell);
        drop(turn);
        if claimed.concerns_others {
            self.tell_others().await;
        }
        Ok((claimed, Membership { subscription: subscription.to_owned(), claimed: held, told }))
    }

    /// Leaves a subscription. A lease that cannot be given up ends by itself.
    pub(crate) async fn leave(&self, subscription: &str) {
        let turn = self.turn.lock().await;
        self.told().remove(subscription);
        self.leases.release(subscription, self.holder).await.ok();
        drop(turn);
        self.tell_others().await;
    }

    /// Keeps the leases until it is stopped.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.hear() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut kept = Instant::now();
        loop {
            tokio::select! {
                () = sleep(self.lease.renew_every()) => {}
                () = self.look.notified() => {}
            }
            let _turn = self.turn.lock().await;
            if self.told().is_empty() {
                continue;
            }
            match self.leases.renew(self.holder, self.lease.0).await {
                Ok(standings) => {
                    kept = Instant::now();
                    self.tell(&standings);
                }
                Err(error) if kept.elapsed() < self.lease.0 => {
                    tracing::debug!("leases could not be renewed, and are tried again: {error}");
                }
                Err(_) => self.tell(&[]),
            }
        }
    }

    fn tell(&self, standings: &[Standing]) {
        for (subscription, tell) in &*self.told() {
            let standing = standings.iter().find(|standing| standing.subscription == *subscription);
            let told =
                standing.map_or(Told::Lost, |standing| Told::Kept { held: standing.held, due: standing.due });
            tell.send_replace(told);
        }
    }

    async fn hear(&self) {
        let mut attempt = 0;
        loop {
            if let Ok(mut signals) = self.bus.listen(&self.subject, None).await {
                attempt = 0;
                while let Some(signal) = signals.next().await {
                    if signal.payload != self.name() {
                        self.look.notify_one();
                    }
                }
            }
            sleep(crate::RETRY.jittered(attempt)).await;
            attempt += 1;
        }
    }

    async fn tell_others(&self) {
        let signal = Signal { reply_to: None, payload: self.name() };
        // What is not heard is found by the next renewal.
        timeout(SIGNAL_BOUND, self.bus.signal(&self.subject, signal)).await.ok();
    }

    fn name(&self) -> Bytes {
        Bytes::copy_from_slice(self.holder.life.as_bytes())
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Told>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Waits until a partition that was claimed is no longer held.
    pub(crate) async fn lost(&self) -> Error {
        let claimed = self.claimed;
        let is_lost = |told: &Told| !matches!(told, Told::Kept { held, .. } if *held >= claimed);
        // Told no more is lost, too.
        self.told.clone().wait_for(is_lost).await.ok();
        Error::new(
            Kind::DatabaseAway,
            format!("subscription {:?} lost the lease of a partition to another replica", self.subscription),
        )
    }

    /// Waits until a claim would give more or fewer partitions than are held.
    pub(crate) async fn is_shared_anew(&self) {
        let is_anew = |told: &Told| matches!(told, Told::Kept { held, due } if held != due);
        if self.told.clone().wait_for(is_anew).await.is_err() {
            std::future::pending().await
        }
    }
}
