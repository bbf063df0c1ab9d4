//! The relay's half of SQLite.
//!
//! takes: rows that are numbered already · writes: marks and removals · commits: removals in one short transaction
//! that is not synced · if we crash here: the rows are handed out again, with the same numbers · if it repeats: the
//! bus finds the same bytes under the same numbers.
//!
//! Invariant: a row is handed out by each leader once, in the order of its position, which is the order of
//! commits: SQLite has one writer and its positions never repeat, so none can appear below one already seen.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::operator::Outcome;
use tombolo_event::{EventId, Generations, Incarnation, Position, barrier};
use uuid::Uuid;

use super::{Sqlite, foreign, generations, later, requests};
use crate::mutant::{Mutant, Mutation};
use crate::port::due_time;
use crate::{
    Depth, ForeignParked, ForeignParts, Leader, Mark, Outbox, OutboxRow, Owner, Result, RoundLimit, Schema,
    fencing,
};

/// The rows of other programs that [`Outbox::depth`] counts, at most.
const FOREIGN_DEPTH_ROWS_MAX: i64 = 50_000;

#[async_trait]
impl Outbox for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()> {
        self.prepare_schema(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>> {
        let free = sqlx::query(
            "SELECT 1 FROM tombolo_leader WHERE until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER) OR holder = ?",
        );
        if free.bind(holder).fetch_optional(&self.pool).await?.is_none() {
            return Ok(None);
        }
        let won = self
            .write(&self.writer, async |connection| win(connection, holder, lease, self.mutation).await)
            .await?;
        let has_foreign = self.has_foreign().await?;
        Ok(won.map(|Won { epoch, generations, marks }| {
            let leader = SqliteLeader {
                database: self.clone(),
                epoch,
                generations,
                holder,
                lease,
                removed: marks.clone(),
                marks,
                taken: 0,
                has_foreign,
                next_due: None,
            };
            Box::new(leader) as Box<dyn Leader>
        }))
    }

    async fn depth(&self) -> Result<Depth> {
        let row = sqlx::query(
            "SELECT coalesce(sum(numbered - removed_sequence), 0), coalesce(sum(waiting_bytes), 0),
                    (SELECT written_ms FROM tombolo_outbox ORDER BY position LIMIT 1),
                    (SELECT rows FROM tombolo_later_depth), (SELECT bytes FROM tombolo_later_depth),
                    (SELECT min(due_us) FROM tombolo_later)
             FROM tombolo_partition",
        );
        let row = row.fetch_one(&self.pool).await?;
        let (oldest, next_due): (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(5)?);
        let depth = Depth {
            rows: unsigned(row.try_get(0)?),
            bytes: unsigned(row.try_get(1)?),
            oldest: oldest.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            later_rows: unsigned(row.try_get(3)?),
            later_bytes: unsigned(row.try_get(4)?),
            next_due: next_due.map(due_time),
            parked_rows: 0,
        };
        self.add_foreign(depth, FOREIGN_DEPTH_ROWS_MAX).await
    }

    /// Nothing is left to complete: the publishing transaction gives the numbers.
    async fn complete(&self, _positions: &mut [Position]) -> Result<()> {
        Ok(())
    }

    async fn prepare_foreign(&self, parts: ForeignParts, schema: Schema) -> Result<()> {
        self.make_foreign(parts, schema).await
    }

    async fn foreign_waiting(&self) -> Result<Option<i64>> {
        if self.has_foreign().await? { self.first_foreign().await } else { Ok(None) }
    }

    async fn foreign_parked(&self, most: usize) -> Result<Vec<ForeignParked>> {
        self.parked_foreign(most).await
    }
}

/// What somebody who leads begins with.
struct Won {
    epoch: u64,
    generations: Generations,
    marks: Vec<Mark>,
}

/// Raises the epoch, if the lease is free, and reads the marks.
async fn win(
    connection: &mut SqliteConnection,
    holder: Uuid,
    lease: Duration,
    mutation: Mutation,
) -> Result<Option<Won>> {
    let raised = sqlx::query(
        "UPDATE tombolo_leader
         SET epoch = epoch + 1, holder = ?1, until_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?2
         WHERE (until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER) OR holder = ?1) AND (halt IS NULL OR ?3)
         RETURNING epoch",
    );
    let raised = raised.bind(holder).bind(millis(lease)).bind(mutation.is(Mutant::NoHalt));
    let raised = raised.fetch_optional(&mut *connection).await?;
    let Some(raised) = raised else { return Ok(None) };
    let rows = sqlx::query(
        "SELECT partition, removed_sequence, removed_id FROM tombolo_partition ORDER BY partition",
    );
    let marks = rows.fetch_all(&mut *connection).await?.iter().map(mark).collect::<Result<_>>()?;
    let generations = generations::read(connection).await?;
    Ok(Some(Won { epoch: unsigned(raised.try_get(0)?), generations, marks }))
}

/// The epoch under which somebody may lead; 0, which nobody has, while the database is halted.
const LED: &str = "SELECT CASE WHEN halt IS NULL THEN epoch ELSE 0 END FROM tombolo_leader";

