//! The chance of a world: what it decides is a function of its seed and of what is decided about, not of when.
//!
//! Invariant: the same seed decides the same about the same thing, in every run and on every machine.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tombolo_event::KeyHash;

/// The variable that gives every world of a test run the same seed.
const SEED: &str = "TOMBOLO_TEST_SEED";

/// Seeded chance. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dice {
    pub(super) seed: u64,
}

impl Dice {
    /// The seed that the environment gives, or a fresh one.
    pub(super) fn from_env() -> Self {
        let given = std::env::var(SEED).ok();
        let seed = given.map(|seed| {
            seed.parse()
                .unwrap_or_else(|_| panic!("{SEED} is {seed:?}; expected the number that a world printed"))
        });
        Self { seed: seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0) }
    }

    /// What the seed says about `what`.
    pub(super) fn roll(self, what: impl fmt::Display) -> u64 {
        // The pinned hash of keys, so that a seed means the same everywhere.
        KeyHash::of(&format!("{}/{what}", self.seed)).0
    }

    /// Whether the seed picks `what`, one of `of` things.
    pub(super) fn picks(self, of: u64, what: impl fmt::Display) -> bool {
        self.roll(what).is_multiple_of(of)
    }
}

/// Locks what a panicking test may have left locked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_same_again_and_another_one_otherwise() {
        let rolls = |seed| (0..32).map(|n| Dice { seed }.roll(n)).collect::<Vec<_>>();
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
        let picked = (0..1000).filter(|n| Dice { seed: 7 }.picks(4, n)).count();
        assert!((150..350).contains(&picked), "{picked} of 1000");
    }
}
