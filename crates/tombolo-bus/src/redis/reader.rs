//! Reading one partition: first the cursor's own record, then what follows it, by ranges of its stream.
//!
//! What the server sends of a command is sent after the append-only file was synced for everything before it, so nothing is read
//! that a power cut could take back. Types are not filtered: the server cannot.
//!
//! Invariant: a page is asked for so that it fits into [`MEMORY_MAX`] even if all of its records were as large as the largest.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use tombolo_event::{Cursor, EventId};

use super::link::{Link, SERVER};
use super::scripts::Script;
use super::values::{End, beginning, bytes, id, incarnation, list, number, odd, text};
use crate::adapter::following::Following;
use crate::adapter::paging::{self, Entry, Page, Source};
use crate::adapter::refusal::{check_cursor, check_incarnation, foreign, unknown_partition, unknown_topic};
use crate::{Error, Read, Record, RecordStream, Result};

/// The most bytes of one answer of the server.
const MEMORY_MAX: usize = 16 << 20;
/// The most records of a page.
const PAGE_RECORDS_MAX: usize = 8_192;
/// What a record is taken for before the first was read, in bytes.
const RECORD_BYTES_GUESS: usize = 256;

/// What a reader knows of its partition.
struct Partition {
    link: Arc<Link>,
    stream: String,
    ends: String,
    /// What a record takes, as far as was seen, and what the largest takes, in bytes.
    record_bytes: usize,
    largest: usize,
}

/// Begins to read; `following` tells of the end, if the reader follows.
pub(super) async fn open(
    link: &Arc<Link>,
    read: Read,
    following: Option<&Following<String>>,
) -> Result<RecordStream> {
    let end = begin(link, &read, read.after).await?;
    let told =
        following.map(|following| following.follow(read.topic.as_str().to_owned(), read.partition, end.last));
    let partition = Partition {
        link: Arc::clone(link),
        stream: link.keys.partition(&read.topic, read.partition),
        ends: link.keys.ends(&read.topic),
        record_bytes: RECORD_BYTES_GUESS,
        largest: usize::try_from(end.largest).unwrap_or(usize::MAX),
    };
    Ok(paging::open(partition, read, end.last, told, link.closed.clone()))
}

/// Proves that the log is the one that the cursor was in.
async fn begin(link: &Link, read: &Read, cursor: Cursor) -> Result<End> {
    let place = format!("{}-0", cursor.sequence);
    let keys = &link.keys;
    let named =
        [keys.topic(&read.topic), keys.ends(&read.topic), keys.partition(&read.topic, read.partition)];
    let mut line = link.line().await?;
    let mut look = line.scripts.call(Script::Look, &named);
    look.arg(read.partition).arg(&place);
    let mut answers = list(line.ask(&look).await?).into_iter();
    let topic = list(answers.next().unwrap_or_default());
    let word = |at: usize| topic.get(at).and_then(text);
    let mark = word(0).ok_or_else(|| unknown_topic(&read.topic, SERVER))?;
    if mark != link.keys.mark(&read.topic) {
        return Err(foreign(&read.topic, &mark));
    }
    let found = word(1).as_deref().and_then(incarnation).ok_or_else(|| odd("the hash of a topic"))?;
    check_incarnation(&read.topic, found, cursor.incarnation)?;
    let partitions = number(topic.get(2)).and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
    if read.partition >= partitions {
        return Err(unknown_partition(&read.topic, read.partition, partitions));
    }
    if let Some(begins) = topic.get(3).and_then(text).map(|field| beginning(found, &field)).transpose()?
        && cursor.sequence < begins.sequence
    {
        return Err(Error::trimmed(&read.topic, read.partition, cursor.sequence, Some(begins)));
    }
    let end = End::read(answers.next().as_ref().and_then(text).as_deref())?;
    let at_cursor = list(answers.next().unwrap_or_default()).into_iter().next().map(entry).transpose()?;
    check_cursor(read, cursor, end.last, found_at(link, cursor, at_cursor.map(|entry| entry.id)))?;
    Ok(end)
}

impl Source for Partition {
    async fn page(&mut self, _read: &Read, after: u64, until: u64, bytes: usize) -> Result<Page> {
        let fitting = bytes / self.record_bytes.max(1) * 5 / 4;
        let count = fitting.min(MEMORY_MAX / self.largest.max(1)).clamp(1, PAGE_RECORDS_MAX);
        let until = if until == u64::MAX { "+".to_owned() } else { format!("{until}-0") };
        let mut asks = redis::pipe();
        asks.cmd("XRANGE")
            .arg(&self.stream)
            .arg(format!("{}-0", after + 1))
            .arg(until)
            .arg("COUNT")
            .arg(count);
        // After the range, so that it is never behind it.
        asks.cmd("HGET").arg(&self.ends).arg(self.stream.rsplit(':').next().unwrap_or_default());
        let mut answers = self.link.line().await?.ask_all(&asks).await?.into_iter();
        let entries = list(answers.next().unwrap_or_default());
        let end = End::read(answers.next().as_ref().and_then(text).as_deref())?;
        self.largest = usize::try_from(end.largest).unwrap_or(usize::MAX);
        let mut page = Page { tail: end.last, ..Page::default() };
        for found in entries {
            page.entries.push_back(entry(found)?);
        }
        let size: usize =
            page.entries.iter().filter_map(|entry| entry.record.as_ref()).map(Record::size).sum();
        self.record_bytes = size.checked_div(page.entries.len()).unwrap_or(self.record_bytes);
        Ok(page)
    }

    async fn prove(&mut self, read: &Read, cursor: Cursor) -> Result<u64> {
        Ok(begin(&self.link, read, cursor).await?.last)
    }
}

/// An entry of the stream: its place, and the fields `id`, `type` and `event` in this order.
fn entry(found: Value) -> Result<Entry> {
    let wrong = || odd("an entry of a stream");
    let mut parts = list(found).into_iter();
    let place = parts.next().as_ref().and_then(text).ok_or_else(wrong)?;
    let sequence = place.strip_suffix("-0").and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    let mut fields = list(parts.next().unwrap_or_default()).into_iter();
    let mut field = |name: &str| {
        let named = fields.next().as_ref().and_then(text);
        let value = fields.next().and_then(bytes);
        value.filter(|_| named.as_deref() == Some(name)).ok_or_else(wrong)
    };
    let found: Bytes = field("id")?;
    let id: EventId = std::str::from_utf8(&found).ok().and_then(id).ok_or_else(wrong)?;
    let (event_type, bytes) = (field("type")?, field("event")?);
    Ok(Entry { sequence, id, record: Some(Record { sequence, id, event_type, bytes }) })
}

#[cfg(feature = "mutants")]
fn found_at(link: &Link, cursor: Cursor, found: Option<EventId>) -> Option<EventId> {
    if link.mutant == Some(super::Mutant::BelieveTheCursor) { cursor.id } else { found }
}

#[cfg(not(feature = "mutants"))]
fn found_at(_link: &Link, _cursor: Cursor, found: Option<EventId>) -> Option<EventId> {
    found
}
