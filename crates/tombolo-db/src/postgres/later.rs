//! What is published for later, in PostgreSQL.
//!
//! takes: events with a due time · writes: the table of later, then the outbox · commits: with the transaction that
//! publishes; moved under the lock of the leader's row, in one synced transaction · if we crash here: it is in one of
//! the two tables, never in both or none · if it repeats: what was moved is not there to be moved again.
//!
//! A move locks as a commit does: first the stripes, then rows, and rows that a withdrawing transaction holds it does not wait for,
//! so no transaction can wait for it in a circle.
//!
//! Invariant: what is moved takes its position under the lock of its key's stripe, in the order in which it is due.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::{EventId, KeyHash};
use uuid::Uuid;

use super::Postgres;
use super::transaction::{chunks, lost};
use crate::due::{Found, movable};
use crate::outgoing::{Row, sorted_stripes};
use crate::port::{STRIPES, due_us};
use crate::{Result, RoundLimit};

impl Postgres {
    /// Keeps events until they are due. One that is kept already, under the same id, is the same.
    pub(super) async fn keep(&self, connection: &mut PgConnection, later: &[Row]) -> Result<()> {
        for some in chunks(&later.iter().collect::<Vec<_>>()) {
            let ids: Vec<Uuid> = some.iter().map(|row| row.id.0).collect();
            let due: Vec<Option<i64>> = some.iter().map(|row| row.due.map(due_us)).collect();
            let keys: Vec<i64> = some.iter().map(|row| row.key_hash.0.cast_signed()).collect();
            let types: Vec<&str> = some.iter().map(|row| row.event_type.as_str()).collect();
            let bytes: Vec<&[u8]> = some.iter().map(|row| &row.bytes[..]).collect();
            sqlx::query(self.sql(
                "INSERT INTO tombolo.later (id, due_us, key_hash, event_type, bytes, size)
                 SELECT id, due_us, key_hash, event_type, bytes, octet_length(bytes)
                 FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[])
                      WITH ORDINALITY AS e (id, due_us, key_hash, event_type, bytes, place) ORDER BY place
                 ON CONFLICT (id) DO NOTHING",
            ))
            .bind(ids)
            .bind(due)
            .bind(keys)
            .bind(types)
            .bind(bytes)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// Takes one back; whether it was there.
    pub(super) async fn withdraw(&self, connection: &mut PgConnection, id: EventId) -> Result<bool> {
        let gone = sqlx::query(self.sql("DELETE FROM tombolo.later WHERE id = $1")).bind(id.0);
        Ok(gone.execute(connection).await?.rows_affected() > 0)
    }

    /// Locks what is due at `now`, by when it is: one however large, and no more than the limit.
    pub(super) async fn lock_due(
        &self,
        connection: &mut PgConnection,
        now: Timestamp,
        limit: RoundLimit,
    ) -> Result<Vec<Row>> {
        let found = self.find_due(connection, now, limit).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let stripes = sorted_stripes(found.iter().map(|found| found.key_hash), STRIPES);
        if self.lock_stripes(connection, stripes).await?.is_none() {
            return Err(lost());
        }
        let nths: Vec<i64> = found.iter().map(|found| found.nth).collect();
        let locked = sqlx::query(self.sql(
            "SELECT nth, id, key_hash, event_type, bytes FROM tombolo.later
             WHERE nth = ANY($1) ORDER BY due_us, nth FOR UPDATE SKIP LOCKED",
        ));
        let locked = locked.bind(nths).fetch_all(connection).await?;
        let free: BTreeSet<i64> = locked.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
        let movable = movable(&found, &free);
        let is_movable = |row: &&PgRow| row.try_get(0).is_ok_and(|nth: i64| movable.contains(&nth));
        locked.iter().filter(is_movable).map(due_row).collect()
    }

    async fn find_due(
        &self,
        connection: &mut PgConnection,
        now: Timestamp,
        limit: RoundLimit,
    ) -> Result<Vec<Found>> {
        let found = sqlx::query(self.sql(
            "SELECT nth, key_hash FROM (
                 SELECT nth, key_hash, due_us, row_number() OVER w AS place, sum(size) OVER w AS total
                 FROM (SELECT nth, key_hash, due_us, size FROM tombolo.later
                       WHERE due_us <= $1 ORDER BY due_us, nth LIMIT $2) AS due
                 WINDOW w AS (ORDER BY due_us, nth)) AS due
             WHERE place = 1 OR total <= $3 ORDER BY due_us, nth",
        ));
        let found = found.bind(now.as_microsecond());
        let found = found.bind(limit.rows.max(1) as i64).bind(limit.bytes as i64);
        let read = |row: &PgRow| {
            let key_hash: i64 = row.try_get(1)?;
            Ok(Found { nth: row.try_get(0)?, key_hash: KeyHash(key_hash.cast_unsigned()) })
        };
        found.fetch_all(connection).await?.iter().map(read).collect()
    }

    /// Removes what was moved from where it was kept.
    pub(super) async fn remove_later(&self, connection: &mut PgConnection, moved: &[Row]) -> Result<()> {
        let ids: Vec<Uuid> = moved.iter().map(|row| row.id.0).collect();
        sqlx::query(self.sql("DELETE FROM tombolo.later WHERE id = ANY($1)"))
            .bind(ids)
            .execute(connection)
            .await?;
        Ok(())
    }
}

fn due_row(row: &PgRow) -> Result<Row> {
    let (key_hash, bytes): (i64, Vec<u8>) = (row.try_get(2)?, row.try_get(4)?);
    Ok(Row {
        id: EventId(row.try_get(1)?),
        key_hash: KeyHash(key_hash.cast_unsigned()),
        event_type: row.try_get(3)?,
        bytes: bytes.into(),
        due: None,
    })
}
