//! The effects' part of MySQL and MariaDB.
//!
//! takes: calls · writes: how far each has come · commits: a completion in the transaction of what goes with it, the
//! rest in short ones of their own, which these servers sync like any other · if we crash here: a call that is not done is made
//! again with the same key · if it repeats: a call that is done is refused.
//!
//! Invariant: a call is written under the claim's lease epoch, and a completion only while the cursor is where the claim says,
//! with the cursor's row locked until the commit.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::EventId;
use uuid::Uuid;

use super::cursors::stored_error;
use super::session::Session;
use super::{Mysql, limit, signed, unsigned};
use crate::effects::done_before;
use crate::mutant::Mutant;
use crate::{CallState, Claim, EffectCall, Effects, Error, Kind, LatestCall, Result};

#[async_trait]
impl Effects for Mysql {
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()> {
        // From left to right: what is compared with the old row comes before what replaces it.
        let recorded = sqlx::query(self.sql(
            "INSERT INTO tombolo_effect_call (subscription, topic, `partition`, sequence, id, attempts, result, error)
             SELECT subscription, topic, `partition`, ?, ?, ?, ?, ? FROM tombolo_cursor AS c
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND lease_epoch = COALESCE(?, lease_epoch)
               AND NOT EXISTS (SELECT 1 FROM tombolo_effect_call AS e
                               WHERE e.subscription = c.subscription AND e.topic = c.topic AND e.`partition` = c.`partition`
                                 AND e.sequence = ? AND e.id = ? AND e.done IS NOT NULL)
             ON DUPLICATE KEY UPDATE
                 attempts = IF(done IS NOT NULL AND tombolo_effect_call.id = VALUES(id), tombolo_effect_call.attempts, VALUES(attempts)),
                 result = IF(done IS NOT NULL AND tombolo_effect_call.id = VALUES(id), result, VALUES(result)),
                 error = IF(done IS NOT NULL AND tombolo_effect_call.id = VALUES(id), tombolo_effect_call.error, VALUES(error)),
                 done = IF(tombolo_effect_call.id = VALUES(id), done, NULL),
                 id = VALUES(id)",
        ));
        let recorded = recorded.bind(call.sequence as i64).bind(call.id.0).bind(signed(call.attempts));
        let recorded = recorded.bind(&call.result).bind(call.error.as_deref().map(stored_error));
        let recorded = recorded.bind(&claim.subscription).bind(claim.topic.as_str());
        let recorded = recorded.bind(signed(claim.partition)).bind(self.expected_epoch(claim));
        let recorded = recorded.bind(call.sequence as i64).bind(call.id.0);
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let refused = match recorded.execute(&mut *session).await?.rows_affected() {
            0 => Some(self.call_refused(&mut session, claim, call).await?),
            _ => None,
        };
        session.commit().await?;
        refused.map_or(Ok(()), Err)
    }

    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>> {
        let calls = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', done) DIV 1000
             FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence > ? ORDER BY sequence",
        ));
        let calls = calls.bind(&claim.subscription).bind(claim.topic.as_str());
        let calls = calls.bind(signed(claim.partition)).bind(claim.cursor.sequence as i64);
        calls.fetch_all(&self.pool).await?.iter().map(state).collect()
    }

    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>> {
        let call = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', done) DIV 1000
             FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence = ?",
        ));
        let call = call.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        call.bind(sequence as i64).fetch_optional(&self.pool).await?.as_ref().map(state).transpose()
    }

    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()> {
        let below = sqlx::query_scalar(self.sql(
            "SELECT sequence FROM tombolo_cursor WHERE subscription = ? AND topic = ? AND `partition` = ?",
        ));
        let below = below.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let below: Option<i64> = below.fetch_optional(&mut *session).await?;
        let last = below.map_or(0, |sequence| unsigned(sequence).saturating_sub(keep));
        let forgotten = sqlx::query(self.sql(
            "DELETE d FROM tombolo_effect_call AS d FORCE INDEX (PRIMARY)
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence <= ?",
        ));
        let forgotten = forgotten.bind(&claim.subscription).bind(claim.topic.as_str());
        forgotten.bind(signed(claim.partition)).bind(last as i64).execute(&mut *session).await?;
        Ok(session.commit().await?)
    }

    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>> {
        let latest = sqlx::query(self.sql(
            "SELECT sequence, id, attempts, result, error, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', done) DIV 1000,
                    topic, `partition`
             FROM tombolo_effect_call
             WHERE subscription = ? ORDER BY done IS NOT NULL, done DESC, sequence DESC LIMIT ?",
        ));
        let place = |row: &MySqlRow| {
            let partition = row.try_get::<i32, _>(7)?.unsigned_abs();
            Ok(LatestCall { topic: row.try_get(6)?, partition, state: state(row)? })
        };
        let latest = latest.bind(subscription).bind(limit(most));
        latest.fetch_all(&self.pool).await?.iter().map(place).collect()
    }
}

