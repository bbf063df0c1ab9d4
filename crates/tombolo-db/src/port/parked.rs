//! The half of the port for what waits parked: events that a handler could not process, and what came after them of the
//! same key.
//!
//! ```text
//!  partition    1   2   3   4   5   6   7   8        cursor at 8
//!  key a        ✓       ×───────×───────×            3, 5 and 7 are parked: 3 is the head, the others wait behind it
//!  key b            ✓       ✓       ✓       ✓        b flows on
//! ```
//!
//! Invariants:
//! - an event is parked in the transaction that moves the cursor over it, and leaves in the transaction of its effect;
//! - only the holder of the partition's lease parks, counts tries, or takes anything out.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tombolo_event::{EventId, KeyHash, ServiceName};

use crate::{Claim, Result};

/// An event that waits parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedEvent {
    /// The subscription.
    pub subscription: String,
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// Its number there.
    pub sequence: u64,
    /// Its identity.
    pub id: EventId,
    /// The hash of its key.
    pub key_hash: KeyHash,
    /// Its type.
    pub event_type: String,
    /// The stored bytes.
    pub bytes: Bytes,
    /// When it was parked.
    pub parked_at: Timestamp,
    /// How its tries stand.
    pub tries: Tries,
}

/// How the tries of a parked event stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tries {
    /// So many were begun; 0 for one that only waits behind another of its key.
    pub attempts: u32,
    /// So many of the last ones did not end: the process died in them.
    pub unfinished: u32,
    /// What the last one failed with.
    pub error: Option<String>,
    /// When the next one is due; none: when it is told, or when it becomes the head.
    pub retry_at: Option<Timestamp>,
}

/// The first parked event of a key, by which the key's turn is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedHead {
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The key.
    pub key_hash: KeyHash,
    /// How many events of it are parked.
    pub events: u64,
    /// When its first was parked.
    pub parked_at: Timestamp,
    /// How its first one's tries stand.
    pub tries: Tries,
}

/// Which parked events are meant; what is none does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParkedFilter {
    /// The subscription.
    pub subscription: Option<String>,
    /// The key.
    pub key_hash: Option<KeyHash>,
    /// The event.
    pub id: Option<EventId>,
}

/// What is parked of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedCount {
    /// The subscription.
    pub subscription: String,
    /// Keys.
    pub keys: u64,
    /// Events.
    pub events: u64,
    /// When the oldest was parked.
    pub oldest: Option<Timestamp>,
}

/// What waits parked, outside the transactions that change it.
#[async_trait]
pub trait Parking: Send + Sync + 'static {
    /// The head of each parked key of a subscription, in every partition.
    async fn parked_heads(&self, subscription: &str) -> Result<Vec<ParkedHead>>;

    /// The first `most` parked events of a key in the claim's partition, in order.
    async fn parked_of(&self, claim: &Claim, key: KeyHash, most: usize) -> Result<Vec<ParkedEvent>>;

    /// Stores how the tries of a parked event stand, in a transaction of its own.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch, `CursorMoved` if the event is not parked.
    async fn record_tries(&self, claim: &Claim, sequence: u64, tries: &Tries) -> Result<()>;

    /// Whether anything of a key is parked.
    async fn is_parked(&self, subscription: &str, topic: &ServiceName, key: KeyHash) -> Result<bool>;

    /// The first `most` parked events that the filter lets through, by subscription, topic, partition and sequence.
    async fn parked(&self, filter: &ParkedFilter, most: usize) -> Result<Vec<ParkedEvent>>;

    /// What is parked, by subscription.
    async fn parked_counts(&self) -> Result<Vec<ParkedCount>>;
}

/// The parked event is not there: whoever holds the lease took it out.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn not_parked(claim: &Claim, sequence: u64) -> crate::Error {
    crate::Error::new(
        crate::Kind::CursorMoved,
        format!(
            "subscription {:?} has no parked event {sequence} of {}/{}: it was handled or discarded; claim the partition again",
            claim.subscription, claim.topic, claim.partition
        ),
    )
}
