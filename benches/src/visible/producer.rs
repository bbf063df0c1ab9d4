//! The producer's process: a service that commits a row and an event at each arrival.
//!
//! Invariant: an arrival never waits for the one before; each commits in a task of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, sleep_until};
use tombolo::{Service, Settings};
use tombolo_db::sqlite::Sqlite;

use super::{RATE, ROUND_SECONDS, Ticked, arrivals};
use crate::error::{Error, Result};
use crate::hops::{Hop, Hops};
use crate::observed::ObservedBus;
use crate::server::{client, say};

type App = tombolo::App<Sqlite>;

/// Runs until its input ends; each line is the number of a round.
pub(crate) async fn run(socket: PathBuf, database: PathBuf, hops: PathBuf) -> Result<()> {
    let seen = Arc::new(Hops::default());
    let bus = Arc::new(ObservedBus::at_client(client(&socket, "bench-source").await?, seen.clone()));
    let database = Sqlite::open(database.display().to_string())?;
    let running = Service::new("bench-source", database)
        .setup(async |database: Sqlite| {
            let table = "CREATE TABLE ticks (number INTEGER PRIMARY KEY, text TEXT NOT NULL)";
            sqlx::raw_sql(table).execute(database.pool()).await?;
            Ok(())
        })
        .publishes::<Ticked>()
        .bus(bus)
        .start(Settings::default())
        .await?;
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let round = line.parse().map_err(|_| Error::new(format!("{line:?} is no round")))?;
        commit_all(&running.app, round, &seen).await?;
        say("done");
    }
    running.shutdown().await;
    seen.save(&hops)
}

async fn commit_all(app: &App, round: u64, hops: &Arc<Hops>) -> Result<()> {
    let began = Instant::now();
    let mut commits = Vec::new();
    for (at, number) in arrivals(round, RATE, ROUND_SECONDS).into_iter().zip(round << 32..) {
        sleep_until(began + Duration::from_nanos(at)).await;
        commits.push(tokio::spawn(commit(app.clone(), number, hops.clone())));
    }
    try_join_all(commits).await?.into_iter().collect()
}

async fn commit(app: App, number: u64, hops: Arc<Hops>) -> Result<()> {
    let ticked = Ticked { number, text: "t".repeat(160) };
    let mut tx = app.begin().await?;
    sqlx::query("INSERT INTO ticks (number, text) VALUES (?, ?)")
        .bind(i64::try_from(number)?)
        .bind(&ticked.text)
        .execute(&mut *tx)
        .await?;
    let id = tx.publish(&ticked)?;
    hops.now(id, Hop::CommitCalled);
    tx.commit().await?;
    hops.now(id, Hop::Committed);
    Ok(())
}
