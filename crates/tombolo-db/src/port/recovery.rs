//! The part of the port that is needed when a database and the bus do not agree: comparing, halting, adopting.
//!
//! ```text
//!  standing ── compared with the bus before anybody leads ── agrees ── lead
//!                          └ differs ── halt: nobody leads any more
//!                                         └ an operator's word ── adopt (the bus counts) or resume (it was put right)
//! ```
//!
//! Invariants:
//! - looking changes nothing, so that a copy never climbs over the epoch of its original, however often it is started;
//! - a halt is on disk before anybody acts on it, and only an operator's word ends it;
//! - adopting is one transaction: numbers, what was published before, and the end of the halt.

use async_trait::async_trait;
use jiff::Timestamp;
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::Mark;
use crate::Result;

/// What a database knows of its topic, and what ends a disagreement about it.
#[async_trait]
pub trait Recovery: Send + Sync + 'static {
    /// What the database knows of its topic, as one consistent look. Changes nothing.
    async fn standing(&self, holder: Uuid) -> Result<Standing>;

    /// The event that waits in the outbox under a number; none if no row has it.
    async fn numbered(&self, partition: u32, sequence: u64) -> Result<Option<EventId>>;

    /// Every event that waits in the outbox, with its partition.
    async fn waiting(&self) -> Result<Vec<(u32, EventId)>>;

    /// Lets nobody lead from now on. `false`, and nothing happened, if the epoch is no longer `epoch`, if somebody else
    /// than `holder` leads, or if the database is halted already: then look again. Durable when it returns.
    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool>;

    /// Ends the halt by taking the bus's word: what is on the bus is published, what is not is numbered after it, in the last
    /// generation of either side, and a consequence that is on the bus is not published again when its cause is handled again.
    ///
    /// # Errors
    /// `Mismatch` if the database is not halted for this reason.
    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted>;

    /// Ends the halt without a change, because what was found is no longer so.
    ///
    /// # Errors
    /// `Mismatch` if the database is not halted for this reason.
    async fn resume(&self, decision: &Decision) -> Result<()>;

    /// What was found and decided, the latest first, at most `most`.
    async fn halts(&self, most: usize) -> Result<Vec<Halted>>;
}

/// What a database knows of its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The epoch of the relay that led last; 0 before the first.
    pub epoch: u64,
    /// Whether the one who asked could lead: nobody else's lease holds.
    pub is_free: bool,
    /// The end of the lease, as the database has it: another text after each renewal.
    pub lease: String,
    /// The incarnation of the topic, once it was seen.
    pub incarnation: Option<Incarnation>,
    /// Why nobody leads, if nobody may.
    pub halt: Option<Halt>,
    /// How the topic is divided.
    pub generations: Generations,
    /// Its partitions, in order.
    pub partitions: Vec<Counted>,
}

/// How far a partition is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What was last removed: published and acknowledged.
    pub removed: Mark,
    /// The last number that was given.
    pub numbered: u64,
}

/// Why nobody may lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    /// Its identity: whoever decides names what was seen.
    pub id: Uuid,
    /// When it was found, by the clock of the process that found it.
    pub found_at: Timestamp,
    /// What was found, as JSON of the finder's.
    pub finding: String,
}

/// An operator's word about a halt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The halt that it is about.
    pub halt: Uuid,
    /// Who decided.
    pub by: String,
    /// What was decided, for the record.
    pub choice: String,
}

/// What the bus says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The topic's incarnation.
    pub incarnation: Incarnation,
    /// The epoch that was raised at the bus, above every other, before the tails were read.
    pub epoch: u64,
    /// How the topic is divided there.
    pub generations: Generations,
    /// The end of each partition.
    pub tails: Vec<Mark>,
    /// The events on the bus of which the database does not know that they are published.
    pub on_bus: Vec<EventId>,
}

/// What adopting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// Rows of the outbox that were on the bus already.
    pub dropped: u64,
    /// Rows of the outbox that will be published after what is on the bus.
    pub kept: u64,
}

impl std::fmt::Display for Adopted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dropped, kept } = self;
        write!(
            f,
            "{dropped} waiting events were on the bus already, {kept} will be published after what is there"
        )
    }
}

/// A halt with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halted {
    /// What was found.
    pub halt: Halt,
    /// What was decided; none while nobody did.
    pub decision: Option<Decision>,
    /// What came of it.
    pub outcome: Option<String>,
}
