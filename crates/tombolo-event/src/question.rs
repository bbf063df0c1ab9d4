//! Questions: what one service asks others, and the honest answer.
//!
//! Invariant: who did not answer is part of the result, with the reason; a partial answer never looks whole.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A typed request that other services answer, by a call or by a gather.
pub trait Question: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The durable name with its version, such as `orders.of-user.v1`.
    const NAME: &'static str;
    /// What each service answers with.
    type Answer: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
}

/// The result of a gather: what was reduced, who answered, and who did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gathered<T> {
    /// What the answers were reduced to.
    pub value: T,
    /// The services whose answers are in it.
    pub answered: Vec<String>,
    /// The services that should have answered and did not.
    pub missing: Vec<Missing>,
}

impl<T> Gathered<T> {
    /// Whether everybody answered who should have.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// A service that should have answered and did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which service.
    pub service: String,
    /// Why, for code.
    pub reason: Why,
    /// Why, for people.
    pub detail: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.detail)
    }
}

/// Why an answer is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Why {
    /// No process of the service listens.
    NotRunning,
    /// The deadline passed.
    TimedOut,
    /// The service answered with an error.
    Failed,
    /// The answer is not what the question's type says.
    Malformed,
    /// The question has already passed through the service: a loop.
    Loop,
    /// The bus, which carries the question, cannot be reached.
    BusAway,
}
