//! The operators' half of the port: what was asked of a subscription, and what became of it.
//!
//! Invariant: a request gets one outcome. Whoever carries it out writes the outcome in the transaction of the work
//! ([`crate::Transaction::finish`]), so that it is done exactly once whatever crashes.

use async_trait::async_trait;
use tombolo_event::operator::{Outcome, Request};
use uuid::Uuid;

use crate::Result;

/// The most requests that may wait at once.
pub const REQUESTS_OPEN_MAX: usize = 10_000;
/// How many requests that have their outcome are kept; older ones are removed when new ones come.
pub const REQUESTS_KEPT_MAX: usize = 100_000;

/// Requests of operators, kept in the service's database.
#[async_trait]
pub trait Requests: Send + Sync + 'static {
    /// Writes requests down, all or none.
    ///
    /// # Errors
    /// `Refused` if [`REQUESTS_OPEN_MAX`] would wait.
    async fn ask(&self, requests: &[Request]) -> Result<()>;

    /// The requests of a subscription that wait, oldest first.
    async fn open_requests(&self, subscription: &str) -> Result<Vec<Request>>;

    /// Whether any request of the service waits: the one cheap question of the poll under the wake-ups.
    async fn has_open_requests(&self) -> Result<bool>;

    /// Writes the outcome of a request that is not carried out in a transaction.
    ///
    /// # Errors
    /// `Refused` if it has one already, or does not exist; nothing was changed.
    async fn finish(&self, request: Uuid, outcome: &Outcome) -> Result<()>;

    /// One request.
    async fn request(&self, id: Uuid) -> Result<Option<Request>>;

    /// The last `most` requests, newest first.
    async fn requests(&self, most: usize) -> Result<Vec<Request>>;
}

/// What whoever comes too late is told.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn not_open(request: Uuid) -> crate::Error {
    crate::Error::new(
        crate::Kind::Refused,
        format!("request {request} does not wait: it has its outcome already, or was never asked"),
    )
}

/// What an operator is told when too much waits.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn too_many(waiting: i64) -> crate::Error {
    crate::Error::new(
        crate::Kind::Refused,
        format!(
            "{waiting} requests wait already, and at most {REQUESTS_OPEN_MAX} may; look why nobody carries them out (`tombolo subscriptions list`)"
        ),
    )
}
