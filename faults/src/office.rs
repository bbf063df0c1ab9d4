//! The office to which the consumer's effect sends a letter for each order. A letter that comes again with the same key is
//! known again, as a mail server or a payment provider knows it.
//!
//! Invariant: it outlives all that happens to the processes, and forgets nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::process::Outcome;

/// What is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) key: String,
    pub(crate) order: String,
}

/// An open office.
pub(crate) struct Office {
    pub(crate) url: String,
    arrived: Arc<Mutex<Arrived>>,
    /// Ends when the office is dropped.
    _clerk: JoinSet<()>,
}

/// What arrived.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    /// Of each order, the keys under which letters about it came.
    pub(crate) keys: BTreeMap<String, Vec<String>>,
    /// Letters that came again under a known key.
    pub(crate) repeats: usize,
}

impl Office {
    pub(crate) async fn open() -> Outcome<Self> {
        let arrived = Arc::<Mutex<Arrived>>::default();
        let router = Router::new().route("/", post(arrive)).with_state(Arc::clone(&arrived));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let mut clerk = JoinSet::new();
        clerk.spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        Ok(Self { url, arrived, _clerk: clerk })
    }

    pub(crate) fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn arrive(State(arrived): State<Arc<Mutex<Arrived>>>, Json(letter): Json<Letter>) {
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let keys = arrived.keys.entry(letter.order).or_default();
    if keys.contains(&letter.key) {
        arrived.repeats += 1;
    } else {
        keys.push(letter.key);
    }
}
