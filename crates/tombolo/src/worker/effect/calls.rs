//! The calls of an effect that run in this process, and those that have ended and are not stored yet.
//!
//! They outlive the sessions of the worker: when the database is away for a moment, a call that runs goes on and one
//! that has ended is kept, so that an outage makes no call again.
//!
//! Invariant: an event has at most one call here, and no call of a partition that this process has lost goes on.

use std::collections::HashMap;

use tokio::task::{AbortHandle, JoinSet};
use tombolo_db::Claim;
use tombolo_event::{EventId, ServiceName};

use crate::HandlerError;

/// An event in its partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) topic: ServiceName,
    pub(super) partition: u32,
    pub(super) sequence: u64,
    pub(super) id: EventId,
}

impl Place {
    pub(super) fn of(claim: &Claim, sequence: u64, id: EventId) -> Self {
        Self { topic: claim.topic.clone(), partition: claim.partition, sequence, id }
    }

    pub(super) fn is_in(&self, claim: &Claim) -> bool {
        self.partition == claim.partition && self.topic == claim.topic
    }
}

/// How a call ended.
pub(super) enum Ended {
    /// It returned this, as JSON.
    Returned(String),
    Failed(HandlerError),
    /// It could not be recorded, so it was not made.
    NotMade(tombolo_db::Error),
}

/// A call that has ended.
pub(super) struct Made {
    /// The epoch of the lease under which it began.
    pub(super) lease_epoch: u64,
    pub(super) ended: Ended,
}

/// The calls of one effect in this process.
#[derive(Default)]
pub(in crate::worker) struct Calls {
    tasks: JoinSet<(Place, Made)>,
    running: HashMap<Place, AbortHandle>,
    ended: HashMap<Place, Made>,
}

impl Calls {
    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether the event's call runs or has ended here.
    pub(super) fn has(&self, place: &Place) -> bool {
        self.running.contains_key(place) || self.ended.contains_key(place)
    }

    pub(super) fn begin(&mut self, place: Place, call: impl Future<Output = Made> + Send + 'static) {
        let its = place.clone();
        let task = self.tasks.spawn(async move { (its, call.await) });
        self.running.insert(place, task);
    }

    /// Waits until a call has ended; for ever if none runs.
    pub(super) async fn ended(&mut self) {
        while let Some(joined) = self.tasks.join_next().await {
            // Only a call that was given up ends without an outcome; its panics are outcomes.
            if let Ok((place, made)) = joined {
                self.keep(place, made);
                while let Some(Ok((place, made))) = self.tasks.try_join_next() {
                    self.keep(place, made);
                }
                return;
            }
        }
        std::future::pending().await
    }

    fn keep(&mut self, place: Place, made: Made) {
        // What is no longer in `running` was given up.
        if self.running.remove(&place).is_some() {
            self.ended.insert(place, made);
        }
    }

    /// What has ended and is not forgotten.
    pub(super) fn all_ended(&self) -> Vec<Place> {
        self.ended.keys().cloned().collect()
    }

    /// How a call ended.
    pub(super) fn made(&self, place: &Place) -> Option<&Made> {
        self.ended.get(place)
    }

    /// Takes a call that has ended.
    pub(super) fn take(&mut self, place: &Place) -> Option<Made> {
        self.ended.remove(place)
    }

    /// Forgets a call that has ended, once what became of it is stored.
    pub(super) fn forget(&mut self, place: &Place) {
        self.ended.remove(place);
    }

    /// Gives up every call that `is_wanted` does not want.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Place) -> bool) {
        self.ended.retain(|place, _| is_wanted(place));
        for (_, task) in self.running.extract_if(|place, _| !is_wanted(place)) {
            task.abort();
        }
    }
}
