//! Reading the topic, as far ahead as there is room.
//!
//! Invariant: an event starts only when it is on disk that it may have; a log that is not the one read before stops the subscription by name.

use futures_util::StreamExt;
use tombolo_bus::{Batch, Kind, Read, RecordStream, Tail, Topic};
use tombolo_event::Cursor;

use super::{Change, Runner, Standing};
use crate::push::settings::{From, Order};

/// How many events are noted at once as those that may have started.
const STARTED_AHEAD: u64 = 256;
/// The most bytes of one read.
const READ_BYTES_MAX: usize = 32 << 10;
/// More events than any partition has.
const ALL: u64 = i64::MAX as u64;

/// What came of a partition.
pub(super) struct Reading {
    partition: u32,
    stream: RecordStream,
    batch: Option<tombolo_bus::Result<Batch>>,
}

impl Runner {
    /// Looks whether the topic is there, was divided, or has to be read again.
    pub(super) async fn look(&mut self) {
        let topic = match self.bus.topic(&self.definition.topic).await {
            Ok(topic) => topic,
            Err(error) => {
                // A topic that nobody has made yet is waited for; so is a bus that cannot answer.
                tracing::debug!(subscription = %self.definition.name, %error, "the topic cannot be read now");
                return;
            }
        };
        let is_read = (0..topic.partitions()).all(|partition| self.reading.contains(&partition));
        self.topic = Some(topic.clone());
        if is_read || self.is_unreadable {
            return;
        }
        match self.bus.tails(&topic.name).await {
            Ok(tails) => self.open(&topic, &tails).await,
            Err(error) => {
                tracing::debug!(subscription = %self.definition.name, %error, "the topic cannot be read now")
            }
        }
    }

    async fn open(&mut self, topic: &Topic, tails: &[Tail]) {
        if std::mem::take(&mut self.is_new) && self.definition.from == From::Now {
            let at =
                |tail: &Tail| Cursor { incarnation: topic.incarnation, sequence: tail.sequence, id: tail.id };
            let at_tail = |tail: &Tail| (tail.partition, Standing::new(tail.partition, at(tail)));
            self.kept = tails.iter().map(at_tail).collect();
        }
        for tail in tails {
            self.queue.reaches(tail.partition, tail.sequence);
            let mut before = topic.generations.before(tail.partition);
            if !self.queue.is_open(tail.partition) {
                if !before.all(|partition| self.queue.is_at_tail(partition)) {
                    continue;
                }
                self.open_partition(topic, *tail).await;
            }
            self.read(tail.partition).await;
        }
    }

    async fn open_partition(&mut self, topic: &Topic, tail: Tail) {
        let new = || Standing::new(tail.partition, Cursor::start(topic.incarnation));
        let mut standing = self.kept.remove(&tail.partition).unwrap_or_else(new);
        standing.repeated_to = standing.repeated_to.min(tail.sequence);
        let sequence = standing.cursor.sequence;
        self.queue.open(standing, tail.sequence);
        let started_to = match self.definition.order {
            Order::Key => sequence + STARTED_AHEAD,
            // At most the next one has.
            Order::Serial => ALL,
        };
        self.note_started(tail.partition, started_to).await;
    }

    async fn note_started(&mut self, partition: u32, sequence: u64) {
        self.queue.started_to(partition, sequence);
        if let Some(standing) = self.queue.standing(partition).cloned() {
            drop(self.state.write(&self.definition.name, vec![Change::Stands(standing)]).await.await);
        }
    }

    async fn read(&mut self, partition: u32) {
        let (false, Some(after)) = (self.reading.contains(&partition), self.queue.end(partition)) else {
            return;
        };
        let read = Read {
            types: self.definition.types.clone(),
            batch_bytes_max: READ_BYTES_MAX,
            ..Read::following(&self.definition.topic, partition, after)
        };
        match self.bus.read(read).await {
            Ok(stream) => {
                self.reading.insert(partition);
                self.next_of(partition, stream);
            }
            Err(error) => self.cannot_read(partition, &error).await,
        }
    }

    fn next_of(&mut self, partition: u32, mut stream: RecordStream) {
        self.readers.push(Box::pin(async move {
            let batch = stream.next().await;
            Reading { partition, stream, batch }
        }));
    }

    /// Takes what was read.
    pub(super) async fn took(&mut self, reading: Reading) {
        let Reading { partition, stream, batch } = reading;
        if !self.reading.contains(&partition) {
            return;
        }
        let batch = match batch {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => return self.cannot_read(partition, &error).await,
            None => {
                self.reading.remove(&partition);
                return;
            }
        };
        let types = &self.definition.types;
        let wanted = |name: &str| types.as_ref().is_none_or(|types| types.iter().any(|it| it == name));
        match self.queue.take(partition, batch, wanted) {
            Ok(moved) => self.has_taken(partition, moved).await,
            Err(error) => {
                return self
                    .cannot_go_on(format!("an event of partition {partition} cannot be read: {error}"))
                    .await;
            }
        }
        match self.queue.has_room(partition) {
            true => self.next_of(partition, stream),
            false => drop(self.resting.insert(partition, stream)),
        }
    }

    async fn has_taken(&mut self, partition: u32, moved: bool) {
        let Some(standing) = self.queue.standing(partition).cloned() else { return };
        let end = self.queue.end(partition).map_or(0, |end| end.sequence);
        if end > standing.started_to {
            self.note_started(partition, end + STARTED_AHEAD).await;
        } else if moved {
            // Nobody waits for it: it would only be passed over again.
            drop(self.state.write(&self.definition.name, vec![Change::Stands(standing)]).await);
        }
    }

    /// Reads on where there is room again.
    pub(super) fn read_on(&mut self) {
        let with_room: Vec<u32> =
            self.resting.keys().copied().filter(|it| self.queue.has_room(*it)).collect();
        for partition in with_room {
            if let Some(stream) = self.resting.remove(&partition) {
                self.next_of(partition, stream);
            }
        }
    }

    async fn cannot_read(&mut self, partition: u32, error: &tombolo_bus::Error) {
        self.reading.remove(&partition);
        match error.kind() {
            Kind::Unavailable => {
                tracing::debug!(subscription = %self.definition.name, %error, "reading again soon")
            }
            _ => self.cannot_go_on(format!("partition {partition} cannot be read: {error}")).await,
        }
    }

    /// Stops until somebody has seen to it.
    async fn cannot_go_on(&mut self, reason: String) {
        self.is_unreadable = true;
        self.pause(reason).await;
    }
}
