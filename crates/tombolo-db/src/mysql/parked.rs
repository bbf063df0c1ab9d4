//! What waits parked, in MySQL and MariaDB.
//!
//! takes: events that could not be handled, and those behind them · writes: one row each · commits: with the cursor that
//! moves over it, and its removal with its effect · if we crash here: the cursor and the row say the same · if it
//! repeats: the cursor has moved, or the row is gone, so the repeat is refused.
//!
//! Invariant: only the holder of the lease changes anything here, in the transaction that proves that it is: it locks the
//! cursor's row, so that nobody takes the partition over before it commits.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::{EventId, KeyHash, ServiceName};

use super::cursors::stored_error;
use super::{Mysql, limit, signed, unsigned};
use crate::mutant::Mutant;
use crate::port::parked::{ParkedCount, ParkedEvent, ParkedFilter, ParkedHead, Parking, Tries, not_parked};
use crate::{Claim, Result};

#[async_trait]
impl Parking for Mysql {
    async fn parked_heads(&self, subscription: &str) -> Result<Vec<ParkedHead>> {
        let heads = sqlx::query(self.sql(
            "SELECT topic, `partition`, key_hash, events, parked_ms, attempts, unfinished, error, retry_ms
             FROM (SELECT topic, `partition`, key_hash, sequence, parked_ms, attempts, unfinished, error, retry_ms,
                       ROW_NUMBER() OVER (PARTITION BY topic, `partition`, key_hash ORDER BY sequence) AS nth,
                       COUNT(*) OVER (PARTITION BY topic, `partition`, key_hash) AS events
                   FROM tombolo_parked WHERE subscription = ?) AS parked
             WHERE nth = 1 ORDER BY topic, `partition`, sequence",
        ));
        heads.bind(subscription).fetch_all(&self.pool).await?.iter().map(head).collect()
    }

    async fn parked_of(&self, claim: &Claim, key: KeyHash, most: usize) -> Result<Vec<ParkedEvent>> {
        let rows = sqlx::query(self.sql(
            "SELECT subscription, topic, `partition`, sequence, id, key_hash, event_type, bytes, parked_ms,
                    attempts, unfinished, error, retry_ms
             FROM tombolo_parked WHERE subscription = ? AND topic = ? AND `partition` = ? AND key_hash = ?
             ORDER BY sequence LIMIT ?",
        ));
        let rows = rows.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        let rows = rows.bind(key.0 as i64).bind(limit(most));
        rows.fetch_all(&self.pool).await?.iter().map(event).collect()
    }

    async fn record_tries(&self, claim: &Claim, sequence: u64, tries: &Tries) -> Result<()> {
        let recorded = sqlx::query(self.sql(
            "UPDATE tombolo_parked SET attempts = ?, unfinished = ?, error = ?, retry_ms = ?
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence = ?
               AND EXISTS (SELECT 1 FROM tombolo_cursor AS c
                           WHERE c.subscription = tombolo_parked.subscription AND c.topic = tombolo_parked.topic
                             AND c.`partition` = tombolo_parked.`partition`
                             AND c.lease_epoch = COALESCE(?, c.lease_epoch))",
        ));
        let recorded = recorded.bind(signed(tries.attempts)).bind(signed(tries.unfinished));
        let recorded = recorded.bind(error_text(tries)).bind(tries.retry_at.map(Timestamp::as_millisecond));
        let recorded = recorded.bind(&claim.subscription).bind(claim.topic.as_str());
        let recorded = recorded.bind(signed(claim.partition)).bind(sequence as i64);
        let recorded = recorded.bind(self.expected_epoch(claim));
        let mut connection = self.pool.acquire().await?;
        match recorded.execute(&mut *connection).await?.rows_affected() {
            0 => Err(self.refused(&mut connection, claim, sequence).await?),
            _ => Ok(()),
        }
    }

    async fn is_parked(&self, subscription: &str, topic: &ServiceName, key: KeyHash) -> Result<bool> {
        let parked = sqlx::query_scalar(self.sql(
            "SELECT EXISTS (SELECT 1 FROM tombolo_parked WHERE subscription = ? AND topic = ? AND key_hash = ?)",
        ));
        let parked = parked.bind(subscription).bind(topic.as_str()).bind(key.0 as i64);
        Ok(parked.fetch_one(&self.pool).await?)
    }

    async fn parked(&self, filter: &ParkedFilter, most: usize) -> Result<Vec<ParkedEvent>> {
        let rows = sqlx::query(self.sql(
            "SELECT subscription, topic, `partition`, sequence, id, key_hash, event_type, bytes, parked_ms,
                    attempts, unfinished, error, retry_ms
             FROM tombolo_parked
             WHERE subscription = COALESCE(?, subscription) AND key_hash = COALESCE(?, key_hash) AND id = COALESCE(?, id)
             ORDER BY subscription, topic, `partition`, sequence LIMIT ?",
        ));
        let rows = rows.bind(&filter.subscription).bind(filter.key_hash.map(|key| key.0 as i64));
        let rows = rows.bind(filter.id.map(|id| id.0)).bind(limit(most));
        rows.fetch_all(&self.pool).await?.iter().map(event).collect()
    }

