//! Which failures of a database are nobody's fault.
//!
//! Invariant: what is transient pauses a partition and never counts as an attempt of a handler.

use std::error::Error as StdError;

use sqlx::error::DatabaseError;

/// PostgreSQL's classes of conditions that pass: connection lost, resources (disk, memory, connections) exhausted, input or output of the server failing.
const POSTGRES_CLASSES: &[&str] = &["08", "53", "58"];
/// Single conditions of other classes: shutdown and start-up, a cancelled or timed-out statement, serialization
/// failure, deadlock, lock timeout, time-outs of idle or long transactions, a server that became a standby.
const POSTGRES: &[&str] =
    &["57P01", "57P02", "57P03", "57P05", "57014", "40001", "40P01", "55P03", "25P03", "25P04", "25006"];
/// SQLite's primary result codes BUSY, LOCKED, IOERR, FULL and PROTOCOL (a lock race of the log of writes); extended
/// codes carry them in the low byte.
const SQLITE: &[i64] = &[5, 6, 10, 13, 15];

/// The numbers of MySQL's and MariaDB's conditions that pass; their SQLSTATE is no help, a lock timeout has none of its own.
/// Connections: too many, refused, killed, cut off when idle, broken on the network. The server: shutting down, out of memory, disk or
/// locks, its storage failing, become read-only, not ready in its cluster. Statements: interrupted, timed out, a deadlock, a lock that
/// could not be had, a row or table that changed meanwhile.
#[cfg(feature = "mysql")]
const MYSQL: &[u16] = &[
    3, 1020, 1021, 1026, 1030, 1037, 1038, 1040, 1041, 1042, 1043, 1047, 1053, 1077, 1079, 1114, 1129, 1152,
    1158, 1159, 1160, 1161, 1180, 1184, 1203, 1205, 1206, 1213, 1226, 1290, 1317, 1412, 1613, 1614, 1615,
    1637, 1836, 1927, 1969, 3024, 3058, 3100, 3101, 3168, 3169, 3572, 4031,
];

/// What PostgreSQL says of a database that is not there, and MySQL and MariaDB.
const POSTGRES_UNKNOWN: &str = "3D000";
#[cfg(feature = "mysql")]
const MYSQL_UNKNOWN: u16 = 1049;

/// The length of PostgreSQL's codes; those of SQLite are shorter.
const SQLSTATE_BYTES: usize = 5;

/// Whether `error`, or anything that caused it, is a transient failure of the service's own database.
#[must_use]
pub fn is_transient(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return sqlx_is_transient(error);
        }
        #[cfg(feature = "mongodb")]
        if let Some(error) = error.downcast_ref::<::mongodb::error::Error>() {
            return crate::mongodb::is_transient(error);
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
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => database_is_transient(&**error),
        _ => false,
    }
}

/// Whether a server answered that it has no database of the name.
pub(crate) fn names_no_database(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    #[cfg(feature = "mysql")]
    if let Some(number) = mysql_number(error) {
        return number == MYSQL_UNKNOWN;
    }
    error.code().is_some_and(|code| code == POSTGRES_UNKNOWN)
}

fn database_is_transient(error: &dyn DatabaseError) -> bool {
    #[cfg(feature = "mysql")]
    if let Some(number) = mysql_number(error) {
        return MYSQL.contains(&number);
    }
    error.code().is_some_and(|code| {
        let sqlite = || code.parse::<i64>().is_ok_and(|number| SQLITE.contains(&(number & 0xff)));
        let postgres =
            || POSTGRES.contains(&&*code) || POSTGRES_CLASSES.iter().any(|class| code.starts_with(class));
        if code.len() == SQLSTATE_BYTES { postgres() } else { sqlite() }
    })
}

/// The number by which MySQL and MariaDB know an error.
#[cfg(feature = "mysql")]
pub(crate) fn mysql_number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(|error| error.number())
}
