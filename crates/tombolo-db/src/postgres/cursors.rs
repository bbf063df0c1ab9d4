//! The subscriptions' half of PostgreSQL.
//!
//! takes: claims · writes: attempts, cursors · commits: a cursor with the effect, in the transaction of
//! both; attempts in short ones of their own · if we crash here: the cursor is where the last effect
//! left it · if it repeats: the compare-and-set refuses it.
//!
//! Invariant: a cursor moves only from the claim's place and under the claim's lease epoch. Leases are for
//! liveness, by the server's clock; a holder that stops inside a transaction is cut off by the server.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};
use uuid::Uuid;

use super::{Postgres, signed, unsigned};
use crate::mutant::Mutant;
use crate::{Claim, CursorState, Cursors, Error, Goal, Result, StartAt, fencing};

/// The most bytes of an error's text that are kept.
const ERROR_BYTES_MAX: usize = 2_000;

#[async_trait]
impl Cursors for Postgres {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>> {
        let mut transaction = self.pool.begin().await?;
        self.lock_schema(&mut transaction).await?;
        self.check_not_dropped(&mut transaction, subscription).await?;
        let known = sqlx::query_scalar(
            self.sql("SELECT event_type FROM tombolo.subscription WHERE subscription = $1"),
        );
        let known: Vec<String> = known.bind(subscription).fetch_all(&mut *transaction).await?;
        let added: Vec<String> = types.iter().filter(|name| !known.contains(name)).cloned().collect();
        let is_new = known.is_empty();
        if accept || is_new || added.is_empty() {
            self.remember_types(&mut transaction, subscription, &added).await?;
            self.insert_cursors(&mut transaction, subscription, starts).await?;
        }
        transaction.commit().await?;
        Ok(if is_new { Vec::new() } else { added })
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()> {
        let counted = sqlx::query(self.sql(
            "UPDATE tombolo.cursor
             SET attempts = $1, attempt_id = $2, error = $3
             WHERE subscription = $4 AND topic = $5 AND partition = $6 AND lease_epoch = coalesce($7, lease_epoch)",
        ));
        let counted =
            counted.bind(signed(attempt)).bind(event.0).bind(stored_error(error)).bind(&claim.subscription);
        let counted = counted.bind(claim.topic.as_str()).bind(signed(claim.partition));
        let mut connection = self.pool.acquire().await?;
        match counted.bind(self.expected_epoch(claim)).execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.why_refused(&mut connection, claim).await?),
            _ => Ok(()),
        }
    }

    async fn cursor(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
    ) -> Result<Option<Cursor>> {
        let found = sqlx::query(self.sql(
            "SELECT topic, partition, incarnation, sequence, id FROM tombolo.cursor
             WHERE subscription = $1 AND topic = $2 AND partition = $3",
        ));
        let found = found.bind(subscription).bind(topic.as_str()).bind(signed(partition));
        found.fetch_optional(&self.pool).await?.as_ref().map(cursor).transpose()
    }

    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>> {
        if self.mutation.is(Mutant::EntersEarly) {
            return Ok(Vec::new());
        }
        let cursors = sqlx::query(self.sql(
            "SELECT topic, partition, incarnation, sequence, id, EXISTS (
                 SELECT 1 FROM tombolo.request AS r
                 WHERE r.subscription = c.subscription AND r.done_ms IS NULL AND r.action = 'reset'
                   AND r.topic = c.topic AND r.partition = c.partition)
             FROM tombolo.cursor AS c WHERE subscription = $1",
        ));
        let at = |row: &PgRow| {
            let (topic, partition): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
            let Cursor { incarnation, sequence, .. } = cursor(row)?;
            let (topic, partition) = (ServiceName::new(topic)?, partition.unsigned_abs());
            Ok((Goal { topic, partition, incarnation, sequence }, row.try_get(5)?))
        };
        let cursors = cursors.bind(subscription).fetch_all(&self.pool).await?;
        let cursors: Vec<_> = cursors.iter().map(at).collect::<Result<_>>()?;
        Ok(crate::views::not_reached(places, &cursors))
    }

    async fn cursors(&self) -> Result<Vec<CursorState>> {
        let rows = sqlx::query(self.sql(
            "SELECT topic, partition, incarnation, sequence, id, lease_epoch, attempts, subscription,
                    until > clock_timestamp() OR EXISTS (
                        SELECT 1 FROM tombolo.member AS m
                        WHERE m.subscription = c.subscription AND m.replica = c.holder
                          AND m.until > clock_timestamp()),
                    error, (extract(epoch FROM moved) * 1000)::bigint, paused_by
             FROM tombolo.cursor AS c ORDER BY subscription, topic, partition",
        ));
        rows.fetch_all(&self.pool).await?.iter().map(state).collect()
    }
}