impl Mysql {
    /// Completes a call in the transaction of what goes with it.
    pub(super) async fn complete(
        &self,
        connection: &mut MySqlConnection,
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
        connection: &mut MySqlConnection,
        claim: &Claim,
        sequence: u64,
    ) -> Result<()> {
        let forgotten = sqlx::query(self.sql(
            "DELETE d FROM tombolo_effect_call AS d FORCE INDEX (PRIMARY)
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence > ?",
        ));
        let forgotten = forgotten.bind(&claim.subscription).bind(claim.topic.as_str());
        forgotten.bind(signed(claim.partition)).bind(sequence as i64).execute(connection).await?;
        Ok(())
    }

    async fn store_done(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<()> {
        let guard = sqlx::query(self.sql(
            "SELECT 1 FROM tombolo_cursor WHERE subscription = ? AND topic = ? AND `partition` = ?
               AND lease_epoch = COALESCE(?, lease_epoch) AND sequence = COALESCE(?, sequence) FOR UPDATE",
        ));
        let guard = guard.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let guard = guard.bind(self.expected_epoch(claim)).bind(self.expected_sequence(claim));
        let is_ours = guard.fetch_optional(&mut *connection).await?.is_some();
        if !is_ours || self.is_done_without_an_error(connection, claim, call).await? {
            return Err(self.call_refused(connection, claim, call).await?);
        }
        let stored = sqlx::query(self.sql(
            "INSERT INTO tombolo_effect_call
                 (subscription, topic, `partition`, sequence, id, attempts, result, error, done)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))
             ON DUPLICATE KEY UPDATE id = VALUES(id), attempts = VALUES(attempts), result = VALUES(result),
                 error = VALUES(error), done = VALUES(done)",
        ));
        let stored = stored.bind(&claim.subscription).bind(claim.topic.as_str());
        let stored = stored.bind(signed(claim.partition)).bind(call.sequence as i64).bind(call.id.0);
        let stored = stored.bind(signed(call.attempts)).bind(&call.result);
        stored.bind(call.error.as_deref().map(stored_error)).execute(connection).await?;
        Ok(())
    }

    /// Whether the same call is done, and was not parked. What is parked may be done again.
    async fn is_done_without_an_error(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<bool> {
        let found = sqlx::query_scalar(self.sql(
            "SELECT id FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence = ?
               AND done IS NOT NULL AND error IS NULL FOR UPDATE",
        ));
        let found = found.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let found: Option<Uuid> = found.bind(call.sequence as i64).fetch_optional(connection).await?;
        Ok(found == Some(call.id.0))
    }

    /// What kept a guarded call from being written.
    async fn call_refused(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<Error> {
        let done = sqlx::query(self.sql(
            "SELECT 1 FROM tombolo_effect_call
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence = ? AND id = ?
               AND done IS NOT NULL",
        ));
        let done = done.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let done = done.bind(call.sequence as i64).bind(call.id.0).fetch_optional(&mut *connection).await?;
        let error = self.why_refused(connection, claim).await?;
        let lease_is_lost = error.kind() == Kind::Fenced;
        Ok(if done.is_some() && !lease_is_lost { done_before(claim, call) } else { error })
    }
}

fn state(row: &MySqlRow) -> Result<CallState> {
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
