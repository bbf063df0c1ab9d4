//! Each engine as the bus, beside its bare client: on the same server, with the same events and the same durability.
//!
//! The bare client writes events as messages, or rows, of their own, as many on their way as does it good, and reads them
//! back in pages. Servers are those that the environment names.
//!
//! Invariant: what the bare client acknowledges is as durable as what the bus does; both are this process alone.

mod nats;
mod postgres;
mod rabbitmq;
mod redis;

use std::time::Instant;

use async_trait::async_trait;
use tombolo_bus::Identity;

use crate::error::{Error, Result};
use crate::quantiles::Latencies;
use crate::rounds::Rounds;
use crate::table::{Bar, Row, micros, rate};
use crate::topic::{BATCH_EVENTS, Target};

const ROUNDS: usize = 5;
/// Single appends of a round, one after the other.
const SINGLES: usize = 200;
/// Batches of a round of appends, and of what is read back.
const BATCHES: usize = 200;
const PARTITIONS: u32 = 8;
const NS_PER_SECOND: f64 = 1e9;

/// What users of an engine write themselves. Everything goes to one log of its own.
#[async_trait]
trait Bare: Send + Sync {
    /// Writes one event, acknowledged.
    async fn one(&self) -> Result<()>;
    /// Writes so many batches of events, as fast as it goes; returns when all are acknowledged.
    async fn many(&self, batches: usize) -> Result<()>;
    /// Reads so many events from the beginning.
    async fn read(&self, events: usize) -> Result<()>;
    /// Removes what was written.
    async fn end(&self) -> Result<()>;
}

/// An engine: its name, and the variable that names its server.
const ENGINES: [(&str, &str); 4] = [
    ("PostgreSQL", "TOMBOLO_TEST_POSTGRES"),
    ("NATS", "TOMBOLO_TEST_NATS"),
    ("Redis", "TOMBOLO_TEST_REDIS"),
    ("RabbitMQ", "TOMBOLO_TEST_RABBITMQ"),
];

/// The figures of every engine of which there is a server.
pub(crate) async fn measure() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (engine, variable) in ENGINES {
        match std::env::var(variable) {
            Ok(url) => rows.extend(of(engine, &url).await?),
            Err(_) => {
                let why = format!(
                    "not measured: {variable} names no server; `cargo xtask services start` starts one"
                );
                rows.push(Row::absent(&format!("{engine} as the bus / its bare client"), why, Bar::None));
            }
        }
    }
    Ok(rows)
}

async fn of(engine: &str, url: &str) -> Result<Vec<Row>> {
    let name = format!("bench-{}", uuid::Uuid::new_v4().simple());
    let (bare, address): (Box<dyn Bare>, String) = match engine {
        "PostgreSQL" => {
            (Box::new(postgres::Rows::make(url, &name).await?), format!("{url}?namespace={}", short(&name)))
        }
        "NATS" => (Box::new(nats::Stream::make(url, &name).await?), format!("{url}/{name}?accept=unsynced")),
        "Redis" => (Box::new(redis::Stream::make(url, &name).await?), format!("{url}?namespace={name}")),
        _ => (
            Box::new(rabbitmq::Stream::make(url, &name).await?),
            format!("{url}?namespace={name}&accept=unsynced"),
        ),
    };
    let bus = tombolo_bus::connect(&address, &Identity::Operator).await?;
    let mut target = Target::new(bus.clone(), PARTITIONS).await?;
    let rows = vec![
        single(engine, &*bare, &mut target).await?,
        pipelined(engine, &*bare, &mut target).await?,
        back(engine, &*bare, &target).await?,
    ];
    bus.close().await;
    bare.end().await?;
    Ok(rows)
}

/// A name that is short enough for a schema.
fn short(name: &str) -> &str {
    &name[..name.len().min(24)]
}

async fn single(engine: &str, bare: &dyn Bare, target: &mut Target) -> Result<Row> {
    let yardstick = async || {
        let mut latencies = Latencies::new();
        for _ in 0..SINGLES {
            let began = Instant::now();
            bare.one().await?;
            latencies.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(latencies.p50_us())
    };
    let subject = async || {
        let mut latencies = Latencies::new();
        target.one_by_one(SINGLES, 1, |ns| latencies.record(ns)).await?;
        Ok(latencies.p50_us())
    };
    let rounds = Rounds::measure(ROUNDS, yardstick, subject).await?;
    let what = format!("{engine}: one append of one event acknowledged, p50 / the bare client");
    Ok(Row::of(&what, &rounds, Bar::AtMost(1.5), micros))
}

async fn pipelined(engine: &str, bare: &dyn Bare, target: &mut Target) -> Result<Row> {
    let events = (BATCHES * BATCH_EVENTS) as f64;
    let yardstick = async || {
        let began = Instant::now();
        bare.many(BATCHES).await?;
        Ok(events / began.elapsed().as_secs_f64())
    };
    let subject = async || Ok(events * NS_PER_SECOND / target.pipelined(BATCHES, BATCH_EVENTS).await? as f64);
    let rounds = Rounds::measure(ROUNDS, yardstick, subject).await?;
    let what = format!(
        "{engine}: appends of 256 events, one under way in each of 8 partitions / the bare client's best"
    );
    Ok(Row::of(&what, &rounds, Bar::AtLeast(0.6), rate))
}

async fn back(engine: &str, bare: &dyn Bare, target: &Target) -> Result<Row> {
    let (events, _) = target.read_back().await?;
    let events = usize::try_from(events)?;
    if events == 0 {
        return Err(Error::new("there is nothing to read back"));
    }
    let yardstick = async || {
        let began = Instant::now();
        bare.read(events).await?;
        Ok(events as f64 / began.elapsed().as_secs_f64())
    };
    let subject = async || {
        let (events, ns) = target.read_back().await?;
        Ok(events as f64 * NS_PER_SECOND / ns as f64)
    };
    let rounds = Rounds::measure(ROUNDS, yardstick, subject).await?;
    let what = format!("{engine}: reading a partition back / the bare client's best");
    Ok(Row::of(&what, &rounds, Bar::AtLeast(0.6), rate))
}