    async fn parked_counts(&self) -> Result<Vec<ParkedCount>> {
        let counts = sqlx::query(self.sql(
            "SELECT subscription, COUNT(DISTINCT topic, key_hash), COUNT(*), MIN(parked_ms)
             FROM tombolo_parked GROUP BY subscription ORDER BY subscription",
        ));
        let count = |row: &MySqlRow| {
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

impl Mysql {
    /// Writes parked events; the cursor that moves over them is what guards it.
    pub(super) async fn park(&self, connection: &mut MySqlConnection, events: &[ParkedEvent]) -> Result<()> {
        let only_heads = self.mutation.is(Mutant::ParkWithoutFollowers);
        for event in events.iter().filter(|event| event.tries.attempts > 0 || !only_heads) {
            let insert = sqlx::query(self.sql(
                "INSERT INTO tombolo_parked (subscription, topic, `partition`, sequence, id, key_hash, event_type, bytes,
                                             parked_ms, attempts, unfinished, error, retry_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ));
            let tries = &event.tries;
            let insert = insert.bind(&event.subscription).bind(event.topic.as_str());
            let insert = insert.bind(signed(event.partition)).bind(event.sequence as i64).bind(event.id.0);
            let insert = insert.bind(event.key_hash.0 as i64).bind(&event.event_type).bind(&event.bytes[..]);
            let insert = insert.bind(event.parked_at.as_millisecond()).bind(signed(tries.attempts));
            let insert = insert.bind(signed(tries.unfinished)).bind(error_text(tries));
            insert.bind(tries.retry_at.map(Timestamp::as_millisecond)).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Takes a parked event out, under the lease.
    pub(super) async fn unpark(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        sequence: u64,
    ) -> Result<()> {
        if !self.mutation.is(Mutant::RedriveWithoutLease) {
            self.hold(connection, claim).await?;
        }
        let gone = sqlx::query(self.sql(
            "DELETE FROM tombolo_parked WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence = ?",
        ));
        let gone = gone.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        match gone.bind(sequence as i64).execute(&mut *connection).await?.rows_affected() {
            0 => Err(not_parked(claim, sequence)),
            _ => Ok(()),
        }
    }

    /// Proves the lease, and keeps it from changing hands until the transaction ends.
    pub(super) async fn hold(&self, connection: &mut MySqlConnection, claim: &Claim) -> Result<()> {
        let held = sqlx::query(self.sql(
            "SELECT 1 FROM tombolo_cursor WHERE subscription = ? AND topic = ? AND `partition` = ?
             AND lease_epoch = COALESCE(?, lease_epoch) LOCK IN SHARE MODE",
        ));
        let held = held.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        match held.bind(self.expected_epoch(claim)).fetch_optional(&mut *connection).await? {
            Some(_) => Ok(()),
            None => Err(self.why_refused(connection, claim).await?),
        }
    }

    /// Takes out everything after `sequence`; guarded by the cursor that is moved there.
    pub(super) async fn unpark_after(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        sequence: u64,
    ) -> Result<u64> {
        let gone = sqlx::query(self.sql(
            "DELETE d FROM tombolo_parked AS d FORCE INDEX (PRIMARY) WHERE subscription = ? AND topic = ? AND `partition` = ? AND sequence > ?",
        ));
        let gone = gone.bind(&claim.subscription).bind(claim.topic.as_str()).bind(signed(claim.partition));
        Ok(gone.bind(sequence as i64).execute(connection).await?.rows_affected())
    }

    async fn refused(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        sequence: u64,
    ) -> Result<crate::Error> {
        let why = self.why_refused(connection, claim).await?;
        // Under the right lease it can only be that the row is gone.
        Ok(if why.kind() == crate::Kind::Fenced { why } else { not_parked(claim, sequence) })
    }
}

fn error_text(tries: &Tries) -> Option<String> {
    tries.error.as_deref().map(stored_error)
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

fn tries(row: &MySqlRow, first: usize) -> Result<Tries> {
    let retry_ms: Option<i64> = row.try_get(first + 3)?;
    Ok(Tries {
        attempts: row.try_get::<i32, _>(first)?.unsigned_abs(),
        unfinished: row.try_get::<i32, _>(first + 1)?.unsigned_abs(),
        error: row.try_get(first + 2)?,
        retry_at: retry_ms.map(time),
    })
}

fn head(row: &MySqlRow) -> Result<ParkedHead> {
    let topic: String = row.try_get(0)?;
    Ok(ParkedHead {
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(1)?.unsigned_abs(),
        key_hash: KeyHash(row.try_get::<i64, _>(2)? as u64),
        events: unsigned(row.try_get(3)?),
        parked_at: time(row.try_get(4)?),
        tries: tries(row, 5)?,
    })
}

fn event(row: &MySqlRow) -> Result<ParkedEvent> {
    let topic: String = row.try_get(1)?;
    Ok(ParkedEvent {
        subscription: row.try_get(0)?,
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(2)?.unsigned_abs(),
        sequence: unsigned(row.try_get(3)?),
        id: EventId(row.try_get(4)?),
        key_hash: KeyHash(row.try_get::<i64, _>(5)? as u64),
        event_type: row.try_get(6)?,
        bytes: row.try_get::<Vec<u8>, _>(7)?.into(),
        parked_at: time(row.try_get(8)?),
        tries: tries(row, 9)?,
    })
}
