//! A service that runs, whatever its database is.
//!
//! Invariant: what is done to one is done to each, so a kind of database is named here and nowhere else.

use tombolo::documents::Documents;
use tombolo::sqlite::Sqlite;
use tombolo::{Result, Running};

/// A service that runs.
pub(crate) enum Started {
    Sqlite(Running<Sqlite>),
    Documents(Running<Documents>),
}

impl Started {
    /// Waits until it stops by itself, which it only does if something failed.
    pub(crate) async fn failed(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(running) => running.failed().await,
            Self::Documents(running) => running.failed().await,
        }
    }

    /// Stops it.
    pub(crate) async fn shutdown(self) {
        match self {
            Self::Sqlite(running) => running.shutdown().await,
            Self::Documents(running) => running.shutdown().await,
        }
    }
}

impl From<Running<Sqlite>> for Started {
    fn from(running: Running<Sqlite>) -> Self {
        Self::Sqlite(running)
    }
}

impl From<Running<Documents>> for Started {
    fn from(running: Running<Documents>) -> Self {
        Self::Documents(running)
    }
}
