//! A relay and a reader as they are under load while a server is killed. Invariant: what the relay was told is stored is what the
//! reader must find, once and in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;
use tombolo_bus::{Append, Bus, Kind, Read, Record, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations};

const KILLS: usize = 3;
const ROUND: u64 = 50;
const BOUND: Duration = Duration::from_secs(90);

/// A server of a test's own.
#[async_trait]
pub(crate) trait Killable: Send + Sync {
    /// Kills it, starts it again on what it kept, and waits until it answers.
    async fn kill_and_run(&self);

    /// A connection to it.
    async fn connected(&self) -> Arc<dyn Bus>;
}

pub(crate) fn orders() -> TopicSpec {
    TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap())
}

/// One relay appends without end; the server is killed while it is at it.
pub(crate) async fn acknowledged_before_a_kill_is_there_after(server: &dyn Killable) {
    let bus = server.connected().await;
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let (told, mut heard) = watch::channel(0_u64);
    let stop = Arc::new(AtomicBool::new(false));
    let relay = tokio::spawn(relay(Arc::clone(&bus), topic.clone(), told, Arc::clone(&stop)));
    for _ in 0..KILLS {
        let more = *heard.borrow() + 10 * ROUND;
        let appended = heard.wait_for(|acknowledged| *acknowledged >= more);
        tokio::time::timeout(BOUND, appended).await.unwrap().unwrap();
        server.kill_and_run().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = tokio::time::timeout(BOUND, relay).await.unwrap().unwrap();
    let found = tokio::time::timeout(BOUND, read(&*server.connected().await, &topic, sent.len())).await;
    assert!(found.unwrap() == sent, "the log holds what was acknowledged, once and in order");
}

/// Appends rounds, each again until it is acknowledged, as a relay with its outbox does.
async fn relay(
    bus: Arc<dyn Bus>,
    topic: Topic,
    told: watch::Sender<u64>,
    stop: Arc<AtomicBool>,
) -> Vec<EventId> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let first = sent.len() as u64 + 1;
        let records: Vec<_> = (first..first + ROUND).map(record).collect();
        sent.extend(records.iter().map(|record| record.id));
        let (incarnation, name) = (topic.incarnation, topic.name.clone());
        let append = Append { topic: name, incarnation, epoch: 1, partition: 0, records };
        loop {
            match bus.append(append.clone()).await {
                Ok(appended) => break assert_eq!(appended.last, first + ROUND - 1),
                Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
            }
            tokio::task::yield_now().await;
        }
        told.send_replace(sent.len() as u64);
    }
    sent
}

pub(crate) fn record(sequence: u64) -> Record {
    let (id, event_type) = (EventId::new(), Bytes::from_static(b"suite.happened.v1"));
    Record { sequence, id, event_type, bytes: vec![1; 200].into() }
}

async fn read(bus: &dyn Bus, topic: &Topic, count: usize) -> Vec<EventId> {
    let mut batches =
        bus.read(Read::following(&topic.name, 0, Cursor::start(topic.incarnation))).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let batch = batches.next().await.unwrap().unwrap();
        assert_eq!(batch.first, found.len() as u64 + 1);
        found.extend(batch.records.iter().map(|record| record.id));
    }
    found
}

/// Waits until the bus says that its server is away.
pub(crate) async fn away(bus: &dyn Bus) {
    let away = async {
        loop {
            match bus.topics().await {
                Err(error) => break error,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(BOUND, away).await.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

/// Waits until the bus answers again.
pub(crate) async fn eventually(bus: &dyn Bus) {
    let back = async {
        while let Err(error) = bus.topics().await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, back).await.expect("the bus answers again");
}
