//! The subscriptions' half of the store.
//!
//! takes: claims · writes: attempts, cursors · commits: a cursor with the effect, in the transaction of
//! both; attempts in short ones of their own · if we crash here: the cursor is where the last effect
//! left it · if it repeats: the compare-and-set refuses it.
//!
//! Invariant: a cursor moves only from the claim's place and under the claim's lease epoch. Leases are for
//! liveness; a stopped worker cannot be cut off from the store, so while it holds a transaction open everybody waits.

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::{Cursor, EventId, ServiceName};

use super::rows::{
    self, CURSOR, CursorRow, Json, MEMBER, MemberRow, OPEN, Place, REQUEST, RequestRow, SUBSCRIPTION, now_ms,
};
use super::store::Synced;
use super::{Documents, views};
use crate::mutant::{Mutant, Mutation};
use crate::{Claim, CursorState, Cursors, Error, Goal, Result, StartAt, fencing};

/// The most bytes of an error's text that are kept.
const ERROR_BYTES_MAX: usize = 2_000;
/// Behind every name of a topic.
pub(super) const LAST: &str = "\u{10ffff}";

#[async_trait]
impl Cursors for Documents {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>> {
        let (name, types, starts) = (subscription.to_owned(), types.to_vec(), starts.to_vec());
        let open = move |transaction: &WriteTransaction| open(transaction, &name, &types, &starts, accept);
        self.store.write(Synced::Now, open).await
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()> {
        let (claim, error, mutation) = (claim.clone(), cut(error), self.mutation);
        let record = move |transaction: &WriteTransaction| {
            change(transaction, &claim, mutation, |row| {
                row.attempts = attempt;
                row.attempt_id = Some(event.0);
                row.error = Some(error);
            })
        };
        self.store.write(Synced::Later, record).await
    }

    async fn cursor(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
    ) -> Result<Option<Cursor>> {
        let (subscription, topic) = (subscription.to_owned(), topic.clone());
        let cursor = move |snapshot: &ReadTransaction| {
            let cursors = snapshot.open_table(CURSOR)?;
            let row: Option<CursorRow> = rows::get(&cursors, (&*subscription, topic.as_str(), partition))?;
            Ok(row.map(|row| row.cursor))
        };
        self.store.read(cursor).await
    }

    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>> {
        if self.mutation.is(Mutant::EntersEarly) {
            return Ok(Vec::new());
        }
        let (subscription, places) = (subscription.to_owned(), places.to_vec());
        let look = move |snapshot: &ReadTransaction| {
            let resets = resets(snapshot, &subscription)?;
            let goes_back =
                |goal: &Goal| resets.iter().any(|of| of.0 == goal.topic && of.1 == goal.partition);
            let at = goals(&snapshot.open_table(CURSOR)?, &subscription)?.into_iter();
            let cursors: Vec<_> = at.map(|goal| (goal.clone(), goes_back(&goal))).collect();
            Ok(crate::views::not_reached(&places, &cursors))
        };
        self.store.read(look).await
    }

