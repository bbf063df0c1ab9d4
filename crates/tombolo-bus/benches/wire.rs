//! What the wire costs: the same appends and the same reading, in process and through a server on this machine.
//!
//! `cargo bench -p tombolo-bus --bench wire`. Each place has a log of its own, on disk, synced. Every figure is the
//! best of several rounds, so that what else the machine does counts less.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Client, Listen, Server};
use tombolo_bus::{Append, Bus, Identity, Read, Record, Result, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations, ServiceName};

const EVENT_BYTES: usize = 256;
const EVENTS_PER_APPEND: u64 = 256;
const APPENDS: u64 = 1024;
const UNDER_WAY: usize = 32;
const ROUNDS: u64 = 8;

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let in_process = Log::open(&folder.path().join("in process"), Options::default())?.0;
    measure("in process", &*in_process).await?;
    in_process.close().await;
    for address in ["tombolo://127.0.0.1:0".parse()?, Listen::Unix(folder.path().join("bus.sock"))] {
        let log = Log::open(&tempfile::tempdir_in(&folder)?.keep(), Options::default())?.0;
        let server = Server::bind(&[address], Arc::clone(&log) as Arc<dyn Bus>).await?;
        let address = server.addresses().remove(0);
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        let client = Client::new(&address, &Identity::Service(topic_name()))?;
        measure(&address.to_string(), &client).await?;
        shutdown.cancel();
        serving.await??;
        log.close().await;
    }
    Ok(())
}

async fn measure(name: &str, bus: &dyn Bus) -> Result<()> {
    let topic = bus.ensure_topic(&topic_spec()).await?;
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await?;
    let mut best = Duration::MAX;
    for round in 0..ROUNDS {
        let appends: Vec<Append> =
            (0..APPENDS).map(|n| append(&topic, 1 + (round * APPENDS + n) * EVENTS_PER_APPEND)).collect();
        let began = Instant::now();
        let appended = stream::iter(appends).map(|append| bus.append(append)).buffered(UNDER_WAY);
        appended.try_for_each(async |_| Ok(())).await?;
        best = best.min(began.elapsed());
    }
    said(name, "append", APPENDS * EVENTS_PER_APPEND, best);

    let (mut best, mut count) = (Duration::MAX, 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let batches = bus.read(Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation))).await?;
        count = batches.try_fold(0, async |count, batch| Ok(count + batch.records.len() as u64)).await?;
        best = best.min(began.elapsed());
    }
    said(name, "read", count, best);
    Ok(())
}

fn append(topic: &Topic, first: u64) -> Append {
    Append {
        topic: topic.name.clone(),
        incarnation: topic.incarnation,
        epoch: 1,
        partition: 0,
        records: records(first),
    }
}

fn said(name: &str, what: &str, events: u64, took: Duration) {
    println!("{name}: {what}: {:.0} events/s", events as f64 / took.as_secs_f64());
}

fn topic_name() -> ServiceName {
    #[expect(clippy::expect_used, reason = "a constant")]
    ServiceName::new("orders").expect("orders is a name")
}

fn topic_spec() -> TopicSpec {
    #[expect(clippy::expect_used, reason = "a constant")]
    let generations = Generations::first(1).expect("1 is a number of partitions");
    TopicSpec::new(topic_name(), generations)
}

fn records(first: u64) -> Vec<Record> {
    let bytes = Bytes::from_static(&[b'x'; EVENT_BYTES]);
    let record = |sequence| Record {
        sequence,
        id: EventId::new(),
        event_type: Bytes::from_static(b"orders.placed.v1"),
        bytes: bytes.clone(),
    };
    (first..first + EVENTS_PER_APPEND).map(record).collect()
}
