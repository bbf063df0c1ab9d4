//! Measures a service's database as Tombolo uses it: commits with one event each, and draining by rounds.
//!
//! `cargo run --release -p tombolo-db --features postgres --example measure -- sqlite:/path/new.db` (or a URL of
//! PostgreSQL or, with the feature `mysql`, of MariaDB: of a database that may be used for it; with the feature `documents`
//! also `documents:/path/new.redb`).

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo_db::{Database, Mark, Owner, Publisher, RoundLimit, Schema, Transaction};
use tombolo_event::{Event, ServiceName};
use uuid::Uuid;

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

const SECONDS: u64 = 3;
const DRAIN_EVENTS: usize = 50_000;
const PARTITIONS: u32 = 8;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Measured {
    key: String,
    padding: String,
}

impl Event for Measured {
    const TYPE: &'static str = "measure.measured.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

fn measured(n: usize) -> Measured {
    Measured { key: format!("key-{}", n % 1_000), padding: "x".repeat(200) }
}

#[tokio::main]
async fn main() -> Outcome {
    let place =
        std::env::args().nth(1).ok_or("give sqlite:/path, documents:/path, postgres://… or mysql://…")?;
    #[cfg(feature = "postgres")]
    if place.starts_with("postgres") {
        return measure(tombolo_db::postgres::Postgres::open(&place)?).await;
    }
    #[cfg(feature = "mysql")]
    if place.starts_with("mysql") {
        return measure(tombolo_db::mysql::Mysql::open(&place)?).await;
    }
    #[cfg(feature = "documents")]
    if place.starts_with("documents") {
        return measure(tombolo_db::documents::Documents::open(&place)?).await;
    }
    measure(tombolo_db::sqlite::Sqlite::open(&place)?).await
}

async fn measure<D: Database>(database: D) -> Outcome {
    let service = ServiceName::new("measure")?;
    database.prepare(&Owner { service: service.clone(), partitions: PARTITIONS }, Schema::Apply).await?;
    let publisher = Publisher {
        service,
        declared: Arc::new([Measured::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| {}),
    };
    for writers in [1, 4, 8] {
        commits(&database, &publisher, writers).await?;
    }
    drain(&database, &publisher).await
}

async fn commits<D: Database>(database: &D, publisher: &Publisher, writers: usize) -> Outcome {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let (database, publisher) = (database.clone(), publisher.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            while began.elapsed() < Duration::from_secs(SECONDS) {
                let one = Instant::now();
                let mut tx = database.begin(&publisher).await?;
                tx.outgoing().publish(&measured(writer * 100 + took.len()))?;
                tx.commit().await?;
                took.push(one.elapsed());
            }
            Ok::<_, tombolo_db::Error>(took)
        });
    }
    let mut took = Vec::new();
    while let Some(task) = tasks.join_next().await {
        took.extend(task??);
    }
    took.sort_unstable();
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("{}: {writers} writers: {rate:.0} commits/s, p50 {p50:?}, p99 {p99:?}", database.kind());
    Ok(())
}

async fn drain<D: Database>(database: &D, publisher: &Publisher) -> Outcome {
    for some in 0..DRAIN_EVENTS / 1_000 {
        let mut tx = database.begin(publisher).await?;
        for n in 0..1_000 {
            tx.outgoing().publish(&measured(some * 1_000 + n))?;
        }
        tx.commit().await?;
    }
    let lead = database.lead(Uuid::now_v7(), Duration::from_secs(600)).await?;
    let mut leader = lead.ok_or("another process leads this database")?;
    let (began, mut drained, mut rounds) = (Instant::now(), 0, 0);
    let mut done: Vec<Mark> = Vec::new();
    loop {
        let rows = leader.round(&done, RoundLimit::default()).await?;
        if rows.is_empty() {
            break;
        }
        (drained, rounds) = (drained + rows.len(), rounds + 1);
        done = rows
            .iter()
            .map(|row| Mark { partition: row.partition, sequence: row.sequence, id: Some(row.id) })
            .collect();
        done.sort_by_key(|mark| (mark.partition, std::cmp::Reverse(mark.sequence)));
        done.dedup_by_key(|mark| mark.partition);
    }
    let rate = drained as f64 / began.elapsed().as_secs_f64();
    println!("{}: drained {drained} events in {rounds} rounds: {rate:.0} events/s", database.kind());
    leader.resign(&[]).await?;
    Ok(())
}
