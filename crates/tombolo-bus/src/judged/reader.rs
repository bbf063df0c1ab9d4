//! Reading one partition: first the cursor's own record, then what follows it, live.
//!
//! Near the end a reader is fed from the memory of the topic's follower, with all others. Further back it has a place of its
//! own in the stream, where it passes over the records of the other partitions, until it is near the end.
//!
//! Invariant: a batch begins with the sequence after the last one; what is missing is named, never passed over.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tombolo_event::{Cursor, EventId};

use super::follower::{Follower, Near};
use super::past::Past;
use super::rule::{Control, check_incarnation, unknown, unknown_partition};
use super::{Streams, Used};
use crate::{Batch, Error, Kind, Read, Record, RecordStream, Result};

/// A reader on its way.
struct Reader<S: Streams> {
    _used: Arc<Used<S>>,
    follower: Arc<Follower<S>>,
    changes: watch::Receiver<u64>,
    read: Read,
    /// The last record that was read.
    last: Cursor,
    /// Where a reader that does not follow stops.
    end: u64,
    tail: u64,
    /// Its own place, while it is not near the end.
    past: Option<Past<S>>,
    /// What was read from there and did not fit into the batch before.
    held: VecDeque<Record>,
    ended: bool,
}

pub(super) async fn open<S: Streams>(
    used: &Arc<Used<S>>,
    follower: Arc<Follower<S>>,
    read: Read,
) -> Result<RecordStream> {
    let closed = follower.server.root().closed.clone();
    let reader = Reader::start(Arc::clone(used), follower, read).await?;
    let batches = stream::unfold(reader, |mut reader| async {
        let batch = reader.next_batch().await?;
        Some((batch, reader))
    });
    Ok(batches.take_until(closed.cancelled_owned()).boxed())
}

impl<S: Streams> Reader<S> {
    /// Proves that the log is the one that the cursor was in.
    async fn start(used: Arc<Used<S>>, follower: Arc<Follower<S>>, read: Read) -> Result<Self> {
        let here = |control: &Control| {
            let sealed = control.generations.is_sealed(read.partition);
            read.partition < control.generations.partitions()
                && control.incarnation == read.after.incarnation
                && (read.follow || sealed)
        };
        let holds = |sequence: u64| follower.with(|state| end_of(state, read.partition) >= sequence);
        // What is in memory may be old: it does for who goes on live, and refuses nobody.
        let known = follower.with(|state| state.control.as_ref().is_some_and(here));
        if !known || !holds(read.after.sequence) {
            follower.look().await?;
        }
        let tail = follower.with(|state| check(state, &read))?;
        let changes = follower.changes();
        let end = if read.follow { u64::MAX } else { tail };
        let mut reader = Self {
            _used: used,
            last: read.after,
            end,
            tail,
            past: None,
            held: VecDeque::new(),
            ended: false,
            follower,
            changes,
            read,
        };
        reader.verify().await?;
        Ok(reader)
    }

    /// Compares the cursor's own record.
    async fn verify(&mut self) -> Result<()> {
        let (partition, sequence) = (self.read.partition, self.last.sequence);
        if sequence == 0 && self.tail > 0 && matches!(self.follower.near(partition, 0, 1).0, Near::Past) {
            // What was there first may have been removed.
            self.past = Some(self.follower.past(partition, 1).await?);
        }
        if sequence == 0 || self.believes_the_cursor() {
            return Ok(());
        }
        if let Some(id) = self.follower.near_id(partition, sequence) {
            return self.same_id(Some(id));
        }
        let mut past = self.follower.past(partition, sequence).await?;
        let found = loop {
            let records = past.next().await?;
            let last = records.last().map_or(0, |record| record.sequence);
            if last >= sequence {
                break records;
            }
        };
        let own = found.iter().find(|record| record.sequence == sequence);
        self.same_id(own.map(|record| record.id))?;
        self.held.extend(found.into_iter().filter(|record| record.sequence > sequence));
        self.past = Some(past);
        Ok(())
    }

    fn same_id(&self, found: Option<EventId>) -> Result<()> {
        if found == self.last.id {
            return Ok(());
        }
        let said = |id: Option<EventId>| id.map_or_else(|| "no event".to_owned(), |id| id.to_string());
        let message = format!(
            "{}/{} holds {} at {}; the reader's place has {}: the log is not the one that was read",
            self.read.topic,
            self.read.partition,
            said(found),
            self.last.sequence,
            said(self.last.id)
        );
        Err(Error::new(Kind::OtherId, message))
    }

