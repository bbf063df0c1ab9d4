//! Whether a subscriber that rebuilds itself by a snapshot is doing so. Pure.
//!
//! A subscriber is *recovering* from the moment at which something said that it may have died — a delivery was refused, broken or
//! not answered — or at which the bus began, until a delivery to it succeeds or a snapshot has moved its cursor. When it is back, it
//! is given a while to ask for a snapshot before it gets a delivery.
//!
//! Invariant: a snapshot moves a cursor only of a subscriber that is recovering.

use std::time::Duration;

use tokio::time::Instant;

/// What is known of a subscriber.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// How long it is waited for; none where it never asks.
    patience: Option<Duration>,
    phase: Phase,
    snapshots: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The last delivery succeeded.
    Well,
    /// It may have died.
    Suspect,
    /// A connection is being made, to see whether it is there.
    Probed,
    /// It is there, and may ask until then.
    Held(Instant),
    /// It did not ask.
    Passed,
}

impl Recovery {
    pub(crate) fn new(patience: Option<Duration>) -> Self {
        let phase = if patience.is_some() { Phase::Suspect } else { Phase::Well };
        Self { patience, phase, snapshots: 0 }
    }

    /// Whether it recovers by snapshots at all.
    pub(crate) fn is_watched(&self) -> bool {
        self.patience.is_some()
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.phase != Phase::Well
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.phase == Phase::Suspect
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held(_) | Phase::Probed)
    }

    pub(crate) fn is_snapshot_under_way(&self) -> bool {
        self.snapshots > 0
    }

    /// It may have died.
    pub(crate) fn suspect(&mut self) {
        if self.is_watched() {
            self.phase = Phase::Suspect;
        }
    }

    /// A connection is being made.
    pub(crate) fn probing(&mut self) {
        self.phase = Phase::Probed;
    }

    /// A connection was made, at `now`.
    pub(crate) fn found(&mut self, now: Instant) {
        if let (Phase::Probed, Some(patience)) = (self.phase, self.patience) {
            self.phase = Phase::Held(now + patience);
        }
    }

    /// A delivery succeeded.
    pub(crate) fn well(&mut self) {
        self.phase = Phase::Well;
    }

    /// A snapshot begins. False if the subscriber is not recovering: then it moves nothing.
    pub(crate) fn begins(&mut self) -> bool {
        let counts = self.is_recovering();
        self.snapshots += u32::from(counts);
        counts
    }

    /// A snapshot has ended. A subscriber that did not get it whole may ask again.
    pub(crate) fn ends(&mut self, is_whole: bool) {
        self.snapshots = self.snapshots.saturating_sub(1);
        if !is_whole && self.is_recovering() {
            self.phase = Phase::Suspect;
        }
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Held(until) => Some(until),
            _ => None,
        }
    }

    pub(crate) fn wake(&mut self, now: Instant) {
        if self.wakes_at().is_some_and(|until| until <= now) {
            self.phase = Phase::Passed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_well_or_never_asks_is_not_recovering() {
        let mut never = Recovery::new(None);
        never.suspect();
        assert!(!never.is_recovering() && !never.begins());
        let mut well = Recovery::new(Some(Duration::from_secs(1)));
        assert!(well.is_recovering(), "it was not reached since the bus began");
        well.well();
        assert!(!well.is_recovering() && !well.begins());
    }

    #[test]
    fn one_that_is_back_is_waited_for_and_then_not_any_more() {
        let mut recovery = Recovery::new(Some(Duration::from_secs(1)));
        let now = Instant::now();
        recovery.probing();
        recovery.found(now);
        assert!(recovery.is_held() && recovery.begins() && recovery.is_snapshot_under_way());
        recovery.ends(true);
        recovery.wake(now + Duration::from_secs(1));
        assert!(!recovery.is_held() && !recovery.is_suspect() && recovery.is_recovering());
    }
}
