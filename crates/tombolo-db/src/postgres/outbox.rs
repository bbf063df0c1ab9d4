//! The relay's half of PostgreSQL: who leads, what waits, what is removed.
//!
//! Invariant: whoever begins to lead has an epoch higher than any before, and what is removed was numbered.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::{EventId, Generations, Position};
use uuid::Uuid;

use super::generations::{Place, later_places};
use super::numbering::PostgresLeader;
use super::{Postgres, millis, signed, unsigned};
use crate::mutant::Mutant;
use crate::port::due_time;
use crate::{
    Depth, ForeignParked, ForeignParts, HintStream, Leader, Mark, Outbox, Owner, Result, Schema, fencing,
};

/// The rows that [`Outbox::depth`] counts one by one, in the outbox and for later; beyond them it estimates from the
/// positions, and from what the server last counted.
const DEPTH_EXACT_ROWS: i64 = 50_000;

#[async_trait]
impl Outbox for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()> {
        self.prepare_schema(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>> {
        let free = self.sql("SELECT 1 FROM tombolo.leader WHERE until <= clock_timestamp() OR holder = $1");
        if sqlx::query(free).bind(holder).fetch_optional(&self.pool).await?.is_none() {
            return Ok(None);
        }
        let mut transaction = self.begin_marked(lease / 2).await?;
        sync_commit(&mut transaction).await?;
        let won = self.win(&mut transaction, holder, lease).await?;
        transaction.commit().await?;
        let has_foreign = self.has_foreign().await?;
        Ok(won.map(|won| {
            Box::new(PostgresLeader::new(self.clone(), lease, won, has_foreign)) as Box<dyn Leader>
        }))
    }

    async fn depth(&self) -> Result<Depth> {
        let row = sqlx::query(self.sql(
            "SELECT count(*), coalesce(sum(size), 0)::bigint, (extract(epoch FROM min(written)) * 1000)::bigint,
                    coalesce(max(position) - min(position) + 1, 1),
                    coalesce((SELECT max(position) FROM tombolo.outbox) - min(position) + 1, 1),
                    (SELECT count(*) FROM (SELECT FROM tombolo.later LIMIT $1) AS kept),
                    (SELECT coalesce(sum(size), 0)::bigint FROM (SELECT size FROM tombolo.later LIMIT $1) AS kept),
                    (SELECT reltuples::bigint FROM pg_class WHERE oid = 'tombolo.later'::regclass),
                    (SELECT min(due_us) FROM tombolo.later)
             FROM (SELECT position, size, written FROM tombolo.outbox ORDER BY position LIMIT $1) AS oldest",
        ));
        let row = row.bind(DEPTH_EXACT_ROWS).fetch_one(&self.pool).await?;
        let (rows, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let oldest: Option<i64> = row.try_get(2)?;
        let (seen, whole): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        let scale = if rows < DEPTH_EXACT_ROWS { 1.0 } else { whole as f64 / seen as f64 };
        let (later_rows, later_bytes, counted): (i64, i64, i64) =
            (row.try_get(5)?, row.try_get(6)?, row.try_get(7)?);
        let is_exact = later_rows < DEPTH_EXACT_ROWS;
        let later_scale = if is_exact { 1.0 } else { (counted as f64 / later_rows as f64).max(1.0) };
        let next_due: Option<i64> = row.try_get(8)?;
        let depth = Depth {
            rows: (rows as f64 * scale) as u64,
            bytes: (bytes as f64 * scale) as u64,
            oldest: oldest.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            later_rows: (later_rows as f64 * later_scale) as u64,
            later_bytes: (later_bytes as f64 * later_scale) as u64,
            next_due: next_due.map(due_time),
            parked_rows: 0,
        };
        self.add_foreign(depth, DEPTH_EXACT_ROWS).await
    }

    async fn complete(&self, positions: &mut [Position]) -> Result<()> {
        let open = positions.iter().filter(|position| position.sequence.is_none());
        let meant: Vec<Place> = open.map(|position| (signed(position.partition), position.id.0)).collect();
        let generations = self.complete_at(positions, meant).await?;
        let open = positions.iter().filter(|position| position.sequence.is_none());
        let later: Vec<Place> = open.flat_map(|position| later_places(&generations, position)).collect();
        match later.is_empty() {
            true => Ok(()),
            false => self.complete_at(positions, later).await.map(drop),
        }
    }

    async fn prepare_foreign(&self, parts: ForeignParts, schema: Schema) -> Result<()> {
        self.make_foreign(parts, schema).await
    }

    async fn foreign_waiting(&self) -> Result<Option<i64>> {
        if self.has_foreign().await? { self.first_foreign().await } else { Ok(None) }
    }

    async fn foreign_hints(&self) -> Result<Option<HintStream>> {
        self.hear_foreign().await.map(Some)
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

impl Postgres {
    /// Raises the epoch, if the lease is free, and reads the marks.
    async fn win(&self, connection: &mut PgConnection, holder: Uuid, lease: Duration) -> Result<Option<Won>> {
        let raised = sqlx::query(self.sql(
            "UPDATE tombolo.leader
             SET epoch = epoch + 1, holder = $1, until = clock_timestamp() + $2 * interval '1 millisecond'
             WHERE (until <= clock_timestamp() OR holder = $1) AND (halt IS NULL OR $3)
             RETURNING epoch",
        ));
        let raised = raised.bind(holder).bind(millis(lease)).bind(self.mutation.is(Mutant::NoHalt));
        let raised = raised.fetch_optional(&mut *connection).await?;
        let Some(raised) = raised else { return Ok(None) };
        if self.mutation.is(Mutant::NumberingNotDurable) {
            forget_numbers(self, connection).await?;
        }
        let rows =
            sqlx::query(self.sql(
                "SELECT partition, removed_sequence, removed_id FROM tombolo.partition ORDER BY partition",
            ));
        let marks = rows.fetch_all(&mut *connection).await?.iter().map(mark).collect::<Result<_>>()?;
        let generations = self.generations(connection).await?;
        Ok(Some(Won { epoch: unsigned(raised.try_get(0)?), generations, marks }))
    }
}

/// What it would be if numbers lived in the relay's memory: a new leader knows none of them.
async fn forget_numbers(database: &Postgres, connection: &mut PgConnection) -> Result<()> {
    let forget = database.sql(
        "UPDATE tombolo.outbox SET sequence = NULL; UPDATE tombolo.partition SET numbered = removed_sequence",
    );
    sqlx::raw_sql(forget).execute(connection).await?;
    Ok(())
}

/// Makes the commit of this transaction a synced one, whatever the server's or the user's default is.
pub(super) async fn sync_commit(connection: &mut PgConnection) -> Result<()> {
    let set = sqlx::query(
        "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
             WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)",
    );
    set.execute(connection).await?;
    Ok(())
}

impl Postgres {
    /// Moves the marks and removes the rows below them.
    pub(super) async fn remove(&self, connection: &mut PgConnection, news: &[Mark]) -> Result<()> {
        let partitions: Vec<i32> = news.iter().map(|mark| signed(mark.partition)).collect();
        let sequences: Vec<i64> = news.iter().map(|mark| mark.sequence as i64).collect();
        let ids: Vec<Option<Uuid>> = news.iter().map(|mark| mark.id.map(|id| id.0)).collect();
        // From the last mark on, so that index entries of rows that are long gone are not passed again.
        let moved = sqlx::query(self.sql(
            "WITH done AS (
                 SELECT d.*, p.removed_sequence
                 FROM unnest($1::integer[], $2::bigint[], $3::uuid[]) AS d (partition, sequence, id)
                 JOIN tombolo.partition AS p USING (partition)
             ), gone AS (
                 DELETE FROM tombolo.outbox AS o
                 USING done AS d, LATERAL (
                     SELECT position FROM tombolo.outbox AS w
                     WHERE w.partition = d.partition AND w.sequence > d.removed_sequence
                       AND w.sequence <= d.sequence
                     OFFSET 0) AS known
                 WHERE o.position = known.position
             )
             UPDATE tombolo.partition AS p SET removed_sequence = d.sequence, removed_id = d.id
             FROM done AS d WHERE p.partition = d.partition AND p.numbered >= d.sequence",
        ));
        let moved = moved.bind(partitions).bind(sequences).bind(ids).execute(connection).await?;
        if moved.rows_affected() < news.len() as u64 {
            return Err(fencing::beyond_numbers(news));
        }
        Ok(())
    }
}

fn mark(row: &PgRow) -> Result<Mark> {
    let (partition, sequence): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
    let id: Option<Uuid> = row.try_get(2)?;
    Ok(Mark { partition: partition.unsigned_abs(), sequence: unsigned(sequence), id: id.map(EventId) })
}
