//! Bounds how much a connection of HTTP/2 may begin and throw away: a request that its client resets cost it nothing, and a
//! service perhaps much ("rapid reset").
//!
//! Invariant: a client that waits for as many answers as it throws away is never cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_util::sync::CancellationToken;

use crate::mutant::{self, Mutant};

/// How many more requests than were answered may be thrown away.
const AHEAD_MAX: u32 = 100;

/// The count of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resets {
    ahead: Arc<AtomicU32>,
    /// Cancelled when it was too much.
    pub(crate) too_many: CancellationToken,
}

impl Resets {
    /// What a request is, from its beginning to its answer or its client's reset.
    pub(crate) async fn count<T>(&self, request: impl Future<Output = T>) -> T {
        let mut begun = Begun { resets: self, is_answered: false };
        let answer = request.await;
        begun.is_answered = true;
        answer
    }
}

/// A request under way.
struct Begun<'r> {
    resets: &'r Resets,
    is_answered: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let count = |ahead: u32| match self.is_answered {
            true => ahead.saturating_sub(1),
            false => ahead.saturating_add(1),
        };
        let order = Ordering::Relaxed;
        let before = self.resets.ahead.fetch_update(order, order, |ahead| Some(count(ahead)));
        let is_too_many = before.is_ok_and(|ahead| count(ahead) > AHEAD_MAX);
        if is_too_many && !mutant::is_on(Mutant::CountsNoResets) {
            self.resets.too_many.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn thrown_away(resets: &Resets) {
        let request = pin!(resets.count(pending::<()>()));
        assert!(request.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn who_only_throws_away_is_cut_and_who_waits_for_as_many_is_not() {
        let resets = Resets::default();
        for _ in 0..10 * AHEAD_MAX {
            thrown_away(&resets);
            resets.count(ready(())).await;
        }
        for _ in 0..AHEAD_MAX {
            thrown_away(&resets);
        }
        assert!(!resets.too_many.is_cancelled());
        thrown_away(&resets);
        assert!(resets.too_many.is_cancelled());
    }
}
