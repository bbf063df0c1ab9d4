//! PostgreSQL: a service's own database on a server, with Tombolo's tables in a schema of their own.
//!
//! ```text
//!  commit:  lock the keys' stripes ── insert rows (position, no number) ── COMMIT, synced
//!  round:   lock the leader's row ── remove what is done ── number what is there ── COMMIT, synced
//! ```
//!
//! Many transactions commit at once, so a row may appear below others that were seen before: the relay numbers
//! rows that have no number yet, never rows above the last one it saw. Nothing here uses NOTIFY, which
//! serialises all commits of the server.
//!
//! Invariant: positions of one key are in commit order, because a position is taken under the lock of the key's
//! stripe, which is held until the commit.

mod making;
mod schema;
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
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tombolo_event::KeyHash;

use crate::mutant::Mutation;
use crate::{Committed, Database, Error, Kind, Outgoing, Publisher, Result};

pub use foreign::foreign_sql;
pub use making::create_database;
pub use schema::schema_sql;
pub use transaction::Tx;

/// The schema of Tombolo's tables unless another is chosen.
pub const SCHEMA: &str = "tombolo";
/// The most connections of a pool made by [`Postgres::open`].
pub const CONNECTIONS_MAX: u32 = 10;
/// How long a pool made by [`Postgres::open`] waits for a connection.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a transaction may be idle before the server ends it, unless another limit is chosen. Shorter than any lease.
pub const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(5);
/// The longest name of a schema, in bytes, as PostgreSQL keeps it.
const SCHEMA_BYTES_MAX: usize = 63;

/// A service's database on a PostgreSQL server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    schema: Arc<str>,
    /// The class of the advisory locks, so that two services in one database do not share stripes.
    lock_class: i32,
    idle_max: Duration,
    /// Whether other programs were seen to have a table here; once they have one, they keep it.
    has_foreign: Arc<AtomicBool>,
    mutation: Mutation,
}

impl Postgres {
    /// The database that `url` names. Nothing connects before the first use.
    ///
    /// # Errors
    /// `Database` for a URL that does not parse.
    pub fn open(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_WAIT_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        Ok(Self::new(pool))
    }

    /// The database of the user's own pool.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            schema: SCHEMA.into(),
            lock_class: lock_class(SCHEMA),
            idle_max: IDLE_IN_TRANSACTION_MAX,
            has_foreign: Arc::default(),
            mutation: Mutation::default(),
        }
    }

    /// The same with Tombolo's tables in another schema.
    ///
    /// # Errors
    /// `Schema` unless it is lowercase letters, digits and `_`, starting with a letter.
    pub fn with_schema(mut self, schema: &str) -> Result<Self> {
        let word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        let fits = schema.len() <= SCHEMA_BYTES_MAX && schema.starts_with(|c: char| c.is_ascii_lowercase());
        if !fits || !schema.chars().all(word) {
            return Err(Error::new(
                Kind::Schema,
                format!(
                    "{schema:?} cannot be the schema of Tombolo's tables; expected lowercase letters, digits and '_', starting with a letter, at most {SCHEMA_BYTES_MAX} bytes"
                ),
            ));
        }
        self.schema = schema.into();
        self.lock_class = lock_class(schema);
        Ok(self)
    }

    /// The same, but a transaction may be idle for `limit`. Keep it shorter than the leases: the server must have cut
    /// off a stopped holder before another one takes over.
    #[must_use]
    pub fn with_idle_in_transaction(mut self, limit: Duration) -> Self {
        self.idle_max = limit;
        self
    }

    /// The pool for the user's own reads, and for writes that publish nothing.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Begins a transaction, which may write.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        let inner = self.begin_marked(self.idle_max).await?;
        Ok(Tx::new(inner, self.clone(), Outgoing::new(publisher.clone())))
    }

    /// The same database with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: crate::mutant::Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        self
    }

    /// Begins in one message: with the idle limit, and with a mark by which the transaction is known again.
    async fn begin_marked(&self, idle_max: Duration) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
        let begin = format!(
            "BEGIN; SET LOCAL tombolo.transaction = 'open'; SET LOCAL idle_in_transaction_session_timeout = {}",
            idle_max.as_millis().clamp(1, i32::MAX as u128)
        );
        Ok(self.pool.begin_with(AssertSqlSafe(begin)).await?)
    }

    /// `text` with the schema that was chosen in the place of `tombolo.`, which names only our own tables.
    fn sql(&self, text: &'static str) -> AssertSqlSafe<Cow<'static, str>> {
        if &*self.schema == SCHEMA {
            return AssertSqlSafe(Cow::Borrowed(text));
        }
        AssertSqlSafe(Cow::Owned(text.replace("tombolo.", &format!("\"{}\".", self.schema))))
    }
}

fn lock_class(schema: &str) -> i32 {
    KeyHash::of(&format!("tombolo/{schema}")).0 as i32
}

/// A duration as `$n * interval '1 millisecond'` takes it.
fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// A count of the database, which keeps them signed and never below 0.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A partition as the database keeps it; there are at most some ten thousand.
fn signed(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

#[async_trait]
impl Database for Postgres {
    type Tx = Tx;
    type Connection = PgConnection;

    async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Postgres::begin(self, publisher).await
    }

    async fn write_outgoing(&self, connection: &mut PgConnection, outgoing: Outgoing) -> Result<Committed> {
        self.write_within(connection, outgoing).await
    }
}
