//! The effects' part of MongoDB.
//!
//! takes: calls · writes: how far each has come · commits: a completion in the transaction of what goes with it, the
//! rest in short ones of their own · if we crash here: a call that is not done is made again with the same key · if it
//! repeats: a call that is done is refused.
//!
//! Invariant: a call is written under the claim's lease epoch, and a completion only while the cursor is where the claim says:
//! both touch the cursor.

use ::mongodb::ClientSession;
use ::mongodb::bson::doc;
use async_trait::async_trait;
use jiff::Timestamp;
use tombolo_event::EventId;

use super::cursors::cut;
use super::rows::{CALL, CURSOR, CallRow, CursorRow, after, now_ms, numbered, of_partition, place_of};
use super::session::Tries;
use super::{Mongodb, signed};
use crate::effects::done_before;
use crate::mutant::Mutant;
use crate::{CallState, Claim, EffectCall, Effects, LatestCall, Result};

#[async_trait]
impl Effects for Mongodb {
    async fn record_call(&self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let recorded = match self.hold_lease(&mut session, claim).await {
                Ok(()) => self.store_call(&mut session, claim, call, false).await,
                Err(error) => Err(error),
            };
            if let Some(()) = tries.end(&mut session, recorded).await? {
                return Ok(());
            }
        }
    }

    async fn calls(&self, claim: &Claim) -> Result<Vec<CallState>> {
        let beyond = after(claim, claim.cursor.sequence);
        let rows: Vec<CallRow> = self.look(CALL, beyond, doc! { "sequence": 1 }).await?;
        Ok(rows.into_iter().map(state).collect())
    }

    async fn call_at(&self, claim: &Claim, sequence: u64) -> Result<Option<CallState>> {
        let id = doc! { "_id": numbered(claim, sequence) };
        Ok(self.rows::<CallRow>(CALL).find_one(id).await?.map(state))
    }

    async fn forget_calls(&self, claim: &Claim, keep: u64) -> Result<()> {
        let found = self.rows::<CursorRow>(CURSOR).find_one(doc! { "_id": place_of(claim) }).await?;
        let Some(last) = found.and_then(|row| row.cursor.sequence.checked_sub(keep)) else { return Ok(()) };
        let mut below = of_partition(claim);
        below.insert("sequence", doc! { "$lte": signed(last) });
        self.rows::<CallRow>(CALL).delete_many(below).await?;
        Ok(())
    }

    async fn latest_calls(&self, subscription: &str, most: usize) -> Result<Vec<LatestCall>> {
        let of = doc! { "subscription": subscription };
        let rows: Vec<CallRow> = self.look(CALL, of, doc! {}).await?;
        let latest = |row: CallRow| {
            let (topic, partition) = (row.topic.clone(), row.partition);
            LatestCall { topic, partition, state: state(row) }
        };
        let mut latest: Vec<LatestCall> = rows.into_iter().map(latest).collect();
        let order =
            |call: &LatestCall| (call.state.done_at.unwrap_or(Timestamp::MAX), call.state.call.sequence);
        latest.sort_by_key(|call| std::cmp::Reverse(order(call)));
        latest.truncate(most);
        Ok(latest)
    }
}

impl Mongodb {
    /// Completes a call in the transaction of what goes with it.
    pub(super) async fn complete_call(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<()> {
        if !self.mutation.is(Mutant::CompletionApart) {
            return self.complete_now(session, claim, call).await;
        }
        let mut apart = self.session().await?;
        let completed = self.complete_now(&mut apart, claim, call).await;
        Tries::new().end(&mut apart, completed).await.map(drop)
    }

    async fn complete_now(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        call: &EffectCall,
    ) -> Result<()> {
        self.hold_place(session, claim).await?;
        self.store_call(session, claim, call, true).await
    }

    /// Forgets the calls after a sequence, for a cursor that goes back there.
    pub(super) async fn forget_after(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        sequence: u64,
    ) -> Result<()> {
        self.rows::<CallRow>(CALL).delete_many(after(claim, sequence)).session(session).await?;
        Ok(())
    }

    /// Writes a call, unless it is done already. One that is done with an error may be done again.
    async fn store_call(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        call: &EffectCall,
        is_done: bool,
    ) -> Result<()> {
        let place = numbered(claim, call.sequence);
        let found =
            self.rows::<CallRow>(CALL).find_one(doc! { "_id": &place }).session(&mut *session).await?;
        let is_final = |found: &CallRow| {
            found.done_ms.is_some() && found.id == call.id.0 && !(is_done && found.error.is_some())
        };
        if found.is_some_and(|found| is_final(&found)) {
            return Err(done_before(claim, call));
        }
        let row = CallRow {
            place: place.clone(),
            subscription: claim.subscription.clone(),
            topic: claim.topic.to_string(),
            partition: claim.partition,
            sequence: call.sequence,
            id: call.id.0,
            attempts: call.attempts,
            result: call.result.clone(),
            error: call.error.as_deref().map(cut),
            done_ms: is_done.then(now_ms),
        };
        self.put(session, CALL, place, &row).await
    }
}

fn state(row: CallRow) -> CallState {
    let CallRow { sequence, id, attempts, result, error, done_ms, .. } = row;
    CallState {
        call: EffectCall { sequence, id: EventId(id), attempts, result, error },
        done_at: done_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
    }
}