    async fn cursors(&self) -> Result<Vec<CursorState>> {
        self.store.read(states).await
    }
}

fn open(
    transaction: &WriteTransaction,
    subscription: &str,
    types: &[String],
    starts: &[StartAt],
    accept: bool,
) -> Result<Vec<String>> {
    views::check_not_dropped(transaction, subscription)?;
    let mut subscriptions = transaction.open_table(SUBSCRIPTION)?;
    let mut known: Vec<String> = rows::get(&subscriptions, subscription)?.unwrap_or_default();
    let added: Vec<String> = types.iter().filter(|name| !known.contains(name)).cloned().collect();
    let is_new = known.is_empty();
    if accept || is_new || added.is_empty() {
        known.extend(added.iter().cloned());
        rows::put(&mut subscriptions, subscription, &known)?;
        begin(transaction, subscription, starts)?;
    }
    Ok(if is_new { Vec::new() } else { added })
}

/// Makes the cursors that are not there yet.
fn begin(transaction: &WriteTransaction, subscription: &str, starts: &[StartAt]) -> Result<()> {
    let mut cursors = transaction.open_table(CURSOR)?;
    let each = of(&cursors, subscription)?;
    let paused_by = each.iter().filter_map(|(_, row)| row.paused_by.clone()).max();
    for start in starts {
        let place = (subscription, start.topic.as_str(), start.partition);
        if cursors.get(place)?.is_some() {
            continue;
        }
        let is_read = each.iter().any(|((topic, _), _)| *topic == start.topic);
        let cursor = if is_read { Cursor::start(start.cursor.incarnation) } else { start.cursor };
        let row = CursorRow {
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
        };
        rows::put(&mut cursors, place, &row)?;
    }
    Ok(())
}

/// Moves the cursor in the transaction of the effect.
pub(super) fn advance(
    transaction: &WriteTransaction,
    claim: &Claim,
    to: &Cursor,
    mutation: Mutation,
) -> Result<()> {
    let is_unchecked = mutation.is(Mutant::NoCursorCheck);
    let mut moved = Ok(());
    change(transaction, claim, mutation, |row| {
        if row.cursor.sequence != claim.cursor.sequence && !is_unchecked {
            moved = Err(fencing::moved(claim, &row.cursor));
            return;
        }
        row.cursor = *to;
        (row.attempts, row.attempt_id, row.error) = (0, None, None);
        row.moved_ms = Some(now_ms());
        row.in_hand = claim.in_hand;
    })?;
    moved
}

/// Marks the partition as paused, or as not paused.
pub(super) fn pause(
    transaction: &WriteTransaction,
    claim: &Claim,
    by: Option<String>,
    mutation: Mutation,
) -> Result<()> {
    change(transaction, claim, mutation, |row| row.paused_by = by)
}

/// Changes the row of a claim, under its lease.
fn change(
    transaction: &WriteTransaction,
    claim: &Claim,
    mutation: Mutation,
    change: impl FnOnce(&mut CursorRow),
) -> Result<()> {
    let mut cursors = transaction.open_table(CURSOR)?;
    let mut row = held(&cursors, claim, mutation)?;
    change(&mut row);
    rows::put(&mut cursors, (&*claim.subscription, claim.topic.as_str(), claim.partition), &row)
}

/// The row of a claim, if its lease has the claim's epoch.
pub(super) fn held(
    cursors: &impl ReadableTable<Place, Json>,
    claim: &Claim,
    mutation: Mutation,
) -> Result<CursorRow> {
    let place = (&*claim.subscription, claim.topic.as_str(), claim.partition);
    let row: CursorRow = rows::get(cursors, place)?.ok_or_else(|| fencing::no_cursor(claim))?;
    let is_unchecked = mutation.is(Mutant::NoFencing) || mutation.is(Mutant::NoCursorCheck);
    if row.lease_epoch == claim.lease_epoch || is_unchecked {
        Ok(row)
    } else {
        Err(fencing::lease_lost(claim, row.lease_epoch))
    }
}

/// A topic and a partition of it.
type OfTopic = (ServiceName, u32);

/// The cursors of a subscription, by topic and partition.
pub(super) fn of(
    cursors: &impl ReadableTable<Place, Json>,
    subscription: &str,
) -> Result<Vec<(OfTopic, CursorRow)>> {
    let each = cursors.range((subscription, "", 0)..=(subscription, LAST, u32::MAX))?.map(|found| {
        let (place, row) = found?;
        let (_, topic, partition) = place.value();
        Ok(((ServiceName::new(topic)?, partition), rows::read(row.value())?))
    });
    each.collect()
}

/// Where the cursors of a subscription are.
pub(super) fn goals(cursors: &impl ReadableTable<Place, Json>, subscription: &str) -> Result<Vec<Goal>> {
    let goal = |((topic, partition), row): (OfTopic, CursorRow)| {
        let Cursor { incarnation, sequence, .. } = row.cursor;
        Goal { topic, partition, incarnation, sequence }
    };
    Ok(of(cursors, subscription)?.into_iter().map(goal).collect())
}

/// The partitions that an operator asked to go back.
fn resets(snapshot: &ReadTransaction, subscription: &str) -> Result<Vec<OfTopic>> {
    let requests = snapshot.open_table(REQUEST)?;
    let open = snapshot.open_table(OPEN)?;
    let mut resets = Vec::new();
    for found in ReadableTable::range(&open, (subscription, 0)..=(subscription, u128::MAX))? {
        let request: Option<RequestRow> = rows::get(&requests, found?.0.value().1)?;
        let of = request.filter(|request| request.action == "reset").and_then(|request| request.of);
        resets.extend(of.map(|of| (of.topic, of.partition)));
    }
    Ok(resets)
}

fn states(snapshot: &ReadTransaction) -> Result<Vec<CursorState>> {
    let members = snapshot.open_table(MEMBER)?;
    let now = now_ms();
    let cursors = snapshot.open_table(CURSOR)?;
    let each = ReadableTable::iter(&cursors)?.map(|found| {
        let (place, row) = found?;
        let ((subscription, topic, partition), row) = (place.value(), rows::read::<CursorRow>(row.value())?);
        let member: Option<MemberRow> = match row.holder {
            Some(holder) => rows::get(&members, (subscription, holder.as_u128()))?,
            None => None,
        };
        Ok(CursorState {
            subscription: subscription.to_owned(),
            topic: ServiceName::new(topic)?,
            partition,
            cursor: row.cursor,
            held: row.until_ms > now || member.is_some_and(|member| member.until_ms > now),
            attempts: row.attempts,
            error: row.error,
            moved_at: row.moved_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            paused_by: row.paused_by,
        })
    });
    each.collect()
}

/// A row as its holder has it.
pub(super) fn claim(subscription: &str, (topic, partition): OfTopic, row: &CursorRow) -> Claim {
    Claim {
        subscription: subscription.to_owned(),
        topic,
        partition,
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

/// What a guarded change is refused with that found its row under the right lease.
pub(super) fn moved(claim: &Claim, found: &CursorRow) -> Error {
    fencing::moved(claim, &found.cursor)
}
