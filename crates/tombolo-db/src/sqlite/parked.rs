//! What waits parked, in SQLite.
//!
//! takes: events that could not be handled, and those behind them · writes: one row each · commits: with the cursor that
//! moves over it, and its removal with its effect · if we crash here: the cursor and the row say the same · if it
//! repeats: the cursor has moved, or the row is gone, so the repeat is refused.
//!
//! Invariant: only the holder of the lease changes anything here, in the transaction that proves that it is.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::{EventId, KeyHash, ServiceName};

use super::Sqlite;
use super::cursors::{ERROR_BYTES_MAX, expected_epoch, why_refused};
use super::outbox::unsigned;
use crate::mutant::{Mutant, Mutation};
use crate::port::parked::{ParkedCount, ParkedEvent, ParkedFilter, ParkedHead, Parking, Tries, not_parked};
use crate::{Claim, Result};

#[async_trait]
impl Parking for Sqlite {
    async fn parked_heads(&self, subscription: &str) -> Result<Vec<ParkedHead>> {
        // With min() SQLite takes the other columns from the row of the smallest.
        let heads = sqlx::query(
            "SELECT topic, partition, key_hash, count(*), parked_ms, attempts, unfinished, error, retry_ms, min(sequence)
             FROM tombolo_parked WHERE subscription = ? GROUP BY topic, partition, key_hash",
        );
        heads.bind(subscription).fetch_all(&self.pool).await?.iter().map(head).collect()
    }

    async fn parked_of(&self, claim: &Claim, key: KeyHash, most: usize) -> Result<Vec<ParkedEvent>> {
        let rows = sqlx::query(
            "SELECT subscription, topic, partition, sequence, id, key_hash, event_type, bytes, parked_ms,
                    attempts, unfinished, error, retry_ms
             FROM tombolo_parked WHERE subscription = ? AND topic = ? AND partition = ? AND key_hash = ?
             ORDER BY sequence LIMIT ?",
        );
        let rows = rows.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
        let rows = rows.bind(key.0 as i64).bind(i64::try_from(most).unwrap_or(i64::MAX));
        rows.fetch_all(&self.pool).await?.iter().map(event).collect()
    }

