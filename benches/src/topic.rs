//! A topic that is filled by the benches themselves: its number of partitions, and batches of records that are made
//! before the clock starts.
//!
//! Invariant: what is timed is the bus, not the making of events.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tombolo_bus::{Append, Bus, Record, Topic, TopicSpec};
use tombolo_event::{EventId, Generations, ServiceName};

use crate::error::{Error, Result};

/// The bytes of one event.
pub(crate) const EVENT_BYTES: usize = 256;
/// The events of one append.
pub(crate) const BATCH_EVENTS: usize = 256;
/// The service that owns the topic.
pub(crate) const OWNER: &str = "bench";
const EVENT_TYPE: &str = "bench.written.v1";

/// A topic, and where each of its partitions ends.
pub(crate) struct Target {
    bus: Arc<dyn Bus>,
    topic: Topic,
    epoch: u64,
    next: Vec<u64>,
}

impl Target {
    /// Makes the topic, or finds it.
    pub(crate) async fn new(bus: Arc<dyn Bus>, partitions: u32) -> Result<Self> {
        let spec = TopicSpec::new(ServiceName::new(OWNER)?, Generations::first(partitions)?);
        let topic = bus.ensure_topic(&spec).await?;
        let epoch = topic.epoch + 1;
        let tails = bus.raise_epoch(&topic.name, topic.incarnation, epoch).await?;
        Ok(Self { bus, topic, epoch, next: tails.iter().map(|tail| tail.sequence + 1).collect() })
    }

    /// The next append of `events` to a partition.
    fn append(&mut self, partition: u32, events: usize) -> Append {
        let next = &mut self.next[partition as usize];
        let first = *next;
        *next += events as u64;
        Append {
            topic: self.topic.name.clone(),
            incarnation: self.topic.incarnation,
            epoch: self.epoch,
            partition,
            records: (first..*next).map(record).collect(),
        }
    }

    /// Appends `count` batches to partition 0, one after the other, each acknowledged before the next; hands the
    /// nanoseconds of each to `seen`.
    pub(crate) async fn one_by_one(
        &mut self,
        count: usize,
        events: usize,
        mut seen: impl FnMut(u64),
    ) -> Result<()> {
        let appends: Vec<Append> = (0..count).map(|_| self.append(0, events)).collect();
        for append in appends {
            let began = Instant::now();
            self.bus.append(append).await?;
            seen(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Appends `count` batches, as a relay does: one under way in each partition, all partitions at once. Returns the
    /// nanoseconds until the last was acknowledged.
    pub(crate) async fn pipelined(&mut self, count: usize, events: usize) -> Result<u64> {
        let partitions = self.topic.partitions();
        let each = count / partitions as usize;
        let lanes: Vec<Vec<Append>> = (0..partitions)
            .map(|partition| (0..each).map(|_| self.append(partition, events)).collect())
            .collect();
        let began = Instant::now();
        let mut sent: FuturesUnordered<_> = lanes.into_iter().map(|lane| send(&*self.bus, lane)).collect();
        while let Some(done) = sent.next().await {
            done?;
        }
        Ok(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Reads partition 0 from its first event to its tail; returns how many events there were and the nanoseconds.
    pub(crate) async fn read_back(&self) -> Result<(u64, u64)> {
        let start = tombolo_event::Cursor::start(self.topic.incarnation);
        let began = Instant::now();
        let mut batches = self.bus.read(tombolo_bus::Read::to_tail(&self.topic.name, 0, start)).await?;
        let mut last = 0;
        while let Some(batch) = batches.next().await {
            for record in batch?.records {
                if record.sequence != last + 1 || record.bytes.len() != EVENT_BYTES {
                    return Err(Error::new(format!("found sequence {} after {last}", record.sequence)));
                }
                last = record.sequence;
            }
        }
        Ok((last, u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    }
}

async fn send(bus: &dyn Bus, appends: Vec<Append>) -> Result<()> {
    for append in appends {
        bus.append(append).await?;
    }
    Ok(())
}

fn record(sequence: u64) -> Record {
    static BYTES: [u8; EVENT_BYTES] = [b'e'; EVENT_BYTES];
    Record {
        sequence,
        id: EventId::new(),
        event_type: Bytes::from_static(EVENT_TYPE.as_bytes()),
        bytes: Bytes::from_static(&BYTES),
    }
}
