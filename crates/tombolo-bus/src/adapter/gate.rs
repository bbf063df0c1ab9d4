//! Whether a server is there, as far as was tried: after a failure nothing is tried until a back-off is over.
//!
//! Invariant: a server that goes away is said once, and once that it is back; in between, callers are refused at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tombolo_event::Backoff;

use crate::{Error, Kind, Result};

/// How long to wait before a connection is tried again.
pub(crate) const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(4));

/// The gate in front of one server, and what it was found to be when it was reached last.
pub(crate) struct Gate<F> {
    /// The engine and the place, for people.
    server: String,
    state: Mutex<State<F>>,
}

struct State<F> {
    failures: u32,
    until: Option<Instant>,
    why: String,
    found: Option<F>,
}

impl<F: Clone> Gate<F> {
    pub(crate) fn new(server: String) -> Self {
        let state = State { failures: 0, until: None, why: String::new(), found: None };
        Self { server, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses at once what would only wait.
    ///
    /// # Errors
    /// `Unavailable` while the back-off lasts.
    pub(crate) fn may_try(&self) -> Result<()> {
        let state = self.state();
        match state.until.filter(|until| Instant::now() < *until) {
            Some(_) => Err(Error::new(Kind::Unavailable, format!("{}; tried again soon", state.why))),
            None => Ok(()),
        }
    }

    /// A connection could not be made. Anything but `Unavailable` is said by the caller, each time.
    pub(crate) fn missed(&self, error: &Error) {
        if !error.is_transient() {
            return;
        }
        let mut state = self.state();
        if state.until.is_none() {
            tracing::warn!(%error, "{} is away; connecting again with a back-off", self.server);
        }
        let now = Instant::now();
        if state.until.is_none_or(|until| now >= until) {
            state.until = Some(now + RECONNECT.jittered(state.failures));
            state.failures = state.failures.saturating_add(1);
        }
        state.why = error.to_string();
    }

    /// A connection was made.
    pub(crate) fn arrived(&self, found: F) {
        let mut state = self.state();
        let was_away = state.until.take().is_some();
        state.failures = 0;
        if was_away || state.found.is_none() {
            tracing::info!("connected to {}", self.server);
        }
        state.found = Some(found);
    }

    pub(crate) fn found(&self) -> Option<F> {
        self.state().found.clone()
    }

    /// Changes what is known of the server.
    #[cfg(feature = "postgres")]
    pub(crate) fn learn(&self, change: impl FnOnce(&mut F)) {
        if let Some(found) = &mut self.state().found {
            change(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_callers_are_refused_until_the_back_off_is_over() {
        let gate = Gate::<()>::new("a server".into());
        assert!(gate.may_try().is_ok());
        gate.missed(&Error::new(Kind::Configuration, "wrong password"));
        assert!(gate.may_try().is_ok(), "what no time heals is tried each time");
        gate.missed(&Error::new(Kind::Unavailable, "connection refused"));
        let refused = gate.may_try().unwrap_err();
        assert!(refused.is_transient() && refused.to_string().contains("connection refused"));
        gate.arrived(());
        assert!(gate.may_try().is_ok());
    }
}
