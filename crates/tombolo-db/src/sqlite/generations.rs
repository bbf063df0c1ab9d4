//! How the topic is divided into partitions, in SQLite.
//!
//! takes: what is there and one generation more · writes: the generations, the rows in which partitions are counted, the
//! outcome of the request · commits: under the leader's epoch, in one synced transaction · if we crash here: the topic is
//! divided as before, and the request waits · if it repeats: it is not the next division any more: refused.
//!
//! Invariant: a number is only ever given in the present generation. Whoever numbers reads here how the topic is divided, as
//! the only writer; a program that does not is refused by a check of the table.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::{EventId, Generations, KeyHash};

use crate::outgoing::key_of;
use crate::owner;
use crate::{Result, fencing};

/// The present ones.
pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Generations> {
    let row = sqlx::query("SELECT generations, partitions FROM tombolo_service");
    of(&row.fetch_optional(connection).await?.ok_or_else(fencing::nobodys)?, 0)
}

/// Those in the columns `generations` and `partitions`, of which the first is `first`.
pub(super) fn of(row: &SqliteRow, first: usize) -> Result<Generations> {
    let (kept, partitions): (Option<String>, i64) = (row.try_get(first)?, row.try_get(first + 1)?);
    owner::generations(kept.as_deref(), partitions)
}

/// Makes these the present ones, and the rows in which their partitions are counted.
pub(super) async fn store(connection: &mut SqliteConnection, generations: &Generations) -> Result<()> {
    let is_one = generations.each().len() == 1;
    let partitions = if is_one { generations.present() } else { owner::SEVERAL };
    let stored = sqlx::query("UPDATE tombolo_service SET generations = ?, partitions = ?");
    stored.bind(owner::kept(generations)?).bind(partitions).execute(&mut *connection).await?;
    let made = sqlx::query(
        "WITH RECURSIVE each (partition) AS (SELECT 0 UNION ALL SELECT partition + 1 FROM each WHERE partition + 1 < ?)
         INSERT INTO tombolo_partition (partition) SELECT partition FROM each WHERE true ON CONFLICT DO NOTHING",
    );
    made.bind(generations.partitions()).execute(&mut *connection).await?;
    let gone = sqlx::query("DELETE FROM tombolo_partition WHERE partition >= ?");
    gone.bind(generations.partitions()).execute(&mut *connection).await?;
    Ok(())
}

/// Seals the partitions of earlier generations at their last numbers.
pub(super) async fn seal(connection: &mut SqliteConnection, generations: &Generations) -> Result<()> {
    let sealed = sqlx::query("UPDATE tombolo_partition SET sealed = numbered WHERE partition < ?");
    sealed.bind(generations.partitions() - generations.present()).execute(connection).await?;
    Ok(())
}

/// Begins the next generation.
pub(super) async fn divide(connection: &mut SqliteConnection, next: &Generations) -> Result<()> {
    owner::check_next(&read(connection).await?, next)?;
    store(connection, next).await?;
    seal(connection, next).await
}

/// Moves what waits in the outbox to the present generation; each row keeps its position, and has a number that nobody has.
pub(super) async fn place_all(connection: &mut SqliteConnection, generations: &Generations) -> Result<()> {
    // Each number is unique at any moment.
    sqlx::query("UPDATE tombolo_outbox SET sequence = -position").execute(&mut *connection).await?;
    if generations.each().len() == 1 {
        return Ok(());
    }
    let mut after = i64::MIN;
    loop {
        let some = sqlx::query(
            "SELECT position, id, bytes FROM tombolo_outbox WHERE position > ? ORDER BY position LIMIT 1000",
        );
        let some = some.bind(after).fetch_all(&mut *connection).await?;
        let Some(last) = some.last() else { return Ok(()) };
        after = last.try_get(0)?;
        for row in &some {
            let moved = sqlx::query(
                "UPDATE tombolo_outbox SET partition = ?1 WHERE position = ?2 AND partition <> ?1",
            );
            let moved = moved.bind(generations.partition(key(row)?)).bind(row.try_get::<i64, _>(0)?);
            moved.execute(&mut *connection).await?;
        }
    }
}

fn key(row: &SqliteRow) -> Result<KeyHash> {
    let bytes: Vec<u8> = row.try_get(2)?;
    Ok(key_of(EventId(row.try_get(1)?), bytes.into()))
}
