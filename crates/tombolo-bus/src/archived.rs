//! A bus with its archive: whoever reads what the bus does not have any more gets it from the archive, and goes on from the bus.
//!
//! ```text
//!  archive   1 ── 2 ── 3 ── 4 ── 5 ── 6
//!                                     └ the seam: the bus is read after the archive's last event, which it proves to have under the
//!  bus                 ┆    4 ── 5 ── 6 ── 7 ── 8 …       same id, as for every reader's place
//! ```
//!
//! Everything else goes to the bus. A repeat of an append whose ids the bus has not any more is compared with the archive.
//!
//! Invariant: what is read goes on from archive to bus, and back if trimming overtakes a reader, without a hole or a double; and where
//! neither has an event, that is an error.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tombolo_event::{Cursor, Generations, Incarnation, ServiceName};

use crate::{
    Append, Appended, Batch, Bus, Error, Guarantee, Kind, Reach, Read, RecordStream, Registration, Result,
    Signal, SignalStream, Tail, Topic, TopicSpec,
};

/// How often the archive may end where the bus has not begun yet, while both go on.
const SEAMS_MISSED_MAX: u32 = 3;

/// A bus with its archive.
pub struct Archived {
    both: Both,
}

#[derive(Clone)]
struct Both {
    bus: Arc<dyn Bus>,
    archive: Arc<dyn Bus>,
    #[cfg(feature = "mutants")]
    believes_the_seam: bool,
}

impl Archived {
    /// `bus`, of which `archive` has what was trimmed.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, archive: Arc<dyn Bus>) -> Self {
        let both = Both {
            bus,
            archive,
            #[cfg(feature = "mutants")]
            believes_the_seam: false,
        };
        Self { both }
    }

    /// Broken on purpose: goes on from the bus wherever that begins.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn believing_the_seam(bus: Arc<dyn Bus>, archive: Arc<dyn Bus>) -> Self {
        let both = Both { bus, archive, believes_the_seam: true };
        Self { both }
    }

    /// Acknowledges a repeat of which the bus has only the end: the archive has the ids of the rest.
    async fn repeat(&self, append: Append, mut trimmed: Error) -> Result<Appended> {
        let compared = self.both.compare(&append).await?;
        for _ in 0..SEAMS_MISSED_MAX {
            let Some(begins) = trimmed.begins() else { break };
            let mut rest = append.clone();
            rest.records.retain(|record| record.sequence >= begins.sequence);
            let before = append.records.len() - rest.records.len();
            if compared < before {
                break;
            }
            if rest.records.is_empty() {
                let tails = self.both.bus.tails(&append.topic).await?;
                let tail = tails.iter().find(|tail| tail.partition == append.partition);
                return Ok(Appended { last: tail.map_or(0, |tail| tail.sequence) });
            }
            match self.both.bus.append(rest).await {
                Err(error) if error.kind() == Kind::Trimmed => trimmed = error,
                answer => return answer,
            }
        }
        Err(trimmed)
    }
}

impl Both {
    /// How many records of an append the archive has, with the same ids.
    async fn compare(&self, append: &Append) -> Result<usize> {
        let Some((first, others)) = append.records.split_first() else { return Ok(0) };
        let at = Cursor::at(append.incarnation, first.sequence, first.id);
        let mut batches = self.archive.read(Read::to_tail(&append.topic, append.partition, at)).await?;
        let mut compared = 1;
        let mut others = others.iter();
        while let Some(batch) = batches.next().await {
            for found in batch?.records {
                let Some(record) = others.next() else { return Ok(compared) };
                if record.id != found.id {
                    let message = format!(
                        "the archive of {}/{} holds event {} at {}; expected {}: the caller's database is not the one that wrote it",
                        append.topic, append.partition, found.id, found.sequence, record.id
                    );
                    return Err(Error::new(Kind::OtherId, message));
                }
                compared += 1;
            }
        }
        Ok(compared)
    }

    async fn tail(&self, read: &Read) -> Result<Tail> {
        let tails = self.bus.tails(&read.topic).await?;
        let missing = || {
            Error::new(Kind::UnknownPartition, format!("{} has no partition {}", read.topic, read.partition))
        };
        tails.into_iter().find(|tail| tail.partition == read.partition).ok_or_else(missing)
    }
}

/// A reader on its way.
struct Reader {
    both: Both,
    read: Read,
    /// The last record that was read.
    last: Cursor,
    from: From,
    /// The end of the partition when the archive was opened first: where a reader that does not follow stops.
    tail: Option<Tail>,
    /// How often the archive ended without anything new, and the bus did not begin there.
    missed: u32,
    ended: bool,
}

enum From {
    Bus(RecordStream),
    Archive(RecordStream),
}

impl Reader {
    async fn open(both: &Both, read: Read) -> Result<Self> {
        let mut reader = Self {
            both: both.clone(),
            last: read.after,
            from: From::Archive(stream::empty().boxed()),
            tail: None,
            missed: 0,
            ended: false,
            read,
        };
        reader.go_on_from_bus().await?;
        Ok(reader)
    }

