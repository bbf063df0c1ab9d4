//! The effects' part of PostgreSQL.
//!
//! takes: calls · writes: how far each has come · commits: a completion in the transaction of what goes with it, the
//! rest in short ones of their own that are not synced · if we crash here: a call that is not done is made again with
//! the same key · if it repeats: a call that is done is refused.
//!
//! Invariant: one guarded statement writes a call: under the claim's lease epoch, and a completion only while the
//! cursor is where the claim says, with the cursor's row locked until the commit.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use tombolo_event::EventId;

use super::cursors::stored_error;
use super::{Postgres, signed, unsigned};
use crate::effects::done_before;
use crate::mutant::Mutant;
use crate::{CallState, Claim, EffectCall, Effects, Error, Kind, LatestCall, Result};

#[async_trait]
impl Effects for Postgres {
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let recorded = sqlx::query(self.sql(
            "WITH unsynced AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
             INSERT INTO tombolo.effect_call AS e (subscription, topic, partition, sequence, id, attempts, result, error)
             SELECT subscription, topic, partition, $4, $5, $6, $7, $8 FROM tombolo.cursor, unsynced
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND lease_epoch = coalesce($9, lease_epoch)
             ON CONFLICT (subscription, topic, partition, sequence) DO UPDATE
             SET id = excluded.id, attempts = excluded.attempts, result = excluded.result, error = excluded.error,
                 done = NULL
             WHERE e.done IS NULL OR e.id <> excluded.id",
        ));
        let recorded = recorded.bind(&claim.subscription).bind(claim.topic.as_str());
        let recorded = recorded.bind(signed(claim.partition)).bind(call.sequence as i64).bind(call.id.0);
        let recorded = recorded.bind(signed(call.attempts)).bind(&call.result);
        let recorded = recorded.bind(call.error.as_deref().map(stored_error));
        let mut connection = self.pool.acquire().await?;
        match recorded.bind(self.expected_epoch(claim)).execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.call_refused(&mut connection, claim, call).await?),
            _ => Ok(()),
        }
    }

    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>> {
        let calls = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, (extract(epoch FROM done) * 1000)::bigint
             FROM tombolo.effect_call
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND sequence > $4 ORDER BY sequence",
        ));
        let calls = calls.bind(&claim.subscription).bind(claim.topic.as_str());
        let calls = calls.bind(signed(claim.partition)).bind(claim.cursor.sequence as i64);
        calls.fetch_all(&self.pool).await?.iter().map(state).collect()
    }

    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>> {
        let call = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, (extract(epoch FROM done) * 1000)::bigint
             FROM tombolo.effect_call
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND sequence = $4",
        ));
        let call = call.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        call.bind(sequence as i64).fetch_optional(&self.pool).await?.as_ref().map(state).transpose()
    }

    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()> {
        let forgotten = sqlx::query(self.sql(
            "DELETE FROM tombolo.effect_call
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND sequence <= (
                 SELECT sequence - $4 FROM tombolo.cursor
                 WHERE subscription = $1 AND topic = $2 AND partition = $3)",
        ));
        let forgotten = forgotten.bind(&claim.subscription).bind(claim.topic.as_str());
        let forgotten = forgotten.bind(signed(claim.partition)).bind(i64::try_from(keep).unwrap_or(i64::MAX));
        forgotten.execute(&self.pool).await?;
        Ok(())
    }

    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>> {
        let latest = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, (extract(epoch FROM done) * 1000)::bigint, topic, partition
             FROM tombolo.effect_call
             WHERE subscription = $1 ORDER BY done DESC NULLS FIRST, sequence DESC LIMIT $2",
        ));
        let latest = latest.bind(subscription).bind(i64::try_from(most).unwrap_or(i64::MAX));
        let place = |row: &PgRow| {
            let partition = row.try_get::<i32, _>(7)?.unsigned_abs();
            Ok(LatestCall { topic: row.try_get(6)?, partition, state: state(row)? })
        };
        latest.fetch_all(&self.pool).await?.iter().map(place).collect()
    }
}

impl Postgres {
    /// Completes a call in the transaction of what goes with it.
    pub(super) async fn complete(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<()> {
        if self.mutation.is(Mutant::CompletionApart) {
            return self.store_done(&mut *self.pool.acquire().await?, claim, call).await;
        }
        self.store_done(connection, claim, call).await
    }

    /// Forgets the calls after a sequence, for a cursor that goes back there.
    pub(super) async fn forget_after(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        sequence: u64,
    ) -> Result<()> {
        let forgotten = sqlx::query(self.sql(
            "DELETE FROM tombolo.effect_call
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND sequence > $4",
        ));
        let forgotten = forgotten.bind(&claim.subscription).bind(claim.topic.as_str());
        forgotten.bind(signed(claim.partition)).bind(sequence as i64).execute(connection).await?;
        Ok(())
    }

    async fn store_done(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<()> {
        let stored = sqlx::query(self.sql(
            "INSERT INTO tombolo.effect_call AS e
                 (subscription, topic, partition, sequence, id, attempts, result, error, done)
             SELECT subscription, topic, partition, $4, $5, $6, $7, $8, clock_timestamp() FROM tombolo.cursor
             WHERE subscription = $1 AND topic = $2 AND partition = $3
               AND lease_epoch = coalesce($9, lease_epoch) AND sequence = coalesce($10, sequence)
             FOR UPDATE
             ON CONFLICT (subscription, topic, partition, sequence) DO UPDATE
             SET id = excluded.id, attempts = excluded.attempts, result = excluded.result, error = excluded.error,
                 done = excluded.done
             WHERE e.done IS NULL OR e.id <> excluded.id OR e.error IS NOT NULL",
        ));
        let stored = stored.bind(&claim.subscription).bind(claim.topic.as_str());
        let stored = stored.bind(signed(claim.partition)).bind(call.sequence as i64).bind(call.id.0);
        let stored = stored.bind(signed(call.attempts)).bind(&call.result);
        let stored = stored.bind(call.error.as_deref().map(stored_error));
        let stored = stored.bind(self.expected_epoch(claim)).bind(self.expected_sequence(claim));
        match stored.execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.call_refused(connection, claim, call).await?),
            _ => Ok(()),
        }
    }

    /// What kept a guarded call from being written.
    async fn call_refused(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<Error> {
        let done = sqlx::query(self.sql(
            "SELECT 1 FROM tombolo.effect_call
             WHERE subscription = $1 AND topic = $2 AND partition = $3 AND sequence = $4 AND id = $5
               AND done IS NOT NULL",
        ));
        let done = done.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let done = done.bind(call.sequence as i64).bind(call.id.0).fetch_optional(&mut *connection).await?;
        let error = self.why_refused(connection, claim).await?;
        let lease_is_lost = error.kind() == Kind::Fenced;
        Ok(if done.is_some() && !lease_is_lost { done_before(claim, call) } else { error })
    }
}

fn state(row: &PgRow) -> Result<CallState> {
    let done_ms: Option<i64> = row.try_get(5)?;
    let call = EffectCall {
        sequence: unsigned(row.try_get(0)?),
        id: EventId(row.try_get(1)?),
        attempts: row.try_get::<i32, _>(2)?.unsigned_abs(),
        result: row.try_get(3)?,
        error: row.try_get(4)?,
    };
    Ok(CallState { call, done_at: done_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()) })
}
