//! The leases of MySQL and MariaDB, by the server's clock.
//!
//! A holder that stops inside a transaction is cut off by the server (`wait_timeout` of its session, in whole seconds), so
//! that nobody waits for its locks.
//!
//! A renewal touches the members alone: a partition is held for as long as its holder is a member, so renewals do not
//! meet the batches that move cursors.
//!
//! Invariant: claims of one database are decided one after the other, under the lock of one row, after which members whose
//! leases have ended are gone.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use uuid::Uuid;

use super::cursors::claim;
use super::schema::CLAIM_LOCK;
use super::session::Session;
use super::{Mysql, limit, micros, signed};
use crate::mutant::Mutant;
use crate::port::leases::{Counts, outlived};
use crate::{Claim, Claimed, Holder, Leases, Result, Share, Standing};

/// A partition of a subscription: its topic, its number, the epoch of its lease.
type Of = (String, i32, i64);

#[async_trait]
impl Leases for Mysql {
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed> {
        let mut session = Session::begin(&self.pool, lease / 2).await?;
        self.lock_row(&mut session, CLAIM_LOCK).await?;
        let joined = self.join(&mut session, subscription, holder, share, lease).await;
        let Some(is_new) = joined? else {
            session.rollback().await?;
            return Err(outlived(subscription));
        };
        let counts = self.counts(&mut session, subscription, holder).await?;
        let claims = self.take(&mut session, subscription, holder, lease, (counts, share)).await?;
        let gave_up = self.give_up(&mut session, subscription, holder, &claims).await?;
        session.commit().await?;
        Ok(Claimed {
            claims,
            partitions: usize::try_from(counts.partitions).unwrap_or(0),
            concerns_others: gave_up || is_new,
        })
    }

    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>> {
        let any = self.mutation.is(Mutant::RenewsAnyLife);
        let mut connection = self.pool.acquire().await?;
        let renewed = sqlx::query(self.sql(
            "UPDATE tombolo_member SET until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
             WHERE replica = ? AND (life = ? OR ?)",
        ));
        let renewed = renewed.bind(micros(lease)).bind(holder.replica).bind(holder.life).bind(any);
        if renewed.execute(&mut *connection).await?.rows_affected() == 0 {
            return Ok(Vec::new());
        }
        let standing_of = sqlx::query(self.sql(
            "SELECT subscription, whole,
                 (SELECT COUNT(*) FROM tombolo_cursor AS c WHERE c.subscription = me.subscription),
                 (SELECT COUNT(*) FROM tombolo_cursor AS c
                  WHERE c.subscription = me.subscription AND c.holder = me.replica),
                 (SELECT COUNT(*) FROM tombolo_cursor AS c
                  WHERE c.subscription = me.subscription AND c.holder <> me.replica
                    AND (c.until > UTC_TIMESTAMP(6) OR EXISTS (
                        SELECT 1 FROM tombolo_member AS m
                        WHERE m.subscription = c.subscription AND m.replica = c.holder
                          AND m.until > UTC_TIMESTAMP(6)))),
                 (SELECT COUNT(*) FROM tombolo_member AS m
                  WHERE m.subscription = me.subscription
                    AND (m.replica = me.replica OR m.until > UTC_TIMESTAMP(6))),
                 (SELECT COUNT(*) FROM tombolo_member AS m
                  WHERE m.subscription = me.subscription AND m.replica < me.replica
                    AND m.until > UTC_TIMESTAMP(6))
             FROM tombolo_member AS me WHERE replica = ? AND (life = ? OR ?)",
        ));
        let standing_of = standing_of.bind(holder.replica).bind(holder.life).bind(any);
        standing_of.fetch_all(&mut *connection).await?.iter().map(standing).collect()
    }

