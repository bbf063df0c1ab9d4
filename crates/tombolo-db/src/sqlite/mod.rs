//! SQLite: a service's own database in one file.
//!
//! One writer at a time is SQLite's rule, so numbering happens in the publishing transaction itself and no commit can be late.
//!
//! ```text
//!  user's reads ── pool ─────────┐
//!  transactions ── writer (FULL) ─┼── file, WAL      each commit is one sync
//!  upkeep       ── upkeep (NORMAL)┘                  removals, leases, attempts: no sync of their own
//! ```
//!
//! Writers of this process queue in order before the file, so that none of them sleeps in SQLite's busy handler;
//! writers of other processes are waited for with the busy timeout. Upkeep does not sync: what a power cut takes
//! back of it is only repeated (a removed row is sent again under the same number, a lease is claimed again), and
//! it becomes durable with the next commit, because the log of writes has one order.
//!
//! Invariant: on a connection of a transaction nothing commits but through [`Tx::commit`]: a hook refuses even a
//! statement that the user runs after SQLite rolled the transaction back by itself.

mod schema;
mod transaction;
mod outbox;
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

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row, SqlitePool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::mutant::Mutation;
use crate::{Committed, Database, Error, Kind, Outgoing, Publisher, Result};

pub use foreign::foreign_sql;
pub use schema::schema_sql;
pub use transaction::Tx;

/// How long a writer waits for another process's.
pub const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a writer waits for the writers of this process before it.
pub const WRITER_WAIT_MAX: Duration = Duration::from_secs(30);
/// The most connections of the users' reads, in a pool made by [`Sqlite::open`].
pub const READERS_MAX: u32 = 8;

/// A service's database in a file of SQLite. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    writer: SqlitePool,
    upkeep: SqlitePool,
    queue: Arc<Semaphore>,
    gate: Gate,
    /// Whether other programs were seen to have a table here; once they have one, they keep it.
    has_foreign: Arc<AtomicBool>,
    mutation: Mutation,
}

