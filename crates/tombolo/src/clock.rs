//! The clock by which schedules are kept: what is published later, and when a parked event is tried again.
//!
//! Leases go by the database's clock, and time-outs by the machine's; this one is the wall's, and a test can move it.
//!
//! Invariant: it never goes back, and whoever waits for a time hears of every move.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a wait lasts before the clock is looked at again: a wall clock can be set while somebody waits.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A wall clock that can be moved ahead. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct Clock {
    ahead: watch::Sender<SignedDuration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { ahead: watch::Sender::new(SignedDuration::ZERO) }
    }
}

impl Clock {
    /// The time by this clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.checked_add(*self.ahead.borrow()).unwrap_or(Timestamp::MAX)
    }

    /// Moves the clock ahead; whoever waits for a time that has come by that goes on.
    pub fn advance(&self, by: Duration) {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        self.ahead.send_modify(|ahead| *ahead = ahead.saturating_add(by));
    }

    /// Waits until `time` has come.
    pub async fn until(&self, time: Timestamp) {
        let mut moved = self.ahead.subscribe();
        loop {
            let left = Duration::try_from(time.duration_since(self.now())).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(left.min(LOOK_AGAIN)) => {}
                // The sender is this clock itself, so it outlives the wait.
                Ok(()) = moved.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_move_ends_the_wait_for_a_time_that_it_passes() {
        let clock = Clock::default();
        let day = Duration::from_secs(86_400);
        let time = clock.now().checked_add(SignedDuration::try_from(day).unwrap()).unwrap();
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.until(time).await }
        });
        assert!(clock.now() < time);
        clock.advance(day);
        waiting.await.unwrap();
        assert!(clock.now() >= time);
    }
}
