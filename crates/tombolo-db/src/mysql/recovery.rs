//! What MySQL and MariaDB do when its database and the bus do not agree.
//!
//! takes: an operator's decision · writes: numbers, marks, what was published before, the end of the halt · commits:
//! all of it in one synced transaction · if we crash here: the database is halted as before · if it repeats: the
//! halt is over, and the repeat is refused.
//!
//! Invariant: while the bus's word is taken nobody publishes, because the locks of all keys are held.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, QueryBuilder, Row};
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::outbox::push_ids;
use super::session::Session;
use super::{Mysql, generations, limit, signed, unsigned};
use crate::mutant::Mutant;
use crate::port::STRIPES;
use crate::port::recovery::{Adopted, Adoption, Counted, Decision, Halt, Halted, Standing};
use crate::{Error, Kind, Mark, Recovery, Result, fencing, owner};

/// The ids that go into one statement.
const IDS_PER_STATEMENT: usize = 10_000;

#[async_trait]
impl Recovery for Mysql {
    async fn standing(&self, holder: Uuid) -> Result<Standing> {
        let rows = sqlx::query(self.sql(
            "SELECT l.epoch, l.until <= UTC_TIMESTAMP(6) OR COALESCE(l.holder = ?, false), s.incarnation,
                    h.id, h.found_ms, h.finding,
                    p.`partition`, p.removed_sequence, p.removed_id, p.numbered, CAST(l.until AS CHAR),
                    s.generations, s.partitions
             FROM tombolo_partition AS p CROSS JOIN tombolo_service AS s CROSS JOIN tombolo_leader AS l
             LEFT JOIN tombolo_halt AS h ON h.id = l.halt
             ORDER BY p.`partition`",
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
            sqlx::query(self.sql("SELECT id FROM tombolo_outbox WHERE `partition` = ? AND sequence = ?"));
        let row = row.bind(signed(partition)).bind(sequence as i64).fetch_optional(&self.pool).await?;
        row.map(|row| Ok(EventId(row.try_get(0)?))).transpose()
    }

    async fn waiting(&self) -> Result<Vec<(u32, EventId)>> {
        let rows = sqlx::query(self.sql("SELECT `partition`, id FROM tombolo_outbox ORDER BY position"));
        let rows = rows.fetch_all(&self.pool).await?;
        let waits = |row: &MySqlRow| {
            let partition: i32 = row.try_get(0)?;
            Ok((partition.unsigned_abs(), EventId(row.try_get(1)?)))
        };
        rows.iter().map(waits).collect()
    }

    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let halted = sqlx::query(self.sql(
            "UPDATE tombolo_leader SET halt = ?, holder = NULL, until = '1970-01-01'
             WHERE epoch = ? AND halt IS NULL AND (until <= UTC_TIMESTAMP(6) OR holder = ?)",
        ));
        let halted = halted.bind(halt.id).bind(epoch as i64).bind(holder).execute(&mut *session).await?;
        if halted.rows_affected() == 0 {
            session.rollback().await?;
            return Ok(false);
        }
        let found = self.sql("INSERT INTO tombolo_halt (id, found_ms, finding) VALUES (?, ?, ?)");
        let found = sqlx::query(found).bind(halt.id).bind(halt.found_at.as_millisecond()).bind(&halt.finding);
        found.execute(&mut *session).await?;
        session.commit().await?;
        Ok(true)
    }

    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        self.end(&mut session, decision, Some(adoption.epoch)).await?;
        self.lock_all_stripes(&mut session).await?;
        let pin = sqlx::query(self.sql("UPDATE tombolo_service SET incarnation = ?"));
        pin.bind(adoption.incarnation.0).execute(&mut *session).await?;
        if !self.mutation.is(Mutant::NoMemoryOfTheBus) {
            self.remember(&mut session, &adoption.on_bus).await?;
        }
        let generations = owner::adopted(&self.generations(&mut session).await?, &adoption.generations);
        let adopted = self.unnumber(&mut session, &generations, &adoption.tails).await?;
        let said = sqlx::query(self.sql("UPDATE tombolo_halt SET outcome = ? WHERE id = ?"));
        said.bind(adopted.to_string()).bind(decision.halt).execute(&mut *session).await?;
        session.commit().await?;
        Ok(adopted)
    }

    async fn resume(&self, decision: &Decision) -> Result<()> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        self.end(&mut session, decision, None).await?;
        Ok(session.commit().await?)
    }

    async fn halts(&self, most: usize) -> Result<Vec<Halted>> {
        let rows = sqlx::query(self.sql(
            "SELECT id, found_ms, finding, decided_by, choice, outcome
             FROM tombolo_halt ORDER BY found_ms DESC LIMIT ?",
        ));
        let rows = rows.bind(limit(most)).fetch_all(&self.pool).await?;
        rows.iter().map(halted).collect()
    }
}

impl Mysql {
    /// Lets somebody lead again, from `epoch` on if it is a higher one, and writes down who decided it.
    async fn end(
        &self,
        connection: &mut MySqlConnection,
        decision: &Decision,
        epoch: Option<u64>,
    ) -> Result<()> {
        let ended = sqlx::query(
            self.sql("UPDATE tombolo_leader SET epoch = GREATEST(epoch, COALESCE(?, epoch)), halt = NULL WHERE halt = ?"),
        );
        let ended = ended.bind(epoch.map(|epoch| epoch as i64)).bind(decision.halt);
        if ended.execute(&mut *connection).await?.rows_affected() == 0 {
            return Err(fencing::not_halted(decision.halt));
        }
        let said = sqlx::query(self.sql(
            "UPDATE tombolo_halt SET decided = UTC_TIMESTAMP(6), decided_by = ?, choice = ? WHERE id = ?",
        ));
        let said = said.bind(&decision.by).bind(&decision.choice).bind(decision.halt);
        said.execute(connection).await?;
        Ok(())
    }