impl Postgres {
    /// Moves the cursor in the transaction of the effect.
    pub(super) async fn advance(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        to: &Cursor,
    ) -> Result<()> {
        let moved = sqlx::query(self.sql(
            "UPDATE tombolo.cursor
             SET incarnation = $1, sequence = $2, id = $3, attempts = 0, attempt_id = NULL, error = NULL,
                 moved = clock_timestamp(), in_hand = $9
             WHERE subscription = $4 AND topic = $5 AND partition = $6
               AND lease_epoch = coalesce($7, lease_epoch) AND sequence = coalesce($8, sequence)",
        ));
        let moved = moved.bind(to.incarnation.0).bind(to.sequence as i64).bind(to.id.map(|id| id.0));
        let moved = moved.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let moved = moved.bind(self.expected_epoch(claim)).bind(self.expected_sequence(claim));
        let moved = moved.bind(signed(claim.in_hand));
        match moved.execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.why_refused(connection, claim).await?),
            _ => Ok(()),
        }
    }

    /// Marks the partition as paused, or as not paused.
    pub(super) async fn pause(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        by: Option<&str>,
    ) -> Result<()> {
        let paused = sqlx::query(self.sql(
            "UPDATE tombolo.cursor SET paused_by = $1 WHERE subscription = $2 AND topic = $3 AND partition = $4
               AND lease_epoch = coalesce($5, lease_epoch)",
        ));
        let paused = paused.bind(by.map(stored_error)).bind(&claim.subscription).bind(claim.topic.as_str());
        let paused = paused.bind(signed(claim.partition)).bind(self.expected_epoch(claim));
        match paused.execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.why_refused(connection, claim).await?),
            _ => Ok(()),
        }
    }

    pub(super) fn expected_sequence(&self, claim: &Claim) -> Option<i64> {
        let unchecked = self.mutation.is(Mutant::NoCursorCheck);
        if unchecked { None } else { Some(claim.cursor.sequence as i64) }
    }

    pub(super) fn expected_epoch(&self, claim: &Claim) -> Option<i64> {
        let unchecked = self.mutation.is(Mutant::NoFencing) || self.mutation.is(Mutant::NoCursorCheck);
        if unchecked { None } else { Some(claim.lease_epoch as i64) }
    }

    /// What kept a guarded update from happening.
    pub(super) async fn why_refused(&self, connection: &mut PgConnection, claim: &Claim) -> Result<Error> {
        let found = sqlx::query(self.sql(
            "SELECT topic, partition, incarnation, sequence, id, lease_epoch, attempts FROM tombolo.cursor
             WHERE subscription = $1 AND topic = $2 AND partition = $3",
        ));
        let found = found.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let Some(row) = found.fetch_optional(connection).await? else { return Ok(fencing::no_cursor(claim)) };
        let epoch = unsigned(row.try_get(5)?);
        Ok(match epoch == claim.lease_epoch {
            true => fencing::moved(claim, &cursor(&row)?),
            false => fencing::lease_lost(claim, epoch),
        })
    }

    async fn remember_types(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        types: &[String],
    ) -> Result<()> {
        let insert = sqlx::query(self.sql(
            "INSERT INTO tombolo.subscription (subscription, event_type)
             SELECT $1, * FROM unnest($2::text[]) ON CONFLICT DO NOTHING",
        ));
        insert.bind(subscription).bind(types).execute(connection).await?;
        Ok(())
    }

    async fn insert_cursors(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        starts: &[StartAt],
    ) -> Result<()> {
        let read =
            sqlx::query_scalar(self.sql("SELECT DISTINCT topic FROM tombolo.cursor WHERE subscription = $1"));
        let read: Vec<String> = read.bind(subscription).fetch_all(&mut *connection).await?;
        for start in starts {
            let is_read = read.iter().any(|topic| topic == start.topic.as_str());
            let cursor = if is_read { Cursor::start(start.cursor.incarnation) } else { start.cursor };
            sqlx::query(self.sql(
                "INSERT INTO tombolo.cursor (subscription, topic, partition, incarnation, sequence, id, paused_by)
                 VALUES ($1, $2, $3, $4, $5, $6, (SELECT max(paused_by) FROM tombolo.cursor WHERE subscription = $1))
                 ON CONFLICT DO NOTHING",
            ))
            .bind(subscription)
            .bind(start.topic.as_str())
            .bind(signed(start.partition))
            .bind(cursor.incarnation.0)
            .bind(cursor.sequence as i64)
            .bind(cursor.id.map(|id| id.0))
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }
}

/// What is kept of an error's text.
pub(super) fn stored_error(error: &str) -> String {
    error[..error.floor_char_boundary(ERROR_BYTES_MAX)].replace('\0', "")
}

fn cursor(row: &PgRow) -> Result<Cursor> {
    let id: Option<Uuid> = row.try_get(4)?;
    let incarnation = Incarnation(row.try_get(2)?);
    Ok(Cursor { incarnation, sequence: unsigned(row.try_get(3)?), id: id.map(EventId) })
}

pub(super) fn claim(subscription: &str, row: &PgRow) -> Result<Claim> {
    let topic: String = row.try_get(0)?;
    Ok(Claim {
        subscription: subscription.to_owned(),
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(1)?.unsigned_abs(),
        lease_epoch: unsigned(row.try_get(5)?),
        cursor: cursor(row)?,
        attempts: row.try_get::<i32, _>(6)?.unsigned_abs(),
        attempted: row.try_get::<Option<Uuid>, _>(7)?.map(EventId),
        abandoned: row.try_get(8)?,
        in_hand: row.try_get::<i32, _>(9)?.unsigned_abs(),
        paused_by: row.try_get(10)?,
    })
}

fn state(row: &PgRow) -> Result<CursorState> {
    let topic: String = row.try_get(0)?;
    let moved_ms: Option<i64> = row.try_get(10)?;
    Ok(CursorState {
        subscription: row.try_get(7)?,
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(1)?.unsigned_abs(),
        cursor: cursor(row)?,
        held: row.try_get(8)?,
        attempts: row.try_get::<i32, _>(6)?.unsigned_abs(),
        error: row.try_get(9)?,
        moved_at: moved_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        paused_by: row.try_get(11)?,
    })
}
