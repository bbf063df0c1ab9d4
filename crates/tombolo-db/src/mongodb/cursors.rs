//! The subscriptions' half of MongoDB.
//!
//! takes: claims · writes: attempts, cursors · commits: a cursor with the effect, in the transaction of
//! both; attempts in short ones of their own · if we crash here: the cursor is where the last effect
//! left it · if it repeats: the compare-and-set refuses it.
//!
//! Invariant: a cursor moves only from the claim's place and under the claim's lease epoch. Leases are for
//! liveness, by the server's clock; whoever holds a transaction open and stands still is ended by the server after its limit
//! (`transactionLifetimeLimitSeconds`, 60 s unless it was changed).

use ::mongodb::ClientSession;
use ::mongodb::bson::{Bson, Document, doc};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tombolo_event::{Cursor, EventId, ServiceName};

use super::rows::{
    self, CURSOR, CursorRow, MEMBER, MemberRow, OPENING, REQUEST, RequestRow, SUBSCRIPTION, fields, now_ms,
    place, place_of,
};
use super::session::Tries;
use super::{Mongodb, signed};
use crate::mutant::Mutant;
use crate::{Claim, CursorState, Cursors, Error, Goal, Result, StartAt, fencing};

/// The most bytes of an error's text that are kept.
const ERROR_BYTES_MAX: usize = 2_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SubscriptionRow {
    #[serde(rename = "_id")]
    subscription: String,
    types: Vec<String>,
}

#[async_trait]
impl Cursors for Mongodb {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let opened = self.open_now(&mut session, subscription, types, (starts, accept)).await;
            if let Some(added) = tries.end(&mut session, opened).await? {
                return Ok(added);
            }
        }
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()> {
        let set =
            doc! { "attempts": i64::from(attempt), "attempt_id": rows::id(event.0), "error": cut(error) };
        let recorded =
            self.rows::<Document>(CURSOR).update_one(self.held_by(claim), doc! { "$set": set }).await?;
        if recorded.matched_count > 0 {
            return Ok(());
        }
        let found = self.rows::<CursorRow>(CURSOR).find_one(doc! { "_id": place_of(claim) }).await?;
        Err(why_refused(claim, found))
    }

    async fn cursor(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
    ) -> Result<Option<Cursor>> {
        let id = doc! { "_id": place(subscription, topic, partition) };
        Ok(self.rows::<CursorRow>(CURSOR).find_one(id).await?.map(|row| row.cursor))
    }

    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>> {
        if self.mutation.is(Mutant::EntersEarly) {
            return Ok(Vec::new());
        }
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let looked = self.places(&mut session, subscription).await;
            if let Some(cursors) = tries.end(&mut session, looked).await? {
                return Ok(crate::views::not_reached(places, &cursors));
            }
        }
    }

    async fn cursors(&self) -> Result<Vec<CursorState>> {
        let now_ms = self.server_ms().await?;
        let members: Vec<MemberRow> =
            self.look(MEMBER, doc! { "until_ms": { "$gt": now_ms } }, doc! {}).await?;
        let order = doc! { "subscription": 1, "topic": 1, "partition": 1 };
        let rows: Vec<CursorRow> = self.look(CURSOR, doc! {}, order).await?;
        Ok(rows.into_iter().map(|row| state(row, &members, now_ms)).collect())
    }
}

impl Mongodb {
    async fn open_now(
        &self,
        session: &mut ClientSession,
        subscription: &str,
        types: &[String],
        (starts, accept): (&[StartAt], bool),
    ) -> Result<Vec<String>> {
        self.touch(session, OPENING).await?;
        self.check_not_dropped(session, subscription).await?;
        let id = doc! { "_id": subscription };
        let known = self.rows::<SubscriptionRow>(SUBSCRIPTION).find_one(id).session(&mut *session).await?;
        let mut known = known.map(|row| row.types).unwrap_or_default();
        let added: Vec<String> = types.iter().filter(|name| !known.contains(name)).cloned().collect();
        let is_new = known.is_empty();
        if accept || is_new || added.is_empty() {
            known.extend(added.iter().cloned());
            let row = SubscriptionRow { subscription: subscription.to_owned(), types: known };
            self.put(session, SUBSCRIPTION, subscription, &row).await?;
            self.begin_cursors(session, subscription, starts).await?;
        }
        Ok(if is_new { Vec::new() } else { added })
    }

