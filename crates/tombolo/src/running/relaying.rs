//! What moves events to the bus while a service runs: the relay, and the watch over what other programs write.
//!
//! Invariant: both are told of the same wake-ups.

use std::sync::Arc;

use tombolo_db::Database;

use super::Starting;
use crate::recovery::Recovery;
use crate::relay::Relay;
use crate::relay::foreign::Watch;

impl Starting {
    pub(super) fn relay<D: Database>(&self, database: &D, recovery: &Arc<Recovery>) -> Relay {
        Relay {
            outbox: Arc::new(database.clone()),
            requests: Arc::new(database.clone()),
            announced: self.desk.announcements(),
            recovery: Arc::clone(recovery),
            bus: Arc::clone(&self.bus),
            publisher: self.publisher.clone(),
            holder: self.holder,
            woken: Arc::clone(&self.woken),
            metrics: Arc::clone(&self.metrics),
            board: Arc::clone(&self.board),
            clock: self.clock.clone(),
            lease: self.lease,
            stop: self.stop.clone(),
        }
    }

    pub(super) fn watch<D: Database>(&self, database: &D, hears: bool) -> Watch {
        Watch {
            service: self.publisher.service.to_string(),
            outbox: Arc::new(database.clone()),
            woken: Arc::clone(&self.woken),
            hears,
            stop: self.stop.clone(),
        }
    }
}
