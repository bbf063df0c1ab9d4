//! The desk where requests are announced: whoever holds the partitions hears that something was asked.
//!
//! Invariant: an announcement is a hint. Every worker looks at the requests when it begins, and a slow poll announces what
//! a lost signal did not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Signal};
use tombolo_db::Requests;
use tombolo_event::ServiceName;

/// How often requests that nobody was woken for are looked for.
const POLL: Duration = Duration::from_secs(10);
/// How long waking the other replicas may hold up whoever asks.
const SIGNAL_BOUND: Duration = Duration::from_millis(500);

/// Where requests are announced, in this process and in the other replicas.
pub(crate) struct Desk {
    bus: Arc<dyn Bus>,
    subject: String,
    token: Option<String>,
    asked: watch::Sender<u64>,
}

impl Desk {
    pub(crate) fn new(bus: Arc<dyn Bus>, service: &ServiceName, token: Option<String>) -> Self {
        Self { bus, subject: format!("requests.{service}"), token, asked: watch::Sender::new(0) }
    }

    /// What operators have to show, if anything.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The bus.
    pub(crate) fn bus(&self) -> &dyn Bus {
        &*self.bus
    }

    /// Changes whenever there may be something to carry out.
    pub(crate) fn announcements(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Wakes the holders, wherever they are.
    pub(crate) async fn wake(&self) {
        self.announce();
        let signal = Signal { reply_to: None, payload: Bytes::new() };
        // What is not heard is found by the poll.
        timeout(SIGNAL_BOUND, self.bus.signal(&self.subject, signal)).await.ok();
    }

    fn announce(&self) {
        self.asked.send_modify(|count| *count += 1);
    }

    /// Hears the other replicas, and polls, until it is stopped.
    pub(crate) async fn run(self: Arc<Self>, requests: Arc<dyn Requests>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.hear() => {}
            () = self.poll(&*requests) => {}
        }
    }

    async fn hear(&self) {
        let mut attempt = 0;
        loop {
            if let Ok(mut signals) = self.bus.listen(&self.subject, None).await {
                attempt = 0;
                while signals.next().await.is_some() {
                    self.announce();
                }
            }
            sleep(crate::RETRY.jittered(attempt)).await;
            attempt += 1;
        }
    }

    async fn poll(&self, requests: &dyn Requests) {
        let mut polls = interval(POLL);
        loop {
            polls.tick().await;
            // A database that is away is looked at again.
            if requests.has_open_requests().await.unwrap_or(false) {
                self.announce();
            }
        }
    }
}
