//! The elected relay's rounds on PostgreSQL.
//!
//! takes: rows that have no number · writes: their numbers, marks, removals · commits: all of a round in one
//! transaction under the lock of the leader's row, synced before anybody sees the rows · if we crash here: the next leader
//! hands out the same rows with the same numbers first · if it repeats: the bus finds the same bytes under them.
//!
//! Invariant: a number is given once, by whoever holds the leader's row under the present epoch, to a row that is
//! there and has none; a row that commits late is there when it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::operator::Outcome;
use tombolo_event::{EventId, Generations, Incarnation, barrier};
use uuid::Uuid;

use super::outbox::Won;
use super::{Postgres, generations, millis, signed, unsigned};
use crate::mutant::Mutant;
use crate::port::due_time;
use crate::{Leader, Mark, OutboxRow, Result, RoundLimit, fencing};

pub(super) struct PostgresLeader {
    database: Postgres,
    epoch: u64,
    generations: Generations,
    lease: Duration,
    marks: Vec<Mark>,
    removed: Vec<Mark>,
    /// The last sequence that was handed out, by partition.
    taken: BTreeMap<u32, u64>,
    /// Whether rows may have numbers that were not handed out: at the start, and after any failure.
    is_backlog: bool,
    /// The highest position seen; used by nothing but a mutant.
    highest: i64,
    /// Whether other programs have a table here: looked at when the leadership begins, and whenever nothing else is to do.
    has_foreign: bool,
    /// As `highest`, of theirs.
    highest_foreign: i64,
    next_due: Option<Timestamp>,
}

/// Numbers the next rows that have none: each partition's in the order of their positions.
const NUMBER: &str = "WITH waiting AS (
         SELECT position, partition, size FROM tombolo.outbox
         WHERE sequence IS NULL AND position > $1 ORDER BY position LIMIT $2
     ), fitting AS (
         SELECT position, partition, row_number() OVER w AS nth, sum(size) OVER w AS total
         FROM waiting
         -- What came in since it was placed, and its successors, have their turn in the next round.
         WHERE position < coalesce((SELECT min(position) FROM waiting WHERE partition < $4), $5)
         WINDOW w AS (ORDER BY position)
     ), next AS (
         SELECT position, partition, row_number() OVER (PARTITION BY partition ORDER BY position) AS nth
         FROM fitting WHERE nth = 1 OR total <= $3
     ), moved AS (
         UPDATE tombolo.partition AS p SET numbered = p.numbered + c.rows
         FROM (SELECT partition, count(*) AS rows FROM next GROUP BY partition) AS c
         WHERE p.partition = c.partition
         RETURNING p.partition, p.numbered - c.rows AS before
     )
     UPDATE tombolo.outbox AS o SET sequence = moved.before + next.nth
     FROM next JOIN moved USING (partition) WHERE o.position = next.position
     RETURNING o.position, o.partition, o.sequence, o.id, o.event_type, o.bytes";

impl PostgresLeader {
    pub(super) fn new(database: Postgres, lease: Duration, won: Won, has_foreign: bool) -> Self {
        let Won { epoch, generations, marks } = won;
        Self {
            database,
            epoch,
            generations,
            lease,
            removed: marks.clone(),
            taken: marks.iter().map(|mark| (mark.partition, mark.sequence)).collect(),
            marks,
            is_backlog: true,
            highest: 0,
            has_foreign,
            highest_foreign: 0,
            next_due: None,
        }
    }

    /// The marks of `done` that lie above what was removed before.
    fn news(&self, done: &[Mark]) -> Vec<Mark> {
        let is_news = |mark: &&Mark| {
            let known = self.removed.iter().find(|known| known.partition == mark.partition);
            mark.sequence > known.map_or(0, |known| known.sequence)
        };
        done.iter().filter(is_news).copied().collect()
    }

    fn compare(&self, found: u64) -> Result<()> {
        if found == self.epoch || self.database.mutation.is(Mutant::NoFencing) {
            return Ok(());
        }
        Err(fencing::replaced(self.epoch, found))
    }

    /// Whether there are rows without a number; fails if somebody else leads.
    async fn is_waiting(&mut self) -> Result<bool> {
        let row = sqlx::query(self.database.sql(
            "SELECT CASE WHEN halt IS NULL THEN epoch ELSE 0 END,
                    EXISTS (SELECT 1 FROM tombolo.outbox WHERE sequence IS NULL),
                    (SELECT min(due_us) FROM tombolo.later), to_regclass('tombolo.events') IS NOT NULL
             FROM tombolo.leader",
        ));
        let row = row.fetch_one(&self.database.pool).await?;
        self.compare(unsigned(row.try_get(0)?))?;
        self.next_due = row.try_get::<Option<i64>, _>(2)?.map(due_time);
        self.has_foreign = row.try_get(3)?;
        Ok(row.try_get(1)? || (self.has_foreign && self.database.first_foreign().await?.is_some()))
    }

