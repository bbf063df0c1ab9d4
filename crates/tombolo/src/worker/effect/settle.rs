//! Settling: what calls have come to is stored, and the cursors follow where no hole is left.
//!
//! takes: calls that have ended · writes: their completions with what they returned, what goes with them, the cursors ·
//! commits when: all of it holds under the lease · if we crash here: the calls are made again with the same keys · if it
//! repeats: what is done is not read into the window again.
//!
//! Invariant: a completion, what goes with it and the cursor commit together; a completion that fails is undone alone, and its
//! call is not made again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_db::effects::{CALLS_KEPT, RESULT_BYTES_MAX};
use tombolo_db::{Claim, Database, EffectCall, Transaction};
use tombolo_event::{Backoff, Cursor, Envelope, barrier};

use super::calls::{Calls, Ended, Place};
use super::window::Due;
use super::{Front, Fronts};
use crate::handler::HandlerError;
use crate::worker::apply::{Undone, age};
use crate::worker::lane::Lane;
use crate::worker::{Session, Worker};
use crate::{Error, Kind, Result};

/// The pauses between tries of a failing call.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
/// The calls below the cursor are forgotten each time that it has moved by so many sequences.
const FORGET_EVERY: u64 = 100;

/// A call that has returned: its lane, its event, and what it returned.
struct Returned {
    lane: usize,
    place: Place,
    json: String,
}

impl<D: Database> Worker<D> {
    /// Stores what has ended, and moves the cursors as far as they can.
    pub(super) async fn settle(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        calls: &mut Calls,
    ) -> Result<()> {
        let mut returned = Vec::new();
        for place in calls.all_ended() {
            let Some(lane) = session.lanes.iter().position(|lane| place.is_in(&lane.claim)) else { continue };
            let claim = &session.lanes[lane].claim;
            let front = &mut fronts.lanes[lane];
            match calls.made(&place).map(|made| (made.lease_epoch, &made.ended)) {
                // Its event is still to be read again, after a session that broke off.
                _ if place.sequence > claim.cursor.sequence && !front.window.has(place.sequence) => continue,
                Some((_, Ended::Returned(json))) if front.window.due(place.sequence).is_some() => {
                    returned.push(Returned { lane, place, json: json.clone() });
                    continue;
                }
                Some((_, Ended::Failed(error))) => {
                    self.call_failed(claim, front, &place, error, None).await?
                }
                Some((epoch, Ended::NotMade(error))) => front.not_made(claim, &place, epoch, error)?,
                _ => {}
            }
            calls.forget(&place);
        }
        self.complete(session, fronts, &returned).await?;
        returned.iter().for_each(|returned| calls.forget(&returned.place));
        self.forget_below(&session.lanes, fronts).await
    }

    /// Completes calls together, or one by one if one of them fails.
    async fn complete(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        returned: &[Returned],
    ) -> Result<()> {
        let Err(undone) = self.completion(session, fronts, returned).await else { return Ok(()) };
        match (undone, returned) {
            (Undone::Away(error), _) => Err(error),
            (Undone::Failed(failure), []) => Err(Error::new(Kind::Database, failure.error.to_string())),
            (Undone::Failed(failure), [one]) => {
                let (claim, front) = (&session.lanes[one.lane].claim, &mut fronts.lanes[one.lane]);
                self.call_failed(claim, front, &one.place, &failure.error, Some(&one.json)).await
            }
            (Undone::Failed(_), many) => {
                for one in many.chunks(1) {
                    Box::pin(self.complete(session, fronts, one)).await?;
                }
                Ok(())
            }
        }
    }

    /// One transaction: every call's completion with what goes with it, then every cursor that can move.
    async fn completion(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        returned: &[Returned],
    ) -> Result<(), Undone> {
        let moves = fronts.moves(returned);
        if returned.is_empty() && moves.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let mut tx = self.database.begin(&self.publisher).await?;
        let mut published = BTreeMap::new();
        for one in returned {
            let Some(due) = fronts.lanes[one.lane].window.due(one.place.sequence) else { continue };
            let time = self.complete_call(&session.lanes[one.lane].claim, due, &one.json, &mut tx).await?;
            published.insert(one.lane, time);
        }
        for (lane, to) in &moves {
            tx.advance(&session.lanes[*lane].claim, to).await?;
        }
        barrier::reach("effect.after-completion");
        tx.commit().await?;
        barrier::reach("effect.after-commit");
        self.count_calls(returned.len(), began.elapsed(), published.values());
        for one in returned {
            fronts.lanes[one.lane].window.done(one.place.sequence);
        }
        for (lane, to) in moves {
            let behind = published.get(&lane).map_or(Duration::ZERO, |&time| age(time));
            session.lanes[lane].moved(to, behind, fronts.lanes[lane].window.moved(to));
            fronts.lanes[lane].read_on(lane, session);
        }
        Ok(())
    }

