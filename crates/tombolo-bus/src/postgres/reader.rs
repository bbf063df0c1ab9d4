//! Reading one partition: first the cursor's own record, then what follows it; a page is one statement. What a filter passes
//! over is counted by the server, never sent.
//!
//! Invariant: a page is of one moment, and so is what it says of the end.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::{Cursor, EventId, Incarnation};
use uuid::Uuid;

use super::failure::failed;
use super::link::{Link, SERVER};
use super::topics::{partition_number, signed, unsigned};
use super::wakes::Wakes;
use crate::adapter::paging::{self, Entry, Page, Source};
use crate::adapter::refusal::{
    check_cursor, check_incarnation, closed, gap, unknown_partition, unknown_topic,
};
use crate::record::RECORD_OVERHEAD_BYTES;
use crate::{Error, Read, Record, RecordStream, Result};

/// The most records that a page looks at, and how many of which some types are passed over.
const PAGE_RECORDS_MAX: usize = 8_192;
const FILTERED_RECORDS_MAX: usize = 20_000;
/// The most bytes of a page that was not measured, if all its records were as large as the largest.
const MEMORY_MAX: usize = 16 << 20;
/// What a record is taken for before the first was read, in bytes.
const RECORD_BYTES_GUESS: usize = 256;

/// Records of which so many fit, however large.
const PAGE: &str = "
SELECT (SELECT last FROM partition WHERE topic = $1 AND partition = $2), sequence, id, event_type, bytes,
    (SELECT largest FROM partition WHERE topic = $1 AND partition = $2)
FROM record WHERE topic = $1 AND partition = $2 AND sequence > $3 AND sequence <= $4 ORDER BY sequence";

/// Records as far as they fit.
const MEASURED: &str = "
SELECT (SELECT last FROM partition WHERE topic = $1 AND partition = $2), sequence, id, event_type, bytes,
    (SELECT largest FROM partition WHERE topic = $1 AND partition = $2)
FROM (
    SELECT sequence, id, event_type, bytes,
        sum(octet_length(bytes) + octet_length(event_type) + $6) OVER (ORDER BY sequence ROWS UNBOUNDED PRECEDING) AS total
    FROM record WHERE topic = $1 AND partition = $2 AND sequence > $3 AND sequence <= $4
) AS page
WHERE total <= $5 OR sequence = $3 + 1 ORDER BY sequence";

/// Wanted records as far as they fit, and the last one that was looked at.
const FILTERED: &str = "
SELECT (SELECT last FROM partition WHERE topic = $1 AND partition = $2), sequence, id, event_type,
    CASE WHEN wanted THEN bytes END, nth, total <= $5 OR total = size
FROM (
    SELECT sequence, id, event_type, bytes, wanted, size, row_number() OVER w AS nth,
        sum(CASE WHEN wanted THEN size ELSE 0 END) OVER w AS total, lead(sequence) OVER w IS NULL AS is_last
    FROM (
        SELECT *, event_type = ANY ($7) AS wanted, octet_length(bytes) + octet_length(event_type) + $6 AS size
        FROM record WHERE topic = $1 AND partition = $2 AND sequence > $3 AND sequence <= $4
    ) AS looked_at
    WINDOW w AS (ORDER BY sequence)
) AS page
WHERE wanted AND (total <= $5 OR total = size) OR is_last ORDER BY sequence";

/// What a reader knows of its partition.
struct Partition {
    link: Arc<Link>,
    topic: i32,
    /// What a record takes, as far as was seen, in bytes.
    record_bytes: usize,
    /// The bytes of the largest record of the partition.
    largest: usize,
}

/// Where a reader begins: the topic's number, and the partition's last sequence and largest record.
pub(super) struct Beginning {
    pub(super) topic: i32,
    tail: u64,
    largest: usize,
}

/// The first sequence that is kept of a partition `p`: tables that an older program made may have no such column yet.
pub(super) const BEGINS: &str = "coalesce((to_jsonb(p) ->> 'begins')::bigint, 1)";

