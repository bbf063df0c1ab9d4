//! The leases of PostgreSQL, by the server's clock.
//!
//! A holder that stops inside a transaction is cut off by the server before its lease ends
//! (`idle_in_transaction_session_timeout`), so that nobody waits for its locks.
//!
//! A renewal touches the members alone: a partition is held for as long as its holder is a member, so renewals do not
//! meet the batches that move cursors.
//!
//! Invariant: claims of one database are decided one after the other, under an advisory lock, after which members whose
//! leases have ended are gone.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::cursors::claim;
use super::{Postgres, millis, signed};
use crate::mutant::Mutant;
use crate::port::STRIPES;
use crate::port::leases::{Counts, outlived};
use crate::{Claim, Claimed, Holder, Leases, Result, Share, Standing};

/// The advisory lock, beside those of the stripes and of the schema, under which partitions are claimed.
const CLAIM_LOCK: i32 = STRIPES as i32 + 1;

#[async_trait]
impl Leases for Postgres {
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed> {
        let mut transaction = self.begin_marked(lease / 2).await?;
        let lock = sqlx::query("SELECT pg_advisory_xact_lock($1, $2)").bind(self.lock_class).bind(CLAIM_LOCK);
        lock.execute(&mut *transaction).await?;
        let is_new = self.join(&mut transaction, subscription, holder, share, lease).await?;
        let counts = self.counts(&mut transaction, subscription, holder).await?;
        let claims = self.take(&mut transaction, subscription, holder, lease, (counts, share)).await?;
        let gave_up = self.give_up(&mut transaction, subscription, holder, &claims).await?;
        transaction.commit().await?;
        Ok(Claimed {
            claims,
            partitions: usize::try_from(counts.partitions).unwrap_or(0),
            concerns_others: gave_up || is_new,
        })
    }

    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>> {
        let renewed = sqlx::query(self.sql(
            "WITH me AS (
                 UPDATE tombolo.member SET until = clock_timestamp() + $3 * interval '1 millisecond'
                 WHERE replica = $1 AND (life = $2 OR $4) RETURNING subscription, whole
             )
             SELECT subscription, whole,
                 (SELECT count(*) FROM tombolo.cursor AS c WHERE c.subscription = me.subscription),
                 (SELECT count(*) FROM tombolo.cursor AS c
                  WHERE c.subscription = me.subscription AND c.holder = $1),
                 (SELECT count(*) FROM tombolo.cursor AS c
                  WHERE c.subscription = me.subscription AND c.holder <> $1
                    AND (c.until > clock_timestamp() OR EXISTS (
                        SELECT 1 FROM tombolo.member AS m
                        WHERE m.subscription = c.subscription AND m.replica = c.holder
                          AND m.until > clock_timestamp()))),
                 (SELECT count(*) FROM tombolo.member AS m
                  WHERE m.subscription = me.subscription AND (m.replica = $1 OR m.until > clock_timestamp())),
                 (SELECT count(*) FROM tombolo.member AS m
                  WHERE m.subscription = me.subscription AND m.replica < $1 AND m.until > clock_timestamp())
             FROM me",
        ));
        let renewed = renewed.bind(holder.replica).bind(holder.life).bind(millis(lease));
        let renewed = renewed.bind(self.mutation.is(Mutant::RenewsAnyLife));
        renewed.fetch_all(&self.pool).await?.iter().map(standing).collect()
    }

    async fn release(&self, subscription: &str, holder: Holder) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        let left = sqlx::query(
            self.sql("DELETE FROM tombolo.member WHERE subscription = $1 AND replica = $2 AND life = $3"),
        );
        let left = left.bind(subscription).bind(holder.replica).bind(holder.life);
        left.execute(&mut *transaction).await?;
        let given = sqlx::query(self.sql(
            "UPDATE tombolo.cursor SET holder = NULL, until = '-infinity'
             WHERE subscription = $1 AND holder = $2 AND NOT EXISTS (
                 SELECT 1 FROM tombolo.member WHERE subscription = $1 AND replica = $2)",
        ));
        given.bind(subscription).bind(holder.replica).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

