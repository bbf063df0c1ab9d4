//! A circuit breaker: while the issuer does not answer, requests are refused at once, and one probe at a time finds out
//! whether it does again.
//!
//! Pure but for its lock: the caller brings the time. Invariant: of an issuer that is away, at most one request waits for it after the first [`FAILURES_MAX`]; the pauses between
//! probes grow to a bound.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tombolo_event::Backoff;

/// How many failures in a row open it.
pub(crate) const FAILURES_MAX: u32 = 5;
const PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));

/// Counts how it goes.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Closed if none; else when the next probe may go.
    probe_at: Option<Instant>,
}

/// Leave to ask, which is told how it went. Given back without a word, as by whoever asked and went away, it says nothing.
#[derive(Debug)]
pub(crate) struct Leave<'a> {
    breaker: &'a Breaker,
    given: Instant,
    is_probe: bool,
    is_told: bool,
}

impl Breaker {
    /// Leave to ask now.
    ///
    /// # Errors
    /// When to try again.
    pub(crate) fn enter(&self, now: Instant) -> Result<Leave<'_>, Duration> {
        let mut state = self.state();
        let is_probe = state.probe_at.is_some();
        match state.probe_at {
            Some(at) if now < at => return Err(at - now),
            // This one is the probe; until it is back, nobody else goes.
            Some(_) => state.probe_at = Some(now + PAUSES.max),
            None => {}
        }
        Ok(Leave { breaker: self, given: now, is_probe, is_told: false })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// The issuer answered, whatever it said.
    pub(crate) fn answered(mut self) {
        self.is_told = true;
        *self.breaker.state() = State::default();
    }

    /// It did not.
    pub(crate) fn failed(mut self, now: Instant) {
        self.is_told = true;
        let mut state = self.breaker.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            let pause = PAUSES.jittered(state.failures - FAILURES_MAX);
            state.probe_at = Some(now + pause);
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_probe && !self.is_told {
            self.breaker.state().probe_at = Some(self.given);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, now: Instant, times: u32) {
        (0..times).for_each(|_| breaker.enter(now).unwrap().failed(now));
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_answered_probe_closes_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        fail(&breaker, now, FAILURES_MAX - 1);
        breaker.enter(now).unwrap().answered();
        fail(&breaker, now, FAILURES_MAX);
        let later = now + breaker.enter(now).unwrap_err();
        let probe = breaker.enter(later).unwrap();
        assert!(breaker.enter(later).is_err(), "only one probe at a time");
        probe.answered();
        breaker.enter(later).unwrap().answered();
    }

    #[test]
    fn those_who_go_away_before_the_answer_neither_open_it_nor_keep_it_open() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        (0..100).for_each(|_| drop(breaker.enter(now).unwrap()));
        fail(&breaker, now, FAILURES_MAX);
        let later = now + breaker.enter(now).unwrap_err();
        drop(breaker.enter(later).unwrap());
        assert!(breaker.enter(later).is_ok(), "the next one is the probe");
    }

    #[test]
    fn probes_of_an_issuer_that_stays_away_become_rare() {
        let (breaker, begin) = (Breaker::default(), Instant::now());
        fail(&breaker, begin, FAILURES_MAX);
        let (mut now, mut probes) = (begin, 0);
        while now - begin < Duration::from_secs(300) {
            match breaker.enter(now) {
                Ok(probe) => {
                    probes += 1;
                    probe.failed(now);
                }
                Err(pause) => now += pause,
            }
        }
        assert!((15..60).contains(&probes), "{probes} probes in five minutes");
    }
}
