//! The load: writers that place one order after the other, each on its own key, and remember what was acknowledged.
//!
//! Invariant: one order of a key is on its way at a time, so what is acknowledged is in the order of its numbers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::process::Placed;

/// Writers at the same time.
pub(crate) const WRITERS: usize = 8;
/// Between two orders of a writer, so that the machine is not only busy with load.
const PACE: Duration = Duration::from_millis(3);

/// A load that goes on until it is stopped.
pub(crate) struct Load {
    state: Arc<State>,
    writers: JoinSet<()>,
}

struct State {
    stop: AtomicBool,
    outstanding: AtomicU64,
    acknowledged: Mutex<Vec<String>>,
}

impl Load {
    /// Writers, spread over the addresses; their keys begin with `keys`, which no other load of the run has.
    pub(crate) fn start(urls: &[&str], keys: &str) -> Self {
        let state = Arc::new(State {
            stop: AtomicBool::new(false),
            outstanding: AtomicU64::new(0),
            acknowledged: Mutex::default(),
        });
        let mut writers = JoinSet::new();
        for (writer, url) in (0..WRITERS).zip(urls.iter().cycle()) {
            writers.spawn(write(format!("{url}/orders"), format!("{keys}-{writer}"), Arc::clone(&state)));
        }
        Self { state, writers }
    }

    /// Requests that are sent and not answered.
    pub(crate) fn outstanding(&self) -> u64 {
        self.state.outstanding.load(Ordering::SeqCst)
    }

    /// How many orders were acknowledged so far.
    pub(crate) fn count(&self) -> usize {
        self.state.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Stops, and returns the acknowledged orders.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.state.stop.store(true, Ordering::SeqCst);
        while self.writers.join_next().await.is_some() {}
        std::mem::take(&mut self.state.acknowledged.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn write(url: String, key: String, state: Arc<State>) {
    let http = reqwest::Client::new();
    let mut n = 0;
    while !state.stop.load(Ordering::SeqCst) {
        n += 1;
        let placed = Placed { id: Uuid::now_v7().to_string(), key: key.clone(), n };
        state.outstanding.fetch_add(1, Ordering::SeqCst);
        let answer = http.post(&url).json(&placed).timeout(Duration::from_secs(10)).send().await;
        state.outstanding.fetch_sub(1, Ordering::SeqCst);
        if answer.is_ok_and(|answer| answer.status() == 201) {
            state.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(placed.id);
        }
        sleep(PACE).await;
    }
}
