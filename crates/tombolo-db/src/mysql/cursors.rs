//! The subscriptions' half of MySQL and MariaDB.
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
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};
use uuid::Uuid;

use super::session::Session;
use super::{Mysql, signed, unsigned};
use crate::mutant::Mutant;
use crate::{Claim, CursorState, Cursors, Error, Goal, Result, StartAt, fencing};

/// The most bytes of an error's text that are kept.
const ERROR_BYTES_MAX: usize = 2_000;

#[async_trait]
impl Cursors for Mysql {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        self.lock_opening(&mut session).await?;
        self.check_not_dropped(&mut session, subscription).await?;
        let known = self.sql("SELECT event_type FROM tombolo_subscription WHERE subscription = ?");
        let known: Vec<String> =
            sqlx::query_scalar(known).bind(subscription).fetch_all(&mut *session).await?;
        let added: Vec<String> = types.iter().filter(|name| !known.contains(name)).cloned().collect();
        let is_new = known.is_empty();
        if accept || is_new || added.is_empty() {
            self.remember_types(&mut session, subscription, &added).await?;
            self.insert_cursors(&mut session, subscription, starts).await?;
        }
        session.commit().await?;
        Ok(if is_new { Vec::new() } else { added })
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()> {
        let counted = sqlx::query(self.sql(
            "UPDATE tombolo_cursor SET attempts = ?, attempt_id = ?, error = ?
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND lease_epoch = COALESCE(?, lease_epoch)",
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
            "SELECT topic, `partition`, incarnation, sequence, id FROM tombolo_cursor
             WHERE subscription = ? AND topic = ? AND `partition` = ?",
        ));
        let found = found.bind(subscription).bind(topic.as_str()).bind(signed(partition));
        found.fetch_optional(&self.pool).await?.as_ref().map(cursor).transpose()
    }

    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>> {
        if self.mutation.is(Mutant::EntersEarly) {
            return Ok(Vec::new());
        }
        let cursors = sqlx::query(self.sql(
            "SELECT topic, `partition`, incarnation, sequence, id, EXISTS (
                 SELECT 1 FROM tombolo_request AS r
                 WHERE r.subscription = c.subscription AND r.done_ms IS NULL AND r.action = 'reset'
                   AND r.topic = c.topic AND r.`partition` = c.`partition`)
             FROM tombolo_cursor AS c WHERE subscription = ?",
        ));
        let at = |row: &MySqlRow| {
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
            "SELECT topic, `partition`, incarnation, sequence, id, lease_epoch, attempts, subscription,
                    until > UTC_TIMESTAMP(6) OR EXISTS (
                        SELECT 1 FROM tombolo_member AS m
                        WHERE m.subscription = c.subscription AND m.replica = c.holder
                          AND m.until > UTC_TIMESTAMP(6)),
                    error, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', moved) DIV 1000, paused_by
             FROM tombolo_cursor AS c ORDER BY subscription, topic, `partition`",
        ));
        rows.fetch_all(&self.pool).await?.iter().map(state).collect()
    }
}

