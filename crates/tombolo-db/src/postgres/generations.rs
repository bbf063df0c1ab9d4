//! How the topic is divided into partitions, in PostgreSQL.
//!
//! takes: what is there and one generation more · writes: the generations, the rows in which partitions are counted, the
//! outcome of the request · commits: under the lock of the leader's row, in one synced transaction · if we crash here: the
//! topic is divided as before, and the request waits · if it repeats: it is not the next division any more: refused.
//!
//! Whoever publishes writes the partition that it finds here, without a lock, so a row may say one of an earlier generation
//! when the relay comes to number it. Then it is placed anew first, by its key.
//!
//! Invariant: a number is only ever given in the present generation, in the order of the positions of all rows that have
//! none. A program that does not look is refused by a check of the table.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::{EventId, Generations, KeyHash, Position};
use uuid::Uuid;

use super::{Postgres, signed, unsigned};
use crate::outgoing::key_of;
use crate::port::NUMBERED_LOOK_BACK;
use crate::{Result, RoundLimit, fencing, owner};

/// Those in the columns `generations` and `partitions`, of which the first is `first`.
pub(super) fn of(row: &PgRow, first: usize) -> Result<Generations> {
    let (kept, partitions): (Option<String>, i32) = (row.try_get(first)?, row.try_get(first + 1)?);
    owner::generations(kept.as_deref(), i64::from(partitions))
}

/// The number of the first partition of the present generation.
pub(super) fn first(generations: &Generations) -> i32 {
    signed(generations.partitions() - generations.present())
}

/// Where an event may be found that has a number: its partition and its id.
pub(super) type Place = (i32, Uuid);

/// Where an event may be found that went to a later generation than it was meant for.
pub(super) fn later_places(generations: &Generations, position: &Position) -> Vec<Place> {
    let later = generations.after(position.partition, position.key_hash);
    later.map(|partition| (signed(partition), position.id.0)).collect()
}

impl Postgres {
    /// The present ones.
    pub(super) async fn generations(&self, connection: &mut PgConnection) -> Result<Generations> {
        let row = sqlx::query(self.sql("SELECT generations, partitions FROM tombolo.service"));
        of(&row.fetch_optional(connection).await?.ok_or_else(fencing::nobodys)?, 0)
    }

    /// Makes these the present ones, and the rows in which their partitions are counted.
    pub(super) async fn store_generations(
        &self,
        connection: &mut PgConnection,
        generations: &Generations,
    ) -> Result<()> {
        let is_one = generations.each().len() == 1;
        let partitions = if is_one { generations.present() } else { owner::SEVERAL };
        let stored = sqlx::query(self.sql("UPDATE tombolo.service SET generations = $1, partitions = $2"));
        let stored = stored.bind(owner::kept(generations)?).bind(signed(partitions));
        stored.execute(&mut *connection).await?;
        let made = sqlx::query(self.sql(
            "INSERT INTO tombolo.partition (partition) SELECT generate_series(0, $1 - 1) ON CONFLICT DO NOTHING",
        ));
        made.bind(signed(generations.partitions())).execute(&mut *connection).await?;
        let gone = sqlx::query(self.sql("DELETE FROM tombolo.partition WHERE partition >= $1"));
        gone.bind(signed(generations.partitions())).execute(connection).await?;
        Ok(())
    }

    /// Seals the partitions of earlier generations at their last numbers.
    pub(super) async fn seal(&self, connection: &mut PgConnection, generations: &Generations) -> Result<()> {
        let sealed =
            sqlx::query(self.sql("UPDATE tombolo.partition SET sealed = numbered WHERE partition < $1"));
        sealed.bind(first(generations)).execute(connection).await?;
        Ok(())
    }

    /// Begins the next generation.
    pub(super) async fn divide(&self, connection: &mut PgConnection, next: &Generations) -> Result<()> {
        owner::check_next(&self.generations(connection).await?, next)?;
        self.store_generations(connection, next).await?;
        self.seal(connection, next).await
    }

    /// Completes the positions of the events that have their numbers at these places, and returns how the topic is divided.
    pub(super) async fn complete_at(
        &self,
        positions: &mut [Position],
        places: Vec<Place>,
    ) -> Result<Generations> {
        let (partitions, ids): (Vec<i32>, Vec<Uuid>) = places.into_iter().unzip();
        let found = sqlx::query(self.sql(
            "SELECT s.generations, s.partitions, o.id, o.sequence, o.partition
             FROM tombolo.service AS s LEFT JOIN (
                 unnest($1::integer[], $2::uuid[]) AS wanted (partition, id)
                 JOIN tombolo.partition AS p USING (partition)
                 JOIN tombolo.outbox AS o
                   ON o.partition = p.partition AND o.sequence > p.numbered - $3 AND o.id = wanted.id
             ) ON true",
        ));
        let found = found.bind(partitions).bind(ids).bind(NUMBERED_LOOK_BACK as i64);
        let found = found.fetch_all(&self.pool).await?;
        for row in &found {
            let Some(id) = row.try_get::<Option<Uuid>, _>(2)? else { continue };
            let (sequence, partition): (i64, i32) = (row.try_get(3)?, row.try_get(4)?);
            for position in positions.iter_mut().filter(|position| position.id.0 == id) {
                position.sequence = Some(unsigned(sequence));
                position.partition = partition.unsigned_abs();
            }
        }
        of(found.first().ok_or_else(fencing::nobodys)?, 0)
    }

    /// Places those of the next rows to be numbered anew that were meant for a partition of an earlier generation.
    pub(super) async fn place(
        &self,
        connection: &mut PgConnection,
        generations: &Generations,
        limit: RoundLimit,
    ) -> Result<()> {
        if generations.each().len() == 1 {
            return Ok(());
        }
        let found = sqlx::query(self.sql(
            "SELECT position, id, bytes FROM (
                 SELECT position, partition, id, bytes FROM tombolo.outbox
                 WHERE sequence IS NULL ORDER BY position LIMIT $1) AS next
             WHERE partition < $2",
        ));
        let found = found.bind(limit.rows.max(1) as i64).bind(first(generations));
        let found = found.fetch_all(&mut *connection).await?;
        if found.is_empty() {
            return Ok(());
        }
        let (mut positions, mut partitions): (Vec<i64>, Vec<i32>) = (Vec::new(), Vec::new());
        for row in &found {
            positions.push(row.try_get(0)?);
            partitions.push(signed(generations.partition(key(row)?)));
        }
        let placed = sqlx::query(self.sql(
            "UPDATE tombolo.outbox AS o SET partition = n.partition
             FROM unnest($1::bigint[], $2::integer[]) AS n (position, partition) WHERE o.position = n.position",
        ));
        placed.bind(positions).bind(partitions).execute(connection).await?;
        Ok(())
    }
}

fn key(row: &PgRow) -> Result<KeyHash> {
    let bytes: Vec<u8> = row.try_get(2)?;
    Ok(key_of(EventId(row.try_get(1)?), bytes.into()))
}
