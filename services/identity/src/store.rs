//! What the service keeps in its database: users, sessions, hashes of passwords and of refresh tokens, sealed keys; and in a file
//! for each, how SQLite and MariaDB (or MySQL) do it in their SQL.
//!
//! Invariant: nothing in it signs anybody in by itself; and what one transaction has found of a user, a session, a token or a key
//! is so until it ends, whatever others do meanwhile.

mod sqlite;
#[cfg(feature = "mysql")]
mod mysql;

use jiff::Timestamp;
use sqlx::FromRow;
use tombolo::{Database, Result};

/// The most users of one page.
pub(crate) const PAGE_MAX: i64 = 1_000;
/// How many sessions that ended long ago are cleared away at a sign-in.
const CLEARED: i64 = 20;

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

/// A database that the service can own.
pub trait Store: Database {
    /// Makes the tables that are not there yet.
    fn make_tables(&self) -> impl Future<Output = Result<()>> + Send;

    /// The user, if there is one.
    fn user(&self, id: &str) -> impl Future<Output = Result<Option<Account>>> + Send;

    /// The users after `after` whose name or address begins with `query`, by id.
    fn users(&self, query: &str, after: &str, most: i64)
    -> impl Future<Output = Result<Vec<Account>>> + Send;

    /// Whose the account is, and the hash of the password.
    fn password(&self, account: &str) -> impl Future<Output = Result<Option<(String, String)>>> + Send;

    /// The hash of the user's password.
    fn password_of(&self, user: &str) -> impl Future<Output = Result<Option<String>>> + Send;

    /// Whether the session goes on.
    fn session_lives(
        &self,
        id: &str,
        user: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// The signing keys, the oldest first.
    fn keys(&self) -> impl Future<Output = Result<Vec<StoredKey>>> + Send;

    /// Keeps a new user.
    fn insert_user(tx: &mut Self::Tx, user: &Account) -> impl Future<Output = Result<()>> + Send;

    /// Gives the user a password, unless the account is another's; whether it did.
    fn insert_password(
        tx: &mut Self::Tx,
        account: &str,
        user: &str,
        hash: &str,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// The user, who stays so until the transaction ends.
    fn user_in(tx: &mut Self::Tx, id: &str) -> impl Future<Output = Result<Option<Account>>> + Send;

    /// Replaces the hash, if it is still the one that was compared; whether it was.
    fn replace_password(
        tx: &mut Self::Tx,
        user: &str,
        compared: &str,
        hash: &str,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Gives the user another name.
    fn rename(tx: &mut Self::Tx, user: &str, name: &str) -> impl Future<Output = Result<()>> + Send;

    /// Raises the user's version, which every event of blocks carries, and returns the user as it is then.
    fn raise(tx: &mut Self::Tx, user: &str) -> impl Future<Output = Result<Option<Account>>> + Send;

    /// Blocks or unblocks the user.
    fn set_blocked(tx: &mut Self::Tx, user: &str, blocked: bool) -> impl Future<Output = Result<()>> + Send;

    /// Gives the user roles, with blanks between.
    fn set_roles(tx: &mut Self::Tx, user: &str, roles: &str) -> impl Future<Output = Result<()>> + Send;

    /// Keeps a new session, and clears away some that ended long ago.
    fn insert_session(
        tx: &mut Self::Tx,
        id: &str,
        user: &str,
        now: Timestamp,
        ends: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Has a session end later.
    fn prolong(tx: &mut Self::Tx, session: &str, ends: Timestamp) -> impl Future<Output = Result<()>> + Send;

    /// Ends a session; whose it was, if it went on until now.
    fn end_session(
        tx: &mut Self::Tx,
        session: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<String>>> + Send;

    /// Ends every session of a user.
    fn end_sessions(tx: &mut Self::Tx, user: &str, now: Timestamp)
    -> impl Future<Output = Result<()>> + Send;

    /// Keeps the hash of a refresh token.
    fn insert_refresh(
        tx: &mut Self::Tx,
        hash: &[u8],
        session: &str,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The refresh token of this hash, which nobody else uses until the transaction ends.
    fn refresh(tx: &mut Self::Tx, hash: &[u8]) -> impl Future<Output = Result<Option<Refresh>>> + Send;

    /// Marks a refresh token as used.
    fn use_refresh(tx: &mut Self::Tx, hash: &[u8], now: Timestamp)
    -> impl Future<Output = Result<()>> + Send;

    /// The signing keys, which stay so until the transaction ends.
    fn keys_in(tx: &mut Self::Tx) -> impl Future<Output = Result<Vec<StoredKey>>> + Send;

    /// Keeps a signing key, unless there is one of its state already that may be only one.
    fn insert_key(tx: &mut Self::Tx, key: &StoredKey) -> impl Future<Output = Result<()>> + Send;

    /// Retires the key that signs, has the next one sign, and removes those that retired before `gone`.
    fn rotate_keys(
        tx: &mut Self::Tx,
        now: Timestamp,
        gone: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Text that `LIKE` takes as it is, with `|` before what it would take otherwise.
fn like(query: &str) -> String {
    format!("{}%", query.replace('|', "||").replace('%', "|%").replace('_', "|_"))
}
