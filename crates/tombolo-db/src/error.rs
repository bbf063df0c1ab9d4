//! The one error of this crate. Invariant: [`Kind`] alone decides what a caller does next; the text is for people.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, for code that has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Somebody else holds the lease or leads with a higher epoch; nothing was changed.
    Fenced,
    /// The cursor is not where the claim says; nothing was changed.
    CursorMoved,
    /// A lost connection, a deadlock, a lock timeout, a busy database: worth a retry, and nobody's fault.
    Unavailable,
    /// Tombolo's tables are missing or of another version.
    Schema,
    /// The database belongs to another service, or its topic has another number of partitions or incarnation.
    Mismatch,
    /// A setting of the database would break the promise.
    Unsafe,
    /// Something may not be published: its key, size or type, or where it is published from.
    Refused,
    /// An earlier failure in this transaction makes a commit impossible; nothing was kept.
    Poisoned,
    /// The outbox is full.
    Full,
    /// A view, a build of it, or a table of its is not there, is declared otherwise, or is still needed.
    View,
    /// Any other answer of the database.
    Database,
}

/// A refusal or failure of a service's database.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what was found, what was expected, what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
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

    /// Whether the database, or Tombolo's tables in it, are not there yet, so that whoever makes them has not run.
    #[must_use]
    pub fn is_not_made(&self) -> bool {
        let source = self.source.as_deref().and_then(|source| source.downcast_ref::<sqlx::Error>());
        self.kind == Kind::Schema || source.is_some_and(crate::transient::names_no_database)
    }

    /// Whether the same work may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Unavailable
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let kind = if crate::transient::is_transient(&error) { Kind::Unavailable } else { Kind::Database };
        Self::new(kind, format!("the service's database answered: {error}")).because(error)
    }
}

impl From<tombolo_event::Error> for Error {
    fn from(error: tombolo_event::Error) -> Self {
        Self::new(Kind::Refused, error.to_string()).because(error)
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
