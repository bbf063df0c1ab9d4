//! Draining: a million rows wait in the outbox because the bus was away, and now it is back.
//!
//! The yardstick is a drain written by hand: 1,000 rows at a time to the same kind of log, then removed. While ours drains, a
//! producer goes on with a commit at each arrival; its latencies are held against those with an empty outbox.
//!
//! Invariant: at the end the log holds every row once, and the outbox none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tombolo::{Running, Settings};
use tombolo_bus::{Append, Bus, Record, TopicSpec};
use tombolo_db::{Outbox, Publisher, Transaction};
use tombolo_event::{Envelope, Event, EventId, Generations, ServiceName};

use crate::error::{Error, Result};
use crate::flow::{self, Files, Ground, Server, Store, Ticked};
use crate::quantiles::Latencies;
use crate::rounds::{Round, Rounds};
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, micros, rate};

/// Rows that wait.
const WAITING: i64 = 1_000_000;
/// Rows of one transaction while they gather.
const GATHERED_ROWS: i64 = 5_000;
/// Rows of one round by hand.
const HAND_ROWS: i64 = 1_000;
/// Commits per second of the producer that goes on.
const RATE: f64 = 200.0;
/// How long its latencies are taken before the drain begins.
const NORMAL_SECONDS: f64 = 5.0;
const LOOK: Duration = Duration::from_millis(20);

/// On every database that can be had.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let mut rows = on(&Files::new(scratch), scratch).await?;
    match Server::from_env() {
        Some(server) => rows.extend(on(&server, scratch).await?),
        None => {
            rows.push(Row::absent("draining a million rows (postgres)", Server::absent(), Bar::AtLeast(0.5)))
        }
    }
    Ok(rows)
}

async fn on<G: Ground>(ground: &G, scratch: &Scratch) -> Result<Vec<Row>> {
    let by_hand = by_hand(ground, scratch).await?;
    let ours = ours(ground, scratch).await?;
    let drained = Rounds(vec![Round { yardstick: by_hand, subject: ours.rate }]);
    let commits = Rounds(vec![Round { yardstick: ours.normal_p99, subject: ours.draining_p99 }]);
    let name = ground.name();
    Ok(vec![
        Row::of(
            &format!("draining a million waiting rows ({name}) / by hand, 1,000 at a time"),
            &drained,
            Bar::AtLeast(0.5),
            rate,
        ),
        Row::of(
            &format!("a producer's commit meanwhile, 200/s, p99 ({name}) / the same before"),
            &commits,
            Bar::AtMost(2.0),
            micros,
        ),
    ])
}

struct Drained {
    rate: f64,
    normal_p99: f64,
    draining_p99: f64,
}

async fn ours<G: Ground>(ground: &G, scratch: &Scratch) -> Result<Drained> {
    let bus = server::in_process(&scratch.path(&format!("drain-{}-log", ground.name()))).await?;
    let database = ground.fresh("bench-source").await?;
    // Started once, so that the tables are there and the latencies of an empty outbox can be taken.
    let running = flow::producer(database.clone()).bus(bus.clone()).start(Settings::default()).await?;
    let normal = commits(&running, WAITING.., NORMAL_SECONDS, || false).await?;
    running.shutdown().await;
    gather(&database).await?;
    let running = flow::producer(database.clone()).bus(bus.clone()).start(Settings::default()).await?;
    let began = Instant::now();
    let from = WAITING + (normal.len() as i64);
    let drained = drained(&database);
    let (meanwhile, took) = {
        let done = std::sync::atomic::AtomicBool::new(false);
        let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
        let (meanwhile, took) = tokio::join!(commits(&running, from.., f64::MAX, is_done), async {
            let ended = drained.await;
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            ended.map(|()| began.elapsed())
        });
        (meanwhile?, took?)
    };
    let published = WAITING + (normal.len() + meanwhile.len()) as i64;
    running.shutdown().await;
    check(&*bus, published).await?;
    bus.close().await;
    let rate = (WAITING as f64 + meanwhile.len() as f64) / took.as_secs_f64();
    Ok(Drained { rate, normal_p99: normal.us(0.99), draining_p99: meanwhile.us(0.99) })
}

