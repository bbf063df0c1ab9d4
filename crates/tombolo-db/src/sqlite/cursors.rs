//! The subscriptions' half of SQLite.
//!
//! takes: claims · writes: attempts, cursors · commits: a cursor with the effect, in the transaction of
//! both; attempts in short ones of their own · if we crash here: the cursor is where the last effect
//! left it · if it repeats: the compare-and-set refuses it.
//!
//! Invariant: a cursor moves only from the claim's place and under the claim's lease epoch. Leases are for
//! liveness; a stopped worker cannot be cut off from SQLite, so while it holds a transaction open everybody waits.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};
use uuid::Uuid;

use super::outbox::unsigned;
use super::{Sqlite, views};
use crate::mutant::{Mutant, Mutation};
use crate::{Claim, CursorState, Cursors, Error, Goal, Result, StartAt, fencing};

/// The most bytes of an error's text that are kept.
pub(super) const ERROR_BYTES_MAX: usize = 2_000;

#[async_trait]
impl Cursors for Sqlite {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>> {
        self.write(&self.writer, async |connection| {
            views::check_not_dropped(connection, subscription).await?;
            let known = known_types(connection, subscription).await?;
            let added: Vec<String> = types.iter().filter(|name| !known.contains(name)).cloned().collect();
            let is_new = known.is_empty();
            if accept || is_new || added.is_empty() {
                remember_types(connection, subscription, &added).await?;
                let read = read_topics(connection, subscription).await?;
                for start in starts {
                    let is_read = read.iter().any(|topic| topic == start.topic.as_str());
                    let at = if is_read { Cursor::start(start.cursor.incarnation) } else { start.cursor };
                    insert_cursor(connection, subscription, &StartAt { cursor: at, ..start.clone() }).await?;
                }
            }
            Ok(if is_new { Vec::new() } else { added })
        })
        .await
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()> {
        let end = error.floor_char_boundary(ERROR_BYTES_MAX);
        let epoch = expected_epoch(claim, self.mutation);
        self.write(&self.upkeep, async |connection| {
            let counted = sqlx::query(
                "UPDATE tombolo_cursor
                 SET attempts = ?1, attempt_id = ?2, error = ?3
                 WHERE subscription = ?4 AND topic = ?5 AND partition = ?6 AND lease_epoch = coalesce(?7, lease_epoch)",
            );
            let counted = counted.bind(attempt).bind(event.0).bind(&error[..end]).bind(&claim.subscription);
            let counted = counted.bind(claim.topic.as_str()).bind(claim.partition).bind(epoch);
            match counted.execute(&mut *connection).await?.rows_affected() {
                0 => Err(why_refused(connection, claim).await?),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn cursor(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
    ) -> Result<Option<Cursor>> {
        let found = sqlx::query(
            "SELECT topic, partition, incarnation, sequence, id FROM tombolo_cursor
             WHERE subscription = ? AND topic = ? AND partition = ?",
        );
        let found = found.bind(subscription).bind(topic.as_str()).bind(partition);
        found.fetch_optional(&self.pool).await?.as_ref().map(cursor).transpose()
    }

    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>> {
        if self.mutation.is(Mutant::EntersEarly) {
            return Ok(Vec::new());
        }
        let cursors = sqlx::query(
            "SELECT topic, partition, incarnation, sequence, id, EXISTS (
                 SELECT 1 FROM tombolo_request AS r
                 WHERE r.subscription = c.subscription AND r.done_ms IS NULL AND r.action = 'reset'
                   AND r.topic = c.topic AND r.partition = c.partition)
             FROM tombolo_cursor AS c WHERE subscription = ?",
        );
        let at = |row: &SqliteRow| {
            let (topic, partition, cursor) = (row.try_get::<String, _>(0)?, row.try_get(1)?, cursor(row)?);
            let Cursor { incarnation, sequence, .. } = cursor;
            Ok((Goal { topic: ServiceName::new(topic)?, partition, incarnation, sequence }, row.try_get(5)?))
        };
        let cursors = cursors.bind(subscription).fetch_all(&self.pool).await?;
        let cursors: Vec<_> = cursors.iter().map(at).collect::<Result<_>>()?;
        Ok(crate::views::not_reached(places, &cursors))
    }

    async fn cursors(&self) -> Result<Vec<CursorState>> {
        let rows = sqlx::query(
            "SELECT topic, partition, incarnation, sequence, id, lease_epoch, attempts, subscription,
                    until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER) OR EXISTS (
                        SELECT 1 FROM tombolo_member AS m
                        WHERE m.subscription = tombolo_cursor.subscription AND m.replica = holder
                          AND m.until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)),
                    error, moved_ms, paused_by
             FROM tombolo_cursor ORDER BY subscription, topic, partition",
        );
        rows.fetch_all(&self.pool).await?.iter().map(state).collect()
    }
}

/// Moves the cursor in the transaction of the effect.
pub(super) async fn advance(
    connection: &mut SqliteConnection,
    claim: &Claim,
    to: &Cursor,
    mutation: Mutation,
) -> Result<()> {
    let moved = sqlx::query(
        "UPDATE tombolo_cursor
         SET incarnation = ?1, sequence = ?2, id = ?3, attempts = 0, attempt_id = NULL, error = NULL,
             moved_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER), in_hand = ?9
         WHERE subscription = ?4 AND topic = ?5 AND partition = ?6
           AND lease_epoch = coalesce(?7, lease_epoch) AND sequence = coalesce(?8, sequence)",
    );
    let moved = moved.bind(to.incarnation.0).bind(to.sequence as i64).bind(to.id.map(|id| id.0));
    let moved = moved.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    let moved = moved.bind(expected_epoch(claim, mutation)).bind(expected_sequence(claim, mutation));
    let moved = moved.bind(claim.in_hand);
    match moved.execute(&mut *connection).await?.rows_affected() {
        0 => Err(why_refused(connection, claim).await?),
        _ => Ok(()),
    }
}

/// Marks the partition as paused, or as not paused.
pub(super) async fn pause(
    connection: &mut SqliteConnection,
    claim: &Claim,
    by: Option<&str>,
    mutation: Mutation,
) -> Result<()> {
    let paused = sqlx::query(
        "UPDATE tombolo_cursor SET paused_by = ? WHERE subscription = ? AND topic = ? AND partition = ?
           AND lease_epoch = coalesce(?, lease_epoch)",
    );
    let paused = paused.bind(by).bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    match paused.bind(expected_epoch(claim, mutation)).execute(&mut *connection).await?.rows_affected() {
        0 => Err(why_refused(connection, claim).await?),
        _ => Ok(()),
    }
}

pub(super) fn expected_sequence(claim: &Claim, mutation: Mutation) -> Option<i64> {
    if mutation.is(Mutant::NoCursorCheck) { None } else { Some(claim.cursor.sequence as i64) }
}

pub(super) fn expected_epoch(claim: &Claim, mutation: Mutation) -> Option<i64> {
    let unchecked = mutation.is(Mutant::NoFencing) || mutation.is(Mutant::NoCursorCheck);
    if unchecked { None } else { Some(claim.lease_epoch as i64) }
}

/// What kept a guarded update from happening.
pub(super) async fn why_refused(connection: &mut SqliteConnection, claim: &Claim) -> Result<Error> {
    let found = sqlx::query(
        "SELECT topic, partition, incarnation, sequence, id, lease_epoch, attempts FROM tombolo_cursor
         WHERE subscription = ? AND topic = ? AND partition = ?",
    );
    let found = found.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    let Some(row) = found.fetch_optional(connection).await? else { return Ok(fencing::no_cursor(claim)) };
    let epoch = unsigned(row.try_get(5)?);
    Ok(match epoch == claim.lease_epoch {
        true => fencing::moved(claim, &cursor(&row)?),
        false => fencing::lease_lost(claim, epoch),
    })
}

async fn insert_cursor(connection: &mut SqliteConnection, subscription: &str, start: &StartAt) -> Result<()> {
    sqlx::query(
        "INSERT INTO tombolo_cursor (subscription, topic, partition, incarnation, sequence, id, paused_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT max(paused_by) FROM tombolo_cursor WHERE subscription = ?1))
         ON CONFLICT DO NOTHING",
    )
    .bind(subscription)
    .bind(start.topic.as_str())
    .bind(start.partition)
    .bind(start.cursor.incarnation.0)
    .bind(start.cursor.sequence as i64)
    .bind(start.cursor.id.map(|id| id.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// The topics that a subscription has cursors of.
async fn read_topics(connection: &mut SqliteConnection, subscription: &str) -> Result<Vec<String>> {
    let read = sqlx::query_scalar("SELECT DISTINCT topic FROM tombolo_cursor WHERE subscription = ?");
    Ok(read.bind(subscription).fetch_all(connection).await?)
}

async fn known_types(connection: &mut SqliteConnection, subscription: &str) -> Result<Vec<String>> {
    let known = sqlx::query_scalar("SELECT event_type FROM tombolo_subscription WHERE subscription = ?");
    Ok(known.bind(subscription).fetch_all(connection).await?)
}

async fn remember_types(
    connection: &mut SqliteConnection,
    subscription: &str,
    types: &[String],
) -> Result<()> {
    for name in types {
        sqlx::query("INSERT INTO tombolo_subscription (subscription, event_type) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(subscription)
            .bind(name)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

fn cursor(row: &SqliteRow) -> Result<Cursor> {
    let id: Option<Uuid> = row.try_get(4)?;
    let incarnation = Incarnation(row.try_get(2)?);
    Ok(Cursor { incarnation, sequence: unsigned(row.try_get(3)?), id: id.map(EventId) })
}

pub(super) fn claim(subscription: &str, row: &SqliteRow) -> Result<Claim> {
    let topic: String = row.try_get(0)?;
    Ok(Claim {
        subscription: subscription.to_owned(),
        topic: ServiceName::new(topic)?,
        partition: row.try_get(1)?,
        lease_epoch: unsigned(row.try_get(5)?),
        cursor: cursor(row)?,
        attempts: row.try_get(6)?,
        attempted: row.try_get::<Option<Uuid>, _>(7)?.map(EventId),
        abandoned: row.try_get(8)?,
        in_hand: row.try_get(9)?,
        paused_by: row.try_get(10)?,
    })
}

fn state(row: &SqliteRow) -> Result<CursorState> {
    let topic: String = row.try_get(0)?;
    let moved_ms: Option<i64> = row.try_get(10)?;
    Ok(CursorState {
        subscription: row.try_get(7)?,
        topic: ServiceName::new(topic)?,
        partition: row.try_get(1)?,
        cursor: cursor(row)?,
        held: row.try_get(8)?,
        attempts: row.try_get(6)?,
        error: row.try_get(9)?,
        moved_at: moved_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        paused_by: row.try_get(11)?,
    })
}
