//! The effects' part of the store.
//!
//! takes: calls · writes: how far each has come · commits: a completion in the transaction of what goes with it, the
//! rest in short ones of their own that are not synced · if we crash here: a call that is not done is made again with
//! the same key · if it repeats: a call that is done is refused.
//!
//! Invariant: a call is written under the claim's lease epoch, and a completion only while the cursor is where the claim says.

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::EventId;

use super::Documents;
use super::cursors::{LAST, cut, held, moved};
use super::rows::{self, CALL, CURSOR, CallRow, CursorRow, now_ms};
use super::store::Synced;
use crate::effects::done_before;
use crate::mutant::{Mutant, Mutation};
use crate::{CallState, Claim, EffectCall, Effects, LatestCall, Result};

#[async_trait]
impl Effects for Documents {
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let (claim, call, mutation) = (claim.clone(), call.clone(), self.mutation);
        let record = move |transaction: &WriteTransaction| {
            held(&transaction.open_table(CURSOR)?, &claim, mutation)?;
            store(transaction, &claim, &call, false)
        };
        self.store.write(Synced::Later, record).await
    }

    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>> {
        let claim = claim.clone();
        let look = move |snapshot: &ReadTransaction| {
            let after = claim.cursor.sequence.saturating_add(1);
            let calls = snapshot.open_table(CALL)?;
            let each = ReadableTable::range(&calls, place(&claim, after)..=place(&claim, u64::MAX))?;
            each.map(|found| {
                let (place, row) = found?;
                Ok(state(place.value().3, rows::read(row.value())?))
            })
            .collect()
        };
        self.store.read(look).await
    }

    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>> {
        let claim = claim.clone();
        let look = move |snapshot: &ReadTransaction| {
            let row: Option<CallRow> = rows::get(&snapshot.open_table(CALL)?, place(&claim, sequence))?;
            Ok(row.map(|row| state(sequence, row)))
        };
        self.store.read(look).await
    }

    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()> {
        let claim = claim.clone();
        let forget = move |transaction: &WriteTransaction| {
            let cursor = (&*claim.subscription, claim.topic.as_str(), claim.partition);
            let row: Option<CursorRow> = rows::get(&transaction.open_table(CURSOR)?, cursor)?;
            let Some(last) = row.and_then(|row| row.cursor.sequence.checked_sub(keep)) else { return Ok(()) };
            let mut calls = transaction.open_table(CALL)?;
            Ok(calls.retain_in(place(&claim, 0)..=place(&claim, last), |_, _| false)?)
        };
        self.store.write(Synced::Later, forget).await
    }

    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>> {
        let subscription = subscription.to_owned();
        let look = move |snapshot: &ReadTransaction| {
            let calls = snapshot.open_table(CALL)?;
            let all = (&*subscription, "", 0, 0)..=(&*subscription, LAST, u32::MAX, u64::MAX);
            let each = ReadableTable::range(&calls, all)?.map(|found| {
                let (place, row) = found?;
                let (_, topic, partition, sequence) = place.value();
                let state = state(sequence, rows::read(row.value())?);
                Ok(LatestCall { topic: topic.to_owned(), partition, state })
            });
            let mut latest = each.collect::<Result<Vec<_>>>()?;
            let order =
                |call: &LatestCall| (call.state.done_at.unwrap_or(Timestamp::MAX), call.state.call.sequence);
            latest.sort_by_key(|call| std::cmp::Reverse(order(call)));
            latest.truncate(most);
            Ok(latest)
        };
        self.store.read(look).await
    }
}

fn place(claim: &Claim, sequence: u64) -> (&str, &str, u32, u64) {
    (&claim.subscription, claim.topic.as_str(), claim.partition, sequence)
}

/// Completes a call in the transaction of what goes with it.
pub(super) fn complete(
    transaction: &WriteTransaction,
    claim: &Claim,
    call: &EffectCall,
    mutation: Mutation,
) -> Result<()> {
    let row = held(&transaction.open_table(CURSOR)?, claim, mutation)?;
    if row.cursor.sequence != claim.cursor.sequence && !mutation.is(Mutant::NoCursorCheck) {
        return Err(moved(claim, &row));
    }
    store(transaction, claim, call, true)
}

/// Forgets the calls after a sequence, for a cursor that goes back there.
pub(super) fn forget_after(transaction: &WriteTransaction, claim: &Claim, sequence: u64) -> Result<()> {
    let after = place(claim, sequence.saturating_add(1))..=place(claim, u64::MAX);
    Ok(transaction.open_table(CALL)?.retain_in(after, |_, _| false)?)
}

/// Writes a call, unless it is done already. One that is done with an error may be done again.
fn store(transaction: &WriteTransaction, claim: &Claim, call: &EffectCall, is_done: bool) -> Result<()> {
    let mut calls = transaction.open_table(CALL)?;
    let found: Option<CallRow> = rows::get(&calls, place(claim, call.sequence))?;
    let is_final = |found: &CallRow| {
        found.done_ms.is_some() && found.id == call.id.0 && !(is_done && found.error.is_some())
    };
    if found.is_some_and(|found| is_final(&found)) {
        return Err(done_before(claim, call));
    }
    let row = CallRow {
        id: call.id.0,
        attempts: call.attempts,
        result: call.result.clone(),
        error: call.error.as_deref().map(cut),
        done_ms: is_done.then(now_ms),
    };
    rows::put(&mut calls, place(claim, call.sequence), &row)
}

fn state(sequence: u64, row: CallRow) -> CallState {
    let CallRow { id, attempts, result, error, done_ms } = row;
    CallState {
        call: EffectCall { sequence, id: EventId(id), attempts, result, error },
        done_at: done_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
    }
}