    /// Makes the cursors that are not there yet.
    async fn begin_cursors(
        &self,
        session: &mut ClientSession,
        subscription: &str,
        starts: &[StartAt],
    ) -> Result<()> {
        let each = self.cursors_of(session, subscription).await?;
        let paused_by = each.iter().filter_map(|row| row.paused_by.clone()).max();
        let mut made = Vec::new();
        for start in starts {
            let place = place(subscription, &start.topic, start.partition);
            if each.iter().chain(&made).any(|row| row.place == place) {
                continue;
            }
            let is_read = each.iter().any(|row| row.topic == start.topic);
            let cursor = if is_read { Cursor::start(start.cursor.incarnation) } else { start.cursor };
            made.push(CursorRow {
                place,
                subscription: subscription.to_owned(),
                topic: start.topic.clone(),
                partition: start.partition,
                cursor,
                lease_epoch: 0,
                holder: None,
                until_ms: 0,
                attempts: 0,
                attempt_id: None,
                error: None,
                moved_ms: None,
                abandoned: false,
                in_hand: 1,
                paused_by: paused_by.clone(),
            });
        }
        if !made.is_empty() {
            self.rows::<CursorRow>(CURSOR).insert_many(&made).session(session).await?;
        }
        Ok(())
    }

    /// The cursors of a subscription, by topic and partition.
    pub(super) async fn cursors_of(
        &self,
        session: &mut ClientSession,
        subscription: &str,
    ) -> Result<Vec<CursorRow>> {
        self.all(session, CURSOR, doc! { "subscription": subscription }, doc! { "topic": 1, "partition": 1 })
            .await
    }

    /// Where the cursors of a subscription are, and whether an operator asked that they go back.
    async fn places(&self, session: &mut ClientSession, subscription: &str) -> Result<Vec<(Goal, bool)>> {
        let resets = doc! { "open": true, "subscription": subscription, "action": "reset" };
        let resets: Vec<RequestRow> = self.all(session, REQUEST, resets, doc! {}).await?;
        let goes_back = |row: &CursorRow| {
            let is_its = |of: &RequestRow| {
                of.topic.as_deref() == Some(row.topic.as_str()) && of.partition == Some(row.partition)
            };
            resets.iter().any(is_its)
        };
        let rows = self.cursors_of(session, subscription).await?;
        Ok(rows.iter().map(|row| (goal(row), goes_back(row))).collect())
    }

    /// Moves the cursor in the transaction of the effect.
    pub(super) async fn advance(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        to: &Cursor,
    ) -> Result<()> {
        let set = doc! {
            "cursor": fields(to)?,
            "attempts": 0_i64,
            "attempt_id": Bson::Null,
            "error": Bson::Null,
            "moved_ms": now_ms(),
            "in_hand": i64::from(claim.in_hand),
        };
        self.change(session, self.at_its_place(claim), set, claim).await
    }

    /// Marks the partition as paused, or as not paused.
    pub(super) async fn pause(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        by: Option<&str>,
    ) -> Result<()> {
        self.change(session, self.held_by(claim), doc! { "paused_by": by.map(cut) }, claim).await
    }

    /// Proves the lease, and keeps it from changing hands until the transaction ends, by touching the cursor.
    pub(super) async fn hold_lease(&self, session: &mut ClientSession, claim: &Claim) -> Result<()> {
        self.touch_cursor(session, self.held_by(claim), claim).await
    }

