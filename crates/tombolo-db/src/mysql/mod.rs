//! MySQL and MariaDB: a service's own database on a server, with Tombolo's tables behind a prefix of their own.
//!
//! ```text
//!  commit:  prove that the transaction lives ── lock the keys' stripes ── insert rows (position, no number) ── COMMIT, synced
//!  round:   lock the leader's row ── remove what is done ── number what is there ── COMMIT, synced
//! ```
//!
//! Many transactions commit at once, so the relay numbers rows that have no number yet, never rows above the last one it saw.
//! These servers end a transaction without being told to (a deadlock, a `CREATE TABLE`), and keep one alive from which a
//! failed statement is missing: `session.rs` says how both are found out.
//!
//! Invariant: positions of one key are in commit order, because a position is taken under the lock of the key's
//! stripe, a row of the table of stripes, which is held until the commit.

mod making;
mod schema;
mod settings;
mod session;
mod transaction;
mod outbox;
mod numbering;
mod foreign;
mod generations;
mod later;
mod cursors;
mod leases;
mod effects;
mod views;
mod requests;
mod recovery;
mod parked;

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::mutant::Mutation;
use crate::{Committed, Database, Error, Kind, Outgoing, Publisher, Result};

pub use foreign::foreign_sql;
pub use making::create_database;
pub use schema::schema_sql;
pub use transaction::Tx;

/// What the names of Tombolo's tables begin with, unless another prefix is chosen.
pub const PREFIX: &str = "tombolo_";
/// The most connections of a pool made by [`Mysql::open`].
pub const CONNECTIONS_MAX: u32 = 10;
/// How long a pool made by [`Mysql::open`] waits for a connection.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a transaction may be idle before the server ends it, unless another limit is chosen; in whole seconds, as the
/// server counts. Shorter than any lease.
pub const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(5);
/// The longest prefix, in bytes: with the longest of our names it is far below the server's limit of 64.
const PREFIX_BYTES_MAX: usize = 32;

/// A service's database on a MySQL or MariaDB server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mysql {
    pool: MySqlPool,
    prefix: Arc<str>,
    idle_max: Duration,
    /// Whether other programs were seen to have a table here; once they have one, they keep it.
    has_foreign: Arc<AtomicBool>,
    mutation: Mutation,
}

impl Mysql {
    /// The database that `url` names. Nothing connects before the first use.
    ///
    /// # Errors
    /// `Database` for a URL that does not parse.
    pub fn open(url: &str) -> Result<Self> {
        let options = MySqlConnectOptions::from_str(url)?;
        let pool = MySqlPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_WAIT_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        Ok(Self::new(pool))
    }

    /// The database of the user's own pool.
    #[must_use]
    pub fn new(pool: MySqlPool) -> Self {
        Self {
            pool,
            prefix: PREFIX.into(),
            idle_max: IDLE_IN_TRANSACTION_MAX,
            has_foreign: Arc::default(),
            mutation: Mutation::default(),
        }
    }

    /// The same with another prefix of Tombolo's tables, so that two services can share a database.
    ///
    /// # Errors
    /// `Schema` unless it is lowercase letters, digits and `_`, starting with a letter and ending with `_`.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self> {
        let word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        let fits = prefix.len() <= PREFIX_BYTES_MAX && prefix.starts_with(|c: char| c.is_ascii_lowercase());
        if !fits || !prefix.chars().all(word) || !prefix.ends_with('_') {
            return Err(Error::new(
                Kind::Schema,
                format!(
                    "{prefix:?} cannot be the prefix of Tombolo's tables; expected lowercase letters, digits and '_', starting with a letter and ending with '_', at most {PREFIX_BYTES_MAX} bytes"
                ),
            ));
        }
        self.prefix = prefix.into();
        Ok(self)
    }

    /// The same, but a transaction may be idle for `limit`, rounded up to seconds. Keep it shorter than the leases: the server
    /// must have cut off a stopped holder before another one takes over.
    #[must_use]
    pub fn with_idle_in_transaction(mut self, limit: Duration) -> Self {
        self.idle_max = limit;
        self
    }

    /// The pool for the user's own reads, and for writes that publish nothing.
    #[must_use]
    pub fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    /// Begins a transaction, which may write.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        let session = session::Session::watched(&self.pool, self.idle_max).await?;
        Ok(Tx::new(session, self.clone(), Outgoing::new(publisher.clone())))
    }

    /// The same database with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: crate::mutant::Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        self
    }

    /// `text` with the prefix that was chosen in the place of `tombolo_`, which names only our own tables.
    fn sql(&self, text: &'static str) -> AssertSqlSafe<Cow<'static, str>> {
        AssertSqlSafe(schema::prefixed(text, &self.prefix))
    }
}

/// A duration as `INTERVAL ? MICROSECOND` takes it.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A count of the database, which keeps them signed and never below 0.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A partition as the database keeps it; there are at most some ten thousand.
fn signed(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// A bound as `LIMIT ?` takes it.
fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

#[async_trait]
impl Database for Mysql {
    type Tx = Tx;
    type Connection = MySqlConnection;

    async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Mysql::begin(self, publisher).await
    }

    async fn write_outgoing(
        &self,
        connection: &mut MySqlConnection,
        outgoing: Outgoing,
    ) -> Result<Committed> {
        self.write_within(connection, outgoing).await
    }
}
