//! What the service keeps in its database: users, sessions, hashes of passwords and of refresh tokens, sealed keys.
//!
//! Invariant: nothing in it signs anybody in by itself.

use jiff::Timestamp;
use sqlx::{FromRow, SqliteConnection};
use tombolo::Result;
use tombolo::sqlite::Sqlite;

/// The most users of one page.
pub(crate) const PAGE_MAX: i64 = 1_000;
/// How many sessions that ended long ago are cleared away at a sign-in.
const CLEARED: i64 = 20;

/// A user.
#[derive(FromRow, Clone)]
pub(crate) struct Account {
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
pub(crate) struct StoredKey {
    pub(crate) kid: String,
    pub(crate) algorithm: String,
    pub(crate) sealed: Vec<u8>,
    pub(crate) state: String,
    pub(crate) since_ms: i64,
}

/// A refresh token, and the session that it belongs to.
#[derive(FromRow)]
pub(crate) struct Refresh {
    pub(crate) session_id: String,
    pub(crate) user_id: String,
    pub(crate) used_ms: Option<i64>,
    pub(crate) ends_ms: i64,
    pub(crate) ended_ms: Option<i64>,
}

pub(crate) async fn make_tables(database: &Sqlite) -> Result<()> {
    sqlx::raw_sql(include_str!("schema.sql")).execute(database.pool()).await?;
    Ok(())
}

pub(crate) async fn insert_user(tx: &mut SqliteConnection, user: &Account) -> Result<()> {
    let insert = sqlx::query("INSERT INTO users (id, name, email, roles, created_ms) VALUES (?, ?, ?, ?, ?)");
    let insert = insert.bind(&user.id).bind(&user.name).bind(&user.email).bind(&user.roles);
    insert.bind(user.created_ms).execute(tx).await?;
    Ok(())
}

/// Gives the user a password, unless the account is another's; whether it did.
pub(crate) async fn insert_password(
    tx: &mut SqliteConnection,
    account: &str,
    user: &str,
    hash: &str,
) -> Result<bool> {
    let insert = "INSERT INTO passwords (account, user_id, hash) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
    let inserted = sqlx::query(insert).bind(account).bind(user).bind(hash).execute(tx).await?;
    Ok(inserted.rows_affected() == 1)
}

pub(crate) async fn user(database: &Sqlite, id: &str) -> Result<Option<Account>> {
    let found = sqlx::query_as("SELECT * FROM users WHERE id = ?").bind(id);
    Ok(found.fetch_optional(database.pool()).await?)
}

pub(crate) async fn user_in(tx: &mut SqliteConnection, id: &str) -> Result<Option<Account>> {
    Ok(sqlx::query_as("SELECT * FROM users WHERE id = ?").bind(id).fetch_optional(tx).await?)
}

/// The users after `after` whose name or address begins with `query`, by id.
pub(crate) async fn users(database: &Sqlite, query: &str, after: &str, most: i64) -> Result<Vec<Account>> {
    let like = format!("{}%", query.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"));
    let found = sqlx::query_as(
        "SELECT * FROM users WHERE id > ? AND (name LIKE ? ESCAPE '\\' OR email LIKE ? ESCAPE '\\') ORDER BY id LIMIT ?",
    );
    Ok(found.bind(after).bind(&like).bind(&like).bind(most).fetch_all(database.pool()).await?)
}

/// Whose the account is, and the hash of the password.
pub(crate) async fn password(database: &Sqlite, account: &str) -> Result<Option<(String, String)>> {
    let found = sqlx::query_as("SELECT user_id, hash FROM passwords WHERE account = ?").bind(account);
    Ok(found.fetch_optional(database.pool()).await?)
}

pub(crate) async fn password_of(database: &Sqlite, user: &str) -> Result<Option<String>> {
    let found = sqlx::query_scalar("SELECT hash FROM passwords WHERE user_id = ?").bind(user);
    Ok(found.fetch_optional(database.pool()).await?)
}

/// Replaces the hash, if it is still the one that was compared; whether it was.
pub(crate) async fn replace_password(
    tx: &mut SqliteConnection,
    user: &str,
    compared: &str,
    hash: &str,
) -> Result<bool> {
    let update = sqlx::query("UPDATE passwords SET hash = ? WHERE user_id = ? AND hash = ?");
    Ok(update.bind(hash).bind(user).bind(compared).execute(tx).await?.rows_affected() == 1)
}

pub(crate) async fn rename(tx: &mut SqliteConnection, user: &str, name: &str) -> Result<()> {
    sqlx::query("UPDATE users SET name = ? WHERE id = ?").bind(name).bind(user).execute(tx).await?;
    Ok(())
}

/// Raises the user's version, which every event of blocks carries, and returns the user as it is then.
pub(crate) async fn raise(tx: &mut SqliteConnection, user: &str) -> Result<Option<Account>> {
    let raised = sqlx::query_as("UPDATE users SET version = version + 1 WHERE id = ? RETURNING *").bind(user);
    Ok(raised.fetch_optional(tx).await?)
}

pub(crate) async fn set_blocked(tx: &mut SqliteConnection, user: &str, blocked: bool) -> Result<()> {
    sqlx::query("UPDATE users SET blocked = ? WHERE id = ?").bind(blocked).bind(user).execute(tx).await?;
    Ok(())
}

pub(crate) async fn set_roles(tx: &mut SqliteConnection, user: &str, roles: &str) -> Result<()> {
    sqlx::query("UPDATE users SET roles = ? WHERE id = ?").bind(roles).bind(user).execute(tx).await?;
    Ok(())
}

pub(crate) async fn insert_session(
    tx: &mut SqliteConnection,
    id: &str,
    user: &str,
    now: Timestamp,
    ends: Timestamp,
) -> Result<()> {
    let old = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE ends_ms < ? LIMIT ?)";
    sqlx::query(old).bind(now.as_millisecond()).bind(CLEARED).execute(&mut *tx).await?;
    let insert = sqlx::query("INSERT INTO sessions (id, user_id, created_ms, ends_ms) VALUES (?, ?, ?, ?)");
    let insert = insert.bind(id).bind(user).bind(now.as_millisecond()).bind(ends.as_millisecond());
    insert.execute(tx).await?;
    Ok(())
}

/// Whether the session goes on.
pub(crate) async fn session_lives(database: &Sqlite, id: &str, user: &str, now: Timestamp) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM sessions WHERE id = ? AND user_id = ? AND ended_ms IS NULL AND ends_ms > ?",
    )
    .bind(id)
    .bind(user)
    .bind(now.as_millisecond())
    .fetch_optional(database.pool())
    .await?;
    Ok(found.is_some())
}

