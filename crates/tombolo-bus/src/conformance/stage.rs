//! What a case stands on: handles to the bus, a topic of its own, and short ways to append, read and compare.
//!
//! Invariant: [`collect`] checks the range of every batch that any case reads, so that no case can be
//! satisfied with a stream that skips, doubles or misnames.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tombolo_event::{Cursor, EventId, Generations, ServiceName};
use uuid::Uuid;

use super::{Abilities, Factory};
use crate::{Append, Appended, Batch, Bus, Kind, Read, Record, RecordStream, Result, Tail, Topic, TopicSpec};

/// How long a case waits for one thing to happen, in seconds.
const WAIT_SECONDS_MAX: u64 = 20;

/// One case's place on the bus under test.
#[derive(Clone)]
pub struct Stage {
    /// Makes the handles.
    pub factory: Arc<dyn Factory>,
    /// What the engine can do.
    pub abilities: Abilities,
    name: String,
}

impl Stage {
    pub(super) fn new(factory: Arc<dyn Factory>, abilities: Abilities) -> Self {
        let unique = Uuid::new_v4().simple().to_string();
        Self { factory, abilities, name: format!("case-{}", &unique[..12]) }
    }

    pub(super) async fn handle(&self) -> Arc<dyn Bus> {
        self.factory.handle().await
    }

    /// A name that nobody else uses.
    pub(super) fn name(&self, suffix: &str) -> ServiceName {
        ServiceName::new(format!("{}{suffix}", self.name))
            .expect("names of cases are made of allowed characters")
    }

    /// A subject that nobody else uses.
    pub(super) fn subject(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    /// What a topic of one generation is to be.
    pub(super) fn spec(&self, suffix: &str, partitions: u32) -> TopicSpec {
        TopicSpec::new(self.name(suffix), generations(&[partitions]))
    }

    /// A new topic, its epoch raised to 1.
    pub(super) async fn topic(&self, bus: &Arc<dyn Bus>, partitions: u32) -> Line {
        self.topic_named(bus, "", partitions).await
    }

    pub(super) async fn topic_named(&self, bus: &Arc<dyn Bus>, suffix: &str, partitions: u32) -> Line {
        let topic = ok("ensure the topic", bus.ensure_topic(&self.spec(suffix, partitions)).await);
        self.line(bus, topic).await
    }

    /// A topic that was just made, its epoch raised to 1.
    pub(super) async fn line(&self, bus: &Arc<dyn Bus>, topic: Topic) -> Line {
        ok("raise to epoch 1", bus.raise_epoch(&topic.name, topic.incarnation, 1).await);
        Line { bus: Arc::clone(bus), topic, epoch: 1, partition: 0 }
    }
}

/// A relay's and a reader's view of one partition through one handle.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) topic: Topic,
    pub(super) epoch: u64,
    pub(super) partition: u32,
}

impl Line {
    pub(super) fn on(&self, bus: &Arc<dyn Bus>) -> Self {
        Self { bus: Arc::clone(bus), ..self.clone() }
    }

    pub(super) fn at_epoch(&self, epoch: u64) -> Self {
        Self { epoch, ..self.clone() }
    }

    pub(super) fn in_partition(&self, partition: u32) -> Self {
        Self { partition, ..self.clone() }
    }

    pub(super) fn prepare(&self, records: &[Record]) -> Append {
        Append {
            topic: self.topic.name.clone(),
            incarnation: self.topic.incarnation,
            epoch: self.epoch,
            partition: self.partition,
            records: records.to_vec(),
        }
    }

    pub(super) async fn append(&self, records: &[Record]) -> Result<Appended> {
        self.bus.append(self.prepare(records)).await
    }

    /// Appends and expects the acknowledgement of the last record.
    pub(super) async fn stored(&self, records: &[Record]) {
        let appended = ok("append", self.append(records).await);
        assert_eq!(Some(appended.last), records.last().map(|record| record.sequence), "acknowledged up to");
    }

    pub(super) async fn raise(&self, epoch: u64) -> Result<Vec<Tail>> {
        self.bus.raise_epoch(&self.topic.name, self.topic.incarnation, epoch).await
    }

    pub(super) async fn divide(&self, each: &[u32]) -> Result<Topic> {
        let (name, incarnation) = (&self.topic.name, self.topic.incarnation);
        self.bus.divide(name, incarnation, self.epoch, &generations(each)).await
    }

    /// Divides, and expects the topic as it was but for its generations.
    pub(super) async fn divided(&self, each: &[u32]) -> Self {
        let topic = ok("divide", self.divide(each).await);
        let (generations, epoch) = (generations(each), self.epoch);
        assert_eq!(topic, Topic { generations, epoch, ..self.topic.clone() }, "the topic that was divided");
        Self { topic, ..self.clone() }
    }

    pub(super) fn start(&self) -> Cursor {
        Cursor::start(self.topic.incarnation)
    }