struct SqliteLeader {
    database: Sqlite,
    epoch: u64,
    generations: Generations,
    holder: Uuid,
    lease: Duration,
    marks: Vec<Mark>,
    removed: Vec<Mark>,
    /// The position of the last row that was handed out.
    taken: i64,
    /// Whether other programs have a table here: looked at when the leadership begins, and with each round.
    has_foreign: bool,
    next_due: Option<Timestamp>,
}

impl SqliteLeader {
    /// The marks of `done` that lie above what was removed before.
    fn news(&self, done: &[Mark]) -> Vec<Mark> {
        let is_news = |mark: &&Mark| {
            let known = self.removed.iter().find(|known| known.partition == mark.partition);
            mark.sequence > known.map_or(0, |known| known.sequence)
        };
        done.iter().filter(is_news).copied().collect()
    }

    async fn remove(&mut self, done: &[Mark]) -> Result<()> {
        let news = self.news(done);
        if news.is_empty() {
            return Ok(());
        }
        let work = async |connection: &mut SqliteConnection| {
            self.check_epoch(connection).await?;
            remove(connection, &news).await
        };
        self.database.write(&self.database.upkeep, work).await?;
        for mark in news {
            self.removed.retain(|known| known.partition != mark.partition);
            self.removed.push(mark);
        }
        barrier::reach("relay.after-remove");
        Ok(())
    }

    /// Takes in what other programs wrote, if anything waits.
    async fn take_in(&mut self, limit: RoundLimit) -> Result<()> {
        if !self.has_foreign || self.database.first_foreign().await?.is_none() {
            return Ok(());
        }
        let work = async |connection: &mut SqliteConnection| {
            self.check_epoch(connection).await?;
            let generations = generations::read(connection).await?;
            let apart = foreign::take_in(connection, &generations, limit, self.database.mutation).await?;
            barrier::reach("foreign.before-take-in");
            Ok(apart)
        };
        let apart = self.database.write(&self.database.writer, work).await?;
        barrier::reach("foreign.after-take-in");
        if !apart.is_empty() {
            // Whoever ends the task at the barrier ends it here.
            tokio::task::yield_now().await;
            let remove = async |connection: &mut SqliteConnection| foreign::remove(connection, &apart).await;
            self.database.write(&self.database.writer, remove).await?;
        }
        Ok(())
    }

    async fn check_epoch(&self, connection: &mut SqliteConnection) -> Result<()> {
        let row = sqlx::query(LED).fetch_one(connection).await?;
        self.compare(unsigned(row.try_get(0)?))
    }

    fn compare(&self, found: u64) -> Result<()> {
        if found == self.epoch || self.database.mutation.is(Mutant::NoFencing) {
            return Ok(());
        }
        Err(fencing::replaced(self.epoch, found))
    }

    /// The next rows, and the epoch at the moment when they were read.
    async fn next(&mut self, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let query = sqlx::query(
            "SELECT CASE WHEN l.halt IS NULL THEN l.epoch ELSE 0 END,
                    o.position, o.partition, o.sequence, o.id, o.event_type, o.bytes,
                    (SELECT min(due_us) FROM tombolo_later),
                    EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'tombolo_events')
             FROM tombolo_leader AS l LEFT JOIN tombolo_outbox AS o ON o.position > ?
             ORDER BY o.position LIMIT ?",
        );
        let query = query.bind(self.taken).bind(limit.rows.max(1) as i64);
        let mut found = query.fetch(&self.database.pool);
        let (mut rows, mut bytes, mut taken) = (Vec::new(), 0, self.taken);
        while let Some(row) = found.try_next().await? {
            self.compare(unsigned(row.try_get(0)?))?;
            self.next_due = row.try_get::<Option<i64>, _>(7)?.map(due_time);
            self.has_foreign = row.try_get(8)?;
            let Some(position) = row.try_get(1)? else { break };
            let next = outbox_row(&row)?;
            bytes += next.bytes.len();
            if !rows.is_empty() && bytes > limit.bytes {
                break;
            }
            rows.push(next);
            taken = position;
        }
        drop(found);
        self.taken = taken;
        Ok(rows)
    }

    async fn update(&self, sql: &'static str, value: i64) -> Result<()> {
        let epoch = if self.database.mutation.is(Mutant::NoFencing) { None } else { Some(self.epoch as i64) };
        let work = async |connection: &mut SqliteConnection| {
            let query = sqlx::query(sql).bind(value).bind(epoch);
            match query.execute(&mut *connection).await?.rows_affected() {
                0 => self.check_epoch(connection).await,
                _ => Ok(()),
            }
        };
        self.database.write(&self.database.upkeep, work).await
    }
}

#[async_trait]
impl Leader for SqliteLeader {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn marks(&self) -> &[Mark] {
        &self.marks
    }

