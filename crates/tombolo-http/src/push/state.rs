//! What the bus keeps for its subscribers: a file of SQLite in the door's folder.
//!
//! | takes | writes | commits when | if we crash here | if it repeats |
//! |---|---|---|---|---|
//! | what became of a delivery | cursor, attempts, parked | one writer has all that waits; then the next event of the key starts | the delivery is made again, marked | the subscriber sees the mark |
//!
//! A commit is in the system's hands when it is acknowledged, so a killed bus loses none. It is not synced: after a power cut the file
//! is whole, and may lie a little behind; all that may have been delivered since is then marked ([`State::survived`]).
//!
//! Invariant: changes are committed in the order in which they were handed over, and acknowledged afterwards.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tombolo_event::retry::Backoff;
use tombolo_event::{Cursor, EventId, Incarnation};
use uuid::Uuid;

use super::event::Place;
use super::queue::Standing;
use crate::problem::{Problem, Refusal};

/// The most changes that wait; then whoever has more waits too.
const WAITING_MAX: usize = 1024;
/// The most that one commit takes.
const COMMIT_MAX: usize = 256;
/// How a commit is tried again that the disk refused.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Something that changes in the file.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Where a subscription stands in a partition.
    Stands(Standing),
    /// An event failed again.
    Failed { place: Place, attempts: u32, cause: String },
    /// An event that failed is done, or parked.
    Cleared(Place),
    /// An event is parked.
    Parked(Parked),
    /// A parked event is done, or discarded.
    Unparked(Place),
    /// It is paused, for a reason, or goes on.
    Paused(Option<String>),
    /// Its target has allowed this origin to send there; or none.
    Allowed(Option<String>),
    /// It was made over the API by this service, or changed.
    Defined { json: String, owner: Option<String> },
    /// It is no more, with all that it had.
    Removed,
}

/// An event that could not be delivered, or waits behind one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) place: Place,
    pub(crate) id: EventId,
    pub(crate) key: String,
    pub(crate) event_type: String,
    pub(crate) attempts: u32,
    pub(crate) cause: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: i64,
}

/// What is kept of a subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) standings: Vec<Standing>,
    pub(crate) failed: HashMap<Place, (u32, String)>,
    pub(crate) paused: Option<String>,
    pub(crate) allowed: Option<String>,
}

/// A subscription that was made over the API.
#[derive(Debug, Clone)]
pub(crate) struct Defined {
    pub(crate) name: String,
    pub(crate) json: String,
    pub(crate) owner: Option<String>,
}

/// The file.
#[derive(Debug)]
pub(crate) struct State {
    readers: SqlitePool,
    waiting: Mutex<Option<mpsc::Sender<Waiting>>>,
    /// Whether the machine has not restarted since the file was last written.
    pub(crate) survived: bool,
}

#[derive(Debug)]
struct Waiting {
    subscription: String,
    changes: Vec<Change>,
    written: oneshot::Sender<()>,
}

/// Told when a change is committed.
pub(crate) type Written = oneshot::Receiver<()>;

