//! Reading one partition: first the cursor's own record, then what follows it, live.
//!
//! Invariant: a batch begins with the sequence after the last one; a message that is missing is asked for once more and
//! then named, never passed over.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tombolo_event::Cursor;

use super::link::Link;
use super::log::{End, Log};
use super::message::Stored;
use super::pull::{Pull, Pulled};
use crate::{Batch, Error, Kind, Read, Record, RecordStream, Result};

/// How often a reader makes its place anew without having read anything in between.
const REOPENS_MAX: u32 = 3;

/// A reader on its way.
struct Reader {
    log: Log,
    read: Read,
    /// The last record that was read: the cursor, and where in the stream it is.
    last: Cursor,
    last_at: u64,
    /// Where a reader that does not follow stops.
    end: u64,
    tail: u64,
    pull: Option<Pull>,
    /// A record that did not fit into the batch before.
    held: Option<Stored>,
    reopens: u32,
    ended: bool,
}

pub(super) async fn open(link: &Arc<Link>, read: Read) -> Result<RecordStream> {
    let log = Log::open(link, &read.topic).await?;
    let closed = link.closed.clone();
    let reader = Reader::start(log, read).await?;
    let batches = stream::unfold(reader, |mut reader| async {
        let batch = reader.next_batch().await?;
        Some((batch, reader))
    });
    Ok(batches.take_until(closed.cancelled_owned()).boxed())
}

impl Reader {
    async fn start(log: Log, read: Read) -> Result<Self> {
        let (end, last_at) = prove(&log, &read).await?;
        let stop = if read.follow { u64::MAX } else { end.sequence };
        Ok(Self {
            log,
            last: read.after,
            last_at,
            end: stop,
            tail: end.sequence,
            pull: None,
            held: None,
            reopens: 0,
            ended: false,
            read,
        })
    }

    /// The next batch; `None` at the end.
    async fn next_batch(&mut self) -> Option<Result<Batch>> {
        if self.ended || self.last.sequence >= self.end {
            return None;
        }
        let batch = self.gather().await;
        self.ended = batch.is_err();
        Some(batch)
    }

    async fn gather(&mut self) -> Result<Batch> {
        let first = self.last.sequence + 1;
        let mut next = Some(match self.held.take() {
            Some(held) => held,
            None => self.wait().await?,
        });
        let (mut records, mut bytes): (Vec<Record>, usize) = (Vec::new(), 0);
        while let Some(stored) = next.take() {
            bytes += stored.record.size();
            if bytes > self.read.batch_bytes_max && !records.is_empty() {
                self.held = Some(stored);
                break;
            }
            self.last = Cursor::at(self.last.incarnation, stored.record.sequence, stored.record.id);
            self.last_at = stored.at;
            records.push(stored.record);
            if self.last.sequence < self.end {
                next = self.ready()?;
            }
        }
        let last_id = self.last.id.unwrap_or_default();
        self.tail = self.tail.max(self.last.sequence);
        Ok(Batch { first, last: self.last.sequence, last_id, records, tail: self.tail })
    }

    /// Waits for the record after the last one, making the place anew if it was lost.
    async fn wait(&mut self) -> Result<Stored> {
        loop {
            let pull = match &mut self.pull {
                Some(pull) => pull,
                None => {
                    let expected = !self.read.follow;
                    let from = self.last_at + 1;
                    self.pull.insert(Pull::open(&self.log, self.read.partition, from, expected).await?)
                }
            };
            pull.expected = !self.read.follow || self.tail > self.last.sequence;
            let pulled = pull.next().await;
            match pulled.and_then(|pulled| self.in_order(pulled)) {
                Ok(Some(stored)) => {
                    self.reopens = 0;
                    return Ok(stored);
                }
                Ok(None) => {}
                Err(error) => self.reopen(error).await?,
            }
        }
    }