    /// Goes on from the bus, which proves that it has the last record; from the archive if it does not have it any more.
    async fn go_on_from_bus(&mut self) -> Result<()> {
        let read = Read { after: self.last, ..self.read.clone() };
        match self.both.bus.read(read).await {
            Ok(stream) => {
                self.from = From::Bus(stream);
                Ok(())
            }
            Err(error) if error.kind() == Kind::Trimmed => self.go_on_from_archive(error).await,
            Err(error) => Err(error),
        }
    }

    /// Goes on from the archive, as far as that goes now.
    async fn go_on_from_archive(&mut self, trimmed: Error) -> Result<()> {
        self.missed += 1;
        if self.missed > SEAMS_MISSED_MAX {
            return Err(self.lacking(trimmed));
        }
        if self.tail.is_none() {
            self.tail = Some(self.both.tail(&self.read).await?);
        }
        let read = Read { after: self.last, follow: false, ..self.read.clone() };
        match self.both.archive.read(read).await {
            Ok(stream) => {
                self.from = From::Archive(stream);
                Ok(())
            }
            Err(error) if error.kind() == Kind::UnknownTopic => Err(self.lacking(trimmed)),
            Err(error) => Err(error),
        }
    }

    fn lacking(&self, trimmed: Error) -> Error {
        let message = format!(
            "the archive has nothing of {}/{} after {}, and the bus has that no more: events are gone, or this is not the archive of \
             this bus",
            self.read.topic, self.read.partition, self.last.sequence
        );
        Error::new(Kind::Trimmed, message).because(trimmed)
    }

    /// The next batch; `None` at the end.
    async fn next_batch(&mut self) -> Option<Result<Batch>> {
        let stop = self.tail.filter(|_| !self.read.follow);
        if self.ended || stop.is_some_and(|stop| self.last.sequence >= stop.sequence) {
            return None;
        }
        let batch = self.next().await.transpose();
        self.ended = !matches!(batch, Some(Ok(_)));
        batch
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            let (item, from_bus) = match &mut self.from {
                From::Bus(stream) => (stream.next().await, true),
                From::Archive(stream) => (stream.next().await, false),
            };
            match item {
                Some(Ok(batch)) => return Ok(Some(self.take(batch))),
                Some(Err(error)) if from_bus && error.kind() == Kind::Trimmed => {
                    self.go_on_from_archive(error).await?
                }
                Some(Err(error)) => return Err(error),
                None if from_bus => return Ok(None),
                None => self.cross().await?,
            }
        }
    }

    /// Notes where a batch ends, and cuts off what came after the end at which it stops.
    fn take(&mut self, mut batch: Batch) -> Batch {
        self.missed = 0;
        if let Some(Tail { sequence, id: Some(id), .. }) = self.tail {
            batch.tail = batch.tail.max(sequence);
            if !self.read.follow && batch.last > sequence {
                batch.records.retain(|record| record.sequence <= sequence);
                (batch.last, batch.last_id) = (sequence, id);
            }
        }
        self.last = Cursor::at(self.last.incarnation, batch.last, batch.last_id);
        batch
    }

    #[cfg(feature = "mutants")]
    async fn cross(&mut self) -> Result<()> {
        if self.both.believes_the_seam {
            let start = Cursor::start(self.last.incarnation);
            let read = Read { after: start, ..self.read.clone() };
            let begins = self.both.bus.read(read).await.err().and_then(|error| error.begins());
            self.last = begins.unwrap_or(self.last);
        }
        self.go_on_from_bus().await
    }

    #[cfg(not(feature = "mutants"))]
    async fn cross(&mut self) -> Result<()> {
        self.go_on_from_bus().await
    }
}

#[async_trait]
impl Bus for Archived {
    fn guarantee(&self) -> Guarantee {
        let Guarantee { engine, survives_power_cut, detail } = self.both.bus.guarantee();
        let archive = self.both.archive.guarantee().engine;
        Guarantee {
            engine,
            survives_power_cut,
            detail: format!("{detail}; what was trimmed is read from an archive ({archive})"),
        }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.both.bus.ensure_topic(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        self.both.bus.topic(name).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.both.bus.topics().await
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        self.both.bus.raise_epoch(topic, incarnation, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.both.bus.divide(topic, incarnation, epoch, generations).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        match self.both.bus.append(append.clone()).await {
            Err(error) if error.kind() == Kind::Trimmed => self.repeat(append, error).await,
            answer => answer,
        }
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        self.both.bus.tails(topic).await
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        let reader = Reader::open(&self.both, read).await?;
        let batches = stream::unfold(reader, |mut reader| async {
            let batch = reader.next_batch().await?;
            Some((batch, reader))
        });
        Ok(batches.boxed())
    }

    async fn trim(&self, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
        self.both.bus.trim(topic, partition, first).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        self.both.bus.signal(subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        self.both.bus.listen(subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.both.bus.register(registration).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.both.bus.registrations().await
    }

    async fn close(&self) {
        self.both.bus.close().await;
        self.both.archive.close().await;
    }
}
