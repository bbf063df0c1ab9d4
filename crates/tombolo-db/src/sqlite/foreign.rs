//! What other programs find in SQLite: the table in which they publish, and the view with which they apply.
//!
//! takes: rows of the foreign outbox · writes: the outbox with its numbers, or the reason why a row is parked · commits: in a
//! transaction of the leader's, synced, before its round · if we crash here: the rows are in one of the two tables, never in
//! both or none · if it repeats: what was taken in is not there to be taken again.
//!
//! No trigger locks here: whoever inserts is the only writer from then until the commit, and positions never repeat.
//! What other programs run takes no function that an SQLite of the year 2020 does not have.
//!
//! Invariant: positions are in the order of commits, and so are the numbers that rows get when they are taken in.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::Generations;
use tombolo_event::envelope::EVENT_BYTES_MAX;

use super::Sqlite;
use super::outbox::unsigned;
use super::transaction::write_rows;
use crate::foreign::{Judged, Waiting, Written, judge, tell};
use crate::mutant::{Mutant, Mutation};
use crate::{Depth, Error, ForeignParked, ForeignParts, Kind, Result, RoundLimit, Schema};

/// The foreign outbox.
const OUTBOX: &str = "
CREATE TABLE IF NOT EXISTS tombolo_events (     -- what other programs publish: they insert, in their own transactions
    position INTEGER PRIMARY KEY AUTOINCREMENT, -- never given by the program
    id TEXT NOT NULL ON CONFLICT REPLACE UNIQUE DEFAULT (lower(
        hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    event_type TEXT NOT NULL,                   -- such as 'orders.placed.v1'
    event_key TEXT NOT NULL,                    -- the entity that the event is about: the order of events is that of its key
    data TEXT,                                  -- JSON, or any text under another content type
    data_binary BLOB,                           -- bytes in its place
    content_type TEXT NOT NULL DEFAULT 'application/json',
    event_time TEXT NOT NULL ON CONFLICT REPLACE DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    traceparent TEXT,                           -- of W3C trace context
    parked TEXT,                                -- since when it is parked, because no bus will take it
    parked_reason TEXT
);
CREATE INDEX IF NOT EXISTS tombolo_events_parked ON tombolo_events (event_key) WHERE parked IS NOT NULL;
";

/// With what other programs apply an event: they insert into it, the id as its 16 bytes.
const INBOX: &str = "
CREATE VIEW IF NOT EXISTS tombolo_apply AS
    SELECT subscription, topic, partition, sequence, id FROM tombolo_cursor;
CREATE TRIGGER IF NOT EXISTS tombolo_apply_once INSTEAD OF INSERT ON tombolo_apply BEGIN
    SELECT RAISE(ABORT, 'the id of an event is given as its 16 bytes, not as text')
    WHERE typeof(NEW.id) <> 'blob' OR length(NEW.id) <> 16;
    SELECT RAISE(ABORT, 'the subscription has no cursor there: `tombolo deliver` makes it')
    WHERE NOT EXISTS (SELECT 1 FROM tombolo_cursor
        WHERE subscription = NEW.subscription AND topic = NEW.topic AND partition = NEW.partition);
    SELECT RAISE(ABORT, 'the event was applied already')
    WHERE EXISTS (SELECT 1 FROM tombolo_cursor
        WHERE subscription = NEW.subscription AND topic = NEW.topic AND partition = NEW.partition
          AND sequence >= NEW.sequence);
    SELECT RAISE(ABORT, 'the event is not the next one')
    WHERE NOT EXISTS (SELECT 1 FROM tombolo_cursor
        WHERE subscription = NEW.subscription AND topic = NEW.topic AND partition = NEW.partition
          AND sequence = NEW.sequence - 1);
    UPDATE tombolo_cursor
    SET sequence = NEW.sequence, id = NEW.id, attempts = 0, attempt_id = NULL, error = NULL,
        moved_ms = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
    WHERE subscription = NEW.subscription AND topic = NEW.topic AND partition = NEW.partition
      AND sequence = NEW.sequence - 1;
END;
";

/// The oldest rows that are not parked, nor behind one that is. Whatever somebody put there is read as bytes.
const NEXT: &str = "
    SELECT position, CAST(id AS BLOB), CAST(event_type AS BLOB), CAST(event_key AS BLOB), CAST(content_type AS BLOB),
           CAST(event_time AS BLOB), CAST(traceparent AS BLOB),
           CASE WHEN length(CAST(coalesce(data, data_binary) AS BLOB)) <= ?2
                THEN CAST(coalesce(data, data_binary) AS BLOB) END,
           coalesce(length(CAST(coalesce(data, data_binary) AS BLOB)), 0)
    FROM tombolo_events AS e
    WHERE parked IS NULL AND NOT EXISTS (
        SELECT 1 FROM tombolo_events AS p WHERE p.parked IS NOT NULL AND p.event_key = e.event_key)
    ORDER BY position LIMIT ?1";

/// The SQL that makes `parts`, as `tombolo schema print` shows it.
#[must_use]
pub fn foreign_sql(parts: ForeignParts) -> String {
    let mut sql = String::new();
    if parts.outbox {
        sql.push_str(OUTBOX);
    }
    if parts.inbox {
        sql.push_str(INBOX);
    }
    sql
}

impl Sqlite {
    /// Makes or checks `parts`.
    pub(super) async fn make_foreign(&self, parts: ForeignParts, schema: Schema) -> Result<()> {
        if parts.notify {
            return Err(Error::new(
                Kind::Schema,
                "SQLite has no NOTIFY; leave --notify out: the relay looks every 10 ms to 1 s",
            ));
        }
        if schema == Schema::Apply {
            let make = async |connection: &mut SqliteConnection| {
                let mut sql = foreign_sql(parts);
                if self.mutation.is(Mutant::ForeignAppliesTwice) {
                    sql = sql
                        .replace("sequence >= NEW.sequence", "0")
                        .replace("sequence = NEW.sequence - 1", "1");
                }
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
                Ok(())
            };
            self.write(&self.writer, make).await?;
        }
        for (is_wanted, name, option) in
            [(parts.outbox, "tombolo_events", "--outbox"), (parts.inbox, "tombolo_apply", "--inbox")]
        {
            if is_wanted && !self.has(name).await? {
                return Err(Error::new(
                    Kind::Schema,
                    format!(
                        "the database has no {name} for other programs: run `tombolo schema apply {option}`"
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn has(&self, name: &str) -> Result<bool> {
        let found = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = ?").bind(name);
        Ok(found.fetch_optional(&self.pool).await?.is_some())
    }

    /// Whether other programs have a table here.
    pub(super) async fn has_foreign(&self) -> Result<bool> {
        if self.has_foreign.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let found = self.has("tombolo_events").await?;
        self.has_foreign.store(found, Ordering::Relaxed);
        Ok(found)
    }

    /// The position of the first row that the leader would take in.
    pub(super) async fn first_foreign(&self) -> Result<Option<i64>> {
        let found = sqlx::query_scalar(
            "SELECT position FROM tombolo_events AS e WHERE parked IS NULL AND NOT EXISTS (
                 SELECT 1 FROM tombolo_events AS p WHERE p.parked IS NOT NULL AND p.event_key = e.event_key)
             ORDER BY position LIMIT 1",
        );
        Ok(found.fetch_optional(&self.pool).await?)
    }

    /// Adds what waits in the foreign outbox.
    pub(super) async fn add_foreign(&self, depth: Depth, most: i64) -> Result<Depth> {
        if !self.has_foreign().await? {
            return Ok(depth);
        }
        let row = sqlx::query(
            "SELECT count(*), coalesce(sum(length(CAST(coalesce(data, data_binary) AS BLOB))), 0), min(event_time),
                    (SELECT count(*) FROM tombolo_events WHERE parked IS NOT NULL)
             FROM (SELECT * FROM tombolo_events ORDER BY position LIMIT ?) AS oldest",
        );
        let row = row.bind(most).fetch_one(&self.pool).await?;
        let oldest: Option<Vec<u8>> = row.try_get_unchecked(2)?;
        let oldest = oldest.and_then(|time| String::from_utf8(time).ok()?.parse::<Timestamp>().ok());
        let waiting = Waiting {
            rows: unsigned(row.try_get(0)?),
            bytes: unsigned(row.try_get(1)?),
            oldest,
            parked_rows: unsigned(row.try_get(3)?),
        };
        Ok(waiting.beside(depth))
    }

    pub(super) async fn parked_foreign(&self, most: usize) -> Result<Vec<ForeignParked>> {
        if !self.has_foreign().await? {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT position, CAST(event_key AS BLOB), CAST(event_type AS BLOB), coalesce(parked_reason, '')
             FROM tombolo_events WHERE parked IS NOT NULL ORDER BY position LIMIT ?",
        );
        let rows = rows.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?;
        let parked = |row: &SqliteRow| {
            Ok(ForeignParked {
                position: row.try_get(0)?,
                key: text(row, 1)?.unwrap_or_default(),
                event_type: text(row, 2)?.unwrap_or_default(),
                reason: row.try_get(3)?,
            })
        };
        rows.iter().map(parked).collect()
    }
}

/// Takes in what other programs wrote, as the only writer. Returns what was taken and is not removed yet, which is nothing but
/// for a mutant.
pub(super) async fn take_in(
    connection: &mut SqliteConnection,
    generations: &Generations,
    limit: RoundLimit,
    mutation: Mutation,
) -> Result<Vec<i64>> {
    let next = sqlx::query(NEXT).bind(limit.rows.max(1) as i64).bind(EVENT_BYTES_MAX as i64);
    let next = next.fetch_all(&mut *connection).await?;
    let mut written = next.iter().map(written).collect::<Result<Vec<_>>>()?;
    keep_within(&mut written, limit);
    let service: String =
        sqlx::query_scalar("SELECT service FROM tombolo_service").fetch_one(&mut *connection).await?;
    let Judged { rows, mut taken, mut parked } = judge(&service, written);
    if mutation.is(Mutant::ForeignSteppedOver) {
        taken.extend(parked.drain(..).map(|parked| parked.position));
    }
    write_rows(connection, &rows, generations).await?;
    for ForeignParked { position, reason, .. } in &parked {
        let park = sqlx::query(
            "UPDATE tombolo_events SET parked = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), parked_reason = ? WHERE position = ?",
        );
        park.bind(reason).bind(position).execute(&mut *connection).await?;
    }
    tell(&service, &parked);
    if mutation.is(Mutant::ForeignRemovedApart) {
        return Ok(taken);
    }
    remove(connection, &taken).await?;
    Ok(Vec::new())
}

/// Removes what was taken in from where it was.
pub(super) async fn remove(connection: &mut SqliteConnection, taken: &[i64]) -> Result<()> {
    sqlx::query("DELETE FROM tombolo_events WHERE position IN (SELECT value FROM json_each(?))")
        .bind(crate::json_text(&taken)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Drops what is on the bus already; returns how much.
pub(super) async fn drop_known(connection: &mut SqliteConnection) -> Result<u64> {
    let there = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = 'tombolo_events'");
    if there.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let known =
        "DELETE FROM tombolo_events WHERE unhex(replace(id, '-', '')) IN (SELECT id FROM tombolo_known)";
    Ok(sqlx::query(known).execute(connection).await?.rows_affected())
}

/// One row however large, and no more than the limit.
fn keep_within(written: &mut Vec<Written>, limit: RoundLimit) {
    let mut bytes = 0;
    let fits = written.iter().take_while(|one| {
        bytes += one.size.min(EVENT_BYTES_MAX as u64);
        bytes <= limit.bytes as u64
    });
    let fits = fits.count().max(1);
    written.truncate(fits);
}

fn written(row: &SqliteRow) -> Result<Written> {
    let time = text(row, 5)?;
    Ok(Written {
        position: row.try_get(0)?,
        id: text(row, 1)?,
        event_type: text(row, 2)?.unwrap_or_default(),
        key: text(row, 3)?.unwrap_or_default(),
        content_type: text(row, 4)?.unwrap_or_default(),
        time: time.and_then(|time| time.parse().ok()),
        trace: text(row, 6)?,
        data: row.try_get(7)?,
        size: unsigned(row.try_get(8)?),
    })
}

/// Text that somebody wrote as they liked: what is no UTF-8 becomes a character that no name has.
fn text(row: &SqliteRow, column: usize) -> Result<Option<String>> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