    async fn release(&self, subscription: &str, holder: Holder) -> Result<()> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let left = sqlx::query(
            self.sql("DELETE FROM tombolo_member WHERE subscription = ? AND replica = ? AND life = ?"),
        );
        let left = left.bind(subscription).bind(holder.replica).bind(holder.life);
        left.execute(&mut *session).await?;
        let given = sqlx::query(self.sql(
            "UPDATE tombolo_cursor FORCE INDEX (PRIMARY) SET holder = NULL, until = '1970-01-01'
             WHERE subscription = ? AND holder = ? AND NOT EXISTS (
                 SELECT 1 FROM tombolo_member WHERE subscription = ? AND replica = ?)",
        ));
        let given = given.bind(subscription).bind(holder.replica).bind(subscription).bind(holder.replica);
        given.execute(&mut *session).await?;
        Ok(session.commit().await?)
    }
}

impl Mysql {
    /// Makes `holder` a member, and forgets those whose leases have ended. Returns whether it is a new one; nothing if a later
    /// life of it is a member.
    async fn join(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Option<bool>> {
        let ended =
            self.sql("DELETE m FROM tombolo_member AS m FORCE INDEX (PRIMARY) WHERE subscription = ? AND until <= UTC_TIMESTAMP(6)");
        sqlx::query(ended).bind(subscription).execute(&mut *connection).await?;
        let known = sqlx::query_scalar(
            self.sql("SELECT life FROM tombolo_member WHERE subscription = ? AND replica = ? FOR UPDATE"),
        );
        let known = known.bind(subscription).bind(holder.replica);
        let known: Option<Uuid> = known.fetch_optional(&mut *connection).await?;
        if known.is_some_and(|life| life > holder.life) {
            return Ok(None);
        }
        let joined = sqlx::query(self.sql(
            "INSERT INTO tombolo_member (until, subscription, replica, life, whole)
             VALUES (UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, ?, ?, ?, ?)
             ON DUPLICATE KEY UPDATE life = VALUES(life), whole = VALUES(whole), until = VALUES(until)",
        ));
        let joined = joined.bind(micros(lease)).bind(subscription).bind(holder.replica).bind(holder.life);
        joined.bind(share == Share::Whole).execute(connection).await?;
        Ok(Some(known.is_none()))
    }

    async fn counts(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        holder: Holder,
    ) -> Result<Counts> {
        let counted = sqlx::query(self.sql(
            "SELECT '', false, COUNT(*), COUNT(IF(holder = ?, 1, NULL)),
                    COUNT(IF(holder <> ? AND (
                        until > UTC_TIMESTAMP(6)
                        OR holder IN (SELECT replica FROM tombolo_member WHERE subscription = ?)), 1, NULL)),
                    (SELECT COUNT(*) FROM tombolo_member WHERE subscription = ?),
                    (SELECT COUNT(*) FROM tombolo_member WHERE subscription = ? AND replica < ?)
             FROM tombolo_cursor WHERE subscription = ?",
        ));
        let counted = counted.bind(holder.replica).bind(holder.replica).bind(subscription).bind(subscription);
        let counted = counted.bind(subscription).bind(holder.replica).bind(subscription);
        let mut counts = count(&counted.fetch_one(connection).await?)?;
        if self.mutation.is(Mutant::ClaimsHeld) {
            counts.held_by_others = 0;
        }
        Ok(counts)
    }

    /// Takes what is due, those that are held already first, and every so many-th before others. What is held by others is looked at, but never locked: its
    /// holder may be in the middle of a batch.
    async fn take(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        holder: Holder,
        lease: Duration,
        (counts, share): (Counts, Share),
    ) -> Result<Vec<Claim>> {
        let free = sqlx::query_as(self.sql(
            "SELECT topic, `partition`, lease_epoch FROM tombolo_cursor
             WHERE subscription = ? AND (holder = ? OR ? OR until <= UTC_TIMESTAMP(6)
                 AND NOT EXISTS (SELECT 1 FROM tombolo_member AS m WHERE m.subscription = ? AND m.replica = holder))
             ORDER BY NOT (holder <=> ?), `partition` % ? <> ?, topic, `partition` LIMIT ?",
        ));
        let free = free.bind(subscription).bind(holder.replica).bind(self.mutation.is(Mutant::ClaimsHeld));
        let free = free.bind(subscription).bind(holder.replica).bind(counts.members()).bind(counts.rank);
        let free = free.bind(limit(counts.due(share)));
        let mut free: Vec<Of> = free.fetch_all(&mut *connection).await?;
        free.sort();
        let mut claims = Vec::with_capacity(free.len());
        for of in free {
            claims.extend(self.take_one(connection, subscription, holder, lease, &of).await?);
        }
        Ok(claims)
    }

    /// Takes one, unless it was taken meanwhile.
    async fn take_one(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        holder: Holder,
        lease: Duration,
        (topic, partition, epoch): &Of,
    ) -> Result<Option<Claim>> {
        // From left to right: `abandoned` sees the holder before.
        let taken = sqlx::query(self.sql(
            "UPDATE tombolo_cursor
             SET abandoned = holder IS NOT NULL, holder = ?, lease_epoch = lease_epoch + 1,
                 until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
             WHERE subscription = ? AND topic = ? AND `partition` = ? AND lease_epoch = ?",
        ));
        let taken = taken.bind(holder.replica).bind(micros(lease)).bind(subscription);
        let taken = taken.bind(topic).bind(partition).bind(epoch).execute(&mut *connection).await?;
        if taken.rows_affected() == 0 {
            return Ok(None);
        }
        let row = sqlx::query(self.sql(
            "SELECT topic, `partition`, incarnation, sequence, id, lease_epoch, attempts,
                    attempt_id, abandoned, in_hand, paused_by
             FROM tombolo_cursor WHERE subscription = ? AND topic = ? AND `partition` = ?",
        ));
        let row = row.bind(subscription).bind(topic).bind(partition).fetch_one(connection).await?;
        Ok(Some(claim(subscription, &row)?))
    }

    /// Gives up what is held beside `kept`.
    async fn give_up(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
        holder: Holder,
        kept: &[Claim],
    ) -> Result<bool> {
        let held = self.sql(
            "SELECT topic, `partition`, lease_epoch FROM tombolo_cursor WHERE subscription = ? AND holder = ?",
        );
        let held = sqlx::query_as(held).bind(subscription).bind(holder.replica);
        let mut held: Vec<Of> = held.fetch_all(&mut *connection).await?;
        let is_kept = |(topic, partition, _): &Of| {
            let same = |claim: &Claim| claim.topic.as_str() == topic && signed(claim.partition) == *partition;
            kept.iter().any(same)
        };
        held.retain(|of| !is_kept(of));
        for (topic, partition, epoch) in &held {
            sqlx::query(self.sql(
                "UPDATE tombolo_cursor SET holder = NULL, until = '1970-01-01'
                 WHERE subscription = ? AND topic = ? AND `partition` = ? AND lease_epoch = ?",
            ))
            .bind(subscription)
            .bind(topic)
            .bind(partition)
            .bind(epoch)
            .execute(&mut *connection)
            .await?;
        }
        Ok(!held.is_empty())
    }
}

fn standing(row: &MySqlRow) -> Result<Standing> {
    let counts = count(row)?;
    let share = if row.try_get(1)? { Share::Whole } else { Share::Split };
    let held = usize::try_from(counts.held).unwrap_or(0);
    Ok(Standing { subscription: row.try_get(0)?, held, due: counts.due(share) })
}

fn count(row: &MySqlRow) -> Result<Counts> {
    Ok(Counts {
        partitions: row.try_get(2)?,
        held: row.try_get(3)?,
        held_by_others: row.try_get(4)?,
        members: row.try_get(5)?,
        rank: row.try_get(6)?,
    })
}
