//! The effects' part of SQLite.
//!
//! takes: calls · writes: how far each has come · commits: a completion in the transaction of what goes with it, the
//! rest in short ones of their own that are not synced · if we crash here: a call that is not done is made again with
//! the same key · if it repeats: a call that is done is refused.
//!
//! Invariant: one guarded statement writes a call: under the claim's lease epoch, and a completion only while the
//! cursor is where the claim says.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::EventId;

use super::Sqlite;
use super::cursors::{ERROR_BYTES_MAX, expected_epoch, expected_sequence, why_refused};
use super::outbox::unsigned;
use crate::effects::done_before;
use crate::mutant::Mutation;
use crate::{CallState, Claim, EffectCall, Effects, Kind, LatestCall, Result};

#[async_trait]
impl Effects for Sqlite {
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let epoch = expected_epoch(claim, self.mutation);
        self.write(&self.upkeep, async |connection| store(connection, claim, call, epoch, Stage::Open).await)
            .await
    }

    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>> {
        let calls = sqlx::query(
            "SELECT sequence, id, attempts, result, error, done_ms FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND partition = ? AND sequence > ? ORDER BY sequence",
        );
        let calls = calls.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
        let calls = calls.bind(claim.cursor.sequence as i64).fetch_all(&self.pool).await?;
        calls.iter().map(state).collect()
    }

    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>> {
        let call = sqlx::query(
            "SELECT sequence, id, attempts, result, error, done_ms FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND partition = ? AND sequence = ?",
        );
        let call = call.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
        call.bind(sequence as i64).fetch_optional(&self.pool).await?.as_ref().map(state).transpose()
    }

    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()> {
        self.write(&self.upkeep, async |connection| {
            let forgotten = sqlx::query(
                "DELETE FROM tombolo_effect_call
                 WHERE subscription = ?1 AND topic = ?2 AND partition = ?3 AND sequence <= (
                     SELECT sequence - ?4 FROM tombolo_cursor
                     WHERE subscription = ?1 AND topic = ?2 AND partition = ?3)",
            );
            let forgotten =
                forgotten.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
            forgotten.bind(i64::try_from(keep).unwrap_or(i64::MAX)).execute(connection).await?;
            Ok(())
        })
        .await
    }

    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>> {
        let latest = sqlx::query(
            "SELECT sequence, id, attempts, result, error, done_ms, topic, partition FROM tombolo_effect_call
             WHERE subscription = ? ORDER BY coalesce(done_ms, 9e18) DESC, sequence DESC LIMIT ?",
        );
        let latest = latest.bind(subscription).bind(i64::try_from(most).unwrap_or(i64::MAX));
        let place = |row: &SqliteRow| {
            Ok(LatestCall { topic: row.try_get(6)?, partition: row.try_get(7)?, state: state(row)? })
        };
        latest.fetch_all(&self.pool).await?.iter().map(place).collect()
    }
}

/// How far a call has come.
#[derive(Clone, Copy)]
enum Stage {
    Open,
    /// Its completion is stored, while the cursor is at this sequence.
    Done(Option<i64>),
}

/// Completes a call in the transaction of what goes with it.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    claim: &Claim,
    call: &EffectCall,
    mutation: Mutation,
) -> Result<()> {
    let stage = Stage::Done(expected_sequence(claim, mutation));
    store(connection, claim, call, expected_epoch(claim, mutation), stage).await
}

/// Forgets the calls after a sequence, for a cursor that goes back there.
pub(super) async fn forget_after(
    connection: &mut SqliteConnection,
    claim: &Claim,
    sequence: u64,
) -> Result<()> {
    let forgotten = sqlx::query(
        "DELETE FROM tombolo_effect_call WHERE subscription = ? AND topic = ? AND partition = ? AND sequence > ?",
    );
    let forgotten = forgotten.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    forgotten.bind(sequence as i64).execute(connection).await?;
    Ok(())
}

async fn store(
    connection: &mut SqliteConnection,
    claim: &Claim,
    call: &EffectCall,
    epoch: Option<i64>,
    stage: Stage,
) -> Result<()> {
    let (is_done, at) = match stage {
        Stage::Open => (false, None),
        Stage::Done(at) => (true, at),
    };
    let error = call.error.as_deref().map(|error| &error[..error.floor_char_boundary(ERROR_BYTES_MAX)]);
    let stored = sqlx::query(
        "INSERT INTO tombolo_effect_call (subscription, topic, partition, sequence, id, attempts, result, error, done_ms)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, CASE WHEN ?9 THEN CAST(unixepoch('subsec') * 1000 AS INTEGER) END
         FROM tombolo_cursor WHERE subscription = ?1 AND topic = ?2 AND partition = ?3
           AND lease_epoch = coalesce(?10, lease_epoch) AND sequence = coalesce(?11, sequence)
         ON CONFLICT (subscription, topic, partition, sequence) DO UPDATE
         SET id = excluded.id, attempts = excluded.attempts, result = excluded.result, error = excluded.error,
             done_ms = excluded.done_ms
         WHERE done_ms IS NULL OR id <> excluded.id OR (?9 AND error IS NOT NULL)",
    );
    let stored = stored.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    let stored = stored.bind(call.sequence as i64).bind(call.id.0).bind(call.attempts);
    let stored = stored.bind(&call.result).bind(error).bind(is_done).bind(epoch).bind(at);
    match stored.execute(&mut *connection).await?.rows_affected() {
        0 => Err(refused(connection, claim, call).await?),
        _ => Ok(()),
    }
}

/// What kept a guarded call from being written.
async fn refused(
    connection: &mut SqliteConnection,
    claim: &Claim,
    call: &EffectCall,
) -> Result<crate::Error> {
    let done = sqlx::query(
        "SELECT 1 FROM tombolo_effect_call
         WHERE subscription = ? AND topic = ? AND partition = ? AND sequence = ? AND id = ? AND done_ms IS NOT NULL",
    );
    let done = done.bind(&claim.subscription).bind(claim.topic.as_str()).bind(claim.partition);
    let done = done.bind(call.sequence as i64).bind(call.id.0).fetch_optional(&mut *connection).await?;
    let error = why_refused(connection, claim).await?;
    let lease_is_lost = error.kind() == Kind::Fenced;
    Ok(if done.is_some() && !lease_is_lost { done_before(claim, call) } else { error })
}

fn state(row: &SqliteRow) -> Result<CallState> {
    let done_ms: Option<i64> = row.try_get(5)?;
    let call = EffectCall {
        sequence: unsigned(row.try_get(0)?),
        id: EventId(row.try_get(1)?),
        attempts: row.try_get(2)?,
        result: row.try_get(3)?,
        error: row.try_get(4)?,
    };
    Ok(CallState { call, done_at: done_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()) })
}
