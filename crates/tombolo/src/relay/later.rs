//! The relay's part in what is published for later: it moves what is due into the outbox, and waits for what is not.
//!
//! Nothing polls for it: each round learns when the next event is due, a commit wakes the relay for a round, and the
//! service's clock wakes it when the time has come.
//!
//! Invariant: only the leader moves, and one batch between two rounds, so that many events that are due at once hold up
//! neither the lease nor what is published directly.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};
use tombolo_db::{Leader, RoundLimit};

use crate::{Clock, Result};

/// How long a due event that could not be moved, because a transaction is about to withdraw it, is left alone.
const HELD_PAUSE: Duration = Duration::from_millis(100);

/// When something is to be moved.
pub(super) struct Schedule {
    clock: Clock,
    held_until: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, held_until: None }
    }

    /// Moves one batch of what is due, if anything is, and returns whether a round has to follow: it sends what was moved,
    /// and learns what is due next.
    pub(super) async fn move_due(&mut self, leader: &mut dyn Leader) -> Result<bool> {
        let now = self.clock.now();
        let is_held = self.held_until.is_some_and(|until| Instant::now() < until);
        if is_held || leader.next_due().is_none_or(|due| due > now) {
            return Ok(false);
        }
        let moved = leader.move_due(now, RoundLimit::default()).await?;
        self.held_until = (moved == 0).then(|| Instant::now() + HELD_PAUSE);
        Ok(true)
    }

    /// Waits until there is something to move, which is due `next`, at most until `latest`.
    pub(super) async fn due(&self, next: Option<Timestamp>, latest: Instant) {
        let due = async {
            let Some(next) = next else { return std::future::pending().await };
            self.clock.until(next).await;
            if let Some(until) = self.held_until {
                sleep_until(until).await;
            }
        };
        // At the latest moment it does not matter which of the two it was.
        timeout_at(latest, due).await.ok();
    }
}
