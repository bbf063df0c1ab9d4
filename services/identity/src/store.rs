//! What the service keeps in its database: users, sessions, hashes of passwords and of refresh tokens, sealed keys.
//!
//! ```text
//!  Store (store/statements.rs)   what is asked, once, in the SQL that all of them speak
//!    └ Sql (store/sql.rs)        how a statement is run, and the few words that differ
//!        ├ sqlite.rs             one writer at a time: there is nothing to lock
//!        ├ postgres.rs           transactions beside each other: what one relies on it locks
//!        └ mysql.rs              the same
//! ```
//!
//! Invariant: nothing in it signs anybody in by itself; and what one transaction has found of a user, a session, a token or a key
//! is so until it ends, whatever others do meanwhile.

mod sql;
mod statements;
mod sqlite;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "mysql")]
mod mysql;

use sqlx::FromRow;

pub use sql::{Holds, Sql, Statement, Value, Words};
pub use statements::Store;

pub(crate) use statements::PAGE_MAX;

/// A user.
#[derive(FromRow, Clone)]
pub struct Account {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) roles: String,
    pub(crate) blocked: bool,
    pub(crate) version: i64,
    pub(crate) created_ms: i64,
}

impl Account {
    pub(crate) fn roles(&self) -> Vec<String> {
        self.roles.split_whitespace().map(str::to_owned).collect()
    }

    /// The version, as tokens and events hold it.
    pub(crate) fn version(&self) -> u64 {
        self.version.cast_unsigned()
    }
}

/// A signing key as it is stored.
#[derive(FromRow)]
pub struct StoredKey {
    pub(crate) kid: String,
    pub(crate) algorithm: String,
    pub(crate) sealed: Vec<u8>,
    pub(crate) state: String,
    pub(crate) since_ms: i64,
}

/// A refresh token, and the session that it belongs to.
#[derive(FromRow)]
pub struct Refresh {
    pub(crate) session_id: String,
    pub(crate) user_id: String,
    pub(crate) used_ms: Option<i64>,
    pub(crate) ends_ms: i64,
    pub(crate) ended_ms: Option<i64>,
}
