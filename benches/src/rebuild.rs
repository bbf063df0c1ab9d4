//! Building a view from a million events, beside the raw rate at which its database takes the same inserts, 1,000 in a
//! transaction.
//!
//! Invariant: the view holds every event when the clock stops.

use std::time::Instant;

use tombolo::Settings;

use crate::error::Result;
use crate::flow::{self, Files, Ground, Server, Store, until_count};
use crate::rounds::{Round, Rounds};
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, rate};

/// Events on the bus.
const EVENTS: i64 = 1_000_000;
/// Events of one transaction while the topic is filled.
const FILLED_EVENTS: i64 = 5_000;
/// Inserts of one transaction of the yardstick.
const RAW_ROWS: i64 = 1_000;
const WHAT: &str = "building a view from a million events";

/// On every database that can be had.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let bus = server::in_process(&scratch.path("rebuild-log")).await?;
    let source = Files::new(scratch).fresh("rebuild-source").await?;
    let producer = flow::producer(source).bus(bus.clone()).start(Settings::default()).await?;
    for first in (0..EVENTS).step_by(FILLED_EVENTS as usize) {
        flow::commit(&producer, first..first + FILLED_EVENTS).await?;
    }
    let mut rows = vec![on(&Files::new(scratch), &bus).await?];
    rows.push(match Server::from_env() {
        Some(server) => on(&server, &bus).await?,
        None => Row::absent(&format!("{WHAT} (postgres)"), Server::absent(), Bar::AtLeast(0.5)),
    });
    producer.shutdown().await;
    bus.close().await;
    Ok(rows)
}

async fn on<G: Ground>(ground: &G, bus: &std::sync::Arc<dyn tombolo_bus::Bus>) -> Result<Row> {
    let raw = ground.fresh("rebuild-raw").await?;
    let began = Instant::now();
    raw.insert_raw(0..EVENTS, RAW_ROWS).await?;
    let yardstick = EVENTS as f64 / began.elapsed().as_secs_f64();
    let database = ground.fresh("rebuild-sight").await?;
    let began = Instant::now();
    let consumer = flow::consumer(database.clone()).bus(bus.clone()).start(Settings::default()).await?;
    until_count(&database, EVENTS).await?;
    let subject = EVENTS as f64 / began.elapsed().as_secs_f64();
    consumer.shutdown().await;
    let what = format!("{WHAT} ({}) / raw inserts, 1,000 in a transaction", ground.name());
    Ok(Row::of(&what, &Rounds(vec![Round { yardstick, subject }]), Bar::AtLeast(0.5), rate))
}
