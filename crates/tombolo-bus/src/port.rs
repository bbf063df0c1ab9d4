//! The port to the logs: everything that an engine must be able to do.
//!
//! A log, not a queue. Consumers keep their own place, so no engine needs acknowledgements, redelivery or
//! consumer state, and all behave alike.
//!
//! ```text
//! topic "orders"  (incarnation 7f…, epoch 3, generations 8 → 16, owner "orders")
//!   partition 8    1 ── 2 ── 3 ── 4 ── 5 ┆ 6 ── 7
//!                            ↑           ┆ └ appended, not yet synced: no reader sees it, nobody is told
//!                            │           └ tail = 5: everything up to here is acknowledged and readable
//!                            └ a reader after cursor (3, id of 3) first proves that 3 still has that id,
//!                              then gets 4, 5, and, following, 6 and 7 once they are synced
//!   partitions 0 ‥ 7    sealed: their tails are final
//!   partitions 8 ‥ 23   the present generation: appended to
//! ```
//!
//! Invariants, which the conformance suite checks case by case for every engine:
//! - acknowledged means on disk, as [`Bus::guarantee`] states it; a reader never sees what is not;
//! - sequences of a partition are contiguous from 1; a hole, an older epoch or another id under a stored number
//!   is a refusal, never an acknowledgement;
//! - an append that is repeated, whole or in part, is acknowledged if and only if the stored ids match;
//! - nothing is ever stored behind the tail of a sealed partition;
//! - what was trimmed is refused as such, to readers and to repeats alike: never passed over, never acknowledged.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};

use crate::{Batch, Reach, Record, Result, Signal, SignalStream};

/// The most records of one append.
pub const APPEND_RECORDS_MAX: usize = 10_000;
/// The most bytes of one append, as [`Record::size`] counts.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// The most bytes of a [`Registration`]'s descriptor.
pub const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;

/// An engine that keeps the logs of topics and carries signals.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// What an acknowledgement of this engine means, as set up now.
    fn guarantee(&self) -> Guarantee;

    /// Makes a topic, with all generations but the last sealed, or finds it as it is: generations ahead of those that
    /// were asked for, or behind. Durable when it returns.
    ///
    /// # Errors
    /// `TopicDiffers` if it exists with another owner, or neither's generations continue from the other's.
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic>;

    /// A topic by name.
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn topic(&self, name: &ServiceName) -> Result<Topic>;

    /// All topics, by name.
    async fn topics(&self) -> Result<Vec<Topic>>;

    /// Fences older writers: from now on only appends under `epoch` (or a higher one, once raised) are taken.
    /// Durable when it returns. Returns the tails, one for each partition of every generation, ordered by partition.
    /// Raising to the present epoch again changes nothing.
    ///
    /// # Errors
    /// `OlderEpoch` if the topic's epoch is higher, `OtherIncarnation`, `UnknownTopic`.
    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>>;

    /// Seals every partition of the present generation at its tail, and begins the next one: `generations` is the
    /// present ones and one more. Durable when it returns. Dividing again into the same changes nothing.
    ///
    /// # Errors
    /// `OlderEpoch` unless `epoch` is the topic's, `OtherIncarnation`, `UnknownTopic`, `NotOwner`; `TopicDiffers` if
    /// `generations` are neither what the topic has nor that and one more.
    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic>;

    /// Appends records to one partition, atomically or so that the repeat completes the stored prefix.
    /// Returns when they are on disk. In a sealed partition only a repeat is acknowledged.
    ///
    /// # Errors
    /// `Hole`, `OtherId`, `Sealed`, `OlderEpoch`, `OtherIncarnation`, `TooLarge`, `UnknownTopic`, `UnknownPartition`,
    /// `NotOwner`, `ReadOnly`; `Trimmed` for a repeat whose ids are not kept any more. After any of them nothing of the append is readable that was not before.
    async fn append(&self, append: Append) -> Result<Appended>;

    /// The last sequence and id of each partition of a topic, of every generation, ordered by partition.
    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>>;

    /// Reads one partition after a cursor. The first thing read is the cursor's own record, which must have the
    /// cursor's id; the stream then begins with the next.
    ///
    /// A stream that follows goes on live until it is dropped, in a sealed partition too, where nothing more comes; one
    /// that does not ends at the tail found when it began. An item that is an error is the last one; after `Unavailable` the reader starts again from where it is.
    ///
    /// # Errors
    /// `OtherIncarnation`, `BeyondTail`, `OtherId` if the log is not the one that the cursor was in; `Trimmed` if it lies before what is kept,
    /// also in the middle of a stream; `UnknownTopic`, `UnknownPartition`.
    async fn read(&self, read: Read) -> Result<RecordStream>;

    /// The place after the event with this number, for a reader that does not know the event's id, and so cannot prove that this is the
    /// log which it read before. Unless an engine knows better, everything up to there is read.
    ///
    /// # Errors
    /// `BeyondTail` if there is no such event yet; `Trimmed`, `UnknownTopic`, `UnknownPartition`.
    async fn cursor_at(&self, topic: &Topic, partition: u32, sequence: u64) -> Result<Cursor> {
        let start = Cursor::start(topic.incarnation);
        if sequence == 0 {
            return Ok(start);
        }
        let mut batches = self.read(Read::to_tail(&topic.name, partition, start)).await?;
        while let Some(batch) = batches.next().await {
            if let Some(record) = batch?.records.iter().find(|record| record.sequence == sequence) {
                return Ok(Cursor::at(topic.incarnation, sequence, record.id));
            }
        }
        let message = format!("{}/{partition} has no event {sequence} yet", topic.name);
        Err(crate::Error::new(crate::Kind::BeyondTail, message))
    }

    /// Removes for good what lies before the event at `first`, which is proven by its id and stays: so the last event of a partition is
    /// never removed, and sequences, tails and appends go on as before. Removing again, or less, changes nothing. An engine that
    /// cannot do this says so.
    ///
    /// # Errors
    /// `OtherIncarnation`, `OtherId`, `BeyondTail` if the event at `first` is not there; `UnknownTopic`, `UnknownPartition`;
    /// `Configuration` if the engine cannot.
    async fn trim(&self, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
        let message = format!(
            "{} cannot remove events before {} of {topic}/{partition}; Redis, NATS JetStream and PostgreSQL can: leave out --trim",
            self.guarantee().engine,
            first.sequence
        );
        Err(crate::Error::new(crate::Kind::Configuration, message))
    }

    /// Sends a signal to every listener of `subject`, and to one member of each group that listens.
    /// Subjects are dotted words.
    ///
    /// # Errors
    /// `TooLarge`, `InvalidName`, `Unavailable`.
    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach>;

    /// Listens on `subject`, with everybody else or as a member of a group of which one gets each signal.
    /// Is heard from the moment it returns.
    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream>;

    /// Keeps what a service's replica says of itself, in place of what the same replica said before. Durable.
    async fn register(&self, registration: &Registration) -> Result<()>;

    /// What every replica of every service said of itself.
    async fn registrations(&self) -> Result<Vec<Registration>>;

    /// Ends every stream and waits until nothing is half done.
    async fn close(&self);
}

