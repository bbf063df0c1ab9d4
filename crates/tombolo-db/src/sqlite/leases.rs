//! The leases of SQLite.
//!
//! Each claim, renewal and release is one short write transaction of upkeep. A renewal touches the members alone: a
//! partition is held for as long as its holder is a member, so renewals do not meet the batches that move cursors.
//! A stopped worker cannot be cut off from
//! SQLite: while it holds a transaction open everybody waits, and nobody else's lease can be claimed or lost.
//!
//! Invariant: claims are decided one after the other, by SQLite's one writer.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::Sqlite;
use super::cursors::claim;
use super::outbox::millis;
use crate::mutant::{Mutant, Mutation};
use crate::port::leases::{Counts, outlived};
use crate::{Claim, Claimed, Holder, Leases, Result, Share, Standing};

#[async_trait]
impl Leases for Sqlite {
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed> {
        let mutation = self.mutation;
        self.write(&self.upkeep, async |connection| {
            let is_new = join(connection, subscription, holder, share, lease).await?;
            let counts = counts(connection, subscription, holder, mutation).await?;
            let claims = take(connection, subscription, holder, lease, (counts, share), mutation).await?;
            let gave_up = give_up(connection, subscription, holder, &claims).await?;
            Ok(Claimed {
                claims,
                partitions: usize::try_from(counts.partitions).unwrap_or(0),
                concerns_others: gave_up || is_new,
            })
        })
        .await
    }

    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>> {
        self.write(&self.upkeep, async |connection| {
            let standing = sqlx::query(
                "UPDATE tombolo_member SET until_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?1
                 WHERE replica = ?2 AND (life = ?3 OR ?4)
                 RETURNING subscription, whole,
                     (SELECT count(*) FROM tombolo_cursor AS c WHERE c.subscription = tombolo_member.subscription),
                     (SELECT count(*) FROM tombolo_cursor AS c
                      WHERE c.subscription = tombolo_member.subscription AND c.holder = ?2),
                     (SELECT count(*) FROM tombolo_cursor AS c
                      WHERE c.subscription = tombolo_member.subscription AND c.holder <> ?2
                        AND (c.until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER) OR EXISTS (
                            SELECT 1 FROM tombolo_member AS m
                            WHERE m.subscription = c.subscription AND m.replica = c.holder
                              AND m.until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)))),
                     (SELECT count(*) FROM tombolo_member AS m
                      WHERE m.subscription = tombolo_member.subscription
                        AND (m.replica = ?2 OR m.until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER))),
                     (SELECT count(*) FROM tombolo_member AS m
                      WHERE m.subscription = tombolo_member.subscription AND m.replica < ?2
                        AND m.until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER))",
            );
            let standing = standing.bind(millis(lease)).bind(holder.replica).bind(holder.life);
            let standing = standing.bind(self.mutation.is(Mutant::RenewsAnyLife));
            standing.fetch_all(connection).await?.iter().map(self::standing).collect()
        })
        .await
    }

    async fn release(&self, subscription: &str, holder: Holder) -> Result<()> {
        self.write(&self.upkeep, async |connection| {
            let left =
                sqlx::query("DELETE FROM tombolo_member WHERE subscription = ? AND replica = ? AND life = ?");
            let left = left.bind(subscription).bind(holder.replica).bind(holder.life);
            left.execute(&mut *connection).await?;
            let given = sqlx::query(
                "UPDATE tombolo_cursor SET holder = NULL, until_ms = 0
                 WHERE subscription = ?1 AND holder = ?2 AND NOT EXISTS (
                     SELECT 1 FROM tombolo_member WHERE subscription = ?1 AND replica = ?2)",
            );
            given.bind(subscription).bind(holder.replica).execute(connection).await?;
            Ok(())
        })
        .await
    }
}

/// Makes `holder` a member, and forgets those whose leases have ended. Returns whether it is a new one.
async fn join(
    connection: &mut SqliteConnection,
    subscription: &str,
    holder: Holder,
    share: Share,
    lease: Duration,
) -> Result<bool> {
    let ended = sqlx::query(
        "DELETE FROM tombolo_member
         WHERE subscription = ? AND until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    );
    ended.bind(subscription).execute(&mut *connection).await?;
    let known = sqlx::query("SELECT 1 FROM tombolo_member WHERE subscription = ? AND replica = ?");
    let known = known.bind(subscription).bind(holder.replica).fetch_optional(&mut *connection).await?;
    let joined = sqlx::query(
        "INSERT INTO tombolo_member (subscription, replica, life, whole, until_ms)
         VALUES (?1, ?2, ?3, ?4, CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?5)
         ON CONFLICT (subscription, replica) DO UPDATE
         SET life = excluded.life, whole = excluded.whole, until_ms = excluded.until_ms
         WHERE life <= excluded.life",
    );
    let joined = joined.bind(subscription).bind(holder.replica).bind(holder.life);
    let joined = joined.bind(share == Share::Whole).bind(millis(lease));
    match joined.execute(connection).await?.rows_affected() {
        0 => Err(outlived(subscription)),
        _ => Ok(known.is_none()),
    }
}