    async fn pin(&mut self, found: Incarnation) -> Result<()> {
        let work = async |connection: &mut SqliteConnection| {
            self.check_epoch(connection).await?;
            let row = sqlx::query(
                "UPDATE tombolo_service SET incarnation = coalesce(incarnation, ?) RETURNING incarnation, service",
            );
            let row = row.bind(found.0).fetch_one(connection).await?;
            let service: String = row.try_get(1)?;
            fencing::compare_incarnation(&service, Incarnation(row.try_get(0)?), found)
        };
        self.database.write(&self.database.writer, work).await
    }

    fn generations(&self) -> &Generations {
        &self.generations
    }

    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()> {
        let work = async |connection: &mut SqliteConnection| {
            self.check_epoch(connection).await?;
            generations::divide(connection, generations).await?;
            if let Some((request, outcome)) = asked {
                requests::finish(connection, request, outcome).await?;
            }
            barrier::reach("divide.before-commit");
            Ok(())
        };
        self.database.write(&self.database.writer, work).await?;
        barrier::reach("divide.after-commit");
        self.generations = generations.clone();
        Ok(())
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        self.remove(done).await?;
        self.take_in(limit).await?;
        let had_foreign = self.has_foreign;
        let mut rows = self.next(limit).await?;
        if self.has_foreign && !had_foreign && rows.is_empty() {
            self.take_in(limit).await?;
            rows = self.next(limit).await?;
        }
        if !rows.is_empty() {
            barrier::reach("relay.after-numbering");
        }
        Ok(rows)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let apart = self.database.mutation.is(Mutant::LaterRemovedApart);
        let work = async |connection: &mut SqliteConnection| {
            self.check_epoch(connection).await?;
            let due = later::due(connection, now, limit).await?;
            later::publish(connection, &due).await?;
            if !apart {
                later::remove(connection, &due).await?;
            }
            barrier::reach("later.before-move");
            Ok(due)
        };
        let due = self.database.write(&self.database.writer, work).await?;
        barrier::reach("later.after-move");
        if apart {
            let remove = async |connection: &mut SqliteConnection| later::remove(connection, &due).await;
            self.database.write(&self.database.writer, remove).await?;
        }
        self.next_due = self.next_due.filter(|_| due.is_empty());
        Ok(due.len())
    }

    async fn renew(&mut self) -> Result<()> {
        let sql = "UPDATE tombolo_leader SET until_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?1
                   WHERE epoch = coalesce(?2, epoch) AND halt IS NULL";
        self.update(sql, millis(self.lease)).await
    }

    async fn resign(mut self: Box<Self>, done: &[Mark]) -> Result<()> {
        self.remove(done).await?;
        tracing::debug!(epoch = self.epoch, holder = %self.holder, "the relay resigns");
        let sql = "UPDATE tombolo_leader SET holder = NULL, until_ms = ?1 WHERE epoch = coalesce(?2, epoch)";
        self.update(sql, 0).await
    }
}

/// Moves the marks and removes the rows below them.
async fn remove(connection: &mut SqliteConnection, news: &[Mark]) -> Result<()> {
    let hex = |mark: &Mark| mark.id.map(|id| id.0.simple().to_string());
    let marks: Vec<_> = news.iter().map(|mark| (mark.partition, mark.sequence, hex(mark))).collect();
    let marks = crate::json_text(&marks)?;
    let moved = sqlx::query(
        "UPDATE tombolo_partition AS p
         SET removed_sequence = m.value ->> 1, removed_id = unhex(m.value ->> 2),
             waiting_bytes = waiting_bytes - (
                 SELECT coalesce(sum(length(o.bytes)), 0) FROM tombolo_outbox AS o
                 WHERE o.partition = p.partition AND o.sequence <= (m.value ->> 1))
         FROM json_each(?) AS m
         WHERE p.partition = (m.value ->> 0) AND p.numbered >= (m.value ->> 1)",
    );
    let moved = moved.bind(&marks).execute(&mut *connection).await?.rows_affected();
    if moved < news.len() as u64 {
        return Err(fencing::beyond_numbers(news));
    }
    sqlx::query(
        "DELETE FROM tombolo_outbox WHERE position IN (
             SELECT o.position FROM json_each(?) AS m CROSS JOIN tombolo_outbox AS o
             WHERE o.partition = (m.value ->> 0) AND o.sequence <= (m.value ->> 1))",
    )
    .bind(&marks)
    .execute(connection)
    .await?;
    Ok(())
}

fn mark(row: &SqliteRow) -> Result<Mark> {
    let id: Option<Uuid> = row.try_get(2)?;
    Ok(Mark { partition: row.try_get(0)?, sequence: unsigned(row.try_get(1)?), id: id.map(EventId) })
}

fn outbox_row(row: &SqliteRow) -> Result<OutboxRow> {
    let bytes: Vec<u8> = row.try_get(6)?;
    Ok(OutboxRow {
        partition: row.try_get(2)?,
        sequence: unsigned(row.try_get(3)?),
        id: EventId(row.try_get(4)?),
        event_type: row.try_get(5)?,
        bytes: bytes.into(),
    })
}

/// A count of the database, which keeps them signed and never below 0.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A duration as the database's clock counts it.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX >> 1)
}