    /// Waits for every transaction that is about to publish, and lets none begin until the commit.
    async fn lock_all_stripes(&self, connection: &mut MySqlConnection) -> Result<()> {
        self.lock_stripes(connection, &(0..STRIPES).collect::<Vec<u32>>()).await
    }

    /// Remembers what is on the bus.
    async fn remember(&self, connection: &mut MySqlConnection, ids: &[EventId]) -> Result<()> {
        for some in ids.chunks(IDS_PER_STATEMENT) {
            let values = vec!["(?)"; some.len()].join(", ");
            let prefix = &self.prefix;
            let sql =
                format!("INSERT INTO {prefix}known (id) VALUES {values} ON DUPLICATE KEY UPDATE id = id");
            let mut insert = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for id in some {
                insert = insert.bind(id.0);
            }
            insert.execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Drops the rows that are on the bus, those that were kept for later or written by other programs included, and takes the others' numbers away: the
    /// next leader gives them new ones.
    async fn unnumber(
        &self,
        connection: &mut MySqlConnection,
        generations: &Generations,
        tails: &[Mark],
    ) -> Result<Adopted> {
        let unsealed = self.sql(
            "UPDATE tombolo_partition SET sealed = NULL, numbered = 0, removed_sequence = 0, removed_id = NULL",
        );
        sqlx::query(unsealed).execute(&mut *connection).await?;
        self.store_generations(connection, generations).await?;
        let dropped = "DELETE o FROM tombolo_outbox AS o JOIN tombolo_known AS k ON o.id = k.id";
        let dropped = sqlx::query(self.sql(dropped)).execute(&mut *connection).await?.rows_affected();
        let later = "DELETE l FROM tombolo_later AS l JOIN tombolo_known AS k ON l.id = k.id";
        let dropped = dropped + sqlx::query(self.sql(later)).execute(&mut *connection).await?.rows_affected();
        let dropped = dropped + self.drop_known_foreign(connection).await?;
        // Only consequences come again under the same id; a request's event never does.
        sqlx::query(self.sql("DELETE FROM tombolo_known WHERE SUBSTR(HEX(id), 13, 1) <> '5'"))
            .execute(&mut *connection)
            .await?;
        sqlx::query(self.sql("UPDATE tombolo_outbox SET sequence = NULL WHERE sequence IS NOT NULL"))
            .execute(&mut *connection)
            .await?;
        for tail in tails {
            sqlx::query(self.sql(
                "UPDATE tombolo_partition SET removed_sequence = ?, removed_id = ?, numbered = ? WHERE `partition` = ?",
            ))
            .bind(tail.sequence as i64)
            .bind(tail.id.map(|id| id.0))
            .bind(tail.sequence as i64)
            .bind(signed(tail.partition))
            .execute(&mut *connection)
            .await?;
        }
        self.seal(connection, generations).await?;
        let kept = sqlx::query(self.sql("SELECT COUNT(*) FROM tombolo_outbox"));
        Ok(Adopted { dropped, kept: unsigned(kept.fetch_one(connection).await?.try_get(0)?) })
    }

    /// The consequences among `ids` that are on the bus already. Asked under the locks of their keys.
    pub(super) async fn on_bus_already(
        &self,
        connection: &mut MySqlConnection,
        ids: &[Uuid],
    ) -> Result<Vec<Uuid>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // As it is now, whatever the transaction has seen before: a locking read.
        let mut known = QueryBuilder::new(format!("SELECT id FROM {}known WHERE id IN ", self.prefix));
        push_ids(&mut known, ids);
        known.push(" LOCK IN SHARE MODE");
        let rows = known.build().persistent(false).fetch_all(connection).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

fn counted(row: &MySqlRow) -> Result<Counted> {
    let (partition, id): (i32, Option<Uuid>) = (row.try_get(6)?, row.try_get(8)?);
    let sequence = unsigned(row.try_get(7)?);
    let removed = Mark { partition: partition.unsigned_abs(), sequence, id: id.map(EventId) };
    Ok(Counted { removed, numbered: unsigned(row.try_get(9)?) })
}

/// The halt whose columns begin at `from`.
fn halt(row: &MySqlRow, from: usize) -> Result<Option<Halt>> {
    let id: Option<Uuid> = row.try_get(from)?;
    let Some(id) = id else { return Ok(None) };
    let found_at = Timestamp::from_millisecond(row.try_get(from + 1)?).unwrap_or_default();
    Ok(Some(Halt { id, found_at, finding: row.try_get(from + 2)? }))
}

fn halted(row: &MySqlRow) -> Result<Halted> {
    let halt = halt(row, 0)?
        .ok_or_else(|| Error::new(Kind::Database, "a row of the table halt has no id, its primary key"))?;
    let (by, choice): (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let decision = by.zip(choice).map(|(by, choice)| Decision { halt: halt.id, by, choice });
    Ok(Halted { halt, decision, outcome: row.try_get(5)? })
}
