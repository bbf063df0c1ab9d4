//! The leases of the store.
//!
//! Each claim, renewal and release is one short write transaction of upkeep. A renewal touches the members alone: a
//! partition is held for as long as its holder is a member. The file belongs to one process, so its members are those of
//! one replica; but a build of a view that is held still is held by another of them.
//!
//! Invariant: claims are decided one after the other, by the store's one writer.

use std::time::Duration;

use async_trait::async_trait;
use redb::{ReadableTable, Table, WriteTransaction};
use uuid::Uuid;

use super::Documents;
use super::cursors::{self, claim};
use super::outbox::millis;
use super::rows::{self, CURSOR, CursorRow, Json, MEMBER, MemberRow, Place, now_ms};
use super::store::Synced;
use crate::mutant::{Mutant, Mutation};
use crate::port::leases::{Counts, outlived};
use crate::{Claim, Claimed, Holder, Leases, Result, Share, Standing};

type Members<'t> = Table<'t, (&'static str, u128), Json>;
type CursorTable<'t> = Table<'t, Place, Json>;

#[async_trait]
impl Leases for Documents {
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed> {
        let asked = Asked {
            subscription: subscription.to_owned(),
            holder,
            share,
            lease_ms: millis(lease),
            mutation: self.mutation,
        };
        self.store.write(Synced::Later, move |transaction| claim_now(transaction, &asked)).await
    }

    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>> {
        let (lease_ms, mutation) = (millis(lease), self.mutation);
        let renew = move |transaction: &WriteTransaction| renew(transaction, holder, lease_ms, mutation);
        self.store.write(Synced::Later, renew).await
    }

    async fn release(&self, subscription: &str, holder: Holder) -> Result<()> {
        let subscription = subscription.to_owned();
        let release = move |transaction: &WriteTransaction| release(transaction, &subscription, holder);
        self.store.write(Synced::Later, release).await
    }
}

/// What a claim is about.
struct Asked {
    subscription: String,
    holder: Holder,
    share: Share,
    lease_ms: i64,
    mutation: Mutation,
}

fn claim_now(transaction: &WriteTransaction, asked: &Asked) -> Result<Claimed> {
    let mut members = transaction.open_table(MEMBER)?;
    let mut cursors = transaction.open_table(CURSOR)?;
    let is_new = join(&mut members, asked)?;
    let each = members_of(&members, &asked.subscription)?;
    let mut counts = counts(&cursors, &each, &asked.subscription, asked.holder.replica)?;
    if asked.mutation.is(Mutant::ClaimsHeld) {
        counts.held_by_others = 0;
    }
    let claims = take(&mut cursors, &each, counts, asked)?;
    let gave_up = give_up(&mut cursors, asked, &claims)?;
    let partitions = usize::try_from(counts.partitions).unwrap_or(0);
    Ok(Claimed { claims, partitions, concerns_others: gave_up || is_new })
}

/// Makes the holder a member, and forgets those whose leases have ended. Returns whether it is a new one.
fn join(members: &mut Members<'_>, asked: &Asked) -> Result<bool> {
    let (subscription, replica) = (&*asked.subscription, asked.holder.replica.as_u128());
    for (member, row) in members_of(members, subscription)? {
        if row.until_ms <= now_ms() {
            members.remove((subscription, member.as_u128()))?;
        }
    }
    let known: Option<MemberRow> = rows::get(members, (subscription, replica))?;
    if known.as_ref().is_some_and(|known| known.life > asked.holder.life) {
        return Err(outlived(subscription));
    }
    let until_ms = now_ms() + asked.lease_ms;
    let row = MemberRow { life: asked.holder.life, whole: asked.share == Share::Whole, until_ms };
    rows::put(members, (subscription, replica), &row)?;
    Ok(known.is_none())
}

fn members_of(
    members: &impl ReadableTable<(&'static str, u128), Json>,
    subscription: &str,
) -> Result<Vec<(Uuid, MemberRow)>> {
    let each = members.range((subscription, 0)..=(subscription, u128::MAX))?.map(|found| {
        let (key, row) = found?;
        Ok((Uuid::from_u128(key.value().1), rows::read(row.value())?))
    });
    each.collect()
}

/// Whether a cursor's holder keeps it, by a lease of its own or as a member.
fn is_held(row: &CursorRow, members: &[(Uuid, MemberRow)], now: i64) -> bool {
    let is_member = |holder| members.iter().any(|(member, row)| *member == holder && row.until_ms > now);
    row.until_ms > now || row.holder.is_some_and(is_member)
}

fn counts(
    cursors: &impl ReadableTable<Place, Json>,
    members: &[(Uuid, MemberRow)],
    subscription: &str,
    replica: Uuid,
) -> Result<Counts> {
    let now = now_ms();
    let each = cursors::of(cursors, subscription)?;
    let count = |is: &dyn Fn(&CursorRow) -> bool| each.iter().filter(|(_, row)| is(row)).count() as i64;
    let lasting = || members.iter().filter(|(member, row)| *member == replica || row.until_ms > now);
    Ok(Counts {
        partitions: each.len() as i64,
        held: count(&|row| row.holder == Some(replica)),
        held_by_others: count(&|row| {
            row.holder.is_some_and(|holder| holder != replica) && is_held(row, members, now)
        }),
        members: lasting().count() as i64,
        rank: lasting().filter(|(member, _)| *member < replica).count() as i64,
    })
}

/// Takes what is due, those that are held already first, and every so many-th before others.
fn take(
    cursors: &mut CursorTable<'_>,
    members: &[(Uuid, MemberRow)],
    counts: Counts,
    asked: &Asked,
) -> Result<Vec<Claim>> {
    let (now, replica) = (now_ms(), asked.holder.replica);
    let may = |row: &CursorRow| {
        row.holder == Some(replica) || asked.mutation.is(Mutant::ClaimsHeld) || !is_held(row, members, now)
    };
    let mut free = cursors::of(cursors, &asked.subscription)?;
    free.retain(|(_, row)| may(row));
    let is_preferred = |partition: u32| i64::from(partition) % counts.members() == counts.rank;
    free.sort_by_key(|((topic, partition), row)| {
        (row.holder != Some(replica), !is_preferred(*partition), topic.clone(), *partition)
    });
    free.truncate(counts.due(asked.share));
    let mut claims = Vec::new();
    for ((topic, partition), row) in free {
        let row = CursorRow {
            abandoned: row.holder.is_some(),
            holder: Some(replica),
            lease_epoch: row.lease_epoch + 1,
            until_ms: now + asked.lease_ms,
            ..row
        };
        rows::put(cursors, (&*asked.subscription, topic.as_str(), partition), &row)?;
        claims.push(claim(&asked.subscription, (topic, partition), &row));
    }
    claims.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    Ok(claims)
}

/// Gives up what is held beside `kept`.
fn give_up(cursors: &mut CursorTable<'_>, asked: &Asked, kept: &[Claim]) -> Result<bool> {
    let is_kept =
        |topic: &_, partition| kept.iter().any(|claim| claim.topic == *topic && claim.partition == partition);
    free(cursors, &asked.subscription, asked.holder.replica, |topic, partition| !is_kept(topic, partition))
}

/// Frees what a replica holds of a subscription, where `which` says so. Returns whether there was any.
fn free(
    cursors: &mut CursorTable<'_>,
    subscription: &str,
    replica: Uuid,
    which: impl Fn(&tombolo_event::ServiceName, u32) -> bool,
) -> Result<bool> {
    let mut was_any = false;
    for ((topic, partition), row) in cursors::of(cursors, subscription)? {
        if row.holder == Some(replica) && which(&topic, partition) {
            let row = CursorRow { holder: None, until_ms: 0, ..row };
            rows::put(cursors, (subscription, topic.as_str(), partition), &row)?;
            was_any = true;
        }
    }
    Ok(was_any)
}

fn renew(
    transaction: &WriteTransaction,
    holder: Holder,
    lease_ms: i64,
    mutation: Mutation,
) -> Result<Vec<Standing>> {
    let mut members = transaction.open_table(MEMBER)?;
    let cursors = transaction.open_table(CURSOR)?;
    let is_its = |life| life == holder.life || mutation.is(Mutant::RenewsAnyLife);
    let mut standing = Vec::new();
    for (subscription, row) in memberships(&members, holder.replica)? {
        if !is_its(row.life) {
            continue;
        }
        let share = if row.whole { Share::Whole } else { Share::Split };
        let row = MemberRow { until_ms: now_ms() + lease_ms, ..row };
        rows::put(&mut members, (&*subscription, holder.replica.as_u128()), &row)?;
        let each = members_of(&members, &subscription)?;
        let counts = counts(&cursors, &each, &subscription, holder.replica)?;
        let held = usize::try_from(counts.held).unwrap_or(0);
        standing.push(Standing { subscription, held, due: counts.due(share) });
    }
    Ok(standing)
}

/// Every subscription of which a replica is a member. There are a few members, so all are looked at.
fn memberships(members: &Members<'_>, replica: Uuid) -> Result<Vec<(String, MemberRow)>> {
    let mut all = Vec::new();
    for found in members.iter()? {
        let (key, row) = found?;
        let (subscription, member) = key.value();
        if member == replica.as_u128() {
            all.push((subscription.to_owned(), rows::read(row.value())?));
        }
    }
    Ok(all)
}

fn release(transaction: &WriteTransaction, subscription: &str, holder: Holder) -> Result<()> {
    let mut members = transaction.open_table(MEMBER)?;
    let key = (subscription, holder.replica.as_u128());
    let known: Option<MemberRow> = rows::get(&members, key)?;
    match known {
        Some(known) if known.life != holder.life => return Ok(()),
        Some(_) => drop(members.remove(key)?),
        None => {}
    }
    drop(members);
    let mut cursors = transaction.open_table(CURSOR)?;
    free(&mut cursors, subscription, holder.replica, |_, _| true).map(drop)
}