/// Begins to read; `wakes` tell of the end, if the reader follows.
pub(super) async fn open(link: &Arc<Link>, read: Read, wakes: Option<&Wakes>) -> Result<RecordStream> {
    let begun = begin(link, &read, read.after).await?;
    let end = wakes.map(|wakes| wakes.following.follow(begun.topic, read.partition, begun.tail));
    let partition = Partition {
        link: Arc::clone(link),
        topic: begun.topic,
        record_bytes: RECORD_BYTES_GUESS,
        largest: begun.largest,
    };
    Ok(paging::open(partition, read, begun.tail, end, link.closed.clone()))
}

/// Proves that the log is the one that the cursor was in.
pub(super) async fn begin(link: &Link, read: &Read, cursor: Cursor) -> Result<Beginning> {
    if !link.has_tables().await? {
        return Err(unknown_topic(&read.topic, SERVER));
    }
    let mut lease = link.lease().await?;
    let text = format!(
        "SELECT t.id, t.incarnation, (SELECT count(*) FROM partition AS p WHERE p.topic = t.id), p.last,
                (SELECT r.id FROM record AS r WHERE r.topic = t.id AND r.partition = $2 AND r.sequence = $3), p.largest,
                {BEGINS}
         FROM topic AS t LEFT JOIN partition AS p ON p.topic = t.id AND p.partition = $2 WHERE t.name = $1"
    );
    let asked = sqlx::query(AssertSqlSafe(text));
    let asked = asked.bind(read.topic.as_str()).bind(partition_number(read.partition));
    let row = link.answer(asked.bind(signed(cursor.sequence)).fetch_optional(&mut *lease)).await?;
    lease.keep();
    let row = row.ok_or_else(|| unknown_topic(&read.topic, SERVER))?;
    check_incarnation(&read.topic, Incarnation(row.try_get(1).map_err(failed)?), cursor.incarnation)?;
    let last: Option<i64> = row.try_get(3).map_err(failed)?;
    let Some(last) = last.map(unsigned) else {
        let found: i64 = row.try_get(2).map_err(failed)?;
        return Err(unknown_partition(&read.topic, read.partition, u32::try_from(found).unwrap_or(u32::MAX)));
    };
    let topic: i32 = row.try_get(0).map_err(failed)?;
    let begins = unsigned(row.try_get(6).map_err(failed)?);
    if begins > 1 && cursor.sequence < begins {
        return Err(trimmed(link, topic, read, cursor, begins).await?);
    }
    let id: Option<Uuid> = row.try_get(4).map_err(failed)?;
    check_cursor(read, cursor, last, found_at(link, cursor, id.map(EventId)))?;
    let largest: i32 = row.try_get(5).map_err(failed)?;
    let largest = usize::try_from(largest).unwrap_or(0);
    Ok(Beginning { topic, tail: last, largest })
}

/// The refusal of a place before the first sequence that is kept.
async fn trimmed(link: &Link, topic: i32, read: &Read, cursor: Cursor, begins: u64) -> Result<Error> {
    let mut lease = link.lease().await?;
    let asked = sqlx::query("SELECT id FROM record WHERE topic = $1 AND partition = $2 AND sequence = $3");
    let asked = asked.bind(topic).bind(partition_number(read.partition)).bind(signed(begins));
    let row = link.answer(asked.fetch_optional(&mut *lease)).await?;
    lease.keep();
    let id: Option<Uuid> = row.map(|row| row.try_get(0).map_err(failed)).transpose()?;
    // It may have been trimmed again since.
    let begins = id.map(|id| Cursor::at(cursor.incarnation, begins, EventId(id)));
    Ok(Error::trimmed(&read.topic, read.partition, cursor.sequence, begins))
}

