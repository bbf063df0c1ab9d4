//! What a running service says of itself at `GET /tombolo/status`: where it stands, in words that tell "behind but
//! moving" from "stuck". The same figures, as numbers over time, are its metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A service's own status.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The service.
    pub service: String,
    /// Which of its replicas.
    pub replica: u32,
    /// Its subscriptions.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Its relay; none for a service that publishes nothing.
    pub relay: Option<RelayStatus>,
}

/// Where a subscription stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubscriptionStatus {
    /// Its name.
    pub name: String,
    /// `view`, `reactor` or `effect`.
    pub kind: String,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
    /// How many events are on the bus that it has not handled.
    pub lag_events: u64,
    /// How old the last handled event was when it was handled, while it is behind; 0 when it is not.
    pub lag_seconds: f64,
    /// How many keys are parked in the partitions that this process holds.
    #[serde(default)]
    pub parked_keys: u64,
    /// How many events are parked there.
    #[serde(default)]
    pub parked_events: u64,
    /// When the oldest of them was parked.
    #[serde(default)]
    pub oldest_parked: Option<Timestamp>,
    /// The worst of its partitions' states.
    pub state: State,
    /// What an operator should know.
    pub detail: Option<String>,
}

impl SubscriptionStatus {
    /// One of which nothing is known yet.
    pub(crate) fn blank(name: &str, kind: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            partitions: Vec::new(),
            lag_events: 0,
            lag_seconds: 0.0,
            parked_keys: 0,
            parked_events: 0,
            oldest_parked: None,
            state: State::Waiting,
            detail: None,
        }
    }
}

/// Where a subscription stands in one partition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The last sequence handled.
    pub sequence: u64,
    /// The last sequence known to be on the bus.
    pub tail: u64,
    /// What is between them.
    pub lag_events: u64,
    /// Whether this process handles it.
    pub held: bool,
    /// The attempts recorded at the next event.
    pub attempts: u32,
    /// Why nothing of it is handled for now, if that is so, and what to do.
    pub error: Option<String>,
    /// How many keys are parked.
    #[serde(default)]
    pub parked_keys: u64,
    /// How many events are parked.
    #[serde(default)]
    pub parked_events: u64,
    /// When the oldest of them was parked.
    #[serde(default)]
    pub oldest_parked: Option<Timestamp>,
    /// How it is.
    pub state: State,
}

/// How a subscription or partition is; the later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// At the tail.
    Live,
    /// Behind, and moving.
    Behind,
    /// Waiting for the bus, the database, a topic that does not exist yet, or a lease that another replica holds. Goes on by itself.
    Waiting,
    /// Paused by an operator, until one resumes it.
    Paused,
    /// Many keys fail alike, or too much is parked: nothing moves and nothing more is parked until what is wrong is repaired. Tries again by itself.
    Stuck,
    /// Stopped by name: going on would step over something that was lost or changed. Needs an operator.
    Stopped,
}

/// How the relay is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Whether this process leads.
    pub leading: bool,
    /// Its epoch, while it leads.
    pub epoch: u64,
    /// `idle`, `moving`, `waiting: …` or `stopped: …`, with the reason.
    pub state: String,
    /// Whether nobody may lead until an operator decides, because the database and the bus do not agree (`tombolo recover`).
    #[serde(default)]
    pub is_halted: bool,
    /// Rows that wait in the outbox.
    pub outbox_rows: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// The age of the oldest of them.
    pub oldest_seconds: f64,
    /// Rows that other programs wrote and that no bus will take; others of their keys wait behind them.
    #[serde(default)]
    pub parked_rows: u64,
    /// Events that are kept for later.
    #[serde(default)]
    pub later_rows: u64,
    /// When the next of them is due.
    #[serde(default)]
    pub next_due: Option<Timestamp>,
}

/// The places where the service's tasks write how they are.
#[derive(Debug, Default)]
pub(crate) struct Board {
    relay: Mutex<Option<RelayStatus>>,
    subscriptions: Mutex<BTreeMap<String, SubscriptionStatus>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    pub(crate) fn relay(&self, change: impl FnOnce(&mut RelayStatus)) {
        change(lock(&self.relay).get_or_insert_default());
    }

    pub(crate) fn subscription(&self, status: SubscriptionStatus) {
        lock(&self.subscriptions).insert(status.name.clone(), status);
    }

    /// Changes what a subscription's worker said before.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut SubscriptionStatus)) {
        lock(&self.subscriptions).get_mut(name).map(change);
    }

    pub(crate) fn read(self: &Arc<Self>, service: &str, replica: u32) -> ServiceStatus {
        ServiceStatus {
            service: service.to_owned(),
            replica,
            subscriptions: lock(&self.subscriptions).values().cloned().collect(),
            relay: lock(&self.relay).clone(),
        }
    }
}
