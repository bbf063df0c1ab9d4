//! What is published for later, in MySQL and MariaDB.
//!
//! takes: events with a due time · writes: the table of later, then the outbox · commits: with the transaction that
//! publishes; moved under the lock of the leader's row, in one synced transaction · if we crash here: it is in one of
//! the two tables, never in both or none · if it repeats: what was moved is not there to be moved again.
//!
//! A move locks as a commit does: first the stripes, then rows, and rows that a withdrawing transaction holds it does not wait
//! for, so no transaction can wait for it in a circle.
//!
//! Invariant: what is moved takes its position under the lock of its key's stripe, in the order in which it is due.

use jiff::Timestamp;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, QueryBuilder, Row as _};
use tombolo_event::{EventId, KeyHash};
use uuid::Uuid;

use super::outbox::{next_due, push_ids};
use super::transaction::chunks;
use super::{Mysql, limit as bound, unsigned};
use crate::due::{Found, movable};
use crate::outgoing::{Row, sorted_stripes};
use crate::port::{STRIPES, due_us};
use crate::{Depth, Result, RoundLimit};

impl Mysql {
    /// Keeps events until they are due. One that is kept already, under the same id, is the same.
    pub(super) async fn keep(&self, connection: &mut MySqlConnection, later: &[Row]) -> Result<()> {
        for some in chunks(&later.iter().collect::<Vec<_>>()) {
            let values = vec!["(?, ?, ?, ?, ?, ?)"; some.len()].join(", ");
            let sql = format!(
                "INSERT INTO {}later (id, due_us, key_hash, event_type, bytes, size) VALUES {values}
                 ON DUPLICATE KEY UPDATE due_us = due_us",
                self.prefix
            );
            let mut insert = sqlx::query(AssertSqlSafe(sql));
            for row in some {
                insert = insert.bind(row.id.0).bind(row.due.map(due_us)).bind(row.key_hash.0.cast_signed());
                insert = insert.bind(&row.event_type).bind(&row.bytes[..]).bind(row.bytes.len() as i64);
            }
            insert.execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Takes one back; whether it was there.
    pub(super) async fn withdraw(&self, connection: &mut MySqlConnection, id: EventId) -> Result<bool> {
        let gone = sqlx::query(self.sql("DELETE FROM tombolo_later WHERE id = ?")).bind(id.0);
        Ok(gone.execute(connection).await?.rows_affected() > 0)
    }

    /// Locks what is due at `now`, by when it is: one however large, and no more than the limit.
    pub(super) async fn lock_due(
        &self,
        connection: &mut MySqlConnection,
        now: Timestamp,
        limit: RoundLimit,
    ) -> Result<Vec<Row>> {
        let found = self.find_due(connection, now, limit).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let stripes = sorted_stripes(found.iter().map(|found| found.key_hash), STRIPES);
        self.lock_stripes(connection, &stripes).await?;
        let mut lock = QueryBuilder::new(format!(
            "SELECT nth, id, key_hash, event_type, bytes FROM {}later WHERE nth IN (",
            self.prefix
        ));
        let mut nths = lock.separated(", ");
        found.iter().for_each(|found| {
            nths.push_bind(found.nth);
        });
        lock.push(") ORDER BY due_us, nth FOR UPDATE SKIP LOCKED");
        let locked = lock.build().persistent(false).fetch_all(connection).await?;
        let free = locked.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
        let movable = movable(&found, &free);
        let is_movable = |row: &&MySqlRow| row.try_get(0).is_ok_and(|nth: i64| movable.contains(&nth));
        locked.iter().filter(is_movable).map(due_row).collect()
    }

    async fn find_due(
        &self,
        connection: &mut MySqlConnection,
        now: Timestamp,
        limit: RoundLimit,
    ) -> Result<Vec<Found>> {
        let found = sqlx::query(self.sql(
            "SELECT nth, key_hash FROM (
                 SELECT nth, key_hash, due_us, ROW_NUMBER() OVER w AS place, SUM(size) OVER w AS total
                 FROM (SELECT nth, key_hash, due_us, size FROM tombolo_later
                       WHERE due_us <= ? ORDER BY due_us, nth LIMIT ?) AS some
                 WINDOW w AS (ORDER BY due_us, nth)) AS due
             WHERE place = 1 OR total <= ? ORDER BY due_us, nth",
        ));
        let found = found.bind(now.as_microsecond());
        let found = found.bind(bound(limit.rows.max(1))).bind(bound(limit.bytes));
        let read = |row: &MySqlRow| {
            let key_hash: i64 = row.try_get(1)?;
            Ok(Found { nth: row.try_get(0)?, key_hash: KeyHash(key_hash.cast_unsigned()) })
        };
        found.fetch_all(connection).await?.iter().map(read).collect()
    }

    /// Removes what was moved from where it was kept.
    pub(super) async fn remove_later(&self, connection: &mut MySqlConnection, moved: &[Row]) -> Result<()> {
        if moved.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = moved.iter().map(|row| row.id.0).collect();
        let mut gone = QueryBuilder::new(format!("DELETE FROM {}later WHERE id IN ", self.prefix));
        push_ids(&mut gone, &ids);
        gone.build().persistent(false).execute(connection).await?;
        Ok(())
    }

    /// What is kept for later: counted up to `exact` rows, beyond them estimated from what the server last counted.
    pub(super) async fn later_depth(&self, exact: i64) -> Result<Depth> {
        let row = sqlx::query(self.sql(
            "SELECT COUNT(*), CAST(COALESCE(SUM(size), 0) AS SIGNED), (SELECT MIN(due_us) FROM tombolo_later)
             FROM (SELECT size FROM tombolo_later LIMIT ?) AS kept",
        ));
        let row = row.bind(exact).fetch_one(&self.pool).await?;
        let (rows, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let scale = if rows < exact { 1.0 } else { (self.later_estimate().await? / rows as f64).max(1.0) };
        Ok(Depth {
            later_rows: (rows as f64 * scale) as u64,
            later_bytes: (bytes as f64 * scale) as u64,
            next_due: next_due(&row, 2)?,
            ..Depth::default()
        })
    }

    async fn later_estimate(&self) -> Result<f64> {
        let rows = sqlx::query_scalar(
            "SELECT CAST(COALESCE(MAX(table_rows), 0) AS SIGNED) FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name = ?",
        );
        let rows: i64 = rows.bind(format!("{}later", self.prefix)).fetch_one(&self.pool).await?;
        Ok(unsigned(rows) as f64)
    }
}

fn due_row(row: &MySqlRow) -> Result<Row> {
    let (key_hash, bytes): (i64, Vec<u8>) = (row.try_get(2)?, row.try_get(4)?);
    Ok(Row {
        id: EventId(row.try_get(1)?),
        key_hash: KeyHash(key_hash.cast_unsigned()),
        event_type: row.try_get(3)?,
        bytes: bytes.into(),
        due: None,
    })
}