impl Source for Partition {
    async fn page(&mut self, read: &Read, after: u64, until: u64, bytes: usize) -> Result<Page> {
        let records = match &read.types {
            Some(_) => FILTERED_RECORDS_MAX,
            // A quarter more than is expected to fit.
            None => (bytes / self.record_bytes.max(1) * 5 / 4).clamp(1, PAGE_RECORDS_MAX),
        };
        let any_fit = records.saturating_mul(self.largest) <= MEMORY_MAX;
        let until = after.saturating_add(records as u64).min(until);
        let (link, topic, partition) = (Arc::clone(&self.link), self.topic, partition_number(read.partition));
        let types = read.types.clone();
        let asked = async move {
            let page =
                |text| sqlx::query(text).bind(topic).bind(partition).bind(signed(after)).bind(signed(until));
            let measured = |text| {
                page(text).bind(i64::try_from(bytes).unwrap_or(i64::MAX)).bind(RECORD_OVERHEAD_BYTES as i32)
            };
            let page = match types {
                Some(types) => measured(FILTERED).bind(types),
                None if any_fit => page(PAGE),
                None => measured(MEASURED),
            };
            let mut lease = link.lease().await?;
            let rows = link.answer(page.fetch_all(&mut *lease)).await?;
            lease.keep();
            Ok(rows)
        };
        let rows = by_itself(&self.link, asked).await?;
        match read.types {
            Some(_) => filtered(read, &rows, after),
            None => self.whole(&rows),
        }
    }

    async fn prove(&mut self, read: &Read, cursor: Cursor) -> Result<u64> {
        let (link, read) = (Arc::clone(&self.link), read.clone());
        let asked = async move { Ok(begin(&link, &read, cursor).await?.tail) };
        by_itself(&self.link, asked).await
    }
}

/// Asks in a task of its own. A reader that nobody polls for a while would keep one of few connections, and whoever is to poll
/// it may be waiting for one.
async fn by_itself<T: Send + 'static>(
    link: &Link,
    asked: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    link.tasks.spawn(asked).await.unwrap_or_else(|_| Err(closed()))
}

impl Partition {
    fn whole(&mut self, rows: &[PgRow]) -> Result<Page> {
        let (mut page, mut event_type, mut bytes) = (Page::default(), Bytes::new(), 0);
        for row in rows {
            let entry = entry(row, &mut page.tail, &mut event_type)?;
            bytes += entry.record.as_ref().map_or(0, Record::size);
            page.entries.push_back(entry);
        }
        if let Some(row) = rows.last() {
            let largest: Option<i32> = row.try_get(5).map_err(failed)?;
            self.largest = largest.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(self.largest);
        }
        self.record_bytes = bytes.checked_div(rows.len()).unwrap_or(self.record_bytes);
        Ok(page)
    }
}

fn filtered(read: &Read, rows: &[PgRow], after: u64) -> Result<Page> {
    let (mut page, mut event_type) = (Page::default(), Bytes::new());
    for row in rows {
        let entry = entry(row, &mut page.tail, &mut event_type)?;
        let nth: i64 = row.try_get(5).map_err(failed)?;
        if entry.sequence != after + unsigned(nth) {
            return Err(gap(read, Some(entry.sequence), after + unsigned(nth)));
        }
        let fits: bool = row.try_get(6).map_err(failed)?;
        // The last that was looked at lies behind a wanted one that did not fit.
        if !fits && !page.entries.is_empty() {
            break;
        }
        page.entries.push_back(entry);
    }
    Ok(page)
}

fn entry(row: &PgRow, tail: &mut u64, event_type: &mut Bytes) -> Result<Entry> {
    if let Some(last) = row.try_get::<Option<i64>, _>(0).map_err(failed)? {
        *tail = unsigned(last);
    }
    let sequence = unsigned(row.try_get(1).map_err(failed)?);
    let id = EventId(row.try_get(2).map_err(failed)?);
    let bytes: Option<&[u8]> = row.try_get(4).map_err(failed)?;
    let Some(bytes) = bytes else { return Ok(Entry { sequence, id, record: None }) };
    let found: &str = row.try_get(3).map_err(failed)?;
    if found.as_bytes() != event_type {
        *event_type = Bytes::copy_from_slice(found.as_bytes());
    }
    let record =
        Record { sequence, id, event_type: event_type.clone(), bytes: Bytes::copy_from_slice(bytes) };
    Ok(Entry { sequence, id, record: Some(record) })
}

#[cfg(feature = "mutants")]
fn found_at(link: &Link, cursor: Cursor, found: Option<EventId>) -> Option<EventId> {
    if link.mutant == Some(super::Mutant::BelieveTheCursor) { cursor.id } else { found }
}

#[cfg(not(feature = "mutants"))]
fn found_at(_link: &Link, _cursor: Cursor, found: Option<EventId>) -> Option<EventId> {
    found
}
