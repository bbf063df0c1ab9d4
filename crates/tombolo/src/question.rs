//! The two other ways across: a question to one service (`call`) or to all who answer it (`gather`).
//!
//! Invariant: an answer belongs to the question whose id it carries, or to none; a deadline travels with the question;
//! a question that comes back to a service which is answering it is refused by name.

pub(crate) mod ask;
pub(crate) mod answer;
pub(crate) mod inbox;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tombolo_event::Why;
use uuid::Uuid;

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
    #[serde(flatten)]
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