const TABLES: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS boot (id INTEGER PRIMARY KEY CHECK (id = 1), boot TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS subscription (name TEXT PRIMARY KEY, definition TEXT, owner TEXT, paused TEXT, allowed TEXT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS standing (subscription TEXT, partition INTEGER, incarnation BLOB NOT NULL, sequence INTEGER NOT NULL, id BLOB, done BLOB NOT NULL, repeated_to INTEGER NOT NULL, started_to INTEGER NOT NULL, PRIMARY KEY (subscription, partition)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS failed (subscription TEXT, partition INTEGER, sequence INTEGER, attempts INTEGER NOT NULL, cause TEXT NOT NULL, PRIMARY KEY (subscription, partition, sequence)) WITHOUT ROWID",
];
const PARKED: &str = "CREATE TABLE IF NOT EXISTS parked (subscription TEXT, partition INTEGER, sequence INTEGER, id BLOB NOT NULL, key TEXT NOT NULL, type TEXT NOT NULL, attempts INTEGER NOT NULL, cause TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (subscription, partition, sequence)) WITHOUT ROWID";

impl State {
    /// Opens the file, or makes it. The writer is one of `tasks`, and ends when the state is dropped.
    pub(crate) async fn open(path: &Path, tasks: &TaskTracker) -> Result<Self, Problem> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(10));
        let readers = SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options);
        let mut writer = readers.acquire().await.map_err(broken)?.detach();
        for table in TABLES.into_iter().chain([PARKED]) {
            sqlx::query(table).execute(&mut writer).await.map_err(broken)?;
        }
        let survived = is_same_boot(&mut writer).await.map_err(broken)?;
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tasks.spawn(write_on(writer, waiting));
        Ok(Self { readers, waiting: Mutex::new(Some(sender)), survived })
    }

    /// Hands changes over, to be committed in this order; tells when they are.
    pub(crate) async fn write(&self, subscription: &str, changes: Vec<Change>) -> Written {
        let (written, told) = oneshot::channel();
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waiting) = waiting {
            // A writer that is gone has dropped what it was handed, which tells whoever waits.
            drop(waiting.send(Waiting { subscription: subscription.to_owned(), changes, written }).await);
        }
        told
    }

    /// The subscriptions that were made over the API.
    pub(crate) async fn defined(&self) -> Result<Vec<Defined>, Problem> {
        let rows = sqlx::query(
            "SELECT name, definition, owner FROM subscription WHERE definition IS NOT NULL ORDER BY name",
        );
        let rows = rows.fetch_all(&self.readers).await.map_err(broken)?;
        let defined = |row: &SqliteRow| {
            Ok(Defined { name: row.try_get(0)?, json: row.try_get(1)?, owner: row.try_get(2)? })
        };
        rows.iter().map(defined).collect::<sqlx::Result<_>>().map_err(broken)
    }

    /// What is kept of a subscription; of a new one, nothing.
    pub(crate) async fn kept(&self, subscription: &str) -> Result<Kept, Problem> {
        self.read_kept(subscription).await.map_err(broken)
    }

    async fn read_kept(&self, subscription: &str) -> sqlx::Result<Kept> {
        let row = sqlx::query("SELECT paused, allowed FROM subscription WHERE name = ?").bind(subscription);
        let row = row.fetch_optional(&self.readers).await?;
        let (paused, allowed) = match &row {
            Some(row) => (row.try_get(0)?, row.try_get(1)?),
            None => (None, None),
        };
        let rows = sqlx::query(
            "SELECT partition, incarnation, sequence, id, done, repeated_to, started_to FROM standing WHERE subscription = ?",
        );
        let rows = rows.bind(subscription).fetch_all(&self.readers).await?;
        let standings = rows.iter().map(standing).collect::<sqlx::Result<_>>()?;
        let rows =
            sqlx::query("SELECT partition, sequence, attempts, cause FROM failed WHERE subscription = ?");
        let rows = rows.bind(subscription).fetch_all(&self.readers).await?;
        let failed = rows.iter().map(|row| Ok((place(row)?, (row.try_get(2)?, row.try_get(3)?))));
        Ok(Kept { standings, failed: failed.collect::<sqlx::Result<_>>()?, paused, allowed })
    }

    /// Parked events, in the order of their partitions; those too that were handed over and are not committed yet.
    pub(crate) async fn parked(&self, subscription: &str) -> Result<Vec<Parked>, Problem> {
        drop(self.write(subscription, Vec::new()).await.await);
        let rows = sqlx::query(
            "SELECT partition, sequence, id, key, type, attempts, cause, at_ms FROM parked WHERE subscription = ? ORDER BY partition, sequence",
        );
        let rows = rows.bind(subscription).fetch_all(&self.readers).await.map_err(broken)?;
        rows.iter().map(parked).collect::<sqlx::Result<_>>().map_err(broken)
    }

    /// Lets go of the file; the writer ends when it has written what it was handed.
    pub(crate) async fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.readers.close().await;
    }
}

fn place(row: &SqliteRow) -> sqlx::Result<Place> {
    Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.cast_unsigned()))
}

fn standing(row: &SqliteRow) -> sqlx::Result<Standing> {
    let (partition, incarnation) = (row.try_get(0)?, Incarnation(row.try_get(1)?));
    let sequence = row.try_get::<i64, _>(2)?.cast_unsigned();
    let id = row.try_get::<Option<Uuid>, _>(3)?.map(EventId);
    let done: Vec<u8> = row.try_get(4)?;
    let after = |bytes: &[u8]| {
        bytes.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte)) + sequence
    };
    Ok(Standing {
        partition,
        cursor: Cursor { incarnation, sequence, id },
        done: done.chunks(4).map(after).collect(),
        repeated_to: row.try_get::<i64, _>(5)?.cast_unsigned(),
        started_to: row.try_get::<i64, _>(6)?.cast_unsigned(),
    })
}

/// What is done after the cursor, as four little-endian bytes of distance each.
fn distances(done: &BTreeSet<u64>, sequence: u64) -> Vec<u8> {
    let distance = |at: &u64| u32::try_from(at.saturating_sub(sequence)).unwrap_or_default().to_le_bytes();
    done.iter().flat_map(distance).collect()
}

fn parked(row: &SqliteRow) -> sqlx::Result<Parked> {
    Ok(Parked {
        place: place(row)?,
        id: EventId(row.try_get(2)?),
        key: row.try_get(3)?,
        event_type: row.try_get(4)?,
        attempts: row.try_get(5)?,
        cause: row.try_get(6)?,
        at_ms: row.try_get(7)?,
    })
}

/// Whether the machine is still the one, not restarted, that wrote the file; and notes the present one.
async fn is_same_boot(writer: &mut SqliteConnection) -> sqlx::Result<bool> {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let before: Option<String> =
        sqlx::query_scalar("SELECT boot FROM boot").fetch_optional(&mut *writer).await?;
    sqlx::query(
        "INSERT INTO boot (id, boot) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET boot = excluded.boot",
    )
    .bind(&now)
    .execute(writer)
    .await?;
    Ok(before.is_none_or(|before| before == now && !now.is_empty()))
}

