//! What belongs to the work at hand: its trace, its deadline, who has been asked on the way here, whether
//! a transaction is open, and what its response will say of writes.
//!
//! One mechanism for requests, questions and events: whoever begins a piece of work wraps it in [`Current::scope`];
//! `begin`, `call` and `gather` look here. It follows a task, not a `tokio::spawn`.
//!
//! Invariant: a deadline only shrinks, and a path only grows, from one service to the next.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tombolo_event::position::POSITION_HEADER;
use tombolo_event::{Positions, TraceContext};

use crate::Freshness;

/// What is left of the time, in milliseconds, in the header of a call.
pub(crate) const DEADLINE_HEADER: &str = "tombolo-deadline-ms";
/// The services that a question has passed through, with commas between.
pub(crate) const ASKED_HEADER: &str = "tombolo-asked";
/// What everything that follows from one first cause shares.
pub(crate) const CORRELATION_HEADER: &str = "tombolo-correlation";
const TRACE_HEADER: &str = "traceparent";
/// The longest path of services asked in a chain.
const ASKED_MAX: usize = 32;

tokio::task_local! {
    static CURRENT: Current;
}

/// The work at hand.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    pub(crate) trace: TraceContext,
    pub(crate) correlation: Option<String>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) asked: Vec<String>,
    /// The writes that a reader shall have applied, as the request names them.
    pub(crate) positions: Option<String>,
    written: Arc<Mutex<Positions>>,
    freshness: Arc<Mutex<Option<Freshness>>>,
    open: Arc<Mutex<Vec<Weak<AtomicBool>>>>,
    #[cfg(feature = "auth")]
    pub(crate) for_whom: Arc<Mutex<crate::auth::ForWhom>>,
}

impl Current {
    /// Work that nobody caused.
    pub(crate) fn begin() -> Self {
        Self::within(TraceContext::begin(), None)
    }

    /// Work within a trace.
    pub(crate) fn within(trace: TraceContext, correlation: Option<String>) -> Self {
        Self {
            trace,
            correlation,
            deadline: None,
            asked: Vec::new(),
            positions: None,
            written: Arc::default(),
            freshness: Arc::default(),
            open: Arc::default(),
            #[cfg(feature = "auth")]
            for_whom: Arc::default(),
        }
    }

    /// Work that a request over HTTP causes.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let trace = text(TRACE_HEADER).and_then(|header| header.parse::<TraceContext>().ok());
        let mut current = Self::within(
            trace.map_or_else(TraceContext::begin, TraceContext::child),
            text(CORRELATION_HEADER).map(str::to_owned),
        );
        if let Some(left_ms) = text(DEADLINE_HEADER).and_then(|left| left.parse().ok()) {
            current.deadline = Some(Instant::now() + Duration::from_millis(left_ms));
        }
        let positions: Vec<_> = headers.get_all(POSITION_HEADER).iter().map(HeaderValue::as_bytes).collect();
        if !positions.is_empty() {
            current.positions = Some(String::from_utf8_lossy(&positions.join(&b',')).into_owned());
        }
        if let Some(asked) = text(ASKED_HEADER) {
            current.asked =
                asked.split(',').take(ASKED_MAX).map(|service| service.trim().to_owned()).collect();
        }
        current
    }

    /// The headers of a request that this work sends.
    pub(crate) fn headers(&self, left: Duration) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (TRACE_HEADER, self.trace.child().to_string()),
            (DEADLINE_HEADER, left.as_millis().to_string()),
            (ASKED_HEADER, self.asked.join(",")),
        ];
        headers.extend(self.correlation.clone().map(|correlation| (CORRELATION_HEADER, correlation)));
        headers
    }

    /// The work at hand, or a new one.
    pub(crate) fn get() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_else(|_| Self::begin())
    }

    /// Runs `work` as this.
    pub(crate) async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// Remembers that a transaction was opened; `used` turns true with its first statement and dies with it.
    pub(crate) fn opened(used: Weak<AtomicBool>) {
        let remember = |current: &Self| {
            let mut open = lock(&current.open);
            open.retain(|transaction| transaction.strong_count() > 0);
            open.push(used);
        };
        // Outside any scope (a task of the user's own) there is nobody to remind.
        CURRENT.try_with(remember).ok();
    }

    /// Whether a transaction in which something was done is open.
    pub(crate) fn holds_transaction(&self) -> bool {
        lock(&self.open).iter().filter_map(Weak::upgrade).any(|used| used.load(Ordering::Relaxed))
    }

    /// Where commits note what they published.
    pub(crate) fn writes(&self) -> Arc<Mutex<Positions>> {
        Arc::clone(&self.written)
    }

    /// What was published so far.
    pub(crate) fn written(&self) -> Positions {
        lock(&self.written).clone()
    }

    /// Remembers what a reader found of the writes that the request names.
    pub(crate) fn note_freshness(&self, found: Freshness) {
        let mut freshness = lock(&self.freshness);
        *freshness = Some(match freshness.take() {
            Some(before) => before.and(found),
            None => found,
        });
    }

    /// The worst that was found.
    pub(crate) fn freshness(&self) -> Option<Freshness> {
        lock(&self.freshness).clone()
    }

    /// Remembers for whom this work is done.
    #[cfg(feature = "auth")]
    pub(crate) fn note_user(user: &crate::auth::User) {
        let remember = |current: &Self| lock(&current.for_whom).user = Some(Ok(user.clone()));
        // Outside any scope nobody calls on.
        CURRENT.try_with(remember).ok();
    }

    /// For which user this work is done, or why that is not known.
    #[cfg(feature = "auth")]
    pub(crate) fn user(&self) -> Option<Result<crate::auth::User, crate::auth::Refusal>> {
        lock(&self.for_whom).user.clone()
    }

    /// Which service asked for this work.
    #[cfg(feature = "auth")]
    pub(crate) fn caller(&self) -> Option<Result<crate::auth::Caller, crate::auth::Refusal>> {
        lock(&self.for_whom).caller.clone()
    }

    /// What is left of the time: the deadline's rest, at most `bound`.
    pub(crate) fn left(&self, bound: Duration) -> Duration {
        match self.deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(bound),
            None => bound,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_travels_and_only_shrinks() {
        let mut current = Current::begin();
        current.deadline = Some(Instant::now() + Duration::from_millis(80));
        current.asked = vec!["a".into(), "b".into()];
        let left = current.left(Duration::from_secs(5));
        assert!(left <= Duration::from_millis(80));
        let mut headers = HeaderMap::new();
        for (name, value) in current.headers(left) {
            headers.insert(name, value.parse().unwrap());
        }
        let next = Current::from_headers(&headers);
        assert!(next.left(Duration::from_secs(5)) <= Duration::from_millis(80));
        assert_eq!(next.asked, ["a", "b"]);
        assert_eq!(next.trace.trace_id(), current.trace.trace_id());
    }

    #[tokio::test]
    async fn only_a_used_and_open_transaction_is_held() {
        let used = Arc::new(AtomicBool::new(false));
        Current::begin()
            .scope(async {
                Current::opened(Arc::downgrade(&used));
                assert!(!Current::get().holds_transaction());
                used.store(true, Ordering::Relaxed);
                assert!(Current::get().holds_transaction());
                drop(used);
                assert!(!Current::get().holds_transaction());
            })
            .await;
    }
}
