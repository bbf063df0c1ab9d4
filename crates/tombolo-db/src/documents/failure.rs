//! What the store's errors mean to us. Invariant: what may pass by itself is `Unavailable`, and never counts as an attempt.

use std::error::Error as StdError;

use crate::{Error, Kind};

impl From<redb::Error> for Error {
    fn from(error: redb::Error) -> Self {
        use redb::Error as Found;
        let kind = match &error {
            Found::Io(_) | Found::PreviousIo | Found::DatabaseClosed | Found::LockPoisoned(_) => {
                Kind::Unavailable
            }
            Found::TransactionPoisoned => Kind::Poisoned,
            Found::TableDoesNotExist(_) => return missing(0).because(error),
            _ => Kind::Database,
        };
        Self::new(kind, format!("the service's database answered: {error}")).because(error)
    }
}

impl From<redb::StorageError> for Error {
    fn from(error: redb::StorageError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<redb::TableError> for Error {
    fn from(error: redb::TableError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<redb::TransactionError> for Error {
    fn from(error: redb::TransactionError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<redb::CommitError> for Error {
    fn from(error: redb::CommitError) -> Self {
        redb::Error::from(error).into()
    }
}

/// The disk failed under the store, after which it answers nothing until it is opened anew.
pub(super) fn is_broken(error: &Error) -> bool {
    let found = error.source().and_then(|source| source.downcast_ref::<redb::Error>());
    matches!(found, Some(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)))
}

/// Whether a file could not be opened because another process has it open.
#[must_use]
pub fn is_open_elsewhere(error: &Error) -> bool {
    let found = error.source().and_then(|source| source.downcast_ref::<redb::Error>());
    matches!(found, Some(redb::Error::DatabaseAlreadyOpen))
}

/// The tables are not there, or older than this program's.
pub(super) fn missing(found: u32) -> Error {
    let what = match found {
        0 => "the database has no tables of Tombolo".to_owned(),
        older => format!("the database has version {older} of Tombolo's tables"),
    };
    Error::new(
        Kind::Schema,
        format!(
            "{what}; expected version {}: run `tombolo schema apply`, or start the service with TOMBOLO_SCHEMA=apply",
            super::schema::VERSION
        ),
    )
}

/// A row or document that is not what its table holds.
pub(super) fn unreadable(what: &str, error: serde_json::Error) -> Error {
    Error::new(Kind::Database, format!("{what} cannot be read as what is expected there: {error}"))
        .because(error)
}

/// A row or document that cannot be written as JSON.
pub(super) fn unwritable(what: &str, error: serde_json::Error) -> Error {
    Error::new(Kind::Database, format!("{what} cannot be written as JSON: {error}")).because(error)
}

/// The transaction is not there any more.
pub(super) fn ended() -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction had ended before, because something that it was waited for in was given up (a future was dropped); nothing was kept",
    )
}