/// A commit at each arrival, until so many seconds have passed or it is over.
async fn commits<D: Store>(
    running: &Running<D>,
    numbers: std::ops::RangeFrom<i64>,
    seconds: f64,
    is_over: impl Fn() -> bool,
) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    let mut arrivals = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    let began = Instant::now();
    for number in numbers {
        arrivals.tick().await;
        if is_over() || began.elapsed().as_secs_f64() > seconds {
            break;
        }
        let called = Instant::now();
        flow::commit(running, number..number + 1).await?;
        latencies.record(u64::try_from(called.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(latencies)
}

/// Fills the outbox as services do while the bus is away.
async fn gather<D: Store>(database: &D) -> Result<()> {
    let publisher = Publisher {
        service: ServiceName::new("bench-source")?,
        declared: Arc::new([Ticked::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| {}),
    };
    for first in (0..WAITING).step_by(GATHERED_ROWS as usize) {
        let mut tx = database.begin(&publisher).await?;
        for number in first..first + GATHERED_ROWS {
            tx.outgoing().publish(&Ticked::new(number))?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn drained<D: Store>(database: &D) -> Result<()> {
    // A producer goes on, so a few rows are always on their way.
    while Outbox::depth(database).await?.rows > RATE as u64 {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn check(bus: &dyn Bus, published: i64) -> Result<()> {
    let tails = bus.tails(&ServiceName::new("bench-source")?).await?;
    let stored: u64 = tails.iter().map(|tail| tail.sequence).sum();
    if stored == published as u64 {
        return Ok(());
    }
    Err(Error::new(format!("the log holds {stored} events; expected {published}, each once")))
}

/// The drain by hand: rows in order, 1,000 to an append, then removed.
async fn by_hand<G: Ground>(ground: &G, scratch: &Scratch) -> Result<f64> {
    let bus = server::in_process(&scratch.path(&format!("drain-hand-{}-log", ground.name()))).await?;
    let database = ground.fresh("hand-source").await?;
    for first in (0..WAITING).step_by(GATHERED_ROWS as usize) {
        database.hand_commit(first..first + GATHERED_ROWS).await?;
    }
    let spec = TopicSpec::new(ServiceName::new("by-hand")?, Generations::first(1)?);
    let topic = bus.ensure_topic(&spec).await?;
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await?;
    let began = Instant::now();
    loop {
        let rows = database.hand_take(HAND_ROWS).await?;
        let Some((last, _)) = rows.last() else { break };
        let records = rows.iter().map(|(position, event)| record(*position, event)).collect();
        let (topic, incarnation) = (topic.name.clone(), topic.incarnation);
        bus.append(Append { topic, incarnation, epoch: 1, partition: 0, records }).await?;
        database.hand_remove(*last).await?;
    }
    let took = began.elapsed();
    bus.close().await;
    Ok(WAITING as f64 / took.as_secs_f64())
}

/// What a hand-written relay would send: the event in the same envelope.
fn record(position: i64, event: &str) -> Record {
    let id = EventId::new();
    let envelope = Envelope {
        id,
        source: "by-hand".into(),
        event_type: Ticked::TYPE.into(),
        key: position.to_string(),
        time: jiff::Timestamp::now(),
        content_type: tombolo_event::envelope::JSON.into(),
        trace: None,
        correlation: None,
        causation: None,
        extensions: tombolo_event::envelope::Extensions::new(),
        data: Bytes::copy_from_slice(event.as_bytes()),
    };
    Record {
        sequence: position.unsigned_abs() + 1,
        id,
        event_type: Bytes::from_static(Ticked::TYPE.as_bytes()),
        bytes: envelope.encode(),
    }
}