/// Commits what is handed over, many changes together, until nobody is left who could hand over more.
async fn write_on(mut writer: SqliteConnection, mut waiting: mpsc::Receiver<Waiting>) {
    let mut group = Vec::with_capacity(COMMIT_MAX);
    while waiting.recv_many(&mut group, COMMIT_MAX).await > 0 {
        let mut tries = 0;
        while let Err(error) = commit(&mut writer, &group).await {
            tracing::error!(%error, "where subscriptions stand cannot be written; no delivery starts until it can");
            tokio::time::sleep(AGAIN.jittered(tries)).await;
            tries += 1;
        }
        for waiting in group.drain(..) {
            // Whoever does not wait for it does not need to know.
            let _ = waiting.written.send(());
        }
    }
    if let Err(error) = writer.close().await {
        tracing::warn!(%error, "the file of subscriptions was not closed well");
    }
}

async fn commit(writer: &mut SqliteConnection, group: &[Waiting]) -> sqlx::Result<()> {
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    for waiting in group {
        for change in &waiting.changes {
            write(&mut transaction, &waiting.subscription, change).await?;
        }
    }
    transaction.commit().await
}

async fn write(writer: &mut SqliteConnection, subscription: &str, change: &Change) -> sqlx::Result<()> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let query = match change {
        Change::Stands(it) => sqlx::query("INSERT INTO standing VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (subscription, partition) DO UPDATE SET incarnation = excluded.incarnation, sequence = excluded.sequence, id = excluded.id, done = excluded.done, repeated_to = excluded.repeated_to, started_to = excluded.started_to")
            .bind(subscription)
            .bind(it.partition)
            .bind(it.cursor.incarnation.0)
            .bind(signed(it.cursor.sequence))
            .bind(it.cursor.id.map(|id| id.0))
            .bind(distances(&it.done, it.cursor.sequence))
            .bind(signed(it.repeated_to))
            .bind(signed(it.started_to)),
        Change::Failed { place, attempts, cause } => sqlx::query("INSERT INTO failed VALUES (?, ?, ?, ?, ?) ON CONFLICT (subscription, partition, sequence) DO UPDATE SET attempts = excluded.attempts, cause = excluded.cause")
            .bind(subscription)
            .bind(place.0)
            .bind(signed(place.1))
            .bind(*attempts)
            .bind(cause),
        Change::Cleared(place) => sqlx::query("DELETE FROM failed WHERE subscription = ? AND partition = ? AND sequence = ?")
            .bind(subscription)
            .bind(place.0)
            .bind(signed(place.1)),
        Change::Parked(it) => sqlx::query("INSERT INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (subscription, partition, sequence) DO UPDATE SET attempts = excluded.attempts, cause = excluded.cause, at_ms = excluded.at_ms")
            .bind(subscription)
            .bind(it.place.0)
            .bind(signed(it.place.1))
            .bind(it.id.0)
            .bind(&it.key)
            .bind(&it.event_type)
            .bind(it.attempts)
            .bind(&it.cause)
            .bind(it.at_ms),
        Change::Unparked(place) => sqlx::query("DELETE FROM parked WHERE subscription = ? AND partition = ? AND sequence = ?")
            .bind(subscription)
            .bind(place.0)
            .bind(signed(place.1)),
        other => return define(writer, subscription, other).await,
    };
    query.execute(writer).await.map(drop)
}

async fn define(writer: &mut SqliteConnection, subscription: &str, change: &Change) -> sqlx::Result<()> {
    let query = match change {
        Change::Paused(reason) => sqlx::query("INSERT INTO subscription (name, paused) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET paused = excluded.paused")
            .bind(subscription)
            .bind(reason),
        Change::Allowed(origin) => sqlx::query("INSERT INTO subscription (name, allowed) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET allowed = excluded.allowed")
            .bind(subscription)
            .bind(origin),
        Change::Defined { json, owner } => sqlx::query("INSERT INTO subscription (name, definition, owner) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, owner = excluded.owner")
            .bind(subscription)
            .bind(json)
            .bind(owner),
        _ => return remove(writer, subscription).await,
    };
    query.execute(writer).await.map(drop)
}

async fn remove(writer: &mut SqliteConnection, subscription: &str) -> sqlx::Result<()> {
    for query in [
        "DELETE FROM standing WHERE subscription = ?",
        "DELETE FROM failed WHERE subscription = ?",
        "DELETE FROM parked WHERE subscription = ?",
        "DELETE FROM subscription WHERE name = ?",
    ] {
        sqlx::query(query).bind(subscription).execute(&mut *writer).await?;
    }
    Ok(())
}

fn broken(error: sqlx::Error) -> Problem {
    let detail =
        format!("where subscriptions stand (push.sqlite in the bus's folder) cannot be used: {error}");
    Problem::new(Refusal::Internal, detail)
}
