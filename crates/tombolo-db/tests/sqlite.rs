//! What only SQLite can get wrong: its files, its settings, and the errors after which it ends a transaction by itself.

#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tombolo_db::sqlite::Sqlite;
use tombolo_db::{Kind, Mark, Outbox, Owner, Publisher, RoundLimit, Schema};
use tombolo_event::{Event, ServiceName};
use uuid::Uuid;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Noted {
    key: String,
}

impl Event for Noted {
    const TYPE: &'static str = "notes.noted.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

fn noted(key: &str) -> Noted {
    Noted { key: key.into() }
}

fn service() -> ServiceName {
    ServiceName::new("notes").unwrap()
}

fn publisher(woken: &Arc<AtomicU32>) -> Publisher {
    let woken = woken.clone();
    Publisher {
        service: service(),
        declared: Arc::new([Noted::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }),
    }
}

async fn prepared(folder: &tempfile::TempDir) -> (Sqlite, Publisher, Arc<AtomicU32>) {
    let database = Sqlite::open(folder.path().join("notes.db").to_str().unwrap()).unwrap();
    let owner = Owner { service: service(), partitions: 4 };
    database.prepare(&owner, Schema::Apply).await.unwrap();
    sqlx::query("CREATE TABLE effect (k TEXT PRIMARY KEY, v TEXT)").execute(database.pool()).await.unwrap();
    let woken = Arc::new(AtomicU32::new(0));
    (database, publisher(&woken), woken)
}

async fn effects(database: &Sqlite) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM effect").fetch_one(database.pool()).await.unwrap()
}

#[tokio::test]
async fn nothing_touches_the_disk_before_prepare() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    let database = Sqlite::open(path.to_str().unwrap()).unwrap();
    assert!(!path.exists());
    drop(database);
}

#[tokio::test]
async fn a_published_event_is_numbered_handed_out_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (database, publisher, woken) = prepared(&folder).await;
    let mut tx = database.begin(&publisher).await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a', '1')").execute(&mut *tx).await.unwrap();
    let id = tx.publish(&noted("a")).unwrap();
    let committed = tx.commit().await.unwrap();
    assert_eq!(committed.positions[0].sequence, Some(1));
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert_eq!(database.depth().await.unwrap().rows, 1);
    let mut leader = database.lead(Uuid::now_v7(), Duration::from_secs(9)).await.unwrap().unwrap();
    let rows = leader.round(&[], RoundLimit::default()).await.unwrap();
    assert_eq!((rows.len(), rows[0].id, rows[0].sequence), (1, id, 1));
    let done = Mark { partition: rows[0].partition, sequence: 1, id: Some(id) };
    assert!(leader.round(&[done], RoundLimit::default()).await.unwrap().is_empty());
    assert_eq!(database.depth().await.unwrap(), tombolo_db::Depth::default());
    leader.resign(&[]).await.unwrap();
    let next = database.lead(Uuid::now_v7(), Duration::from_secs(9)).await.unwrap().unwrap();
    assert_eq!(next.epoch(), 2);
    assert!(next.marks().contains(&done));
}

#[tokio::test]
async fn what_runs_after_sqlite_ended_the_transaction_does_not_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (database, publisher, _) = prepared(&folder).await;
    for publishes in [true, false] {
        let mut tx = database.begin(&publisher).await.unwrap();
        sqlx::query("INSERT INTO effect VALUES ('a', '1')").execute(&mut *tx).await.unwrap();
        let ended = sqlx::query("INSERT OR ROLLBACK INTO effect VALUES ('a', '2')").execute(&mut *tx).await;
        assert!(ended.is_err());
        let stray = sqlx::query("INSERT INTO effect VALUES ('b', '1')").execute(&mut *tx).await;
        assert!(stray.is_err(), "a statement outside the transaction committed by itself");
        if publishes {
            tx.publish(&noted("a")).unwrap();
        }
        assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(effects(&database).await, 0);
        assert_eq!(database.depth().await.unwrap().rows, 0);
    }
}

#[tokio::test]
async fn a_commit_statement_of_the_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (database, publisher, _) = prepared(&folder).await;
    let mut tx = database.begin(&publisher).await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a', '1')").execute(&mut *tx).await.unwrap();
    tx.publish(&noted("a")).unwrap();
    assert!(sqlx::query("COMMIT").execute(&mut *tx).await.is_err());
    assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned);
    assert_eq!((effects(&database).await, database.depth().await.unwrap().rows), (0, 0));
    let mut tx = database.begin(&publisher).await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a', '1')").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(effects(&database).await, 1);
}

#[tokio::test]
async fn unsafe_settings_of_the_users_pool_are_refused_by_name() {
    let owner = Owner { service: service(), partitions: 4 };
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("a.db")).create_if_missing(true);
    let cases = [
        (options.clone().journal_mode(SqliteJournalMode::Delete), "journal_mode"),
        (
            options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Normal),
            "synchronous = NORMAL",
        ),
        (
            options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Off),
            "synchronous = OFF",
        ),
    ];
    for (options, named) in cases {
        let database = Sqlite::new(SqlitePoolOptions::new().connect_lazy_with(options)).unwrap();
        let error = database.prepare(&owner, Schema::Apply).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe);
        assert!(error.to_string().contains(named), "{error}");
    }
    assert_eq!(Sqlite::open("sqlite::memory:").unwrap_err().kind(), Kind::Unsafe);
}