    /// The next batch; `None` at the end.
    async fn next_batch(&mut self) -> Option<Result<Batch>> {
        if self.ended || self.last.sequence >= self.end {
            return None;
        }
        let records = self.records().await;
        self.ended = records.is_err();
        Some(records.and_then(|records| self.batch(records)))
    }

    async fn records(&mut self) -> Result<Vec<Record>> {
        loop {
            if !self.held.is_empty() {
                return Ok(self.cut());
            }
            let (after, bytes_max) = (self.last.sequence, self.read.batch_bytes_max);
            let (near, tail) = self.follower.near(self.read.partition, after, bytes_max);
            self.tail = self.tail.max(tail);
            match near {
                Near::Records(mut records) => {
                    self.past = None;
                    records.retain(|record| record.sequence <= self.end);
                    return Ok(records);
                }
                Near::End if self.follower.lives() => {
                    // An error would mean that the follower is gone, which is seen in the next round.
                    drop(self.changes.changed().await);
                }
                Near::End => return Err(self.follower.why_ended()),
                Near::Past => self.refill().await?,
            }
        }
    }

    /// Reads on from a place of its own, up to a batch.
    async fn refill(&mut self) -> Result<()> {
        if !self.follower.lives() {
            return Err(self.follower.why_ended());
        }
        let past = match &mut self.past {
            Some(past) => past,
            None => self.past.insert(self.follower.past(self.read.partition, self.last.sequence + 1).await?),
        };
        let after = self.last.sequence;
        let mut next = Some(past.next().await?);
        let mut bytes = 0;
        while let Some(records) = next.take() {
            let new = records.into_iter().filter(|record| record.sequence > after);
            self.held.extend(new.inspect(|record| bytes += record.size()));
            if bytes < self.read.batch_bytes_max {
                next = past.next_ready().await?;
            }
        }
        Ok(())
    }

    /// The first of what is held, up to a batch.
    fn cut(&mut self) -> Vec<Record> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = self.held.front() {
            bytes += record.size();
            if record.sequence > self.end || (bytes > self.read.batch_bytes_max && !records.is_empty()) {
                break;
            }
            records.extend(self.held.pop_front());
        }
        records
    }

    fn batch(&mut self, records: Vec<Record>) -> Result<Batch> {
        let first = self.last.sequence + 1;
        let found = records.first().map_or(0, |record| record.sequence);
        let Some(last) = records.last().filter(|_| found == first) else {
            let message = format!(
                "{}/{} goes on at {found}; expected {first}: messages of its stream are gone, restore them",
                self.read.topic, self.read.partition
            );
            return Err(Error::new(Kind::Corrupt, message));
        };
        self.last = Cursor::at(self.last.incarnation, last.sequence, last.id);
        self.tail = self.tail.max(last.sequence);
        Ok(Batch { first, last: last.sequence, last_id: last.id, tail: self.tail, records })
    }

    #[cfg(feature = "mutants")]
    fn believes_the_cursor(&self) -> bool {
        self.follower.server.root().mutant == Some(super::Mutant::BelieveTheCursor)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the switch of the test build asks the connection")]
    fn believes_the_cursor(&self) -> bool {
        false
    }
}

fn end_of(state: &super::rule::State, partition: u32) -> u64 {
    state.end(partition).unwrap_or_default().sequence
}

/// The end of the partition that is to be read, if its topic is there and the cursor can be in it.
fn check(state: &super::rule::State, read: &Read) -> Result<u64> {
    let control = state.control.as_ref().ok_or_else(|| unknown(&read.topic))?;
    check_incarnation(&read.topic, control, read.after.incarnation)?;
    let Some(end) = state.end(read.partition) else {
        return Err(unknown_partition(&read.topic, read.partition, state.ends.len()));
    };
    if read.after.sequence <= end.sequence {
        return Ok(end.sequence);
    }
    let message = format!(
        "{}/{} ends at {}; the reader's place is {}: the log lost its tail or is an older copy",
        read.topic, read.partition, end.sequence, read.after.sequence
    );
    Err(Error::new(Kind::BeyondTail, message))
}