impl Mysql {
    /// Moves the cursor in the transaction of the effect.
    pub(super) async fn advance(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        to: &Cursor,
    ) -> Result<()> {
        let moved = sqlx::query(self.sql(
            "UPDATE tombolo_cursor
             SET incarnation = ?, sequence = ?, id = ?, attempts = 0, attempt_id = NULL, error = NULL,
                 moved = UTC_TIMESTAMP(6), in_hand = ?
             WHERE subscription = ? AND topic = ? AND `partition` = ?
               AND lease_epoch = COALESCE(?, lease_epoch) AND sequence = COALESCE(?, sequence)",
        ));
        let moved = moved.bind(to.incarnation.0).bind(to.sequence as i64).bind(to.id.map(|id| id.0));
        let moved = moved.bind(signed(claim.in_hand)).bind(&claim.subscription).bind(claim.topic.as_str());
        let moved = moved.bind(signed(claim.partition)).bind(self.expected_epoch(claim));
        match moved.bind(self.expected_sequence(claim)).execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.why_refused(connection, claim).await?),
            _ => Ok(()),
        }
    }

    /// Marks the partition as paused, or as not paused.
    pub(super) async fn pause(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        by: Option<&str>,
    ) -> Result<()> {
        let paused = sqlx::query(self.sql(
            "UPDATE tombolo_cursor SET paused_by = ? WHERE subscription = ? AND topic = ? AND `partition` = ?
               AND lease_epoch = COALESCE(?, lease_epoch)",
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
    pub(super) async fn why_refused(&self, connection: &mut MySqlConnection, claim: &Claim) -> Result<Error> {
        let found = sqlx::query(self.sql(
            "SELECT topic, `partition`, incarnation, sequence, id, lease_epoch FROM tombolo_cursor
             WHERE subscription = ? AND topic = ? AND `partition` = ?",
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
        connection: &mut MySqlConnection,
        subscription: &str,
        types: &[String],
    ) -> Result<()> {
        for event_type in types {
            let insert =
                self.sql("INSERT INTO tombolo_subscription (subscription, event_type) VALUES (?, ?)");
            sqlx::query(insert).bind(subscription).bind(event_type).execute(&mut *connection).await?;
        }
        Ok(())
    }

    async fn insert_cursors(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        starts: &[StartAt],
    ) -> Result<()> {
        let paused = self.sql("SELECT MAX(paused_by) FROM tombolo_cursor WHERE subscription = ?");
        let paused: Option<String> =
            sqlx::query_scalar(paused).bind(subscription).fetch_one(&mut *connection).await?;
        let read = self.sql("SELECT DISTINCT topic FROM tombolo_cursor WHERE subscription = ?");
        let read: Vec<String> =
            sqlx::query_scalar(read).bind(subscription).fetch_all(&mut *connection).await?;
        for start in starts {
            let is_read = read.iter().any(|topic| topic == start.topic.as_str());
            let cursor = if is_read { Cursor::start(start.cursor.incarnation) } else { start.cursor };
            sqlx::query(self.sql(
                "INSERT INTO tombolo_cursor (subscription, topic, `partition`, incarnation, sequence, id, paused_by)
                 VALUES (?, ?, ?, ?, ?, ?, ?) ON DUPLICATE KEY UPDATE subscription = subscription",
            ))
            .bind(subscription)
            .bind(start.topic.as_str())
            .bind(signed(start.partition))
            .bind(cursor.incarnation.0)
            .bind(cursor.sequence as i64)
            .bind(cursor.id.map(|id| id.0))
            .bind(&paused)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }
}

/// What is kept of an error's text.
pub(super) fn stored_error(error: &str) -> String {
    error[..error.floor_char_boundary(ERROR_BYTES_MAX)].to_owned()
}

fn cursor(row: &MySqlRow) -> Result<Cursor> {
    let id: Option<Uuid> = row.try_get(4)?;
    let incarnation = Incarnation(row.try_get(2)?);
    Ok(Cursor { incarnation, sequence: unsigned(row.try_get(3)?), id: id.map(EventId) })
}

pub(super) fn claim(subscription: &str, row: &MySqlRow) -> Result<Claim> {
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

fn state(row: &MySqlRow) -> Result<CursorState> {
    let topic: String = row.try_get(0)?;
    let moved_ms: Option<i64> = row.try_get(10)?;
    Ok(CursorState {
        subscription: row.try_get(7)?,
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(1)?.unsigned_abs(),
        cursor: cursor(row)?,
        held: row.try_get::<Option<bool>, _>(8)?.unwrap_or(false),
        attempts: row.try_get::<i32, _>(6)?.unsigned_abs(),
        error: row.try_get(9)?,
        moved_at: moved_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        paused_by: row.try_get(11)?,
    })
}
