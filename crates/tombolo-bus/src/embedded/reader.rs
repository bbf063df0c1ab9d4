//! Reads one partition as a stream of batches, from a cursor to the tail and, following, beyond it.
//!
//! - takes: blocks; writes: nothing; if we crash here, or if it repeats: the reader's cursor says where to go on.
//!
//! Invariant: the first thing read is the cursor's own record, and each batch begins where the one before ended.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use tokio::sync::watch;
use tombolo_event::{Cursor, EventId};

use super::Shared;
use super::format::BlockReader;
use super::published::TopicView;
use super::source::{Spare, malformed};
use super::staging::{check_incarnation, unknown_partition, unknown_topic};
use crate::{Batch, Error, Kind, Read, RecordStream, Result, Topic};

/// The records for which a batch makes room at once.
const EXPECTED_RECORDS_MAX: usize = 1024;

struct Reader {
    shared: Arc<Shared>,
    view: Arc<TopicView>,
    partition: u32,
    tail: watch::Receiver<u64>,
    /// The next sequence.
    next: u64,
    /// The last sequence to read, unless it follows.
    until: u64,
    types: Option<Vec<String>>,
    batch_bytes_max: usize,
    blocks: VecDeque<BlockReader>,
    spare: Spare,
    is_over: bool,
}

/// Begins to read.
pub(super) async fn read(shared: Arc<Shared>, read: Read) -> Result<RecordStream> {
    let view = shared.published.topic(&read.topic).ok_or_else(|| unknown_topic(&read.topic))?;
    check_incarnation(&view, read.after.incarnation)?;
    let own = view.partition(read.partition).ok_or_else(|| unknown_partition(&view, read.partition))?;
    let (tail, _) = own.tail();
    let mut reader = Reader {
        tail: own.follow(),
        next: read.after.sequence + 1,
        until: if read.follow { u64::MAX } else { tail },
        partition: read.partition,
        types: read.types,
        batch_bytes_max: read.batch_bytes_max,
        blocks: VecDeque::new(),
        spare: Spare::default(),
        is_over: false,
        shared,
        view,
    };
    reader.prove(read.after.sequence, read.after.id, tail).await?;
    Ok(Box::pin(stream::unfold(reader, |mut reader| async {
        let batch = reader.batch().await?;
        reader.is_over = batch.is_err();
        Some((batch, reader))
    })))
}

/// The place after the event with this number.
pub(super) async fn cursor_at(
    shared: Arc<Shared>,
    topic: &Topic,
    partition: u32,
    sequence: u64,
) -> Result<Cursor> {
    let view = shared.published.topic(&topic.name).ok_or_else(|| unknown_topic(&topic.name))?;
    check_incarnation(&view, topic.incarnation)?;
    let own = view.partition(partition).ok_or_else(|| unknown_partition(&view, partition))?;
    if sequence == 0 {
        return Ok(Cursor::start(topic.incarnation));
    }
    let (tail, _) = own.tail();
    if sequence > tail {
        let message =
            format!("{}/{partition} ends at sequence {tail}; there is no event {sequence} yet", topic.name);
        return Err(Error::new(Kind::BeyondTail, message));
    }
    let found = tokio::task::spawn_blocking(move || shared.source.ids(&view, partition, sequence, sequence));
    let closed = |error| Error::new(Kind::Closed, "the runtime is shutting down").because(error);
    let id = found.await.map_err(closed)??.first().copied().ok_or_else(malformed)?;
    Ok(Cursor::at(topic.incarnation, sequence, id))
}

impl Reader {
    fn place(&self) -> String {
        format!("{}/{}", self.view.name, self.partition)
    }

