//! When a block, an unblock or a sign-out of a user has taken effect, as an operator asks every process and each answers for itself.
//!
//! ```text
//!  operator ── signal on SUBJECT: Asked { user } ──► every process that checks tokens ── InEffect ──► the operator's subject
//! ```
//!
//! Invariant: a process says only what it knows itself; what it has not heard yet is for the operator to see by comparing.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The subject of the bus on which everybody is asked.
pub const SUBJECT: &str = "auth.propagation";

/// The last words of the question by which an issuer is asked for a [`Standing`]; its own types' first words stand before.
pub const STANDING: &str = "standing.v1";

/// Of which user the effect is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The user.
    pub user: String,
}

/// What one process has heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InEffect {
    /// The service.
    pub service: String,
    /// Which of its replicas.
    pub replica: u32,
    /// How it checks: `local`, `central`, `gateway`. What is asked centrally takes effect with the next request.
    pub way: String,
    /// Whether it has heard everything that was on the bus when it was asked.
    pub has_heard_all: bool,
    /// What it knows of the user; none if nothing was said for as long as a token lives.
    pub known: Option<Known>,
}

/// What a process knows of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The user's version.
    pub version: u64,
    /// Whether the user is blocked.
    pub blocked: bool,
    /// When it took effect there.
    pub since: Timestamp,
}

/// What the issuer itself says of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Standing {
    /// The user's version, which each block, unblock and sign-out raises.
    pub version: u64,
    /// Whether the user is blocked.
    pub blocked: bool,
    /// How many events the issuer has not sent to the bus yet.
    pub waiting: u64,
}