async fn counts(
    connection: &mut SqliteConnection,
    subscription: &str,
    holder: Holder,
    mutation: Mutation,
) -> Result<Counts> {
    let counted = sqlx::query(
        "SELECT ?1, 0, count(*), coalesce(sum(holder = ?2), 0),
                coalesce(sum(holder <> ?2 AND (
                    until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)
                    OR holder IN (SELECT replica FROM tombolo_member WHERE subscription = ?1))), 0),
                (SELECT count(*) FROM tombolo_member WHERE subscription = ?1),
                (SELECT count(*) FROM tombolo_member WHERE subscription = ?1 AND replica < ?2)
         FROM tombolo_cursor WHERE subscription = ?1",
    );
    let counted = counted.bind(subscription).bind(holder.replica).fetch_one(connection).await?;
    let mut counts = self::count(&counted)?;
    if mutation.is(Mutant::ClaimsHeld) {
        counts.held_by_others = 0;
    }
    Ok(counts)
}

/// Takes what is due, those that are held already first, and every so many-th before others.
async fn take(
    connection: &mut SqliteConnection,
    subscription: &str,
    holder: Holder,
    lease: Duration,
    (counts, share): (Counts, Share),
    mutation: Mutation,
) -> Result<Vec<Claim>> {
    let taken = sqlx::query(
        "UPDATE tombolo_cursor
         SET abandoned = holder IS NOT NULL, holder = ?1, lease_epoch = lease_epoch + 1,
             until_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?2
         WHERE rowid IN (
             SELECT rowid FROM tombolo_cursor
             WHERE subscription = ?3
               AND (holder = ?1 OR ?5 OR until_ms <= CAST(unixepoch('subsec') * 1000 AS INTEGER)
                   AND NOT EXISTS (SELECT 1 FROM tombolo_member AS m
                                   WHERE m.subscription = ?3 AND m.replica = holder))
             ORDER BY holder IS NOT ?1, partition % ?6 <> ?7, topic, partition LIMIT ?4)
         RETURNING topic, partition, incarnation, sequence, id, lease_epoch, attempts,
                   attempt_id, abandoned, in_hand, paused_by",
    );
    let taken = taken.bind(holder.replica).bind(millis(lease)).bind(subscription);
    let due = i64::try_from(counts.due(share)).unwrap_or(i64::MAX);
    let taken =
        taken.bind(due).bind(mutation.is(Mutant::ClaimsHeld)).bind(counts.members()).bind(counts.rank);
    let rows = taken.fetch_all(connection).await?;
    let mut claims: Vec<Claim> = rows.iter().map(|row| claim(subscription, row)).collect::<Result<_>>()?;
    claims.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    Ok(claims)
}

/// Gives up what is held beside `kept`.
async fn give_up(
    connection: &mut SqliteConnection,
    subscription: &str,
    holder: Holder,
    kept: &[Claim],
) -> Result<bool> {
    let kept: Vec<_> = kept.iter().map(|claim| (claim.topic.as_str(), claim.partition)).collect();
    let given = sqlx::query(
        "UPDATE tombolo_cursor SET holder = NULL, until_ms = 0
         WHERE subscription = ?1 AND holder = ?2 AND NOT EXISTS (
             SELECT 1 FROM json_each(?3) AS kept
             WHERE (kept.value ->> 0) = topic AND (kept.value ->> 1) = partition)",
    );
    let given = given.bind(subscription).bind(holder.replica).bind(crate::json_text(&kept)?);
    Ok(given.execute(connection).await?.rows_affected() > 0)
}

fn standing(row: &SqliteRow) -> Result<Standing> {
    let counts = count(row)?;
    let share = if row.try_get(1)? { Share::Whole } else { Share::Split };
    let held = usize::try_from(counts.held).unwrap_or(0);
    Ok(Standing { subscription: row.try_get(0)?, held, due: counts.due(share) })
}

fn count(row: &SqliteRow) -> Result<Counts> {
    Ok(Counts {
        partitions: row.try_get(2)?,
        held: row.try_get(3)?,
        held_by_others: row.try_get(4)?,
        members: row.try_get(5)?,
        rank: row.try_get(6)?,
    })
}
