//! The leases of MongoDB, by the server's clock.
//!
//! A claim reads who holds what, decides, and writes the documents of the partitions that change hands. A renewal touches the
//! members alone: a partition is held for as long as its holder is a member, so renewals do not meet the batches that move
//! cursors.
//!
//! Invariant: claims of one database are decided one after the other, because each touches one document; and a cursor that
//! moves while it changes hands makes one of the two begin again.

use std::time::Duration;

use ::mongodb::ClientSession;
use ::mongodb::bson::{Bson, Document, doc};
use async_trait::async_trait;
use uuid::Uuid;

use super::cursors::claim;
use super::rows::{self, CLAIMS, CURSOR, CursorRow, MEMBER, MemberRow, UPDATE};
use super::session::Tries;
use super::{Mongodb, millis};
use crate::mutant::Mutant;
use crate::port::leases::{Counts, outlived};
use crate::{Claim, Claimed, Holder, Leases, Result, Share, Standing};

#[async_trait]
impl Leases for Mongodb {
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed> {
        let mut tries = Tries::new();
        loop {
            let now_ms = self.server_ms().await?;
            let asked = Asked { subscription, holder, share, now_ms, until_ms: now_ms + millis(lease) };
            let mut session = self.session().await?;
            let claimed = self.claim_now(&mut session, &asked).await;
            if let Some(claimed) = tries.end(&mut session, claimed).await? {
                return Ok(claimed);
            }
        }
    }

    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>> {
        let now_ms = self.server_ms().await?;
        let mut its = doc! { "replica": rows::id(holder.replica) };
        if !self.mutation.is(Mutant::RenewsAnyLife) {
            its.insert("life", rows::id(holder.life));
        }
        let until = doc! { "$set": { "until_ms": now_ms + millis(lease) } };
        if self.rows::<Document>(MEMBER).update_many(its.clone(), until).await?.matched_count == 0 {
            return Ok(Vec::new());
        }
        let mine: Vec<MemberRow> = self.look(MEMBER, its, doc! { "subscription": 1 }).await?;
        let mut standing = Vec::new();
        for member in mine {
            let of = doc! { "subscription": &member.subscription };
            let members: Vec<MemberRow> = self.look(MEMBER, of.clone(), doc! {}).await?;
            let cursors: Vec<CursorRow> = self.look(CURSOR, of, doc! {}).await?;
            let counts = counts(&cursors, &members, holder.replica, now_ms);
            let share = if member.whole { Share::Whole } else { Share::Split };
            let held = usize::try_from(counts.held).unwrap_or(0);
            standing.push(Standing { subscription: member.subscription, held, due: counts.due(share) });
        }
        Ok(standing)
    }

    async fn release(&self, subscription: &str, holder: Holder) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let released = self.release_now(&mut session, subscription, holder).await;
            if let Some(()) = tries.end(&mut session, released).await? {
                return Ok(());
            }
        }
    }
}

/// What a claim is about.
struct Asked<'a> {
    subscription: &'a str,
    holder: Holder,
    share: Share,
    now_ms: i64,
    until_ms: i64,
}

impl Mongodb {
    async fn claim_now(&self, session: &mut ClientSession, asked: &Asked<'_>) -> Result<Claimed> {
        self.touch(session, CLAIMS).await?;
        let (members, is_new) = self.join(session, asked).await?;
        let cursors = self.cursors_of(session, asked.subscription).await?;
        let mut counts = counts(&cursors, &members, asked.holder.replica, asked.now_ms);
        let takes_held = self.mutation.is(Mutant::ClaimsHeld);
        if takes_held {
            counts.held_by_others = 0;
        }
        let taken = taken(&cursors, &members, counts, asked, takes_held);
        let gone: Vec<CursorRow> = given_up(&cursors, &taken, asked);
        let changed = taken.iter().chain(&gone).map(handed);
        self.run(Some(session), CURSOR, UPDATE, changed.collect()).await?;
        let claims: Vec<Claim> = taken.iter().map(claim).collect();
        let partitions = usize::try_from(counts.partitions).unwrap_or(0);
        Ok(Claimed { claims, partitions, concerns_others: !gone.is_empty() || is_new })
    }

