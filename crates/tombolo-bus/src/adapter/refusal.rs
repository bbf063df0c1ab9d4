//! What an engine says when it refuses, in the same words for each: the decision about an append, and about a reader's place.
//!
//! Invariant: nothing here asks a server; what was found is what the engine just read under the lock of the partition.

use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};

use crate::{Append, Error, Kind, Read, Record, Result};

/// A partition as the server has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    pub(crate) sealed: bool,
    /// The last sequence; 0 if it is empty.
    pub(crate) last: u64,
}

impl Place {
    /// How many records of `append` are stored already, as far as their numbers say; their ids are to be compared.
    ///
    /// # Errors
    /// `OtherIncarnation`, `OlderEpoch`, `Hole`, `Sealed`.
    pub(crate) fn stored_of(&self, append: &Append) -> Result<usize> {
        check_incarnation(&append.topic, self.incarnation, append.incarnation)?;
        if append.epoch != self.epoch {
            return Err(older(&append.topic, append.epoch, self.epoch));
        }
        let (first, next) = (append.records.first().map_or(0, |record| record.sequence), self.last + 1);
        if first >= next {
            self.check_open(append)?;
        }
        if first > next {
            return Err(hole(append, first, next));
        }
        Ok(usize::try_from(next - first).unwrap_or(usize::MAX).min(append.records.len()))
    }

    /// Whether anything of the append may be stored, once it is known that not all of it is.
    ///
    /// # Errors
    /// `Sealed`.
    pub(crate) fn check_open(&self, append: &Append) -> Result<()> {
        if self.sealed { Err(sealed(append, self.last)) } else { Ok(()) }
    }
}

pub(crate) fn check_incarnation(
    topic: &ServiceName,
    found: Incarnation,
    expected: Incarnation,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message = format!(
        "topic {topic} is incarnation {found}; expected {expected}: it was made again, or this is another server"
    );
    Err(Error::new(Kind::OtherIncarnation, message))
}

pub(crate) fn older(topic: &ServiceName, epoch: u64, found: u64) -> Error {
    let what = if epoch < found { "another relay took over" } else { "this epoch was never raised" };
    Error::new(Kind::OlderEpoch, format!("topic {topic} is at epoch {found}, the caller at {epoch}: {what}"))
}

fn hole(append: &Append, first: u64, next: u64) -> Error {
    let message = format!(
        "append to {}/{} begins at {first}; expected {next}: read the outbox again",
        append.topic, append.partition
    );
    Error::new(Kind::Hole, message)
}

/// Compares a record of an append with what is stored under its number.
pub(crate) fn same_id(append: &Append, record: &Record, found: Option<EventId>) -> Result<()> {
    if found == Some(record.id) {
        return Ok(());
    }
    let message = format!(
        "{}/{} holds {} at {}; expected {}: the caller's database is not the one that wrote it",
        append.topic,
        append.partition,
        said(found),
        record.sequence,
        record.id
    );
    Err(Error::new(Kind::OtherId, message))
}

fn sealed(append: &Append, last: u64) -> Error {
    let message = format!(
        "{}/{} is sealed at {last}: its topic was divided anew, and what is new goes to the present generation",
        append.topic, append.partition
    );
    Error::new(Kind::Sealed, message)
}

pub(crate) fn unknown_topic(topic: &ServiceName, server: &str) -> Error {
    Error::new(Kind::UnknownTopic, format!("there is no topic {topic} on this {server}"))
}

/// Something of a topic's name that somebody else made, or a program of another version.
#[cfg(feature = "redis")]
pub(crate) fn foreign(topic: &ServiceName, found: &str) -> Error {
    let message = format!(
        "what has the name of topic {topic} is not Tombolo's, or of another version: found {found:?}; choose another namespace"
    );
    Error::new(Kind::TopicDiffers, message)
}

pub(crate) fn unknown_partition(topic: &ServiceName, partition: u32, found: u32) -> Error {
    let message = format!("topic {topic} has {found} partitions from 0; there is none {partition}");
    Error::new(Kind::UnknownPartition, message)
}

/// Proves that the log is the one that a reader was in: `tail` is the last sequence, `at_cursor` the id of the event at the cursor.
///
/// # Errors
/// `BeyondTail`, `OtherId`.
pub(crate) fn check_cursor(read: &Read, cursor: Cursor, tail: u64, at_cursor: Option<EventId>) -> Result<()> {
    let place = format!("{}/{}", read.topic, read.partition);
    if cursor.sequence > tail {
        let message = format!(
            "{place} ends at {tail}; the reader's place is {}: the log lost its tail or is an older copy",
            cursor.sequence
        );
        return Err(Error::new(Kind::BeyondTail, message));
    }
    if cursor.sequence == 0 || at_cursor == cursor.id {
        return Ok(());
    }
    let message = format!(
        "{place} holds {} at {}; the reader's place has {}: the log is not the one that was read",
        said(at_cursor),
        cursor.sequence,
        said(cursor.id)
    );
    Err(Error::new(Kind::OtherId, message))
}

/// Records that are not where they must be.
pub(crate) fn gap(read: &Read, found: Option<u64>, expected: u64) -> Error {
    let found = found.map_or_else(|| "ends".to_owned(), |found| format!("goes on at {found}"));
    let message = format!(
        "{}/{} {found}; expected {expected}: records are gone, restore them",
        read.topic, read.partition
    );
    Error::new(Kind::Corrupt, message)
}

pub(crate) fn closed() -> Error {
    Error::new(Kind::Closed, "the bus was closed by this process")
}

fn said(id: Option<EventId>) -> String {
    id.map_or_else(|| "no event".to_owned(), |id| format!("event {id}"))
}
