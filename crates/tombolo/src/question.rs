//! The two other ways across: a question to one service (`call`) or to all who answer it (`gather`).
//!
//! Invariant: an answer belongs to the question whose id it carries, or to none; a deadline travels with the question;
//! a question that comes back to a service which is answering it is refused by name.

pub(crate) mod ask;
pub(crate) mod answer;
pub(crate) mod inbox;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tombolo_event::Why;
use uuid::Uuid;

/// Which listeners are heard on the bus by now. A service registers only when all of them are, so that whoever finds it
/// in the directory can ask it.
#[derive(Clone)]
pub(crate) struct Listeners(Arc<watch::Sender<Vec<bool>>>);

/// One of them.
pub(crate) struct Heard {
    all: Listeners,
    index: usize,
}

impl Listeners {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    /// One more to wait for.
    pub(crate) fn expect(&self) -> Heard {
        let mut index = 0;
        self.0.send_modify(|heard| {
            index = heard.len();
            heard.push(false);
        });
        Heard { all: self.clone(), index }
    }

    /// Waits until all are heard.
    pub(crate) async fn all(&self) {
        // The sender is in here, so this cannot fail.
        self.0.subscribe().wait_for(|heard| heard.iter().all(|&heard| heard)).await.ok();
    }
}

impl Heard {
    /// From now on this one is heard.
    pub(crate) fn say(&self) {
        self.all.0.send_modify(|heard| heard[self.index] = true);
    }
}

/// The subject on which a service is asked.
pub(crate) fn subject(service: &str, question: &str) -> String {
    format!("question.{service}.{question}")
}

/// A question on the bus.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) id: Uuid,
    /// What is left of the time, in milliseconds.
    pub(crate) left_ms: u64,
    /// The services that are answering on the way here.
    pub(crate) asked: Vec<String>,
    pub(crate) traceparent: String,
    pub(crate) correlation: Option<String>,
    pub(crate) question: Box<RawValue>,
}

/// An answer on the bus.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// The question's id.
    pub(crate) id: Uuid,
    pub(crate) service: String,
    pub(crate) outcome: Outcome,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Answer(Box<RawValue>),
    Failure(Failure),
}

/// Why there is no answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) why: Why,
    pub(crate) detail: String,
}