    pub(super) fn after(&self, record: &Record) -> Cursor {
        Cursor::at(self.topic.incarnation, record.sequence, record.id)
    }

    pub(super) fn to_tail(&self, after: Cursor) -> Read {
        Read::to_tail(&self.topic.name, self.partition, after)
    }

    pub(super) fn following(&self, after: Cursor) -> Read {
        Read::following(&self.topic.name, self.partition, after)
    }

    pub(super) async fn read(&self, read: Read) -> RecordStream {
        ok("read", self.bus.read(read).await)
    }

    /// Everything that the partition holds, up to its tail.
    pub(super) async fn all(&self) -> Vec<Record> {
        let read = self.to_tail(self.start());
        records_of(collect(self.read(read).await, 0).await)
    }

    /// Checks that the partition holds exactly `expected`, in every way in which that can be asked.
    pub(super) async fn holds(&self, expected: &[Record]) {
        same(&self.all().await, expected);
        let tails = ok("tails", self.bus.tails(&self.topic.name).await);
        let tail = &tails[self.partition as usize];
        let last = expected.last();
        assert_eq!(tail.partition, self.partition, "tails are ordered by partition");
        assert_eq!(tail.sequence, last.map_or(0, |record| record.sequence), "the tail's sequence");
        assert_eq!(tail.id, last.map(|record| record.id), "the tail's id");
    }
}

/// So many partitions in each generation.
pub(super) fn generations(each: &[u32]) -> Generations {
    Generations::try_from(each.to_vec()).expect("cases ask for what a topic can have")
}

/// Reads a stream to its end; see [`follow`].
pub(super) async fn collect(stream: RecordStream, after: u64) -> Vec<Batch> {
    follow(stream, after, u64::MAX).await
}

/// Reads a stream to its end, or until `until` is covered, checking the range of each batch.
pub(super) async fn follow(mut stream: RecordStream, after: u64, until: u64) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut last = after;
    while last < until {
        let Some(item) = within("the next batch", stream.next()).await else { break };
        let batch = ok("read a batch", item);
        check(&batch, last);
        last = batch.last;
        batches.push(batch);
    }
    assert!(until == u64::MAX || last >= until, "the stream ended at {last}, expected to reach {until}");
    batches
}

fn check(batch: &Batch, after: u64) {
    assert_eq!(batch.first, after + 1, "a batch begins after the one before");
    assert!(batch.last >= batch.first, "a batch covers something: {}..={}", batch.first, batch.last);
    assert!(batch.tail >= batch.last, "the tail {} is not before what was read, {}", batch.tail, batch.last);
    let mut before = after;
    for record in &batch.records {
        assert!(
            record.sequence > before && record.sequence <= batch.last,
            "records are in order and in the range"
        );
        before = record.sequence;
        assert!(
            record.sequence != batch.last || record.id == batch.last_id,
            "the last id is that of the last"
        );
    }
}

pub(super) fn records_of(batches: Vec<Batch>) -> Vec<Record> {
    batches.into_iter().flat_map(|batch| batch.records).collect()
}

/// `count` new records from sequence `first`.
pub(super) fn records(first: u64, count: u64) -> Vec<Record> {
    (first..first + count).map(|sequence| record(sequence, 40)).collect()
}

/// A new record with `bytes` bytes that no other record has.
pub(super) fn record(sequence: u64, bytes: usize) -> Record {
    let id = EventId::new();
    let content = id.0.as_bytes().iter().copied().cycle().take(bytes).collect::<Vec<u8>>();
    Record { sequence, id, event_type: Bytes::from_static(b"suite.happened.v1"), bytes: content.into() }
}

/// The same record with another id.
pub(super) fn impostor(of: &Record) -> Record {
    Record { id: EventId::new(), ..of.clone() }
}

/// Compares records without printing their bytes.
pub(super) fn same(found: &[Record], expected: &[Record]) {
    let names = |records: &[Record]| records.iter().map(|r| (r.sequence, r.id)).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "(sequence, id) found and expected");
    assert!(found == expected, "types and bytes come back as they were appended");
}

#[track_caller]
pub(super) fn ok<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("failed to {what}: {:?}: {error}", error.kind()))
}

/// Expects a refusal of this kind, with words for people.
#[track_caller]
pub(super) fn refused<T>(kind: Kind, result: Result<T>) {
    match result {
        Ok(_) => panic!("was accepted, expected {kind:?}"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "the refusal's kind; it says: {error}");
            assert!(!error.to_string().is_empty(), "a refusal says why");
        }
    }
}

/// Waits for something that must happen.
pub(super) async fn within<F: Future>(what: &str, future: F) -> F::Output
where
    F::Output: Debug,
{
    let limit = Duration::from_secs(WAIT_SECONDS_MAX);
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {WAIT_SECONDS_MAX} s for {what}"),
    }
}
