//! The tests of the embedded engine, and what they share.

mod simulated;
mod port;
mod damage;
mod power;
mod faults;
mod golden;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tombolo_event::{Cursor, EventId, Generations, ServiceName};
use uuid::Uuid;

use super::{Log, Options};
use crate::{Append, Batch, Bus, Read, Record, Result, Topic, TopicSpec};
use simulated::Disk;

/// Small segments, and nothing in the background.
pub(super) fn small() -> Options {
    Options {
        segment_bytes: 2048,
        first_segment_bytes: 2048,
        prepare_ahead: false,
        witness_after: Duration::from_secs(3600),
        ..Options::default()
    }
}

pub(super) fn open(path: &Path, options: Options) -> Arc<Log> {
    Log::open(path, options).unwrap().0
}

/// A log on a simulated disk.
pub(super) fn on(disk: &Disk, options: Options) -> Arc<Log> {
    Log::start(Arc::new(disk.clone()), options, None).unwrap().0
}

pub(super) fn name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// The id of the event that tests put at `sequence` of `partition`.
pub(super) fn id(partition: u32, sequence: u64) -> EventId {
    EventId(Uuid::from_u64_pair(u64::from(partition) + 1, sequence))
}

pub(super) fn record(partition: u32, sequence: u64) -> Record {
    let event_type = if sequence.is_multiple_of(3) { "orders.paid.v1" } else { "orders.placed.v1" };
    Record {
        sequence,
        id: id(partition, sequence),
        event_type: Bytes::from_static(event_type.as_bytes()),
        bytes: format!("{partition}/{sequence}").into_bytes().into(),
    }
}

pub(super) fn spec(partitions: u32) -> TopicSpec {
    TopicSpec::new(name("orders"), Generations::first(partitions).unwrap())
}

pub(super) async fn topic(log: &Log, partitions: u32) -> Topic {
    log.ensure_topic(&spec(partitions)).await.unwrap()
}

pub(super) async fn divide(log: &Log, topic: &Topic, each: &[u32]) -> Result<Topic> {
    let generations = Generations::try_from(each.to_vec()).unwrap();
    log.divide(&topic.name, topic.incarnation, topic.epoch, &generations).await
}

pub(super) fn batch(topic: &Topic, partition: u32, sequences: std::ops::RangeInclusive<u64>) -> Append {
    Append {
        topic: topic.name.clone(),
        incarnation: topic.incarnation,
        epoch: topic.epoch,
        partition,
        records: sequences.map(|sequence| record(partition, sequence)).collect(),
    }
}

pub(super) async fn append(
    log: &Log,
    topic: &Topic,
    partition: u32,
    sequences: std::ops::RangeInclusive<u64>,
) -> Result<u64> {
    Ok(log.append(batch(topic, partition, sequences)).await?.last)
}

/// Everything from the start to the tail.
pub(super) async fn read_all(log: &Log, topic: &Topic, partition: u32) -> Result<Vec<Batch>> {
    let read = Read::to_tail(&topic.name, partition, Cursor::start(topic.incarnation));
    log.read(read).await?.collect::<Vec<_>>().await.into_iter().collect()
}

/// The records of everything from the start to the tail.
pub(super) async fn records(log: &Log, topic: &Topic, partition: u32) -> Result<Vec<Record>> {
    Ok(read_all(log, topic, partition).await?.into_iter().flat_map(|batch| batch.records).collect())
}

/// The records that tests put into `partition`.
pub(super) fn expected(partition: u32, sequences: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    sequences.map(|sequence| record(partition, sequence)).collect()
}