/// What an acknowledgement means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    /// The engine and its version, for people.
    pub engine: String,
    /// Whether an acknowledged event survives a power cut.
    pub survives_power_cut: bool,
    /// What was found out about it, for people.
    pub detail: String,
}

/// What a topic is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name: that of the service that owns it.
    pub name: ServiceName,
    /// How it is divided into partitions. One that is made is made with all of these; one that is there may have more.
    pub generations: Generations,
    /// The identity that it gets if it is made: that of the topic which it continues on another bus; none for a new one.
    pub incarnation: Option<Incarnation>,
}

impl TopicSpec {
    /// A topic that continues no other.
    #[must_use]
    pub fn new(name: ServiceName, generations: Generations) -> Self {
        Self { name, generations, incarnation: None }
    }
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its name.
    pub name: ServiceName,
    /// How it is divided into partitions, now and before.
    pub generations: Generations,
    /// The identity of this life of it.
    pub incarnation: Incarnation,
    /// The epoch of the relay that may append; 0 before the first.
    pub epoch: u64,
}

impl Topic {
    /// How many partitions there are in all generations: their numbers are 0 up to here.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.generations.partitions()
    }

    /// Whether the topic is to be divided into `asked`; false if it is already.
    ///
    /// # Errors
    /// `TopicDiffers` if that is not what it has and one generation more.
    #[cfg_attr(
        not(any(
            feature = "embedded",
            feature = "kafka",
            feature = "nats",
            feature = "postgres",
            feature = "rabbitmq",
            feature = "redis"
        )),
        expect(dead_code, reason = "only an engine asks")
    )]
    pub(crate) fn is_to_be_divided(&self, asked: &Generations) -> Result<bool> {
        if self.generations == *asked {
            return Ok(false);
        }
        let present = self.generations.each();
        if asked.continue_from(&self.generations) && asked.each().len() == present.len() + 1 {
            return Ok(true);
        }
        let message = format!(
            "topic {} has the partitions {}; it was to be divided into {asked}, expected those and one generation more",
            self.name, self.generations
        );
        Err(crate::Error::new(crate::Kind::TopicDiffers, message))
    }

    /// The topic, if it is as `spec` asks for.
    ///
    /// # Errors
    /// `TopicDiffers` if neither's generations continue from the other's, or it has another incarnation than the given one.
    #[cfg_attr(
        not(any(
            feature = "embedded",
            feature = "kafka",
            feature = "nats",
            feature = "postgres",
            feature = "rabbitmq",
            feature = "redis"
        )),
        expect(dead_code, reason = "only an engine asks")
    )]
    pub(crate) fn matching(self, spec: &TopicSpec) -> Result<Self> {
        if spec.incarnation.is_some_and(|given| given != self.incarnation) {
            let message = format!(
                "there is another topic {} already, with the incarnation {}; use a bus, or a namespace, that has none",
                self.name, self.incarnation
            );
            return Err(crate::Error::new(crate::Kind::TopicDiffers, message));
        }
        let (found, asked) = (&self.generations, &spec.generations);
        if found.continue_from(asked) || asked.continue_from(found) {
            return Ok(self);
        }
        let message = format!(
            "topic {} has the partitions {found}, not {asked}; a topic keeps those that it was made with, and `tombolo topics divide` adds a generation",
            self.name
        );
        Err(crate::Error::new(crate::Kind::TopicDiffers, message))
    }
}