    /// Begins a transaction that holds the leader's row, synced when it commits and cut off before the lease ends.
    async fn begin(&mut self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
        let mut transaction = self.database.begin_marked(self.lease / 2).await?;
        let lock = sqlx::query(self.database.sql(
            "SELECT CASE WHEN halt IS NULL THEN epoch ELSE 0 END,
                    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
                    (SELECT min(due_us) FROM tombolo.later)
             FROM tombolo.leader FOR UPDATE",
        ));
        let row = lock.fetch_one(&mut *transaction).await?;
        self.compare(unsigned(row.try_get(0)?))?;
        self.next_due = row.try_get::<Option<i64>, _>(2)?.map(due_time);
        Ok(transaction)
    }

    /// Rows that an earlier leader numbered, or this one before a failure, above what was handed out.
    async fn backlog(&self, connection: &mut PgConnection, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let (partitions, sequences): (Vec<i32>, Vec<i64>) =
            self.taken.iter().map(|(partition, sequence)| (signed(*partition), *sequence as i64)).unzip();
        let found = sqlx::query(self.database.sql(
            "WITH waiting AS (
                 SELECT o.position, o.size, row_number() OVER w AS nth, sum(o.size) OVER w AS total
                 FROM unnest($1::integer[], $2::bigint[]) AS t (partition, sequence)
                 JOIN tombolo.outbox AS o ON o.partition = t.partition AND o.sequence > t.sequence
                 WINDOW w AS (ORDER BY o.partition, o.sequence))
             SELECT position, partition, sequence, id, event_type, bytes
             FROM tombolo.outbox JOIN waiting USING (position)
             WHERE nth = 1 OR (nth <= $3 AND total <= $4)
             ORDER BY partition, sequence",
        ));
        let found = found.bind(partitions).bind(sequences);
        let found = found.bind(limit.rows.max(1) as i64).bind(limit.bytes as i64);
        found.fetch_all(connection).await?.iter().map(outbox_row).collect()
    }

    /// Gives numbers to the next rows that have none, in the order of their positions.
    async fn number(&mut self, connection: &mut PgConnection, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let as_hinted = self.database.mutation.is(Mutant::NumbersWhereHinted);
        if !as_hinted {
            self.database.place(connection, &self.generations, limit).await?;
        }
        let first = if as_hinted { 0 } else { generations::first(&self.generations) };
        let above =
            if self.database.mutation.is(Mutant::NaiveOutboxCursor) { self.highest } else { i64::MIN };
        let numbered = sqlx::query(self.database.sql(NUMBER));
        let numbered = numbered.bind(above).bind(limit.rows.max(1) as i64).bind(limit.bytes as i64);
        let numbered = numbered.bind(first).bind(i64::MAX);
        let found = numbered.fetch_all(connection).await?;
        for row in &found {
            self.highest = self.highest.max(row.try_get(0)?);
        }
        let mut rows: Vec<OutboxRow> = found.iter().map(outbox_row).collect::<Result<_>>()?;
        rows.sort_by_key(|row| (row.partition, row.sequence));
        Ok(rows)
    }

    /// One transaction: removes, then numbers; or hands out what has numbers already.
    /// The second is whether there may be more of the latter.
    async fn work(
        &mut self,
        news: &[Mark],
        limit: RoundLimit,
        from_backlog: bool,
    ) -> Result<(Vec<OutboxRow>, bool)> {
        let mut transaction = self.begin().await?;
        if !news.is_empty() {
            self.database.remove(&mut transaction, news).await?;
        }
        let mut rows = Vec::new();
        if from_backlog {
            rows = self.backlog(&mut transaction, limit).await?;
        }
        let is_backlog = !rows.is_empty();
        let mut apart = None;
        if !is_backlog {
            apart = self.take_in(&mut transaction, limit).await?;
            rows = self.number(&mut transaction, limit).await?;
        }
        if rows.is_empty() {
            // What a power cut takes back of a removal is only sent again, under the same numbers.
            sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        self.remove_apart(apart).await?;
        Ok((rows, is_backlog))
    }

    /// Takes in what other programs wrote; none if there was nothing. Returns what is not removed yet, which is nothing but for
    /// a mutant.
    async fn take_in(
        &mut self,
        connection: &mut PgConnection,
        limit: RoundLimit,
    ) -> Result<Option<Vec<i64>>> {
        if !self.has_foreign {
            return Ok(None);
        }
        let is = |mutant| self.database.mutation.is(mutant);
        let above = if is(Mutant::NaiveOutboxCursor) { self.highest_foreign } else { i64::MIN };
        let apart = is(Mutant::ForeignRemovedApart);
        let judged = self.database.take_in(connection, &self.generations, limit, above).await?;
        self.highest_foreign = judged.taken.iter().copied().fold(self.highest_foreign, i64::max);
        if judged.taken.is_empty() {
            return Ok(None);
        }
        barrier::reach("foreign.before-take-in");
        Ok(Some(if apart { judged.taken } else { Vec::new() }))
    }

    async fn remove_apart(&mut self, apart: Option<Vec<i64>>) -> Result<()> {
        let Some(apart) = apart else { return Ok(()) };
        barrier::reach("foreign.after-take-in");
        if apart.is_empty() {
            return Ok(());
        }
        // Whoever ends the task at the barrier ends it here, however soon the server would answer.
        tokio::task::yield_now().await;
        let mut transaction = self.begin().await?;
        self.database.remove_foreign(&mut transaction, &apart).await?;
        Ok(transaction.commit().await?)
    }

    fn remember(&mut self, news: &[Mark], rows: &[OutboxRow]) {
        for mark in news {
            self.removed.retain(|known| known.partition != mark.partition);
            self.removed.push(*mark);
            let taken = self.taken.entry(mark.partition).or_default();
            *taken = mark.sequence.max(*taken);
        }
        for row in rows {
            let taken = self.taken.entry(row.partition).or_default();
            *taken = row.sequence.max(*taken);
        }
    }
}

