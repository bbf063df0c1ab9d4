//! The outbox of MySQL and MariaDB: who leads, what waits, and what is done.
//!
//! takes: marks of what the bus acknowledged · writes: epochs, marks, removals · commits: all of a round in one transaction
//! under the lock of the leader's row, synced (`numbering.rs`) · if we crash here: the next leader hands out the same rows
//! with the same numbers first · if it repeats: the bus finds the same bytes under them.
//!
//! Invariant: who leads is one row, which changes only by a guarded update, and by the server's clock.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Executor, QueryBuilder, Row};
use tombolo_event::{EventId, Generations, Position};
use uuid::Uuid;

use super::numbering::MysqlLeader;
use super::session::Session;
use super::{Mysql, micros, signed, unsigned};
use crate::mutant::Mutant;
use crate::port::{NUMBERED_LOOK_BACK, due_time};
use crate::{Depth, ForeignParked, ForeignParts, Leader, Mark, Outbox, Owner, Result, Schema, fencing};

/// The rows that [`Outbox::depth`] counts one by one, in the outbox and for later; beyond them it estimates from the
/// positions, and from what the server last counted.
const DEPTH_EXACT_ROWS: i64 = 50_000;

#[async_trait]
impl Outbox for Mysql {
    fn kind(&self) -> &'static str {
        "mysql"
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()> {
        self.prepare_schema(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>> {
        let free = self.sql("SELECT 1 FROM tombolo_leader WHERE until <= UTC_TIMESTAMP(6) OR holder = ?");
        if sqlx::query(free).bind(holder).fetch_optional(&self.pool).await?.is_none() {
            return Ok(None);
        }
        let mut session = Session::begin(&self.pool, lease / 2).await?;
        let won = self.win(&mut session, holder, lease).await?;
        session.commit().await?;
        let has_foreign = self.has_foreign().await?;
        Ok(won
            .map(|won| Box::new(MysqlLeader::new(self.clone(), lease, won, has_foreign)) as Box<dyn Leader>))
    }

    async fn depth(&self) -> Result<Depth> {
        let row = sqlx::query(self.sql(
            "SELECT COUNT(*), CAST(COALESCE(SUM(size), 0) AS SIGNED),
                    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', MIN(written)) DIV 1000,
                    COALESCE(MAX(position) - MIN(position) + 1, 1),
                    COALESCE((SELECT MAX(position) FROM tombolo_outbox) - MIN(position) + 1, 1)
             FROM (SELECT position, size, written FROM tombolo_outbox ORDER BY position LIMIT ?) AS oldest",
        ));
        let row = row.bind(DEPTH_EXACT_ROWS).fetch_one(&self.pool).await?;
        let (rows, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let oldest: Option<i64> = row.try_get(2)?;
        let (seen, whole): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        let scale = if rows < DEPTH_EXACT_ROWS { 1.0 } else { whole as f64 / seen as f64 };
        let later = self.later_depth(DEPTH_EXACT_ROWS).await?;
        let depth = Depth {
            rows: (rows as f64 * scale) as u64,
            bytes: (bytes as f64 * scale) as u64,
            oldest: oldest.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            ..later
        };
        self.add_foreign(depth, DEPTH_EXACT_ROWS).await
    }

    async fn complete(&self, positions: &mut [Position]) -> Result<()> {
        self.complete_at(positions, |position| vec![position.partition]).await?;
        if positions.iter().all(|position| position.sequence.is_some()) {
            return Ok(());
        }
        let generations = self.generations(&mut *self.pool.acquire().await?).await?;
        let later = |position: &Position| generations.after(position.partition, position.key_hash).collect();
        self.complete_at(positions, later).await
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
pub(super) struct Won {
    pub(super) epoch: u64,
    pub(super) generations: Generations,
    pub(super) marks: Vec<Mark>,
}

impl Mysql {
    /// Raises the epoch, if the lease is free, and reads the marks.
    async fn win(
        &self,
        connection: &mut MySqlConnection,
        holder: Uuid,
        lease: Duration,
    ) -> Result<Option<Won>> {
        let raised = sqlx::query(self.sql(
            "UPDATE tombolo_leader
             SET epoch = epoch + 1, until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, holder = ?
             WHERE (until <= UTC_TIMESTAMP(6) OR holder = ?) AND (halt IS NULL OR ?)",
        ));
        let raised = raised.bind(micros(lease)).bind(holder).bind(holder);
        let raised = raised.bind(self.mutation.is(Mutant::NoHalt)).execute(&mut *connection).await?;
        if raised.rows_affected() == 0 {
            return Ok(None);
        }
        if self.mutation.is(Mutant::NumberingNotDurable) {
            forget_numbers(self, connection).await?;
        }
        let epoch = sqlx::query_scalar(self.sql("SELECT epoch FROM tombolo_leader"));
        let epoch: i64 = epoch.fetch_one(&mut *connection).await?;
        let rows = sqlx::query(self.sql(
            "SELECT `partition`, removed_sequence, removed_id FROM tombolo_partition ORDER BY `partition`",
        ));
        let marks = rows.fetch_all(&mut *connection).await?.iter().map(mark).collect::<Result<_>>()?;
        let generations = self.generations(connection).await?;
        Ok(Some(Won { epoch: unsigned(epoch), generations, marks }))
    }

    /// Of these events, those among the last that were numbered in a partition, with their numbers.
    pub(super) async fn numbered_last(&self, partition: u32, ids: &[Uuid]) -> Result<Vec<(EventId, u64)>> {
        let last =
            sqlx::query_scalar(self.sql("SELECT numbered FROM tombolo_partition WHERE `partition` = ?"));
        let last: Option<i64> = last.bind(signed(partition)).fetch_optional(&self.pool).await?;
        let Some(last) = last else { return Ok(Vec::new()) };
        let from = last - NUMBERED_LOOK_BACK as i64;
        let mut found = QueryBuilder::new(format!(
            "SELECT id, sequence FROM {}outbox FORCE INDEX (numbered) WHERE `partition` = ",
            self.prefix
        ));
        found.push_bind(signed(partition)).push(" AND sequence > ").push_bind(from).push(" AND id IN ");
        push_ids(&mut found, ids);
        let rows = found.build().persistent(false).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((EventId(row.try_get(0)?), unsigned(row.try_get(1)?)))).collect()
    }

    /// Moves the marks and removes the rows below them.
    pub(super) async fn remove(&self, connection: &mut MySqlConnection, news: &[Mark]) -> Result<()> {
        if news.is_empty() {
            return Ok(());
        }
        let known =
            sqlx::query(self.sql("SELECT `partition`, removed_sequence, numbered FROM tombolo_partition"));
        let known = known.fetch_all(&mut *connection).await?;
        let known: BTreeMap<u32, (i64, i64)> = known.iter().map(counted).collect::<Result<_>>()?;
        let mut all = String::new();
        for Mark { partition, sequence, id } in news {
            let reached = known.get(partition).filter(|(_, numbered)| unsigned(*numbered) >= *sequence);
            let (before, _) = reached.ok_or_else(|| fencing::beyond_numbers(news))?;
            let (prefix, id) = (&self.prefix, id.map_or_else(|| "NULL".to_owned(), |id| hex(id.0)));
            // From the last mark on, so that index entries of rows that are long gone are not passed again; and by the
            // index, or the server might wait for rows that are not committed.
            all.push_str(&format!(
                "DELETE o FROM {prefix}outbox AS o FORCE INDEX (numbered)
                 WHERE `partition` = {partition} AND sequence > {before} AND sequence <= {sequence};
                 UPDATE {prefix}partition SET removed_sequence = {sequence}, removed_id = {id} WHERE `partition` = {partition};"
            ));
        }
        connection.execute(AssertSqlSafe(all)).await?;
        Ok(())
    }
}

/// An id as it is written in SQL.
fn hex(id: Uuid) -> String {
    format!("X'{}'", id.simple())
}

fn counted(row: &MySqlRow) -> Result<(u32, (i64, i64))> {
    Ok((row.try_get::<i32, _>(0)?.unsigned_abs(), (row.try_get(1)?, row.try_get(2)?)))
}

/// Adds a list of ids, which has at least one, to a query.
pub(super) fn push_ids(query: &mut QueryBuilder<sqlx::MySql>, ids: &[Uuid]) {
    let mut list = query.push("(").separated(", ");
    ids.iter().for_each(|id| {
        list.push_bind(*id);
    });
    query.push(")");
}

/// What it would be if numbers lived in the relay's memory: a new leader knows none of them.
async fn forget_numbers(database: &Mysql, connection: &mut MySqlConnection) -> Result<()> {
    let forget = database.sql(
        "UPDATE tombolo_outbox SET sequence = NULL; UPDATE tombolo_partition SET numbered = removed_sequence",
    );
    connection.execute(forget).await?;
    Ok(())
}

fn mark(row: &MySqlRow) -> Result<Mark> {
    let (partition, sequence): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
    let id: Option<Uuid> = row.try_get(2)?;
    Ok(Mark { partition: partition.unsigned_abs(), sequence: unsigned(sequence), id: id.map(EventId) })
}

/// What is due next, out of what the databases keep.
pub(super) fn next_due(row: &MySqlRow, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(due_time))
}