pub(crate) async fn prolong(tx: &mut SqliteConnection, session: &str, ends: Timestamp) -> Result<()> {
    let update = sqlx::query("UPDATE sessions SET ends_ms = ? WHERE id = ?");
    update.bind(ends.as_millisecond()).bind(session).execute(tx).await?;
    Ok(())
}

/// Ends a session; whose it was, if it went on until now.
pub(crate) async fn end_session(
    tx: &mut SqliteConnection,
    session: &str,
    now: Timestamp,
) -> Result<Option<String>> {
    let update = "UPDATE sessions SET ended_ms = ? WHERE id = ? AND ended_ms IS NULL RETURNING user_id";
    Ok(sqlx::query_scalar(update).bind(now.as_millisecond()).bind(session).fetch_optional(tx).await?)
}

pub(crate) async fn end_sessions(tx: &mut SqliteConnection, user: &str, now: Timestamp) -> Result<()> {
    let update = sqlx::query("UPDATE sessions SET ended_ms = ? WHERE user_id = ? AND ended_ms IS NULL");
    update.bind(now.as_millisecond()).bind(user).execute(tx).await?;
    Ok(())
}

pub(crate) async fn insert_refresh(tx: &mut SqliteConnection, hash: &[u8], session: &str) -> Result<()> {
    let insert = sqlx::query("INSERT INTO refresh_tokens (hash, session_id) VALUES (?, ?)");
    insert.bind(hash).bind(session).execute(tx).await?;
    Ok(())
}

pub(crate) async fn refresh(tx: &mut SqliteConnection, hash: &[u8]) -> Result<Option<Refresh>> {
    let found = sqlx::query_as(
        "SELECT session_id, user_id, used_ms, ends_ms, ended_ms FROM refresh_tokens \
         JOIN sessions ON sessions.id = session_id WHERE hash = ?",
    );
    Ok(found.bind(hash).fetch_optional(tx).await?)
}

pub(crate) async fn use_refresh(tx: &mut SqliteConnection, hash: &[u8], now: Timestamp) -> Result<()> {
    let update = sqlx::query("UPDATE refresh_tokens SET used_ms = ? WHERE hash = ?");
    update.bind(now.as_millisecond()).bind(hash).execute(tx).await?;
    Ok(())
}

pub(crate) async fn keys(database: &Sqlite) -> Result<Vec<StoredKey>> {
    Ok(sqlx::query_as("SELECT * FROM signing_keys ORDER BY since_ms").fetch_all(database.pool()).await?)
}

pub(crate) async fn keys_in(tx: &mut SqliteConnection) -> Result<Vec<StoredKey>> {
    Ok(sqlx::query_as("SELECT * FROM signing_keys ORDER BY since_ms").fetch_all(tx).await?)
}

pub(crate) async fn insert_key(tx: &mut SqliteConnection, key: &StoredKey) -> Result<()> {
    let insert = "INSERT INTO signing_keys (kid, algorithm, sealed, state, since_ms) VALUES (?, ?, ?, ?, ?)";
    let insert = sqlx::query(insert).bind(&key.kid).bind(&key.algorithm).bind(&key.sealed);
    insert.bind(&key.state).bind(key.since_ms).execute(tx).await?;
    Ok(())
}

/// Retires the key that signs, has the next one sign, and removes those that retired before `gone`.
pub(crate) async fn rotate_keys(tx: &mut SqliteConnection, now: Timestamp, gone: Timestamp) -> Result<()> {
    let gone = sqlx::query("DELETE FROM signing_keys WHERE state = 'retired' AND since_ms < ?")
        .bind(gone.as_millisecond());
    gone.execute(&mut *tx).await?;
    for (from, to) in [("current", "retired"), ("next", "current")] {
        let moved = sqlx::query("UPDATE signing_keys SET state = ?, since_ms = ? WHERE state = ?");
        moved.bind(to).bind(now.as_millisecond()).bind(from).execute(&mut *tx).await?;
    }
    Ok(())
}
