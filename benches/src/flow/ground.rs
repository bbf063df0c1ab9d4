//! Where databases for a measurement come from, and the statements that both sides of it run.
//!
//! Invariant: ours and what was written by hand run the same statements on the same kind of tables.

use std::future::Future;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tombolo_db::Database;
use tombolo_db::postgres::Postgres;
use tombolo_db::sqlite::Sqlite;
use tombolo_event::Event;

use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// The tables: state and copies, and those of the path that is written by hand.
pub(super) const TABLES: [&str; 5] = [
    "CREATE TABLE ticks (number BIGINT PRIMARY KEY, text TEXT NOT NULL)",
    "CREATE TABLE seen (number BIGINT PRIMARY KEY)",
    "CREATE TABLE hand_outbox (position BIGINT PRIMARY KEY, event TEXT NOT NULL)",
    "CREATE TABLE hand_cursor (one INTEGER PRIMARY KEY, position BIGINT NOT NULL)",
    "INSERT INTO hand_cursor (one, position) VALUES (1, -1)",
];
pub(super) const INSERT_TICK: &str = "INSERT INTO ticks (number, text) VALUES ($1, $2)";
pub(super) const INSERT_SEEN: &str = "INSERT INTO seen (number) VALUES ($1)";

const SERVER_VARIABLE: &str = "TOMBOLO_TEST_POSTGRES";
const LOOK: Duration = Duration::from_millis(1);
/// How long nothing may change before a measurement is given up.
const STILL_MAX: Duration = Duration::from_secs(60);

/// Something happened.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Ticked {
    pub(crate) number: i64,
    /// As long as an order's.
    pub(crate) text: String,
}

impl Ticked {
    pub(crate) fn new(number: i64) -> Self {
        Self { number, text: "t".repeat(160) }
    }
}

impl Event for Ticked {
    const TYPE: &'static str = "bench-source.ticked.v1";

    fn key(&self) -> String {
        self.number.to_string()
    }
}

/// Makes databases of one kind.
pub(crate) trait Ground {
    /// The kind.
    type Database: Store;

    fn name(&self) -> &'static str;

    /// An empty database with the tables of the benches.
    fn fresh(&self, name: &str) -> impl Future<Output = Result<Self::Database>>;
}

/// A database that the benches know how to speak to, through sqlx itself.
pub(crate) trait Store: Database {
    fn insert_tick(
        tx: &mut Self::Tx,
        number: i64,
        text: &str,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    fn insert_seen(tx: &mut Self::Tx, number: i64) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// How many copies there are.
    fn seen(&self) -> impl Future<Output = sqlx::Result<i64>> + Send;

    /// One transaction: a row and an outbox row for each number.
    fn hand_commit(&self, numbers: Range<i64>) -> impl Future<Output = Result<()>> + Send;

    /// The next rows of the outbox.
    fn hand_take(&self, most: i64) -> impl Future<Output = Result<Vec<(i64, String)>>> + Send;

    /// One transaction: a copy of each event, and the cursor.
    fn hand_apply(&self, rows: &[(i64, String)]) -> impl Future<Output = Result<()>> + Send;

    /// Removes what is done.
    fn hand_remove(&self, to: i64) -> impl Future<Output = Result<()>> + Send;

    /// The raw rate: copies in transactions of so many inserts.
    fn insert_raw(&self, numbers: Range<i64>, each: i64) -> impl Future<Output = Result<()>> + Send;
}

/// SQLite in files of the run.
pub(crate) struct Files<'a>(&'a Scratch);

impl<'a> Files<'a> {
    pub(crate) fn new(scratch: &'a Scratch) -> Self {
        Self(scratch)
    }
}

impl Ground for Files<'_> {
    type Database = Sqlite;

    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn fresh(&self, name: &str) -> Result<Sqlite> {
        let file = self.0.path(&format!("{name}-{}.db", uuid::Uuid::now_v7().simple()));
        let database = Sqlite::open(file.display().to_string())?;
        for table in TABLES {
            sqlx::raw_sql(table).execute(database.pool()).await?;
        }
        Ok(database)
    }
}

/// PostgreSQL on the server that the environment names.
pub(crate) struct Server(PgConnectOptions);

impl Server {
    pub(crate) fn from_env() -> Option<Self> {
        let url = std::env::var(SERVER_VARIABLE).ok()?;
        Some(Self(PgConnectOptions::from_str(&url).ok()?))
    }

    /// Why there is none.
    pub(crate) fn absent() -> String {
        format!("not measured: {SERVER_VARIABLE} names no server; `cargo xtask services start` starts one")
    }
}

impl Ground for Server {
    type Database = Postgres;

    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn fresh(&self, name: &str) -> Result<Postgres> {
        let name = format!("{}_{}", name.replace('-', "_"), uuid::Uuid::now_v7().simple());
        let mut connection = PgConnection::connect_with(&self.0).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await?;
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(tombolo_db::postgres::CONNECTIONS_MAX)
            .connect_with(self.0.clone().database(&name))
            .await?;
        for table in TABLES {
            sqlx::raw_sql(table).execute(&pool).await?;
        }
        Ok(Postgres::new(pool))
    }
}

/// Waits until there are so many copies.
pub(crate) async fn until_count<D: Store>(database: &D, expected: i64) -> Result<()> {
    let (mut last, mut moved) = (-1, tokio::time::Instant::now());
    loop {
        let seen = database.seen().await?;
        if seen >= expected {
            return Ok(());
        }
        if seen != last {
            (last, moved) = (seen, tokio::time::Instant::now());
        } else if moved.elapsed() > STILL_MAX {
            return Err(Error::new(format!("{seen} of {expected} events arrived, and nothing more came")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
