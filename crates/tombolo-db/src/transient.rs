//! Which failures of a database are nobody's fault.
//!
//! Invariant: what is transient pauses a partition and never counts as an attempt of a handler.

use std::error::Error as StdError;

/// PostgreSQL conditions that pass: connection lost (08), too many connections (53300), shutdown and start-up
/// (57P01 to 57P03), serialization failure, deadlock, lock timeout, idle-in-transaction time-out.
const POSTGRES: &[&str] = &["53300", "57P01", "57P02", "57P03", "40001", "40P01", "55P03", "25P03"];
/// SQLite's primary result codes SQLITE_BUSY and SQLITE_LOCKED; extended codes carry them in the low byte.
const SQLITE: &[i64] = &[5, 6];

/// Whether `error`, or anything that caused it, is a transient failure of the service's own database.
#[must_use]
pub fn is_transient(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return sqlx_is_transient(error);
        }
        if let Some(error) = error.downcast_ref::<crate::Error>() {
            return error.is_transient();
        }
        next = error.source();
    }
    false
}

fn sqlx_is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            let sqlite = || code.parse::<i64>().is_ok_and(|number| SQLITE.contains(&(number & 0xff)));
            code.starts_with("08") && code.len() == 5
                || POSTGRES.contains(&&*code)
                || code.len() < 5 && sqlite()
        }),
        _ => false,
    }
}