impl Postgres {
    /// Makes `holder` a member, and forgets those whose leases have ended. Returns whether it is a new one.
    async fn join(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<bool> {
        let ended = sqlx::query(
            self.sql("DELETE FROM tombolo.member WHERE subscription = $1 AND until <= clock_timestamp()"),
        );
        ended.bind(subscription).execute(&mut *connection).await?;
        let known =
            sqlx::query(self.sql("SELECT 1 FROM tombolo.member WHERE subscription = $1 AND replica = $2"));
        let known = known.bind(subscription).bind(holder.replica).fetch_optional(&mut *connection).await?;
        let joined = sqlx::query(self.sql(
            "INSERT INTO tombolo.member AS known (subscription, replica, life, whole, until)
             VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 millisecond')
             ON CONFLICT (subscription, replica) DO UPDATE
             SET life = excluded.life, whole = excluded.whole, until = excluded.until
             WHERE known.life <= excluded.life",
        ));
        let joined = joined.bind(subscription).bind(holder.replica).bind(holder.life);
        let joined = joined.bind(share == Share::Whole).bind(millis(lease));
        match joined.execute(connection).await?.rows_affected() {
            0 => Err(outlived(subscription)),
            _ => Ok(known.is_none()),
        }
    }

    async fn counts(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        holder: Holder,
    ) -> Result<Counts> {
        let counted = sqlx::query(self.sql(
            "SELECT $1, false, count(*), count(*) FILTER (WHERE holder = $2),
                    count(*) FILTER (WHERE holder <> $2 AND (
                        until > clock_timestamp()
                        OR holder IN (SELECT replica FROM tombolo.member WHERE subscription = $1))),
                    (SELECT count(*) FROM tombolo.member WHERE subscription = $1),
                    (SELECT count(*) FROM tombolo.member WHERE subscription = $1 AND replica < $2)
             FROM tombolo.cursor WHERE subscription = $1",
        ));
        let counted = counted.bind(subscription).bind(holder.replica).fetch_one(connection).await?;
        let mut counts = count(&counted)?;
        if self.mutation.is(Mutant::ClaimsHeld) {
            counts.held_by_others = 0;
        }
        Ok(counts)
    }

    /// Takes `due` partitions, those that are held already first.
    async fn take(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        holder: Holder,
        lease: Duration,
        (counts, share): (Counts, Share),
    ) -> Result<Vec<Claim>> {
        let taken = sqlx::query(self.sql(
            "UPDATE tombolo.cursor AS c
             SET abandoned = holder IS NOT NULL, holder = $1, lease_epoch = lease_epoch + 1,
                 until = clock_timestamp() + $2 * interval '1 millisecond'
             FROM (SELECT topic, partition FROM tombolo.cursor
                   WHERE subscription = $3 AND (holder = $1 OR $5 OR until <= clock_timestamp()
                       AND NOT EXISTS (SELECT 1 FROM tombolo.member AS m
                                       WHERE m.subscription = $3 AND m.replica = holder))
                   ORDER BY holder IS DISTINCT FROM $1, partition % $6 <> $7, topic, partition
                   LIMIT $4 FOR UPDATE) AS free
             WHERE c.subscription = $3 AND c.topic = free.topic AND c.partition = free.partition
             RETURNING c.topic, c.partition, incarnation, sequence, id, lease_epoch, attempts,
                       attempt_id, abandoned, in_hand, paused_by",
        ));
        let taken = taken.bind(holder.replica).bind(millis(lease)).bind(subscription);
        let taken = taken.bind(i64::try_from(counts.due(share)).unwrap_or(i64::MAX));
        let taken = taken.bind(self.mutation.is(Mutant::ClaimsHeld)).bind(counts.members()).bind(counts.rank);
        let rows = taken.fetch_all(connection).await?;
        let mut claims: Vec<Claim> =
            rows.iter().map(|row| claim(subscription, row)).collect::<Result<_>>()?;
        claims.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(claims)
    }

    /// Gives up what is held beside `kept`.
    async fn give_up(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
        holder: Holder,
        kept: &[Claim],
    ) -> Result<bool> {
        let (topics, partitions): (Vec<&str>, Vec<i32>) =
            kept.iter().map(|claim| (claim.topic.as_str(), signed(claim.partition))).unzip();
        let given = sqlx::query(self.sql(
            "UPDATE tombolo.cursor SET holder = NULL, until = '-infinity'
             WHERE subscription = $1 AND holder = $2
               AND (topic, partition) NOT IN (SELECT * FROM unnest($3::text[], $4::integer[]))",
        ));
        let given = given.bind(subscription).bind(holder.replica).bind(topics).bind(partitions);
        Ok(given.execute(connection).await?.rows_affected() > 0)
    }
}

fn standing(row: &PgRow) -> Result<Standing> {
    let counts = count(row)?;
    let share = if row.try_get(1)? { Share::Whole } else { Share::Split };
    let held = usize::try_from(counts.held).unwrap_or(0);
    Ok(Standing { subscription: row.try_get(0)?, held, due: counts.due(share) })
}

fn count(row: &PgRow) -> Result<Counts> {
    Ok(Counts {
        partitions: row.try_get(2)?,
        held: row.try_get(3)?,
        held_by_others: row.try_get(4)?,
        members: row.try_get(5)?,
        rank: row.try_get(6)?,
    })
}
