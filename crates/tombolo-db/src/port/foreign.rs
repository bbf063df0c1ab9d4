//! The part of the port that is for other programs, in any language: where they publish, and how they apply.
//!
//! Invariant: what they are promised is what a service in Rust is promised, through the same rounds and the same cursors.

use std::pin::Pin;

use futures_util::Stream;

/// The stripes of locks that the keys of foreign rows fall into. They are not those of [`crate::port::STRIPES`]: a trigger cannot
/// reckon the hash of a key as this program does, and locks that two sides reckon differently would order nothing.
pub const FOREIGN_STRIPES: u32 = 256;
/// What other programs find in the database, beside Tombolo's own tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForeignParts {
    /// The table in which they publish, with its trigger.
    pub outbox: bool,
    /// That trigger wakes the relay by NOTIFY, where there is such a thing.
    pub notify: bool,
    /// The procedure with which they apply an event and move the cursor in one transaction.
    pub inbox: bool,
}

/// A hint that rows may wait. None is lost for good: whoever listens looks by itself, too.
pub type HintStream = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// A foreign row that no bus will ever take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignParked {
    /// Its place in the foreign outbox.
    pub position: i64,
    /// Its key, behind which that key's later rows wait.
    pub key: String,
    /// Its type, as it was written.
    pub event_type: String,
    /// Why it is parked.
    pub reason: String,
}