#[async_trait]
impl Leader for PostgresLeader {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn marks(&self) -> &[Mark] {
        &self.marks
    }

    async fn pin(&mut self, found: Incarnation) -> Result<()> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(self.database.sql(
            "UPDATE tombolo.service SET incarnation = coalesce(incarnation, $1) RETURNING incarnation, service",
        ));
        let row = row.bind(found.0).fetch_one(&mut *transaction).await?;
        let service: String = row.try_get(1)?;
        fencing::compare_incarnation(&service, Incarnation(row.try_get(0)?), found)?;
        Ok(transaction.commit().await?)
    }

    fn generations(&self) -> &Generations {
        &self.generations
    }

    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()> {
        let mut transaction = self.begin().await?;
        self.database.divide(&mut transaction, generations).await?;
        if let Some((request, outcome)) = asked {
            self.database.finish_request(&mut transaction, request, outcome).await?;
        }
        barrier::reach("divide.before-commit");
        transaction.commit().await?;
        barrier::reach("divide.after-commit");
        self.generations = generations.clone();
        for partition in 0..generations.partitions() {
            self.taken.entry(partition).or_default();
        }
        Ok(())
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let news = self.news(done);
        if news.is_empty() && !self.is_backlog && !self.is_waiting().await? {
            return Ok(Vec::new());
        }
        // A commit whose answer is lost may have given numbers all the same: they would be found there.
        let from_backlog = std::mem::replace(&mut self.is_backlog, true);
        let (rows, is_backlog) = self.work(&news, limit, from_backlog).await?;
        self.is_backlog = is_backlog;
        self.remember(&news, &rows);
        if !rows.is_empty() {
            barrier::reach("relay.after-numbering");
        }
        if !news.is_empty() {
            barrier::reach("relay.after-remove");
        }
        Ok(rows)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let mut transaction = self.begin().await?;
        let due = self.database.lock_due(&mut transaction, now, limit).await?;
        self.database.insert(&mut transaction, &due, &self.generations).await?;
        let apart = self.database.mutation.is(Mutant::LaterRemovedApart);
        if !apart {
            self.database.remove_later(&mut transaction, &due).await?;
        }
        barrier::reach("later.before-move");
        transaction.commit().await?;
        barrier::reach("later.after-move");
        if apart {
            let mut transaction = self.begin().await?;
            self.database.remove_later(&mut transaction, &due).await?;
            transaction.commit().await?;
        }
        self.next_due = self.next_due.filter(|_| due.is_empty());
        Ok(due.len())
    }

    async fn renew(&mut self) -> Result<()> {
        let renewed = sqlx::query(self.database.sql(
            "UPDATE tombolo.leader SET until = clock_timestamp() + $1 * interval '1 millisecond'
             WHERE epoch = $2 AND halt IS NULL",
        ));
        let renewed = renewed.bind(millis(self.lease)).bind(self.epoch as i64);
        if renewed.execute(&self.database.pool).await?.rows_affected() == 0 {
            // Says why.
            return self.begin().await.map(drop);
        }
        Ok(())
    }

    async fn resign(mut self: Box<Self>, done: &[Mark]) -> Result<()> {
        let news = self.news(done);
        if !news.is_empty() {
            let mut transaction = self.begin().await?;
            self.database.remove(&mut transaction, &news).await?;
            transaction.commit().await?;
            barrier::reach("relay.after-remove");
        }
        let mut transaction = self.begin().await?;
        let free = self.database.sql("UPDATE tombolo.leader SET until = '-infinity', holder = NULL");
        sqlx::query(free).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

fn outbox_row(row: &PgRow) -> Result<OutboxRow> {
    let (partition, bytes): (i32, Vec<u8>) = (row.try_get(1)?, row.try_get(5)?);
    Ok(OutboxRow {
        partition: partition.unsigned_abs(),
        sequence: unsigned(row.try_get(2)?),
        id: EventId(row.try_get(3)?),
        event_type: row.try_get(4)?,
        bytes: bytes.into(),
    })
}
