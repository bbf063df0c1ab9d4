//! How long to wait before the next try: exponential, jittered, bounded. Pure: the caller brings the chance.

use std::time::Duration;

/// A back-off. The n-th delay lies between half and the whole of `first * 2^n`, never above `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl Backoff {
    /// A back-off from `first` up to `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// The delay before try `attempt` (from 0), with `chance` in 0.0..=1.0 as the jitter.
    #[must_use]
    pub fn delay(&self, attempt: u32, chance: f64) -> Duration {
        let whole = self.first.saturating_mul(2_u32.saturating_pow(attempt.min(31))).min(self.max);
        whole.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// The delay before try `attempt` (from 0), with a jitter of its own.
    #[must_use]
    pub fn jittered(&self, attempt: u32) -> Duration {
        self.delay(attempt, rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_bounded() {
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(2));
        assert_eq!(backoff.delay(0, 1.0), Duration::from_millis(10));
        assert_eq!(backoff.delay(3, 0.0), Duration::from_millis(40));
        assert_eq!(backoff.delay(200, 1.0), Duration::from_secs(2));
    }
}