/// The end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The partition, from 0.
    pub partition: u32,
    /// The last sequence; 0 if it is empty.
    pub sequence: u64,
    /// The id of the event there.
    pub id: Option<EventId>,
}

/// Records for one partition.
#[derive(Debug, Clone)]
pub struct Append {
    /// The topic.
    pub topic: ServiceName,
    /// Its incarnation, as the producer's database remembers it.
    pub incarnation: Incarnation,
    /// The epoch of the relay that sends it.
    pub epoch: u64,
    /// The partition, from 0.
    pub partition: u32,
    /// The records, at least one, with contiguous sequences; the first says where they go.
    pub records: Vec<Record>,
}

/// The acknowledgement of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The last sequence stored in the partition.
    pub last: u64,
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Read {
    /// The topic.
    pub topic: ServiceName,
    /// The partition, from 0.
    pub partition: u32,
    /// The place to read after.
    pub after: Cursor,
    /// Only these types, where the engine can; `None` reads all. What is passed over is covered by the batches.
    pub types: Option<Vec<String>>,
    /// Whether to go on live at the tail.
    pub follow: bool,
    /// The most bytes of one batch; a single larger record is a batch of its own.
    pub batch_bytes_max: usize,
}

impl Read {
    /// Reads all types after `after`, live, in batches of 256 KiB.
    #[must_use]
    pub fn following(topic: &ServiceName, partition: u32, after: Cursor) -> Self {
        Self { topic: topic.clone(), partition, after, types: None, follow: true, batch_bytes_max: 256 << 10 }
    }

    /// Reads all types after `after` up to the present tail.
    #[must_use]
    pub fn to_tail(topic: &ServiceName, partition: u32, after: Cursor) -> Self {
        Self { follow: false, ..Self::following(topic, partition, after) }
    }
}

/// The records of one partition in batches, in order.
pub type RecordStream = Pin<Box<dyn Stream<Item = Result<Batch>> + Send>>;

/// What one replica of a service says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// Which of its replicas, from 1.
    pub replica: u32,
    /// Where it can be called.
    pub url: String,
    /// Its descriptor, as JSON ([`tombolo_event::descriptor::Descriptor`]).
    pub descriptor: String,
}

/// Checks an append before anything else: not empty, contiguous, within the bounds.
///
/// # Errors
/// `TooLarge` or `Hole`.
pub fn check_append(append: &Append) -> Result<()> {
    use crate::{Error, Kind};
    let wrong = |kind, message: String| Err(Error::new(kind, message));
    let Some(first) = append.records.first() else {
        return wrong(
            Kind::Hole,
            format!("append to {} holds no record; expected at least one", append.topic),
        );
    };
    if append.records.len() > APPEND_RECORDS_MAX {
        let found = append.records.len();
        return wrong(
            Kind::TooLarge,
            format!(
                "append holds {found} records; expected at most {APPEND_RECORDS_MAX}: send smaller batches"
            ),
        );
    }
    let bytes: usize = append.records.iter().map(Record::size).sum();
    if bytes > APPEND_BYTES_MAX {
        return wrong(
            Kind::TooLarge,
            format!("append holds {bytes} bytes; expected at most {APPEND_BYTES_MAX}: send smaller batches"),
        );
    }
    let contiguous =
        append.records.iter().zip(first.sequence..).all(|(record, expected)| record.sequence == expected);
    if !contiguous || first.sequence == 0 {
        return wrong(
            Kind::Hole,
            format!(
                "append to {}/{} holds sequences with a hole, or 0; expected first, first + 1, …, from 1",
                append.topic, append.partition
            ),
        );
    }
    Ok(())
}