impl Sqlite {
    /// The database in the file that `place` names, as a path or as `sqlite:path`; made when first used.
    ///
    /// Nothing touches the disk yet. The settings are those that keep the promise: WAL, `synchronous = FULL`,
    /// foreign keys, a busy timeout.
    ///
    /// # Errors
    /// `Unsafe` for a database in memory, `Database` for an address that does not parse.
    pub fn open(place: impl AsRef<str>) -> Result<Self> {
        let place = place.as_ref();
        if let Some((scheme, _)) = place.split_once("://").filter(|(scheme, _)| *scheme != "sqlite") {
            return Err(Error::new(
                Kind::Unsafe,
                format!(
                    "found a database of the scheme {scheme:?}, but this service is built for SQLite; expected sqlite:PATH or a path (TOMBOLO_DATABASE, or `database` in the manifest)"
                ),
            ));
        }
        let options = match place.strip_prefix("sqlite:") {
            Some(_) => SqliteConnectOptions::from_str(place)?,
            None => SqliteConnectOptions::new().filename(Path::new(place)),
        };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_WAIT_MAX);
        let readers = lasting(READERS_MAX).connect_lazy_with(options);
        Self::new(readers)
    }

    /// The database of the user's own pool, whose connect options (not its hooks) the transactions' connection takes over.
    /// `prepare` refuses settings that would break the promise.
    ///
    /// # Errors
    /// `Unsafe` for a database in memory, of which each connection would be another.
    pub fn new(pool: SqlitePool) -> Result<Self> {
        let options = SqliteConnectOptions::clone(&pool.connect_options());
        let file = options.get_filename().to_string_lossy().into_owned();
        if file == ":memory:" || file.starts_with("file:sqlx-in-memory") {
            return Err(Error::new(
                Kind::Unsafe,
                "the database is in memory, where no commit is durable; give the path of a file (in a temporary folder for a test)",
            ));
        }
        let gate = Gate::default();
        let upkeep = writing().connect_lazy_with(options.clone().synchronous(SqliteSynchronous::Normal));
        Ok(Self {
            writer: guarded(gate.clone()).connect_lazy_with(options),
            pool,
            upkeep,
            queue: Arc::new(Semaphore::new(1)),
            gate,
            has_foreign: Arc::default(),
            mutation: Mutation::default(),
        })
    }

    /// The pool for the user's own reads. Writes belong into a transaction.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Begins a transaction, which may write.
    ///
    /// # Errors
    /// `Unavailable` if another writer holds the database for too long.
    pub async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        let (turn, inner) = self.begin_writing(&self.writer).await?;
        Ok(Tx::new(inner, turn, self.gate.clone(), Outgoing::new(publisher.clone()), self.mutation))
    }

    /// The same database with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: crate::mutant::Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        if mutant == crate::mutant::Mutant::NoSync {
            let options = SqliteConnectOptions::clone(&self.pool.connect_options());
            let options = options.synchronous(SqliteSynchronous::Off);
            self.writer = guarded(self.gate.clone()).connect_lazy_with(options.clone());
            self.upkeep = writing().connect_lazy_with(options);
        }
        self
    }

    async fn begin_writing(
        &self,
        connections: &SqlitePool,
    ) -> Result<(OwnedSemaphorePermit, sqlx::Transaction<'static, sqlx::Sqlite>)> {
        let turn = tokio::time::timeout(WRITER_WAIT_MAX, self.queue.clone().acquire_owned());
        let turn = turn.await.map_err(|_| {
            Error::new(
                Kind::Unavailable,
                format!(
                    "waited {} s to write, because another transaction of this process was open all the time; keep transactions short, and never wait inside one",
                    WRITER_WAIT_MAX.as_secs()
                ),
            )
        })?;
        let turn =
            turn.map_err(|closed| Error::new(Kind::Database, "the database was closed").because(closed))?;
        Ok((turn, connections.begin_with("BEGIN IMMEDIATE").await?))
    }

    /// Runs `work` in a write transaction of our own, which is synced (`writer`) or not (`upkeep`).
    async fn write<T>(
        &self,
        connections: &SqlitePool,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T>,
    ) -> Result<T> {
        let (turn, mut transaction) = self.begin_writing(connections).await?;
        let done = work(&mut transaction).await?;
        let open = self.gate.open();
        transaction.commit().await?;
        drop((open, turn));
        Ok(done)
    }

    /// The first connection, which makes the file if it is not there.
    async fn connect(&self) -> Result<PoolConnection<sqlx::Sqlite>> {
        self.writer.acquire().await.map_err(|error| {
            let options = self.pool.connect_options();
            let file = options.get_filename().display();
            let error = Error::from(error);
            Error::new(
                error.kind(),
                format!(
                    "cannot open the database file {file}: {error}; its folder must exist and be writable"
                ),
            )
            .because(error)
        })
    }

    /// Refuses settings under which a commit would not be durable.
    async fn check_settings(&self) -> Result<()> {
        let mut connection = self.connect().await?;
        let journal: String =
            sqlx::query("PRAGMA journal_mode").fetch_one(&mut *connection).await?.try_get(0)?;
        if journal != "wal" {
            return Err(Error::new(
                Kind::Unsafe,
                format!(
                    "the database has journal_mode = {journal}; expected wal: set SqliteConnectOptions::journal_mode(SqliteJournalMode::Wal)"
                ),
            ));
        }
        let level: i64 = sqlx::query("PRAGMA synchronous").fetch_one(&mut *connection).await?.try_get(0)?;
        if level < SYNCHRONOUS_FULL && !self.mutation.is(crate::mutant::Mutant::NoSync) {
            let name = ["OFF", "NORMAL"].get(usize::try_from(level).unwrap_or(0)).unwrap_or(&"OFF");
            return Err(Error::new(
                Kind::Unsafe,
                format!(
                    "the connections have synchronous = {name}, which loses commits in a power cut; expected FULL: set SqliteConnectOptions::synchronous(SqliteSynchronous::Full)"
                ),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Database for Sqlite {
    type Tx = Tx;
    type Connection = SqliteConnection;

    async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Sqlite::begin(self, publisher).await
    }

    async fn write_outgoing(
        &self,
        connection: &mut SqliteConnection,
        outgoing: Outgoing,
    ) -> Result<Committed> {
        transaction::write_outgoing(connection, outgoing).await
    }
}

const SYNCHRONOUS_FULL: i64 = 2;

/// Connections that stay, so that nothing runs in the background to close them; a file needs no test before each use.
fn lasting(most: u32) -> SqlitePoolOptions {
    let lasting = SqlitePoolOptions::new().max_connections(most).idle_timeout(None).max_lifetime(None);
    lasting.test_before_acquire(false)
}

/// The one connection of transactions, on which a commit passes only while the gate is open.
fn guarded(gate: Gate) -> SqlitePoolOptions {
    writing().after_connect(move |connection, _| {
        let gate = gate.clone();
        Box::pin(async move {
            connection.lock_handle().await?.set_commit_hook(move || gate.pass());
            Ok(())
        })
    })
}

/// One connection that writes. A transaction that SQLite ended by itself, as on a full disk, leaves the connection's own
/// count of it wrong: such a one is closed.
fn writing() -> SqlitePoolOptions {
    lasting(1).after_release(|connection, _| {
        Box::pin(async move {
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    })
}

/// Lets one commit pass while somebody holds it open.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<AtomicU8>);

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const PASSED: u8 = 2;

impl Gate {
    fn open(&self) -> Opened {
        self.0.store(OPEN, Ordering::SeqCst);
        Opened(self.clone())
    }

    /// What SQLite asks before each commit.
    fn pass(&self) -> bool {
        self.0.compare_exchange(OPEN, PASSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// Closes the gate when dropped.
struct Opened(Gate);

impl Opened {
    /// Whether a commit passed.
    fn is_passed(&self) -> bool {
        self.0.0.load(Ordering::SeqCst) == PASSED
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.store(CLOSED, Ordering::SeqCst);
    }
}