    /// Makes the holder a member, and forgets those whose leases have ended. Returns who is one now, and whether it is new.
    async fn join(&self, session: &mut ClientSession, asked: &Asked<'_>) -> Result<(Vec<MemberRow>, bool)> {
        let of = doc! { "subscription": asked.subscription };
        let mut members: Vec<MemberRow> = self.all(session, MEMBER, of, doc! {}).await?;
        let replica = asked.holder.replica;
        if members.iter().any(|member| member.until_ms <= asked.now_ms) {
            let ended = doc! { "subscription": asked.subscription, "until_ms": { "$lte": asked.now_ms } };
            self.rows::<MemberRow>(MEMBER).delete_many(ended).session(&mut *session).await?;
        }
        members.retain(|member| member.until_ms > asked.now_ms);
        let known = members.iter().position(|member| member.replica == replica).map(|at| members.remove(at));
        if known.as_ref().is_some_and(|known| known.life > asked.holder.life) {
            return Err(outlived(asked.subscription));
        }
        let place = place(asked.subscription, replica);
        let member = MemberRow {
            place: place.clone(),
            subscription: asked.subscription.to_owned(),
            replica,
            life: asked.holder.life,
            whole: asked.share == Share::Whole,
            until_ms: asked.until_ms,
        };
        self.put(session, MEMBER, place, &member).await?;
        members.push(member);
        Ok((members, known.is_none()))
    }

    async fn release_now(
        &self,
        session: &mut ClientSession,
        subscription: &str,
        holder: Holder,
    ) -> Result<()> {
        let place = doc! { "_id": place(subscription, holder.replica) };
        let known = self.rows::<MemberRow>(MEMBER).find_one(place.clone()).session(&mut *session).await?;
        if known.as_ref().is_some_and(|known| known.life != holder.life) {
            return Ok(());
        }
        self.rows::<MemberRow>(MEMBER).delete_one(place).session(&mut *session).await?;
        let its = doc! { "subscription": subscription, "holder": rows::id(holder.replica) };
        let free = doc! { "$set": { "holder": Bson::Null, "until_ms": 0_i64 } };
        self.rows::<Document>(CURSOR).update_many(its, free).session(session).await?;
        Ok(())
    }
}

/// The name of a member.
fn place(subscription: &str, replica: Uuid) -> String {
    format!("{subscription}/{replica}")
}

/// Whether a cursor's holder keeps it, by a lease of its own or as a member.
fn is_held(row: &CursorRow, members: &[MemberRow], now_ms: i64) -> bool {
    let is_member =
        |holder| members.iter().any(|member| member.replica == holder && member.until_ms > now_ms);
    row.until_ms > now_ms || row.holder.is_some_and(is_member)
}

fn counts(cursors: &[CursorRow], members: &[MemberRow], replica: Uuid, now_ms: i64) -> Counts {
    let count = |is: &dyn Fn(&CursorRow) -> bool| cursors.iter().filter(|row| is(row)).count() as i64;
    let lasting = || members.iter().filter(|member| member.replica == replica || member.until_ms > now_ms);
    Counts {
        partitions: cursors.len() as i64,
        held: count(&|row| row.holder == Some(replica)),
        held_by_others: count(&|row| {
            row.holder.is_some_and(|holder| holder != replica) && is_held(row, members, now_ms)
        }),
        members: lasting().count() as i64,
        rank: lasting().filter(|member| member.replica < replica).count() as i64,
    }
}

/// What is due to a member, as it will have it: those that it holds already first, and every so many-th before others.
fn taken(
    cursors: &[CursorRow],
    members: &[MemberRow],
    counts: Counts,
    asked: &Asked<'_>,
    takes_held: bool,
) -> Vec<CursorRow> {
    let replica = Some(asked.holder.replica);
    let may = |row: &&CursorRow| row.holder == replica || takes_held || !is_held(row, members, asked.now_ms);
    let mut free: Vec<&CursorRow> = cursors.iter().filter(may).collect();
    let is_preferred = |row: &CursorRow| i64::from(row.partition) % counts.members() == counts.rank;
    free.sort_by_key(|row| (row.holder != replica, !is_preferred(row), &row.topic, row.partition));
    free.truncate(counts.due(asked.share));
    free.sort_by_key(|row| (&row.topic, row.partition));
    let take = |row: &CursorRow| CursorRow {
        abandoned: row.holder.is_some(),
        holder: replica,
        lease_epoch: row.lease_epoch + 1,
        until_ms: asked.until_ms,
        ..row.clone()
    };
    free.into_iter().map(take).collect()
}

/// What a member holds beside what it is due, as it will be.
fn given_up(cursors: &[CursorRow], taken: &[CursorRow], asked: &Asked<'_>) -> Vec<CursorRow> {
    let is_beyond = |row: &&CursorRow| {
        row.holder == Some(asked.holder.replica) && taken.iter().all(|kept| kept.place != row.place)
    };
    let free = |row: &CursorRow| CursorRow { holder: None, until_ms: 0, ..row.clone() };
    cursors.iter().filter(is_beyond).map(free).collect()
}

/// The statement that writes who holds a cursor.
fn handed(row: &CursorRow) -> Document {
    let set = doc! {
        "abandoned": row.abandoned,
        "holder": row.holder.map_or(Bson::Null, rows::id),
        "lease_epoch": super::signed(row.lease_epoch),
        "until_ms": row.until_ms,
    };
    doc! { "q": { "_id": &row.place }, "u": { "$set": set } }
}
