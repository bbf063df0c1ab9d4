//! A transaction on a connection of the user's pool, of which the server can be asked whether it is still the one that began.
//!
//! ```text
//!  begin    autocommit = 0 ── START TRANSACTION ── SAVEPOINT (the mark) ── how many statements were undone so far
//!  verify   RELEASE SAVEPOINT: an error if the mark is gone ── whether a statement was undone since
//!  end      COMMIT or ROLLBACK ── autocommit = 1
//! ```
//!
//! The mark lives exactly as long as the transaction: a deadlock, a `COMMIT`, `ROLLBACK` or `BEGIN` of the user's, and every
//! statement that commits by itself (`CREATE TABLE`, `LOCK TABLES`, …) takes it away. With `autocommit` off, what runs after such
//! an end is in a transaction that nobody commits, instead of being kept statement by statement.
//!
//! Invariant: a connection goes back to the pool as it came, or it is closed.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor, MySql, MySqlPool, Row, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

type Transactions = <MySql as sqlx::Database>::TransactionManager;

/// The two counts of the session: statements that were undone, and returns to a savepoint, which undo them on purpose. The table has
/// another name on MariaDB than on MySQL; each reads only its own comment.
const COUNTED: &str = "
    MAX(IF(VARIABLE_NAME = 'Handler_rollback', VARIABLE_VALUE + 0, NULL)) AS undone,
    MAX(IF(VARIABLE_NAME = 'Com_rollback_to_savepoint', VARIABLE_VALUE + 0, NULL)) AS went_back";
const COUNTERS: &str = "
    FROM /*M!information_schema*//*!80000 performance_schema*/.session_status
    WHERE VARIABLE_NAME IN ('Handler_rollback', 'Com_rollback_to_savepoint')";

/// Asks whether the mark is there, by releasing it.
const RELEASE: &str = "RELEASE SAVEPOINT tombolo_transaction";
/// ER_SP_DOES_NOT_EXIST: there is no such savepoint.
const NO_SAVEPOINT: u16 = 1305;

/// What is found when a transaction is asked about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It is the one that began, and nothing is missing from it.
    Whole,
    /// A statement in it failed, and was undone alone.
    Torn,
    /// It has ended.
    Gone,
}

/// An open transaction. Dropped, it is rolled back.
pub(super) struct Session {
    connection: PoolConnection<MySql>,
    is_open: bool,
}

impl Session {
    /// Begins a transaction of our own statements only: each of their errors ends it.
    pub(super) async fn begin(pool: &MySqlPool, idle_max: Duration) -> sqlx::Result<Self> {
        Self::begin_with(pool, idle_max, "").await
    }

    /// Begins a transaction in which the user's statements run, whose errors nobody may hear of.
    pub(super) async fn watched(pool: &MySqlPool, idle_max: Duration) -> sqlx::Result<Self> {
        let count = format!("; SELECT {COUNTED} INTO @tombolo_undone, @tombolo_went_back {COUNTERS}");
        Self::begin_with(pool, idle_max, &count).await
    }

    async fn begin_with(pool: &MySqlPool, idle_max: Duration, then: &str) -> sqlx::Result<Self> {
        let idle_seconds = idle_max.as_millis().div_ceil(1_000).clamp(1, 86_400);
        let begin = format!(
            "SET @tombolo_wait = @@wait_timeout, autocommit = 0, wait_timeout = {idle_seconds};
             SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; SAVEPOINT tombolo_transaction{then}"
        );
        let mut session = Self { connection: pool.acquire().await?, is_open: true };
        Transactions::begin(&mut session.connection, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        Ok(session)
    }

    /// Proves that this is still the transaction that was begun and that nothing is missing from it. `then` goes with it, in the
    /// same message: one more query, which is not asked if the mark is gone, and whose rows are the second part of the answer.
    pub(super) async fn verify(&mut self, then: Option<&str>) -> sqlx::Result<(Found, Vec<MySqlRow>)> {
        let then = then.map(|query| format!("; {query}")).unwrap_or_default();
        let ask = format!(
            "{RELEASE}; SELECT NOT (undone <=> @tombolo_undone) AND went_back <=> @tombolo_went_back
             FROM (SELECT {COUNTED} {COUNTERS}) AS counted{then}"
        );
        let mut rows = match sqlx::raw_sql(AssertSqlSafe(ask)).fetch_all(&mut *self.connection).await {
            Ok(rows) => rows,
            Err(error) if number(&error) == Some(NO_SAVEPOINT) => return Ok((Found::Gone, Vec::new())),
            Err(error) => return Err(error),
        };
        let torn: bool = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        Ok((if torn { Found::Torn } else { Found::Whole }, rows.split_off(1)))
    }

    pub(super) async fn commit(self) -> sqlx::Result<()> {
        self.end("COMMIT").await
    }

    pub(super) async fn rollback(self) -> sqlx::Result<()> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &str) -> sqlx::Result<()> {
        let end = format!("{how} AND NO CHAIN NO RELEASE; SET autocommit = 1, wait_timeout = @tombolo_wait");
        self.connection.execute(AssertSqlSafe(end)).await?;
        self.is_open = false;
        forget(&mut self.connection);
        Ok(())
    }
}

/// Tells sqlx that the transaction has ended. The ROLLBACK that it puts in front of the connection's next message finds nothing.
fn forget(connection: &mut MySqlConnection) {
    while Transactions::get_transaction_depth(connection) > 0 {
        Transactions::start_rollback(connection);
    }
}

/// Whether a transaction is open on a connection of the user's own: only then a savepoint is there in the next statement.
pub(super) async fn is_open(connection: &mut MySqlConnection) -> sqlx::Result<bool> {
    let ask = "SAVEPOINT tombolo_publish; RELEASE SAVEPOINT tombolo_publish";
    match connection.execute(ask).await {
        Ok(_) => Ok(true),
        Err(error) if number(&error) == Some(NO_SAVEPOINT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Undoes a transaction of the user's own, and leaves another in its place in which nothing can be written: whatever becomes of
/// it, nothing of it is kept.
pub(super) async fn spoil(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    connection.execute("ROLLBACK AND NO CHAIN NO RELEASE; START TRANSACTION READ ONLY").await?;
    Ok(())
}

/// Whether the counts of a session can be read, on which [`Session::verify`] stands.
pub(super) async fn counts_can_be_read(connection: &mut MySqlConnection) -> sqlx::Result<bool> {
    let ask = format!("SELECT COUNT(*) = 2 {COUNTERS}");
    sqlx::query(AssertSqlSafe(ask)).fetch_one(connection).await?.try_get(0)
}

/// The server's number of an error.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    crate::transient::mysql_number(error.as_database_error()?)
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_open {
            forget(&mut self.connection);
            self.connection.close_on_drop();
        }
    }
}

impl Deref for Session {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }
}
