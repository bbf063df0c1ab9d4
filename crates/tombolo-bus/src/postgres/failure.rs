//! What an answer of the server, or the lack of one, means for a caller.
//!
//! Invariant: `Unavailable` is said only of what may pass by itself; no message holds what the address keeps secret.

use sqlx::error::DatabaseError;

use crate::{Error, Kind};

/// Conditions of single codes and, by their first two letters, of whole classes.
const MEANINGS: &[(&str, Kind, &str)] = &[
    ("28", Kind::Configuration, "the PostgreSQL server does not let us in: check user and password"),
    ("3D000", Kind::Configuration, "the database does not exist: create it (`createdb`)"),
    (
        "42501",
        Kind::NotOwner,
        "the PostgreSQL user has no right to do this: grant it, or use the owner's account",
    ),
    ("3F000", Kind::UnknownTopic, "the tables of this bus are not there"),
    ("42P01", Kind::UnknownTopic, "the tables of this bus are not there"),
    ("53100", Kind::ReadOnly, "the disk of the PostgreSQL server is full: make room"),
    ("54", Kind::TooLarge, "the PostgreSQL server has no room for something this large"),
    ("XX001", Kind::Corrupt, "the PostgreSQL server found damaged data: restore it"),
    ("XX002", Kind::Corrupt, "the PostgreSQL server found a damaged index: rebuild it"),
    (
        "25006",
        Kind::Unavailable,
        "the PostgreSQL server takes no writes: it is a standby, or set to read only",
    ),
];
/// What passes: lost connections, conflicts, resources, timeouts, shutdown and start, trouble of the system.
const PASSING: &[&str] = &["08", "40", "53", "55", "57", "58", "25P03", "25P04"];

/// The error of a statement.
pub(super) fn failed(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(answer) => refused(&*answer),
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => {
            Error::new(Kind::Configuration, format!("the PostgreSQL server cannot be used as asked: {error}"))
        }
        other if is_lost(&other) => Error::new(
            Kind::Unavailable,
            format!("the connection to the PostgreSQL server was lost: {other}"),
        ),
        other => {
            let message = format!(
                "the PostgreSQL server answered otherwise than expected ({other}); check that its tables are those of Tombolo"
            );
            Error::new(Kind::Corrupt, message)
        }
    }
}

/// Whether nothing more can be said on the connection, nor probably on its neighbours.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed => true,
        sqlx::Error::Database(answer) => {
            answer.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
        }
        _ => false,
    }
}

fn refused(answer: &dyn DatabaseError) -> Error {
    let code = answer.code().unwrap_or_default();
    let matches = |prefix: &str| code.starts_with(prefix);
    if let Some((_, kind, meaning)) = MEANINGS.iter().find(|(prefix, _, _)| matches(prefix)) {
        return Error::new(*kind, format!("{meaning} ({code}: {})", answer.message()));
    }
    let passes = PASSING.iter().any(|prefix| matches(prefix));
    let (kind, what) = match passes {
        true => (Kind::Unavailable, "the PostgreSQL server cannot do this now"),
        false => (Kind::Configuration, "the PostgreSQL server refused a statement"),
    };
    Error::new(kind, format!("{what} ({code}: {})", answer.message()))
}
