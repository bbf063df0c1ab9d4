//! Wakes the relay for what other programs insert into the foreign outbox: nothing else says that they have committed.
//!
//! Looks every 10 ms while something moves, and less and less often while nothing does, down to once in a second. Where the
//! database gives hints, those wake at once, and the looks are the net under them. Works beside a leader and beside one
//! that follows, who passes the wake-up on.
//!
//! Invariant: wake-ups are hints; what is missed by all of them is found by the next look.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_db::{HintStream, Outbox};
use tombolo_event::Backoff;

/// How often the foreign outbox is looked at, from and to.
const LOOK: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
/// How often it is looked at beside hints.
const LOOK_BESIDE_HINTS: Duration = Duration::from_secs(1);

/// What wakes the relay.
pub(crate) struct Watch {
    pub(crate) service: String,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) woken: Arc<Notify>,
    /// Whether the database is asked for hints.
    pub(crate) hears: bool,
    pub(crate) stop: CancellationToken,
}

impl Watch {
    /// Runs until it is stopped.
    pub(crate) async fn run(self) {
        let (mut pace, mut hints, mut said) = (Pace::default(), None, String::new());
        while !self.stop.is_cancelled() {
            if let Err(error) = self.look(&mut pace, &mut hints).await {
                pace.looked(None);
                if said != error.to_string() {
                    said = error.to_string();
                    tracing::warn!(service = %self.service, "cannot look for what other programs publish: {error}");
                }
            }
            let pause = if hints.is_some() { LOOK_BESIDE_HINTS } else { pace.pause() };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = heard(&mut hints) => self.woken.notify_one(),
                () = sleep(pause) => {}
            }
        }
    }

    async fn look(&self, pace: &mut Pace, hints: &mut Option<HintStream>) -> tombolo_db::Result<()> {
        if self.hears && hints.is_none() {
            *hints = self.outbox.foreign_hints().await?;
        }
        let first = self.outbox.foreign_waiting().await?;
        if first.is_some() {
            self.woken.notify_one();
        }
        pace.looked(first);
        Ok(())
    }
}

/// Waits for a hint. A stream that ends is made again with the next look.
async fn heard(hints: &mut Option<HintStream>) {
    let Some(stream) = hints else { return std::future::pending().await };
    if stream.next().await.is_none() {
        *hints = None;
        sleep(LOOK_BESIDE_HINTS).await;
    }
}

/// How often to look.
#[derive(Debug, Default)]
struct Pace {
    /// What waited first, at the last look.
    first: Option<i64>,
    /// How many looks found nothing new.
    still: u32,
}

impl Pace {
    /// Something that waits and was not there before shows that there is traffic; what stays there waits for the bus.
    fn looked(&mut self, first: Option<i64>) {
        let is_news = first.is_some() && first != self.first;
        self.still = if is_news { 0 } else { self.still.saturating_add(1) };
        self.first = first;
    }

    fn pause(&self) -> Duration {
        LOOK.delay(self.still, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_frequent_while_something_moves_and_rare_while_nothing_does() {
        let mut pace = Pace::default();
        let mut look = |first| {
            pace.looked(first);
            pace.pause().as_millis()
        };
        assert_eq!(look(Some(1)), 10);
        assert_eq!(look(Some(2)), 10);
        let idle: Vec<u128> = (0..9).map(|_| look(None)).collect();
        assert!(idle.is_sorted() && idle[0] <= 20 && idle[8] == 1_000, "{idle:?}");
        assert_eq!(look(Some(3)), 10);
        // The bus is away: the same row waits.
        let stuck: Vec<u128> = (0..9).map(|_| look(Some(3))).collect();
        assert_eq!(stuck[8], 1_000, "{stuck:?}");
    }
}
