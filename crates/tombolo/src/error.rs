//! The one error of this crate. Invariant: [`Kind`] alone decides what a caller does next; the text is for people.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, for code that has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The service is put together wrongly: a name, a missing state, two things of one name.
    Wiring,
    /// A setting is missing or wrong.
    Settings,
    /// The service's own database refused or failed.
    Database,
    /// The service's own database is away for now.
    DatabaseAway,
    /// The service's database and the bus do not agree: one of them was restored or copied. Needs an operator's word.
    Restored,
    /// An operator's decision is about something that is not so any more; nothing was changed.
    Undecided,
    /// The bus refused or failed.
    Bus,
    /// The bus is away for now.
    BusAway,
    /// The address to serve on cannot be taken.
    Listen,
    /// A position that a reader was given does not parse, or is none that it could ever reach.
    Token,
    /// A question was asked while a transaction that wrote is open.
    InTransaction,
    /// Nobody of this name, or nobody who answers this question, is known.
    Unknown,
    /// The asked service cannot be reached.
    Unreachable,
    /// The deadline passed.
    Deadline,
    /// The question has already passed through the asked service.
    Loop,
    /// The asked service answered with an error, or with something that is not an answer.
    Failed,
}

/// A refusal or failure. Its `Debug` form is its text, so that a `main` which returns it shows a sentence.
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
}

impl From<tombolo_db::Error> for Error {
    fn from(error: tombolo_db::Error) -> Self {
        let kind = if error.is_transient() { Kind::DatabaseAway } else { Kind::Database };
        Self::new(kind, error.to_string()).because(error)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        tombolo_db::Error::from(error).into()
    }
}

#[cfg(feature = "mongodb")]
impl From<tombolo_db::mongodb::driver::error::Error> for Error {
    fn from(error: tombolo_db::mongodb::driver::error::Error) -> Self {
        tombolo_db::Error::from(error).into()
    }
}

impl From<tombolo_bus::Error> for Error {
    fn from(error: tombolo_bus::Error) -> Self {
        let kind = if error.is_transient() { Kind::BusAway } else { Kind::Bus };
        Self::new(kind, error.to_string()).because(error)
    }
}

impl From<tombolo_event::Error> for Error {
    fn from(error: tombolo_event::Error) -> Self {
        Self::new(Kind::Wiring, error.to_string()).because(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