    /// The same, and proves that the cursor is where the claim says.
    pub(super) async fn hold_place(&self, session: &mut ClientSession, claim: &Claim) -> Result<()> {
        self.touch_cursor(session, self.at_its_place(claim), claim).await
    }

    async fn touch_cursor(&self, session: &mut ClientSession, filter: Document, claim: &Claim) -> Result<()> {
        let touch = doc! { "$inc": { "touched": 1_i64 } };
        let touched = self.rows::<Document>(CURSOR).update_one(filter, touch).session(&mut *session).await?;
        self.unless_refused(session, touched.matched_count, claim).await
    }

    async fn change(
        &self,
        session: &mut ClientSession,
        filter: Document,
        set: Document,
        claim: &Claim,
    ) -> Result<()> {
        let rows = self.rows::<Document>(CURSOR);
        let changed = rows.update_one(filter, doc! { "$set": set });
        let changed = changed.session(&mut *session).await?;
        self.unless_refused(session, changed.matched_count, claim).await
    }

    async fn unless_refused(&self, session: &mut ClientSession, matched: u64, claim: &Claim) -> Result<()> {
        if matched > 0 {
            return Ok(());
        }
        let rows = self.rows::<CursorRow>(CURSOR);
        let found = rows.find_one(doc! { "_id": place_of(claim) });
        Err(why_refused(claim, found.session(session).await?))
    }

    /// The claim's cursor, under its lease.
    fn held_by(&self, claim: &Claim) -> Document {
        let mut filter = doc! { "_id": place_of(claim) };
        if !self.mutation.is(Mutant::NoFencing) && !self.mutation.is(Mutant::NoCursorCheck) {
            filter.insert("lease_epoch", signed(claim.lease_epoch));
        }
        filter
    }

    /// The claim's cursor, under its lease and at its place.
    fn at_its_place(&self, claim: &Claim) -> Document {
        let mut filter = self.held_by(claim);
        if !self.mutation.is(Mutant::NoCursorCheck) {
            filter.insert("cursor.sequence", signed(claim.cursor.sequence));
        }
        filter
    }
}

/// What kept a guarded update from happening.
fn why_refused(claim: &Claim, found: Option<CursorRow>) -> Error {
    match found {
        None => fencing::no_cursor(claim),
        Some(row) if row.lease_epoch == claim.lease_epoch => fencing::moved(claim, &row.cursor),
        Some(row) => fencing::lease_lost(claim, row.lease_epoch),
    }
}

/// Where a cursor is.
pub(super) fn goal(row: &CursorRow) -> Goal {
    let Cursor { incarnation, sequence, .. } = row.cursor;
    Goal { topic: row.topic.clone(), partition: row.partition, incarnation, sequence }
}

fn state(row: CursorRow, members: &[MemberRow], now_ms: i64) -> CursorState {
    let is_held =
        |member: &MemberRow| member.subscription == row.subscription && Some(member.replica) == row.holder;
    CursorState {
        held: row.until_ms > now_ms || members.iter().any(is_held),
        subscription: row.subscription,
        topic: row.topic,
        partition: row.partition,
        cursor: row.cursor,
        attempts: row.attempts,
        error: row.error,
        moved_at: row.moved_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        paused_by: row.paused_by,
    }
}

/// A row as its holder has it.
pub(super) fn claim(row: &CursorRow) -> Claim {
    Claim {
        subscription: row.subscription.clone(),
        topic: row.topic.clone(),
        partition: row.partition,
        lease_epoch: row.lease_epoch,
        cursor: row.cursor,
        attempts: row.attempts,
        attempted: row.attempt_id.map(EventId),
        abandoned: row.abandoned,
        in_hand: row.in_hand,
        paused_by: row.paused_by.clone(),
    }
}

/// As much of an error's text as is kept.
pub(super) fn cut(error: &str) -> String {
    error[..error.floor_char_boundary(ERROR_BYTES_MAX)].to_owned()
}
