//! What SQLite does when its file and the bus do not agree.
//!
//! takes: an operator's decision · writes: numbers, marks, what was published before, the end of the halt · commits:
//! all of it in one synced transaction · if we crash here: the database is halted as before · if it repeats: the
//! halt is over, and the repeat is refused.
//!
//! Invariant: while the halt is written or ended nobody publishes, because this is the only writer.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::outbox::unsigned;
use super::{Sqlite, generations};
use crate::mutant::Mutant;
use crate::owner;
use crate::port::recovery::{Adopted, Adoption, Counted, Decision, Halt, Halted, Standing};
use crate::{Error, Kind, Mark, Recovery, Result, fencing};

/// The ids that go into one statement.
const IDS_PER_STATEMENT: usize = 10_000;

#[async_trait]
impl Recovery for Sqlite {
    async fn standing(&self, holder: Uuid) -> Result<Standing> {
        let rows = sqlx::query(
            "SELECT l.epoch, l.until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER) OR coalesce(l.holder = ?, 0),
                    s.incarnation, h.id, h.found_ms, h.finding, p.partition, p.removed_sequence, p.removed_id, p.numbered,
                    CAST(l.until_ms AS TEXT), s.generations, s.partitions
             FROM tombolo_leader AS l, tombolo_service AS s, tombolo_partition AS p
             LEFT JOIN tombolo_halt AS h ON h.id = l.halt
             ORDER BY p.partition",
        );
        let rows = rows.bind(holder).fetch_all(&self.pool).await?;
        let first = rows.first().ok_or_else(fencing::nobodys)?;
        let incarnation: Option<Uuid> = first.try_get(2)?;
        Ok(Standing {
            epoch: unsigned(first.try_get(0)?),
            is_free: first.try_get(1)?,
            lease: first.try_get(10)?,
            incarnation: incarnation.map(Incarnation),
            halt: halt(first, 3)?,
            generations: generations::of(first, 11)?,
            partitions: rows.iter().map(counted).collect::<Result<_>>()?,
        })
    }

    async fn numbered(&self, partition: u32, sequence: u64) -> Result<Option<EventId>> {
        let row = sqlx::query("SELECT id FROM tombolo_outbox WHERE partition = ? AND sequence = ?");
        let row = row.bind(partition).bind(sequence as i64).fetch_optional(&self.pool).await?;
        row.map(|row| Ok(EventId(row.try_get(0)?))).transpose()
    }

    async fn waiting(&self) -> Result<Vec<(u32, EventId)>> {
        let rows = sqlx::query("SELECT partition, id FROM tombolo_outbox ORDER BY position");
        let rows = rows.fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, EventId(row.try_get(1)?)))).collect()
    }

    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool> {
        self.write(&self.writer, async |connection| {
            let halted = sqlx::query(
                "UPDATE tombolo_leader SET halt = ?1, holder = NULL, until_ms = 0
                 WHERE epoch = ?2 AND halt IS NULL
                   AND (until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER) OR holder = ?3)",
            );
            let halted =
                halted.bind(halt.id).bind(epoch as i64).bind(holder).execute(&mut *connection).await?;
            if halted.rows_affected() == 0 {
                return Ok(false);
            }
            let found = sqlx::query("INSERT INTO tombolo_halt (id, found_ms, finding) VALUES (?, ?, ?)");
            let found = found.bind(halt.id).bind(halt.found_at.as_millisecond()).bind(&halt.finding);
            found.execute(connection).await?;
            Ok(true)
        })
        .await
    }

    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted> {
        let forgets = self.mutation.is(Mutant::NoMemoryOfTheBus);
        self.write(&self.writer, async |connection| {
            end(connection, decision, Some(adoption.epoch)).await?;
            let pin = sqlx::query("UPDATE tombolo_service SET incarnation = ?");
            pin.bind(adoption.incarnation.0).execute(&mut *connection).await?;
            if !forgets {
                remember(connection, &adoption.on_bus).await?;
            }
            let generations = owner::adopted(&generations::read(connection).await?, &adoption.generations);
            let adopted = number(connection, &generations, &adoption.tails).await?;
            let outcome = adopted.to_string();
            let said = sqlx::query("UPDATE tombolo_halt SET outcome = ? WHERE id = ?");
            said.bind(outcome).bind(decision.halt).execute(connection).await?;
            Ok(adopted)
        })
        .await
    }

    async fn resume(&self, decision: &Decision) -> Result<()> {
        self.write(&self.writer, async |connection| end(connection, decision, None).await).await
    }

    async fn halts(&self, most: usize) -> Result<Vec<Halted>> {
        let rows = sqlx::query(
            "SELECT id, found_ms, finding, decided_by, choice, outcome FROM tombolo_halt ORDER BY found_ms DESC LIMIT ?",
        );
        let rows = rows.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?;
        rows.iter().map(halted).collect()
    }
}

