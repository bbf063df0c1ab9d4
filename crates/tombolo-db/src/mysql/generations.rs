//! How the topic is divided into partitions, in MySQL and MariaDB.
//!
//! takes: what is there and one generation more · writes: the generations, the rows in which partitions are counted, the
//! outcome of the request · commits: under the lock of the leader's row, in one synced transaction · if we crash here: the
//! topic is divided as before, and the request waits · if it repeats: it is not the next division any more: refused.
//!
//! Whoever publishes writes the partition that it finds here, without a lock, so a row may say one of an earlier generation
//! when the relay comes to number it. The relay goes by the row's key alone (`numbering.rs`).
//!
//! Invariant: a number is only ever given in the present generation: a check of the table refuses another.

use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::{Generations, Position};

use super::{Mysql, signed};
use crate::{Result, fencing, owner};

/// Those in the columns `generations` and `partitions`, of which the first is `first`.
pub(super) fn of(row: &MySqlRow, first: usize) -> Result<Generations> {
    let (kept, partitions): (Option<String>, i32) = (row.try_get(first)?, row.try_get(first + 1)?);
    owner::generations(kept.as_deref(), i64::from(partitions))
}

impl Mysql {
    /// The query for the present ones.
    pub(super) fn asking_generations(&self) -> String {
        format!("SELECT generations, partitions FROM {}service", self.prefix)
    }

    /// The present ones.
    pub(super) async fn generations(&self, connection: &mut MySqlConnection) -> Result<Generations> {
        let row = sqlx::query(self.sql("SELECT generations, partitions FROM tombolo_service"));
        of(&row.fetch_optional(connection).await?.ok_or_else(fencing::nobodys)?, 0)
    }

    /// Makes these the present ones, and the rows in which their partitions are counted.
    pub(super) async fn store_generations(
        &self,
        connection: &mut MySqlConnection,
        generations: &Generations,
    ) -> Result<()> {
        let is_one = generations.each().len() == 1;
        let partitions = if is_one { generations.present() } else { owner::SEVERAL };
        let stored = sqlx::query(self.sql("UPDATE tombolo_service SET generations = ?, partitions = ?"));
        let stored = stored.bind(owner::kept(generations)?).bind(signed(partitions));
        stored.execute(&mut *connection).await?;
        for partition in 0..generations.partitions() {
            let made = sqlx::query(self.sql(
                "INSERT INTO tombolo_partition (`partition`) VALUES (?) ON DUPLICATE KEY UPDATE `partition` = `partition`",
            ));
            made.bind(signed(partition)).execute(&mut *connection).await?;
        }
        let gone = sqlx::query(self.sql("DELETE FROM tombolo_partition WHERE `partition` >= ?"));
        gone.bind(signed(generations.partitions())).execute(connection).await?;
        Ok(())
    }

    /// Seals the partitions of earlier generations at their last numbers.
    pub(super) async fn seal(
        &self,
        connection: &mut MySqlConnection,
        generations: &Generations,
    ) -> Result<()> {
        let first = generations.partitions() - generations.present();
        let sealed =
            sqlx::query(self.sql("UPDATE tombolo_partition SET sealed = numbered WHERE `partition` < ?"));
        sealed.bind(signed(first)).execute(connection).await?;
        Ok(())
    }

    /// Begins the next generation.
    pub(super) async fn divide(&self, connection: &mut MySqlConnection, next: &Generations) -> Result<()> {
        owner::check_next(&self.generations(connection).await?, next)?;
        self.store_generations(connection, next).await?;
        self.seal(connection, next).await
    }

    /// Completes the positions of the events that have their numbers where they were meant to be, or where `of` says.
    pub(super) async fn complete_at(
        &self,
        positions: &mut [Position],
        of: impl Fn(&Position) -> Vec<u32>,
    ) -> Result<()> {
        let is_open = |position: &&Position| position.sequence.is_none();
        let mut partitions: Vec<u32> = positions.iter().filter(is_open).flat_map(&of).collect();
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let wanted =
                positions.iter().filter(is_open).filter(|position| of(position).contains(&partition));
            let ids: Vec<_> = wanted.map(|position| position.id.0).collect();
            if ids.is_empty() {
                continue;
            }
            for (id, sequence) in self.numbered_last(partition, &ids).await? {
                for position in positions.iter_mut().filter(|position| position.id == id) {
                    position.sequence = Some(sequence);
                    position.partition = partition;
                }
            }
        }
        Ok(())
    }
}
