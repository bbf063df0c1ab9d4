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
    /// Where it stands still, if it does.
    stopped_at: Option<Timestamp>,
    ahead: watch::Sender<SignedDuration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { stopped_at: None, ahead: watch::Sender::new(SignedDuration::ZERO) }
    }
}

impl Clock {
    /// A clock for tests that stands still at this moment and only [advances](Self::advance) when it is told: however slow
    /// the machine is, nothing falls due by itself.
    #[must_use]
    pub fn stopped() -> Self {
        Self { stopped_at: Some(Timestamp::now()), ..Self::default() }
    }

    /// The time by this clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = self.stopped_at.unwrap_or_else(Timestamp::now);
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

    #[test]
    fn a_stopped_clock_goes_when_it_is_told() {
        let clock = Clock::stopped();
        let before = clock.now();
        let machine = Timestamp::now();
        while Timestamp::now() == machine {}
        assert_eq!(clock.now(), before);
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now().duration_since(before), SignedDuration::from_secs(1));
    }
}