/// Lets somebody lead again, from `epoch` on if it is a higher one, and writes down who decided it.
async fn end(connection: &mut SqliteConnection, decision: &Decision, epoch: Option<u64>) -> Result<()> {
    let ended = sqlx::query(
        "UPDATE tombolo_leader SET halt = NULL, epoch = max(epoch, coalesce(?, 0)) WHERE halt = ?",
    );
    let ended = ended.bind(epoch.map(|epoch| epoch as i64)).bind(decision.halt);
    if ended.execute(&mut *connection).await?.rows_affected() == 0 {
        return Err(fencing::not_halted(decision.halt));
    }
    let said = sqlx::query(
        "UPDATE tombolo_halt SET decided_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER), decided_by = ?, choice = ?
         WHERE id = ?",
    );
    let said = said.bind(&decision.by).bind(&decision.choice).bind(decision.halt);
    said.execute(connection).await?;
    Ok(())
}

/// Remembers what is on the bus.
async fn remember(connection: &mut SqliteConnection, ids: &[EventId]) -> Result<()> {
    for some in ids.chunks(IDS_PER_STATEMENT) {
        let some: Vec<_> = some.iter().map(|id| id.0.simple().to_string()).collect();
        sqlx::query("INSERT OR IGNORE INTO tombolo_known (id) SELECT unhex(value) FROM json_each(?)")
            .bind(crate::json_text(&some)?)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Drops the rows that are on the bus, those that were kept for later or written by other programs included, and numbers the others after its tails, in the
/// last generation, in the order of their positions.
async fn number(
    connection: &mut SqliteConnection,
    generations: &Generations,
    tails: &[Mark],
) -> Result<Adopted> {
    let unsealed = "UPDATE tombolo_partition SET sealed = NULL, removed_sequence = 0, removed_id = NULL";
    sqlx::query(unsealed).execute(&mut *connection).await?;
    generations::store(connection, generations).await?;
    let dropped = "DELETE FROM tombolo_outbox WHERE id IN (SELECT id FROM tombolo_known)";
    let dropped = sqlx::query(dropped).execute(&mut *connection).await?.rows_affected();
    let later = "DELETE FROM tombolo_later WHERE id IN (SELECT id FROM tombolo_known)";
    let dropped = dropped + sqlx::query(later).execute(&mut *connection).await?.rows_affected();
    let dropped = dropped + super::foreign::drop_known(connection).await?;
    // Only consequences come again under the same id; a request's event never does.
    sqlx::query("DELETE FROM tombolo_known WHERE substr(hex(id), 13, 1) <> '5'")
        .execute(&mut *connection)
        .await?;
    for tail in tails {
        sqlx::query("UPDATE tombolo_partition SET removed_sequence = ?, removed_id = ? WHERE partition = ?")
            .bind(tail.sequence as i64)
            .bind(tail.id.map(|id| id.0))
            .bind(tail.partition)
            .execute(&mut *connection)
            .await?;
    }
    generations::place_all(connection, generations).await?;
    let kept = after_tails(connection).await?;
    generations::seal(connection, generations).await?;
    Ok(Adopted { dropped, kept })
}

/// Numbers what waits after what is on the bus; returns how many.
async fn after_tails(connection: &mut SqliteConnection) -> Result<u64> {
    let kept = sqlx::query(
        "UPDATE tombolo_outbox AS o SET sequence = n.sequence
         FROM (SELECT w.position, p.removed_sequence + row_number()
                   OVER (PARTITION BY w.partition ORDER BY w.position) AS sequence
               FROM tombolo_outbox AS w JOIN tombolo_partition AS p USING (partition)) AS n
         WHERE o.position = n.position",
    );
    let kept = kept.execute(&mut *connection).await?.rows_affected();
    sqlx::query(
        "UPDATE tombolo_partition AS p SET
             numbered = removed_sequence + (SELECT count(*) FROM tombolo_outbox AS o WHERE o.partition = p.partition),
             waiting_bytes = (SELECT coalesce(sum(length(bytes)), 0) FROM tombolo_outbox AS o WHERE o.partition = p.partition)",
    )
    .execute(&mut *connection)
    .await?;
    Ok(kept)
}

/// The consequences among `ids` that are on the bus already.
pub(super) async fn on_bus_already(connection: &mut SqliteConnection, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| id.simple().to_string()).collect();
    let rows =
        sqlx::query("SELECT k.id FROM json_each(?) AS w JOIN tombolo_known AS k ON k.id = unhex(w.value)");
    let rows = rows.bind(crate::json_text(&ids)?).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn counted(row: &SqliteRow) -> Result<Counted> {
    let id: Option<Uuid> = row.try_get(8)?;
    let removed =
        Mark { partition: row.try_get(6)?, sequence: unsigned(row.try_get(7)?), id: id.map(EventId) };
    Ok(Counted { removed, numbered: unsigned(row.try_get(9)?) })
}

/// The halt whose columns begin at `from`.
fn halt(row: &SqliteRow, from: usize) -> Result<Option<Halt>> {
    let id: Option<Uuid> = row.try_get(from)?;
    let Some(id) = id else { return Ok(None) };
    let found_at = Timestamp::from_millisecond(row.try_get(from + 1)?).unwrap_or_default();
    Ok(Some(Halt { id, found_at, finding: row.try_get(from + 2)? }))
}

fn halted(row: &SqliteRow) -> Result<Halted> {
    let halt = halt(row, 0)?
        .ok_or_else(|| Error::new(Kind::Database, "a row of tombolo_halt has no id, its primary key"))?;
    let (by, choice): (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let decision = by.zip(choice).map(|(by, choice)| Decision { halt: halt.id, by, choice });
    Ok(Halted { halt, decision, outcome: row.try_get(5)? })
}
