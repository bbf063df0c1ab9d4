//! The one error of this crate. Invariant: [`Kind`] alone decides what a caller does next; the text is for people.

use std::error::Error as StdError;
use std::fmt;

use tombolo_event::{Cursor, ServiceName};

/// What went wrong, for code that has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No topic of this name.
    UnknownTopic,
    /// The topic exists with other generations of partitions, another owner or another feed.
    TopicDiffers,
    /// No partition of this number.
    UnknownPartition,
    /// The topic is in another incarnation: it was deleted and made again, or the bus is another one.
    OtherIncarnation,
    /// Somebody appends under a higher epoch: the caller is a relay that was replaced, or a copied database.
    OlderEpoch,
    /// The first sequence of an append is not the one after the last stored.
    Hole,
    /// The stored event under this sequence has another id.
    OtherId,
    /// The partition was sealed when its topic was divided anew: nothing more is stored in it.
    Sealed,
    /// The reader's place lies after the end of the log: the log lost its tail, or is an older copy.
    BeyondTail,
    /// The place lies before what the bus still keeps: it was trimmed, and an archive has it. [`Error::begins`] says where the rest is.
    Trimmed,
    /// The caller is not the topic's owner.
    NotOwner,
    /// The caller does not prove who it is.
    Unauthenticated,
    /// A batch, event or signal is over its bound.
    TooLarge,
    /// A name is not allowed.
    InvalidName,
    /// Stored bytes are damaged.
    Corrupt,
    /// The engine refuses writes until an operator acts: the disk is full, or a sync failed.
    ReadOnly,
    /// The engine's settings would break the promise.
    Unsafe,
    /// The engine cannot be reached now. The only kind that is worth a retry without a change.
    Unavailable,
    /// An address or setting is wrong.
    Configuration,
    /// The bus was closed by its owner.
    Closed,
}

/// A refusal or failure of the bus.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    begins: Option<Cursor>,
}

impl Error {
    /// An error of `kind`; `message` says what was found, what was expected, what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, begins: None }
    }

    /// What the place `sequence` of a partition answers that now begins with the event at `begins`, as far as the engine knows it.
    #[must_use]
    pub fn trimmed(topic: &ServiceName, partition: u32, sequence: u64, begins: Option<Cursor>) -> Self {
        let found =
            begins.map_or_else(|| "begins later".to_owned(), |at| format!("begins at {}", at.sequence));
        let message = format!(
            "{topic}/{partition} {found} on this bus, and the place is {sequence}: what was before was removed; it is in the archive, \
             which is named by TOMBOLO_ARCHIVE or --archive"
        );
        Self { begins, ..Self::new(Kind::Trimmed, message) }
    }

    /// The same with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, for code.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The first event that is still there, of a partition that was [trimmed](Kind::Trimmed); none if the engine does not know.
    #[must_use]
    pub fn begins(&self) -> Option<Cursor> {
        self.begins
    }

    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Unavailable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
