//! The one error of this crate: what was found, what was expected, what to do.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, for code that has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A name of a service, type, subscription or question has characters or a length that are not allowed.
    InvalidName,
    /// A key is empty or longer than [`crate::key::KEY_BYTES_MAX`].
    InvalidKey,
    /// A topic cannot be divided into so many partitions, or so often.
    InvalidGenerations,
    /// An event is larger than [`crate::envelope::EVENT_BYTES_MAX`].
    TooLarge,
    /// Stored bytes are not an envelope.
    Malformed,
    /// The data of an event is not what its type says.
    WrongData,
    /// A version of a handled type that no upcaster lifts.
    UnknownVersion,
    /// A token or header that does not parse.
    InvalidToken,
}

/// Something of an event that cannot be what it claims to be.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, for code.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
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
