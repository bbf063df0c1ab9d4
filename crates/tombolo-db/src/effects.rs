//! The effects' part of the port: the calls that a subscription makes, and how far each has come.
//!
//! ```text
//!  sequence   1    2    3    4    5    6    7
//!  call      done done  |   done  |   open  -      done: its completion is stored; open: it was begun
//!                       └ cursor at 3: 4 is done beyond it, 5 was not begun or is no event of this subscription
//!  rows       └────┴ kept for people, until there are enough after them
//! ```
//!
//! Calls of different keys end in any order, so a completion beyond the cursor is a row of its own; whoever begins
//! again after a crash reads these rows and makes no call again that is done.
//!
//! Invariants, which the conformance suite checks case by case for every database:
//! - a completion is stored under the claim's lease and beside the claim's cursor, in the transaction of what goes with it;
//! - a call that is done stays done, whoever records another try of it; one that is done with an error is parked, and may be
//!   done again without one;
//! - rows below the cursor are bounded in number.

use async_trait::async_trait;
use jiff::Timestamp;
use tombolo_event::EventId;

use crate::{Claim, Result};

/// How many sequences below its cursor a partition keeps the rows of, for people.
pub const CALLS_KEPT: u64 = 1_000;
/// The most bytes of what a call returned that are kept, as JSON.
pub const RESULT_BYTES_MAX: usize = 16 << 10;

/// The effects' part of the port; completing a call is [`crate::Transaction::complete`].
#[async_trait]
pub trait Effects: Send + Sync + 'static {
    /// Records how far a call has come that is not done, in a transaction of its own which need not be synced: before
    /// each try, and after one that failed. A call of another event under the same sequence is replaced.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch.
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()>;

    /// The calls after the claim's cursor, by sequence.
    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>>;

    /// The call for the event at a sequence, wherever the cursor is.
    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>>;

    /// Removes the calls that are more than `keep` sequences below their cursor.
    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()>;

    /// The latest `most` calls of a subscription, done or not, the latest first, for people.
    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>>;
}

/// The call that an effect makes for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectCall {
    /// The event's sequence.
    pub sequence: u64,
    /// The event.
    pub id: EventId,
    /// How often it was tried.
    pub attempts: u32,
    /// What it returned, as JSON, once it has returned.
    pub result: Option<String>,
    /// What the last try failed with; of a call that is done: why it is parked.
    pub error: Option<String>,
}

/// A call as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallState {
    /// The call.
    pub call: EffectCall,
    /// When its completion was stored; none while it is open.
    pub done_at: Option<Timestamp>,
}

/// A call with its place, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestCall {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The call.
    pub state: CallState,
}

/// The call was completed before, by somebody who held the same lease.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn done_before(claim: &Claim, call: &EffectCall) -> crate::Error {
    crate::Error::new(
        crate::Kind::CursorMoved,
        format!(
            "subscription {:?} has completed {}/{} at sequence {} before; claim the partition again",
            claim.subscription, claim.topic, claim.partition, call.sequence
        ),
    )
}