    /// Compares the cursor with the record that it was taken from.
    async fn prove(&mut self, sequence: u64, id: Option<EventId>, tail: u64) -> Result<()> {
        if sequence == 0 {
            return Ok(());
        }
        let place = self.place();
        if sequence > tail {
            let message = format!(
                "{place} ends at sequence {tail}; the cursor is at {sequence}: the log lost its tail or is an older copy"
            );
            return Err(Error::new(Kind::BeyondTail, message));
        }
        self.fetch(sequence).await?;
        let stored = self.blocks.front().and_then(BlockReader::peek_id).ok_or_else(malformed)?;
        if Some(stored) != id {
            let found = id.map_or("no id".into(), |id| id.to_string());
            let message = format!(
                "{place} holds event {stored} at sequence {sequence}; the cursor has {found}: this is not the log that the cursor was in"
            );
            return Err(Error::new(Kind::OtherId, message));
        }
        self.pass(sequence)
    }

    /// Gets blocks, the first of which then begins with `sequence`.
    async fn fetch(&mut self, sequence: u64) -> Result<()> {
        let source = &self.shared.source;
        let blocks = match source.cached_blocks(&self.view, self.partition, sequence, &mut self.spare)? {
            Some(blocks) => blocks,
            None => {
                let (shared, view, partition) = (self.shared.clone(), self.view.clone(), self.partition);
                let loaded =
                    tokio::task::spawn_blocking(move || shared.source.blocks(&view, partition, sequence));
                loaded.await.map_err(|error| {
                    Error::new(Kind::Closed, "the runtime is shutting down").because(error)
                })??
            }
        };
        self.blocks = blocks.into();
        if sequence > 1 { self.pass(sequence - 1) } else { Ok(()) }
    }

    /// Passes over what comes up to `sequence`.
    fn pass(&mut self, sequence: u64) -> Result<()> {
        while let Some(block) = self.blocks.front_mut() {
            match block.next_sequence() {
                Some(next) if next <= sequence => block.skip().ok_or_else(malformed)?,
                Some(_) => return Ok(()),
                None => drop(self.blocks.pop_front()),
            }
        }
        Ok(())
    }

    async fn batch(&mut self) -> Option<Result<Batch>> {
        if self.is_over || self.next > self.until || !self.wait().await {
            return None;
        }
        self.blocks.retain(|block| block.next_sequence().is_some());
        if self.blocks.is_empty()
            && let Err(error) = self.fetch(self.next).await
        {
            return Some(Err(error));
        }
        Some(self.fill())
    }

    /// Waits until there is something to read; false if the bus closes.
    async fn wait(&mut self) -> bool {
        let closing = &self.shared.closing;
        let next = self.next;
        tokio::select! {
            biased;
            () = closing.cancelled() => false,
            tail = self.tail.wait_for(|tail| *tail >= next) => tail.is_ok(),
        }
    }

    /// How many records a batch of the blocks at hand has, roughly.
    fn expected_records(&self) -> usize {
        let waiting: usize = self.blocks.iter().map(BlockReader::remaining).sum();
        if self.types.is_some() { 0 } else { waiting.min(EXPECTED_RECORDS_MAX) }
    }

    /// Puts a batch together from the blocks at hand.
    fn fill(&mut self) -> Result<Batch> {
        let first = self.next;
        let mut records = Vec::with_capacity(self.expected_records());
        let (mut bytes, mut last_id) = (0, None);
        while let Some(block) = self.blocks.front_mut() {
            let Some(sequence) = block.next_sequence().filter(|sequence| *sequence <= self.until) else {
                self.blocks.pop_front();
                continue;
            };
            if sequence != self.next {
                return Err(malformed());
            }
            let id = block.peek_id().ok_or_else(malformed)?;
            let is_wanted = match &self.types {
                Some(types) => {
                    let found = block.peek_type().ok_or_else(malformed)?;
                    types.iter().any(|wanted| wanted.as_bytes() == found)
                }
                None => true,
            };
            if is_wanted {
                let size = block.peek_size().ok_or_else(malformed)?;
                if !records.is_empty() && bytes + size > self.batch_bytes_max {
                    break;
                }
                bytes += size;
                records.push(block.take().ok_or_else(malformed)?);
            } else {
                block.skip().ok_or_else(malformed)?;
            }
            last_id = Some(id);
            self.next += 1;
        }
        let last = self.next - 1;
        let last_id = last_id.ok_or_else(malformed)?;
        Ok(Batch { first, last, last_id, records, tail: (*self.tail.borrow()).max(last) })
    }
}
