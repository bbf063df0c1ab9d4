//! The load: writers that place one order after the other, each on its own key, and remember what was acknowledged; and
//! heaps of orders, many in one transaction.
//!
//! Invariant: one order of a key is on its way at a time, so what is acknowledged is in the order of its numbers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::process::{Outcome, Placed, World};
use crate::roles::SOUR;

/// Writers at the same time.
pub(crate) const WRITERS: usize = 8;
/// How many of them place sour orders, if any do.
const SOUR_WRITERS: usize = 2;
/// Orders of one sour key.
const SOUR_KEY_ORDERS: i64 = 20;
/// Between two orders of a writer, so that the machine is not only busy with load; and where each order has a letter, which
/// takes the consumer two transactions more.
const PACE: Duration = Duration::from_millis(3);
const PACE_WITH_LETTERS: Duration = Duration::from_millis(25);
/// How long an order may take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Heaps under way at the same time, each with keys of its own.
const HEAPS: usize = 4;
/// Orders of one transaction of a heap, at most.
const HEAP_ORDERS_MAX: usize = 1_000;

/// A load that goes on until it is stopped.
pub(crate) struct Load {
    state: Arc<State>,
    writers: JoinSet<()>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    outstanding: AtomicU64,
    acknowledged: Mutex<Vec<String>>,
    /// How long the acknowledged ones took since somebody asked.
    took: Mutex<Vec<Duration>>,
    /// Why one was refused since somebody asked.
    refused: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Writers, spread over the replicas of the producer; their keys begin with `keys`, which no other load of the run has.
    pub(crate) fn start(world: &World<'_>, keys: &str) -> Self {
        Self::start_with(world, |writer| format!("{keys}-{writer}"))
    }

    /// The same with a few writers whose orders are sour.
    pub(crate) fn start_with_sour(world: &World<'_>, keys: &str) -> Self {
        let kind = |writer| if writer < SOUR_WRITERS { SOUR } else { keys };
        Self::start_with(world, |writer| format!("{}-{writer}", kind(writer)))
    }

    fn start_with(world: &World<'_>, key: impl Fn(usize) -> String) -> Self {
        let usual = if world.scene.office.is_some() { PACE_WITH_LETTERS } else { PACE };
        let pace = world.scene.pace.unwrap_or(usual);
        let urls = world.producers();
        let state = Arc::new(State::default());
        let mut writers = JoinSet::new();
        for (writer, url) in (0..WRITERS).zip(urls.iter().cycle()) {
            writers.spawn(write(format!("{url}/orders"), key(writer), pace, Arc::clone(&state)));
        }
        Self { state, writers }
    }

    /// Requests that are sent and not answered.
    pub(crate) fn outstanding(&self) -> u64 {
        self.state.outstanding.load(Ordering::SeqCst)
    }

    /// How many orders were acknowledged so far.
    pub(crate) fn count(&self) -> usize {
        lock(&self.state.acknowledged).len()
    }

    /// What 99 of 100 orders took at most, of those that were acknowledged since the last look.
    pub(crate) fn p99(&self) -> Duration {
        let mut took = std::mem::take(&mut *lock(&self.state.took));
        took.sort_unstable();
        took.get(took.len() * 99 / 100).copied().unwrap_or_default()
    }

    /// Why an order was refused since the last look, if one was.
    pub(crate) fn refused(&self) -> Option<String> {
        lock(&self.state.refused).take()
    }

    /// Stops, and returns the acknowledged orders.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.state.stop.store(true, Ordering::SeqCst);
        while self.writers.join_next().await.is_some() {}
        std::mem::take(&mut lock(&self.state.acknowledged))
    }
}

async fn write(url: String, key: String, pace: Duration, state: Arc<State>) {
    let http = reqwest::Client::new();
    let mut n = 0;
    while !state.stop.load(Ordering::SeqCst) {
        n += 1;
        // A sour key is soon parked, and the next one still has to be. The others end in a digit by which some go by later.
        let turn = key.starts_with(SOUR).then(|| format!("-{}", n / SOUR_KEY_ORDERS));
        let placed = Placed::new(&format!("{key}{}", turn.unwrap_or_default()), n);
        let began = Instant::now();
        state.outstanding.fetch_add(1, Ordering::SeqCst);
        let answer = http.post(&url).json(&placed).timeout(ANSWER_BOUND).send().await;
        state.outstanding.fetch_sub(1, Ordering::SeqCst);
        match answer {
            Ok(answer) if answer.status() == 201 => {
                lock(&state.took).push(began.elapsed());
                lock(&state.acknowledged).push(placed.id);
            }
            Ok(answer) => *lock(&state.refused) = answer.text().await.ok(),
            Err(_) => {}
        }
        sleep(pace).await;
    }
}

/// Places so many orders as fast as they are taken, each with `pad` bytes that nobody needs. Returns them, all acknowledged.
pub(crate) async fn heap(url: &str, orders: usize, pad: usize) -> Outcome<Vec<String>> {
    let mut heaps = JoinSet::new();
    for number in 0..HEAPS {
        let share = orders / HEAPS + usize::from(number < orders % HEAPS);
        heaps.spawn(pile(format!("{url}/orders/many"), format!("{}-heap", Uuid::now_v7()), share, pad));
    }
    let mut acknowledged = Vec::with_capacity(orders);
    while let Some(piled) = heaps.join_next().await {
        acknowledged.extend(piled?.map_err(|refused| format!("a heap of orders was refused: {refused}"))?);
    }
    Ok(acknowledged)
}

async fn pile(url: String, key: String, orders: usize, pad: usize) -> reqwest::Result<Vec<String>> {
    let http = reqwest::Client::new();
    let mut acknowledged = Vec::with_capacity(orders);
    while acknowledged.len() < orders {
        let from = acknowledged.len();
        let to = orders.min(from + HEAP_ORDERS_MAX);
        let placed: Vec<Placed> =
            (from..to).map(|n| Placed { pad: "x".repeat(pad), ..Placed::new(&key, n as i64 + 1) }).collect();
        http.post(&url).json(&placed).send().await?.error_for_status()?;
        acknowledged.extend(placed.into_iter().map(|placed| placed.id));
    }
    Ok(acknowledged)
}