    /// The record after the last one if it is here; a gap is left to [`Reader::wait`].
    fn ready(&mut self) -> Result<Option<Stored>> {
        while let Some(pulled) = self.pull.as_mut().map_or(Ok(None), Pull::next_ready).unwrap_or_default() {
            match self.in_order(pulled) {
                Ok(Some(stored)) => return Ok(Some(stored)),
                Ok(None) => {}
                Err(_) => {
                    self.pull = None;
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Passes the record that follows, drops one that was read, refuses a gap.
    fn in_order(&mut self, pulled: Pulled) -> Result<Option<Stored>> {
        let (found, expected) = (pulled.stored.record.sequence, self.last.sequence + 1);
        self.tail = self.tail.max(found + pulled.pending);
        if found > expected {
            let message = format!(
                "{}/{} goes on at {found}; expected {expected}: messages of its stream are gone, restore them",
                self.read.topic, self.read.partition
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok((found == expected).then_some(pulled.stored))
    }

    async fn reopen(&mut self, error: Error) -> Result<()> {
        self.pull = None;
        self.reopens += 1;
        if self.reopens > REOPENS_MAX {
            return Err(error);
        }
        self.log.link.ready().await?;
        let control = self.log.control().await?;
        if control.incarnation != self.last.incarnation {
            let message = format!("topic {} was made again while it was read", self.read.topic);
            return Err(Error::new(Kind::OtherIncarnation, message));
        }
        let end = end(&self.log, &self.read, self.last).await?;
        self.last_at = verify(&self.log, &self.read, self.last, &end).await?;
        self.tail = self.tail.max(end.sequence);
        Ok(())
    }
}

/// Proves that the log is the one that the cursor was in; returns the end of the partition, and where in the stream the cursor is.
pub(super) async fn prove(log: &Log, read: &Read) -> Result<(End, u64)> {
    let control = log.control().await?;
    if control.incarnation != read.after.incarnation {
        let (found, expected) = (control.incarnation, read.after.incarnation);
        let message =
            format!("topic {} is incarnation {found}; the reader's place is in {expected}", read.topic);
        return Err(Error::new(Kind::OtherIncarnation, message));
    }
    let found = control.generations.partitions();
    if read.partition >= found {
        let message =
            format!("topic {} has {found} partitions from 0; there is none {}", read.topic, read.partition);
        return Err(Error::new(Kind::UnknownPartition, message));
    }
    let end = end(log, read, read.after).await?;
    let at = verify(log, read, read.after, &end).await?;
    Ok((end, at))
}

/// The end of the partition, which is not what a server knew that has just begun to lead.
async fn end(log: &Log, read: &Read, cursor: Cursor) -> Result<End> {
    let end = log.end_of(read.partition).await?;
    if read.follow && cursor.sequence <= end.sequence {
        return Ok(end);
    }
    log.settle().await?;
    log.end_of(read.partition).await
}

/// Compares the cursor's own record; returns where in the stream it is, 0 before the first.
async fn verify(log: &Log, read: &Read, cursor: Cursor, end: &End) -> Result<u64> {
    let place = format!("{}/{}", read.topic, read.partition);
    if cursor.sequence > end.sequence {
        let message = format!(
            "{place} ends at {}; the reader's place is {}: the log lost its tail or is an older copy",
            end.sequence, cursor.sequence
        );
        return Err(Error::new(Kind::BeyondTail, message));
    }
    if cursor.sequence == 0 {
        let trimmed = if end.sequence > 0 { log.trimmed(read.partition, cursor).await? } else { None };
        return trimmed.map_or(Ok(0), Err);
    }
    let (found, at) = if cursor.sequence == end.sequence {
        (end.id, end.at)
    } else {
        let stored = log.find_sequence(read.partition, cursor.sequence, end).await?;
        stored.map_or((None, 0), |stored| (Some(stored.record.id), stored.at))
    };
    let trimmed = if found.is_none() { log.trimmed(read.partition, cursor).await? } else { None };
    if let Some(trimmed) = trimmed {
        return Err(trimmed);
    }
    #[cfg(feature = "mutants")]
    let found = if log.link.mutant == Some(super::Mutant::BelieveTheCursor) { cursor.id } else { found };
    if found == cursor.id {
        return Ok(at);
    }
    let said =
        |id: Option<tombolo_event::EventId>| id.map_or_else(|| "no event".to_owned(), |id| id.to_string());
    let message = format!(
        "{place} holds {} at {}; the reader's place has {}: the log is not the one that was read",
        said(found),
        cursor.sequence,
        said(cursor.id)
    );
    Err(Error::new(Kind::OtherId, message))
}
