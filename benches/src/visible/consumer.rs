//! The consumer's process: a service with a view that keeps one row for each event.
//!
//! Invariant: the view is an ordinary one; what is stamped is its handler and the barriers around its commit.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use tombolo::{Handled, Received, Service, Settings, State, View};
use tombolo_db::sqlite::{Sqlite, Tx};

use super::Ticked;
use crate::error::{Error, Result};
use crate::hops::Hops;
use crate::observed::{ObservedBus, Sight};
use crate::server::{client, say};

/// How long the last events of a round may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(20);

async fn see(ticked: Received<Ticked>, State(sight): State<&'static Sight>, tx: &mut Tx) -> Handled {
    sight.handles(ticked.id);
    sqlx::query("INSERT INTO seen (number) VALUES (?)")
        .bind(i64::try_from(ticked.event.number)?)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Runs until its input ends; each line is how many events must be visible before it answers.
pub(crate) async fn run(socket: PathBuf, database: PathBuf, hops: PathBuf) -> Result<()> {
    let seen = Arc::new(Hops::default());
    let bus = Arc::new(ObservedBus::at_client(client(&socket, "bench-sight").await?, seen.clone()));
    let database = Sqlite::open(database.display().to_string())?;
    let sight = Sight::install(seen.clone());
    let mut visible = sight.visible.subscribe();
    let running = Service::new("bench-sight", database)
        .setup(async |database: Sqlite| {
            let table = "CREATE TABLE seen (number INTEGER PRIMARY KEY)";
            sqlx::raw_sql(table).execute(database.pool()).await?;
            Ok(())
        })
        .state(sight)
        .view(View::new("sight", 1).on(see))
        .bus(bus)
        .start(Settings::default())
        .await?;
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let expected: usize = line.parse().map_err(|_| Error::new(format!("{line:?} is no number")))?;
        let all = visible.wait_for(|count| *count >= expected);
        timeout(ARRIVAL_MAX, all).await.map_err(|_| {
            Error::new(format!("not all of {expected} events arrived in {} s", ARRIVAL_MAX.as_secs()))
        })??;
        say("done");
    }
    running.shutdown().await;
    seen.save(&hops)
}
