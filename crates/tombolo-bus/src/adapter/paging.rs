//! Reading one partition page by page: a page is larger than a batch, so that batches of small records cost no round trip each.
//!
//! Invariant: pages follow each other without a hole; a record that is missing is named, trimmed or gone, never passed over.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_event::{Cursor, EventId};

use super::refusal::gap;
use crate::{Batch, Error, Kind, Read, Record, RecordStream, Result};

/// The bytes of a page; one of larger batches is as large as a batch.
const PAGE_BYTES: usize = 1 << 20;

/// How often a reader is woken for nothing before a record is given up as missing.
const WAKES_MAX: u32 = 3;

/// A place that was read: a record, or the last of some that were passed over.
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) id: EventId,
    pub(crate) record: Option<Record>,
}

/// What a source read.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) entries: VecDeque<Entry>,
    /// The last sequence of the partition at that moment, 0 if it was not asked for.
    pub(crate) tail: u64,
}

/// Where pages come from.
pub(crate) trait Source: Send + 'static {
    /// Reads what follows `after`, up to `until` and to about `bytes`; nothing if there is nothing yet.
    fn page(
        &mut self,
        read: &Read,
        after: u64,
        until: u64,
        bytes: usize,
    ) -> impl Future<Output = Result<Page>> + Send;

    /// Proves that the log is the one that the cursor was in; returns its last sequence.
    fn prove(&mut self, read: &Read, cursor: Cursor) -> impl Future<Output = Result<u64>> + Send;
}

/// A reader on its way.
struct Pager<S> {
    source: S,
    read: Read,
    last: Cursor,
    /// Where a reader that does not follow stops.
    stop: u64,
    page: Page,
    /// The end of the partition as it is told; none for a reader that does not follow.
    end: Option<watch::Receiver<u64>>,
    /// How often it was woken since it last read something.
    wakes: u32,
    ended: bool,
}

/// Reads from a proven cursor on: to `tail`, or as long as `end` tells of more.
pub(crate) fn open(
    source: impl Source,
    read: Read,
    tail: u64,
    end: Option<watch::Receiver<u64>>,
    closed: CancellationToken,
) -> RecordStream {
    let stop = if end.is_some() { u64::MAX } else { tail };
    let page = Page { entries: VecDeque::new(), tail };
    let pager = Pager { source, last: read.after, read, stop, page, end, wakes: 0, ended: false };
    let batches = stream::unfold(pager, |mut pager| async {
        let batch = pager.next_batch().await?;
        Some((batch, pager))
    });
    batches.take_until(closed.cancelled_owned()).boxed()
}

impl<S: Source> Pager<S> {
    /// The next batch; `None` at the end.
    async fn next_batch(&mut self) -> Option<Result<Batch>> {
        if self.ended || self.last.sequence >= self.stop {
            return None;
        }
        let batch = self.gather().await;
        self.ended = batch.is_err();
        Some(batch)
    }

    async fn gather(&mut self) -> Result<Batch> {
        while self.page.entries.is_empty() {
            if let Some(end) = &mut self.end {
                end.borrow_and_update();
            }
            self.turn().await?;
            if self.page.entries.is_empty() {
                self.wait().await?;
            }
        }
        self.wakes = 0;
        Ok(self.cut())
    }

    /// Reads the next page. Where records are missing, it is asked first whether they were trimmed.
    async fn turn(&mut self) -> Result<()> {
        match self.next_page().await {
            Err(missing) if missing.kind() == Kind::Corrupt => {
                self.source.prove(&self.read, self.last).await?;
                Err(missing)
            }
            turned => turned,
        }
    }

    async fn next_page(&mut self) -> Result<()> {
        let bytes = PAGE_BYTES.max(self.read.batch_bytes_max);
        let known = self.page.tail;
        self.page = self.source.page(&self.read, self.last.sequence, self.stop, bytes).await?;
        self.page.tail = self.page.tail.max(known);
        if self.read.types.is_none() {
            let expected = self.last.sequence + 1..;
            let odd =
                self.page.entries.iter().zip(expected).find(|(entry, expected)| entry.sequence != *expected);
            if let Some((entry, expected)) = odd {
                return Err(gap(&self.read, Some(entry.sequence), expected));
            }
        }
        Ok(())
    }

    /// Takes as much of the page as a batch may hold.
    fn cut(&mut self) -> Batch {
        let first = self.last.sequence + 1;
        let (mut records, mut bytes): (Vec<Record>, usize) = (Vec::new(), 0);
        while let Some(next) = self.page.entries.front() {
            let size = next.record.as_ref().map_or(0, Record::size);
            if size > 0 && !records.is_empty() && bytes + size > self.read.batch_bytes_max {
                break;
            }
            bytes += size;
            self.last = Cursor::at(self.last.incarnation, next.sequence, next.id);
            records.extend(self.page.entries.pop_front().and_then(|entry| entry.record));
        }
        let tail = self.page.tail.max(self.last.sequence);
        Batch { first, last: self.last.sequence, last_id: self.last.id.unwrap_or_default(), records, tail }
    }

    /// Waits until the partition is said to end elsewhere than where this reader is.
    async fn wait(&mut self) -> Result<()> {
        let last = self.last.sequence;
        let Some(end) = &mut self.end else {
            self.source.prove(&self.read, self.last).await?;
            return Err(gap(&self.read, None, last + 1));
        };
        let told = end.wait_for(|end| *end != last).await.map(|end| *end);
        let told =
            told.map_err(|_| Error::new(Kind::Closed, "nobody tells this reader of the end any more"))?;
        self.wakes += 1;
        if told > last && self.wakes == 1 {
            return Ok(());
        }
        // The word was old, the log lost its tail, or a record that is said to be there is not.
        let tail = self.source.prove(&self.read, self.last).await?;
        if tail > last && self.wakes > WAKES_MAX {
            return Err(gap(&self.read, None, last + 1));
        }
        if tail <= last {
            self.wakes = 0;
            // The sender is gone only with the bus.
            end.changed().await.ok();
        }
        Ok(())
    }
}