    /// What a completion writes; returns when the event was published.
    async fn complete_call(
        &self,
        claim: &Claim,
        due: &Due,
        json: &str,
        tx: &mut D::Tx,
    ) -> Result<Timestamp, Undone> {
        let envelope = Envelope::decode(due.record.bytes.clone()).map_err(HandlerError::from)?;
        if let Some(caller) = self.subscription.caller(due.record.type_name()) {
            let then = |tx| caller.then(&envelope, due.record.sequence, json, tx);
            self.handle_within(&envelope, due.record.sequence, tx, then).await?;
        }
        let call = EffectCall { result: Some(kept(json)), error: None, ..due.call.clone() };
        tx.complete(claim, &call).await?;
        Ok(envelope.time)
    }

    /// Records why a try failed, and what the call returned if only its completion failed; tries again later.
    async fn call_failed(
        &self,
        claim: &Claim,
        front: &mut Front,
        place: &Place,
        error: &HandlerError,
        returned: Option<&str>,
    ) -> Result<()> {
        let Some(due) = front.window.due(place.sequence) else { return Ok(()) };
        let call = &mut due.call;
        // What is nobody's fault does not count.
        call.attempts -= u32::from(error.is_transient());
        call.error = Some(error.to_string());
        call.result = returned.map(str::to_owned);
        self.database.record_call(claim, call).await?;
        let attempts = call.attempts;
        tracing::warn!(subscription = claim.subscription, topic = %claim.topic, partition = claim.partition,
            sequence = place.sequence, event = %place.id, attempts, "could not be called for: {error}");
        front.window.put_off(place.sequence, Instant::now() + RETRY.jittered(attempts.saturating_sub(1)));
        self.metrics.retries.get_or_create(&self.of()).inc();
        Ok(())
    }

    /// Keeps the rows of calls bounded.
    async fn forget_below(&self, lanes: &[Lane], fronts: &mut Fronts) -> Result<()> {
        for (lane, front) in lanes.iter().zip(&mut fronts.lanes) {
            let at = lane.claim.cursor.sequence;
            if at >= front.forget_at {
                self.database.forget_calls(&lane.claim, CALLS_KEPT).await?;
                front.forget_at = at + FORGET_EVERY;
            }
        }
        Ok(())
    }

    fn count_calls<'t>(&self, calls: usize, took: Duration, published: impl Iterator<Item = &'t Timestamp>) {
        let of = self.of();
        self.metrics.handled.get_or_create(&of).inc_by(calls as u64);
        self.metrics.batch_events.get_or_create(&of).observe(calls as f64);
        self.metrics.batch_seconds.get_or_create(&of).observe(took.as_secs_f64());
        for &time in published {
            self.metrics.visible_seconds.get_or_create(&of).observe(age(time).as_secs_f64());
        }
    }
}

impl Fronts {
    /// Where the cursors can move to once these are done.
    fn moves(&self, returned: &[Returned]) -> Vec<(usize, Cursor)> {
        let move_of = |(lane, front): (usize, &Front)| {
            let its = returned.iter().filter(|returned| returned.lane == lane);
            let done: Vec<u64> = its.map(|returned| returned.place.sequence).collect();
            Some((lane, front.window.reach(&done)?))
        };
        self.lanes.iter().enumerate().filter_map(move_of).collect()
    }
}

impl Front {
    /// The call could not be recorded: fatal for the session, unless it only began under the lease of an earlier one.
    fn not_made(
        &mut self,
        claim: &Claim,
        place: &Place,
        epoch: u64,
        error: &tombolo_db::Error,
    ) -> Result<()> {
        if epoch == claim.lease_epoch {
            let kind = if error.is_transient() { Kind::DatabaseAway } else { Kind::Database };
            return Err(Error::new(kind, error.to_string()));
        }
        if let Some(due) = self.window.due(place.sequence) {
            due.call.attempts = due.call.attempts.saturating_sub(1);
            self.window.put_off(place.sequence, Instant::now());
        }
        Ok(())
    }

    /// Reads on if there is room again.
    fn read_on(&mut self, lane: usize, session: &mut Session) {
        if !self.window.is_full()
            && let Some(stream) = self.held_back.take()
        {
            session.streams.insert(lane, stream);
        }
    }
}

/// What is kept of what a call returned.
fn kept(json: &str) -> String {
    match json.len() {
        length if length > RESULT_BYTES_MAX => serde_json::json!({ "omitted_bytes": length }).to_string(),
        _ => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_result_is_bounded() {
        assert_eq!(kept("[1]"), "[1]");
        assert_eq!(kept(&"x".repeat(RESULT_BYTES_MAX + 1)), "{\"omitted_bytes\":16385}");
    }
}