    async fn record_tries(&self, claim: &Claim, sequence: u64, tries: &Tries) -> Result<()> {
        let epoch = expected_epoch(claim, self.mutation);
        self.write(&self.upkeep, async |connection| {
            let recorded = sqlx::query(
                "UPDATE tombolo_parked SET attempts = ?1, unfinished = ?2, error = ?3, retry_ms = ?4
                 WHERE subscription = ?5 AND topic = ?6 AND partition = ?7 AND sequence = ?8
                   AND EXISTS (SELECT 1 FROM tombolo_cursor WHERE subscription = ?5 AND topic = ?6
                               AND partition = ?7 AND lease_epoch = coalesce(?9, lease_epoch))",
            );
            let error =
                tries.error.as_ref().map(|error| &error[..error.floor_char_boundary(ERROR_BYTES_MAX)]);
            let recorded = recorded.bind(tries.attempts).bind(tries.unfinished).bind(error);
            let recorded = recorded.bind(tries.retry_at.map(Timestamp::as_millisecond));
            let recorded = recorded.bind(&claim.subscription).bind(claim.topic.as_str());
            let recorded = recorded.bind(claim.partition).bind(sequence as i64).bind(epoch);
            match recorded.execute(&mut *connection).await?.rows_affected() {
                0 => Err(refused(connection, claim, sequence).await?),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn is_parked(&self, subscription: &str, topic: &ServiceName, key: KeyHash) -> Result<bool> {
        let parked = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM tombolo_parked WHERE subscription = ? AND topic = ? AND key_hash = ?)",
        );
        let parked = parked.bind(subscription).bind(topic.as_str()).bind(key.0 as i64);
        Ok(parked.fetch_one(&self.pool).await?)
    }

    async fn parked(&self, filter: &ParkedFilter, most: usize) -> Result<Vec<ParkedEvent>> {
        let rows = sqlx::query(
            "SELECT subscription, topic, partition, sequence, id, key_hash, event_type, bytes, parked_ms,
                    attempts, unfinished, error, retry_ms
             FROM tombolo_parked
             WHERE subscription = coalesce(?, subscription) AND key_hash = coalesce(?, key_hash) AND id = coalesce(?, id)
             ORDER BY subscription, topic, partition, sequence LIMIT ?",
        );
        let rows = rows.bind(&filter.subscription).bind(filter.key_hash.map(|key| key.0 as i64));
        let rows = rows.bind(filter.id.map(|id| id.0)).bind(i64::try_from(most).unwrap_or(i64::MAX));
        rows.fetch_all(&self.pool).await?.iter().map(event).collect()
    }

    async fn parked_counts(&self) -> Result<Vec<ParkedCount>> {
        let counts = sqlx::query(
            "SELECT subscription, count(DISTINCT topic || '/' || key_hash), count(*), min(parked_ms)
             FROM tombolo_parked GROUP BY subscription ORDER BY subscription",
        );
        let count = |row: &SqliteRow| {
            Ok(ParkedCount {
                subscription: row.try_get(0)?,
                keys: unsigned(row.try_get(1)?),
                events: unsigned(row.try_get(2)?),
                oldest: Timestamp::from_millisecond(row.try_get(3)?).ok(),
            })
        };
        counts.fetch_all(&self.pool).await?.iter().map(count).collect()
    }
}

/// Writes parked events; the cursor that moves over them is what guards it.
pub(super) async fn park(
    connection: &mut SqliteConnection,
    events: &[ParkedEvent],
    mutation: Mutation,
) -> Result<()> {
    let only_heads = mutation.is(Mutant::ParkWithoutFollowers);
    for event in events.iter().filter(|event| event.tries.attempts > 0 || !only_heads) {
        let insert = sqlx::query(
            "INSERT INTO tombolo_parked (subscription, topic, partition, sequence, id, key_hash, event_type, bytes,
                                         parked_ms, attempts, unfinished, error, retry_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        );
        let tries = &event.tries;
        let error = tries.error.as_ref().map(|error| &error[..error.floor_char_boundary(ERROR_BYTES_MAX)]);
        let insert = insert.bind(&event.subscription).bind(event.topic.as_str()).bind(event.partition);
        let insert = insert.bind(event.sequence as i64).bind(event.id.0).bind(event.key_hash.0 as i64);
        let insert = insert.bind(&event.event_type).bind(&event.bytes[..]);
        let insert = insert.bind(event.parked_at.as_millisecond()).bind(tries.attempts);
        let insert = insert.bind(tries.unfinished).bind(error);
        insert.bind(tries.retry_at.map(Timestamp::as_millisecond)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Takes a parked event out, under the lease.
pub(super) async fn unpark(
    connection: &mut SqliteConnection,
    claim: &Claim,
    sequence: u64,
    mutation: Mutation,
) -> Result<()> {
    let gone = sqlx::query(
        "DELETE FROM tombolo_parked
         WHERE subscription = ?1 AND topic = ?2 AND partition = ?3 AND sequence = ?4
           AND EXISTS (SELECT 1 FROM tombolo_cursor WHERE subscription = ?1 AND topic = ?2
                       AND partition = ?3 AND lease_epoch = coalesce(?5, lease_epoch))",
    );
    let gone = gone.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    let gone = gone.bind(sequence as i64).bind(redrive_epoch(claim, mutation));
    match gone.execute(&mut *connection).await?.rows_affected() {
        0 => Err(refused(connection, claim, sequence).await?),
        _ => Ok(()),
    }
}

/// Takes out everything after `sequence`; guarded by the cursor that is moved there.
pub(super) async fn unpark_after(
    connection: &mut SqliteConnection,
    claim: &Claim,
    sequence: u64,
) -> Result<u64> {
    let gone = sqlx::query(
        "DELETE FROM tombolo_parked WHERE subscription = ? AND topic = ? AND partition = ? AND sequence > ?",
    );
    let gone = gone.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    Ok(gone.bind(sequence as i64).execute(connection).await?.rows_affected())
}

fn redrive_epoch(claim: &Claim, mutation: Mutation) -> Option<i64> {
    if mutation.is(Mutant::RedriveWithoutLease) { None } else { expected_epoch(claim, mutation) }
}

async fn refused(connection: &mut SqliteConnection, claim: &Claim, sequence: u64) -> Result<crate::Error> {
    let why = why_refused(connection, claim).await?;
    // Under the right lease it can only be that the row is gone.
    Ok(if why.kind() == crate::Kind::Fenced { why } else { not_parked(claim, sequence) })
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

fn tries(row: &SqliteRow, first: usize) -> Result<Tries> {
    let retry_ms: Option<i64> = row.try_get(first + 3)?;
    Ok(Tries {
        attempts: row.try_get(first)?,
        unfinished: row.try_get(first + 1)?,
        error: row.try_get(first + 2)?,
        retry_at: retry_ms.map(time),
    })
}

fn head(row: &SqliteRow) -> Result<ParkedHead> {
    let topic: String = row.try_get(0)?;
    Ok(ParkedHead {
        topic: ServiceName::new(topic)?,
        partition: row.try_get(1)?,
        key_hash: KeyHash(row.try_get::<i64, _>(2)? as u64),
        events: unsigned(row.try_get(3)?),
        parked_at: time(row.try_get(4)?),
        tries: tries(row, 5)?,
    })
}

fn event(row: &SqliteRow) -> Result<ParkedEvent> {
    let topic: String = row.try_get(1)?;
    Ok(ParkedEvent {
        subscription: row.try_get(0)?,
        topic: ServiceName::new(topic)?,
        partition: row.try_get(2)?,
        sequence: unsigned(row.try_get(3)?),
        id: EventId(row.try_get(4)?),
        key_hash: KeyHash(row.try_get::<i64, _>(5)? as u64),
        event_type: row.try_get(6)?,
        bytes: row.try_get::<Vec<u8>, _>(7)?.into(),
        parked_at: time(row.try_get(8)?),
        tries: tries(row, 9)?,
    })
}
