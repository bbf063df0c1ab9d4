//! What PostgreSQL does when its database and the bus do not agree.
//!
//! takes: an operator's decision · writes: numbers, marks, what was published before, the end of the halt · commits:
//! all of it in one synced transaction · if we crash here: the database is halted as before · if it repeats: the
//! halt is over, and the repeat is refused.
//!
//! Invariant: while the bus's word is taken nobody publishes, because the locks of all keys are held.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::outbox::sync_commit;
use super::{Postgres, generations, signed, unsigned};
use crate::mutant::Mutant;
use crate::owner;
use crate::port::STRIPES;
use crate::port::recovery::{Adopted, Adoption, Counted, Decision, Halt, Halted, Standing};
use crate::{Error, Kind, Mark, Recovery, Result, fencing};

/// The ids that go into one statement.
const IDS_PER_STATEMENT: usize = 10_000;

#[async_trait]
impl Recovery for Postgres {
    async fn standing(&self, holder: Uuid) -> Result<Standing> {
        // Of the tables that hold one row, the planner is told so: before it has looked at them it takes each for a thousand
        // rows, and a join of thousands of thousands is compiled first, which takes a hundred times as long as running it.
        let rows = sqlx::query(self.sql(
            "SELECT l.epoch, l.until <= clock_timestamp() OR coalesce(l.holder = $1, false), s.incarnation,
                    h.id, (extract(epoch FROM h.found) * 1000)::bigint, h.finding,
                    p.partition, p.removed_sequence, p.removed_id, p.numbered, l.until::text,
                    s.generations, s.partitions
             FROM tombolo.partition AS p
             CROSS JOIN (SELECT * FROM tombolo.service LIMIT 1) AS s
             CROSS JOIN (SELECT * FROM tombolo.leader LIMIT 1) AS l
             LEFT JOIN tombolo.halt AS h ON h.id = l.halt
             ORDER BY p.partition",
        ));
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
        let row =
            sqlx::query(self.sql("SELECT id FROM tombolo.outbox WHERE partition = $1 AND sequence = $2"));
        let row = row.bind(signed(partition)).bind(sequence as i64).fetch_optional(&self.pool).await?;
        row.map(|row| Ok(EventId(row.try_get(0)?))).transpose()
    }

    async fn waiting(&self) -> Result<Vec<(u32, EventId)>> {
        let rows = sqlx::query(self.sql("SELECT partition, id FROM tombolo.outbox ORDER BY position"));
        let rows = rows.fetch_all(&self.pool).await?;
        let waits = |row: &PgRow| {
            let partition: i32 = row.try_get(0)?;
            Ok((partition.unsigned_abs(), EventId(row.try_get(1)?)))
        };
        rows.iter().map(waits).collect()
    }

    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool> {
        let mut transaction = self.begin_marked(self.idle_max).await?;
        sync_commit(&mut transaction).await?;
        let halted = sqlx::query(self.sql(
            "UPDATE tombolo.leader SET halt = $1, holder = NULL, until = '-infinity'
             WHERE epoch = $2 AND halt IS NULL AND (until <= clock_timestamp() OR holder = $3)",
        ));
        let halted = halted.bind(halt.id).bind(epoch as i64).bind(holder).execute(&mut *transaction).await?;
        if halted.rows_affected() == 0 {
            return Ok(false);
        }
        let found = sqlx::query(self.sql(
            "INSERT INTO tombolo.halt (id, found, finding) VALUES ($1, to_timestamp($2::float8 / 1000), $3)",
        ));
        let found = found.bind(halt.id).bind(halt.found_at.as_millisecond() as f64).bind(&halt.finding);
        found.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted> {
        let mut transaction = self.begin_marked(self.idle_max).await?;
        sync_commit(&mut transaction).await?;
        self.end(&mut transaction, decision, Some(adoption.epoch)).await?;
        self.lock_all_stripes(&mut transaction).await?;
        let pin = sqlx::query(self.sql("UPDATE tombolo.service SET incarnation = $1"));
        pin.bind(adoption.incarnation.0).execute(&mut *transaction).await?;
        if !self.mutation.is(Mutant::NoMemoryOfTheBus) {
            self.remember(&mut transaction, &adoption.on_bus).await?;
        }
        let generations = owner::adopted(&self.generations(&mut transaction).await?, &adoption.generations);
        let adopted = self.unnumber(&mut transaction, &generations, &adoption.tails).await?;
        let said = sqlx::query(self.sql("UPDATE tombolo.halt SET outcome = $1 WHERE id = $2"));
        said.bind(adopted.to_string()).bind(decision.halt).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(adopted)
    }

    async fn resume(&self, decision: &Decision) -> Result<()> {
        let mut transaction = self.begin_marked(self.idle_max).await?;
        sync_commit(&mut transaction).await?;
        self.end(&mut transaction, decision, None).await?;
        Ok(transaction.commit().await?)
    }

    async fn halts(&self, most: usize) -> Result<Vec<Halted>> {
        let rows = sqlx::query(self.sql(
            "SELECT id, (extract(epoch FROM found) * 1000)::bigint, finding, decided_by, choice, outcome
             FROM tombolo.halt ORDER BY found DESC LIMIT $1",
        ));
        let rows = rows.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?;
        rows.iter().map(halted).collect()
    }
}

impl Postgres {
    /// Lets somebody lead again, from `epoch` on if it is a higher one, and writes down who decided it.
    async fn end(
        &self,
        connection: &mut PgConnection,
        decision: &Decision,
        epoch: Option<u64>,
    ) -> Result<()> {
        let ended = sqlx::query(
            self.sql("UPDATE tombolo.leader SET halt = NULL, epoch = greatest(epoch, $1) WHERE halt = $2"),
        );
        let ended = ended.bind(epoch.map(|epoch| epoch as i64)).bind(decision.halt);
        if ended.execute(&mut *connection).await?.rows_affected() == 0 {
            return Err(fencing::not_halted(decision.halt));
        }
        let said = sqlx::query(self.sql(
            "UPDATE tombolo.halt SET decided = clock_timestamp(), decided_by = $1, choice = $2 WHERE id = $3",
        ));
        let said = said.bind(&decision.by).bind(&decision.choice).bind(decision.halt);
        said.execute(connection).await?;
        Ok(())
    }

    /// Waits for every transaction that is about to publish, and lets none begin until the commit.
    async fn lock_all_stripes(&self, connection: &mut PgConnection) -> Result<()> {
        let lock =
            sqlx::query("SELECT pg_advisory_xact_lock($1, stripe) FROM generate_series(0, $2) AS stripe");
        lock.bind(self.lock_class).bind(signed(STRIPES) - 1).execute(connection).await?;
        Ok(())
    }

    /// Remembers what is on the bus.
    async fn remember(&self, connection: &mut PgConnection, ids: &[EventId]) -> Result<()> {
        for some in ids.chunks(IDS_PER_STATEMENT) {
            let some: Vec<Uuid> = some.iter().map(|id| id.0).collect();
            sqlx::query(
                self.sql("INSERT INTO tombolo.known (id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING"),
            )
            .bind(some)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// Drops the rows that are on the bus, those that were kept for later or written by other programs included, and takes the others' numbers away: the
    /// next leader gives them new ones.
    async fn unnumber(
        &self,
        connection: &mut PgConnection,
        generations: &Generations,
        tails: &[Mark],
    ) -> Result<Adopted> {
        let unsealed = "UPDATE tombolo.partition SET sealed = NULL, numbered = 0, removed_sequence = 0, removed_id = NULL";
        sqlx::query(self.sql(unsealed)).execute(&mut *connection).await?;
        self.store_generations(connection, generations).await?;
        let dropped = "DELETE FROM tombolo.outbox AS o USING tombolo.known AS k WHERE o.id = k.id";
        let dropped = sqlx::query(self.sql(dropped)).execute(&mut *connection).await?.rows_affected();
        let later = "DELETE FROM tombolo.later AS l USING tombolo.known AS k WHERE l.id = k.id";
        let dropped = dropped + sqlx::query(self.sql(later)).execute(&mut *connection).await?.rows_affected();
        let dropped = dropped + self.drop_known_foreign(connection).await?;
        // Only consequences come again under the same id; a request's event never does.
        sqlx::query(self.sql("DELETE FROM tombolo.known WHERE substr(id::text, 15, 1) <> '5'"))
            .execute(&mut *connection)
            .await?;
        sqlx::query(self.sql("UPDATE tombolo.outbox SET sequence = NULL WHERE sequence IS NOT NULL"))
            .execute(&mut *connection)
            .await?;
        let partitions: Vec<i32> = tails.iter().map(|tail| signed(tail.partition)).collect();
        let sequences: Vec<i64> = tails.iter().map(|tail| tail.sequence as i64).collect();
        let ids: Vec<Option<Uuid>> = tails.iter().map(|tail| tail.id.map(|id| id.0)).collect();
        let moved = sqlx::query(self.sql(
            "UPDATE tombolo.partition AS p SET removed_sequence = t.sequence, removed_id = t.id, numbered = t.sequence
             FROM unnest($1::integer[], $2::bigint[], $3::uuid[]) AS t (partition, sequence, id)
             WHERE p.partition = t.partition",
        ));
        moved.bind(partitions).bind(sequences).bind(ids).execute(&mut *connection).await?;
        self.seal(connection, generations).await?;
        let kept = sqlx::query(self.sql("SELECT count(*) FROM tombolo.outbox"));
        Ok(Adopted { dropped, kept: unsigned(kept.fetch_one(connection).await?.try_get(0)?) })
    }

    /// The consequences among `ids` that are on the bus already. Asked under the locks of their keys.
    pub(super) async fn on_bus_already(
        &self,
        connection: &mut PgConnection,
        ids: &[Uuid],
    ) -> Result<Vec<Uuid>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(self.sql("SELECT id FROM tombolo.known WHERE id = ANY($1)"));
        let rows = rows.bind(ids).fetch_all(connection).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

fn counted(row: &PgRow) -> Result<Counted> {
    let (partition, id): (i32, Option<Uuid>) = (row.try_get(6)?, row.try_get(8)?);
    let sequence = unsigned(row.try_get(7)?);
    let removed = Mark { partition: partition.unsigned_abs(), sequence, id: id.map(EventId) };
    Ok(Counted { removed, numbered: unsigned(row.try_get(9)?) })
}

/// The halt whose columns begin at `from`.
fn halt(row: &PgRow, from: usize) -> Result<Option<Halt>> {
    let id: Option<Uuid> = row.try_get(from)?;
    let Some(id) = id else { return Ok(None) };
    let found_at = Timestamp::from_millisecond(row.try_get(from + 1)?).unwrap_or_default();
    Ok(Some(Halt { id, found_at, finding: row.try_get(from + 2)? }))
}

fn halted(row: &PgRow) -> Result<Halted> {
    let halt = halt(row, 0)?
        .ok_or_else(|| Error::new(Kind::Database, "a row of the table halt has no id, its primary key"))?;
    let (by, choice): (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let decision = by.zip(choice).map(|(by, choice)| Decision { halt: halt.id, by, choice });
    Ok(Halted { halt, decision, outcome: row.try_get(5)? })
}
