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

use super::calls::{Calls, Ended, Made, Place};
use super::window::Due;
use super::{Front, Fronts};
use crate::handler::HandlerError;
use crate::worker::apply::{Undone, age};
use crate::worker::lane::Lane;
use crate::worker::parking::{Failing, Next};
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
            if let Some(redriven) = fronts.redriven.remove(&place) {
                if let Some(made) = calls.take(&place) {
                    self.settle_redriven(session, redriven, made).await?;
                }
                continue;
            }
            let Some(lane) = session.lanes.iter().position(|lane| place.is_in(&lane.claim)) else { continue };
            let cursor = session.lanes[lane].claim.cursor;
            let window = &mut fronts.lanes[lane].window;
            if place.sequence > cursor.sequence && !window.has(place.sequence) {
                // Its event is still to be read again, after a session that broke off.
                continue;
            }
            let is_due = window.due(place.sequence).is_some();
            if let Some(Ended::Returned(json)) = calls.made(&place).filter(|_| is_due).map(|made| &made.ended)
            {
                let json = json.clone();
                returned.push(Returned { lane, place, json });
            } else if let Some(made) = calls.take(&place) {
                self.not_returned(session, fronts, lane, &place, made).await?;
            }
        }
        self.complete(session, fronts, &returned).await?;
        returned.iter().for_each(|returned| calls.forget(&returned.place));
        for index in 0..session.lanes.len() {
            self.park_spent(session, fronts, index).await?;
            self.park_behind(session, fronts, index).await?;
        }
        self.forget_below(&session.lanes, fronts).await
    }

    /// A call that failed, or that was not made.
    async fn not_returned(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        lane: usize,
        place: &Place,
        made: Made,
    ) -> Result<()> {
        match made.ended {
            Ended::Failed(error) => self.call_failed(session, fronts, lane, place, error, None).await,
            Ended::NotMade(error) if made.lease_epoch == session.lanes[lane].claim.lease_epoch => {
                Err(error.into())
            }
            // It began under the lease of an earlier session.
            Ended::NotMade(_) => {
                let window = &mut fronts.lanes[lane].window;
                if let Some(due) = window.due(place.sequence) {
                    due.call.attempts = due.call.attempts.saturating_sub(1);
                    window.put_off(place.sequence, Instant::now());
                }
                Ok(())
            }
            // Its event was passed over: somebody else completed it.
            Ended::Returned(_) => Ok(()),
        }
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
                let Returned { lane, place, json } = one;
                self.call_failed(session, fronts, *lane, place, failure.error, Some(json)).await
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
        if !returned.is_empty() {
            session.kept.alike = 0;
        }
        for one in returned {
            fronts.settled(session, one.lane, &[one.place.sequence], None, Duration::ZERO);
        }
        for (lane, to) in moves {
            let behind = published.get(&lane).map_or(Duration::ZERO, |&time| age(time));
            fronts.settled(session, lane, &[], Some(to), behind);
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
        let record = &due.delivery.record;
        let envelope = Envelope::decode(record.bytes.clone()).map_err(HandlerError::from)?;
        if let Some(caller) = self.subscription.caller(record.type_name()) {
            let then = |tx| caller.then(&envelope, record.sequence, json, tx);
            self.handle_within(&envelope, record.sequence, tx, then).await?;
        }
        let call = EffectCall { result: Some(kept(json)), error: None, ..due.call.clone() };
        tx.complete(claim, &call).await?;
        Ok(envelope.time)
    }

    /// Tries again later, or parks the event with its key once it had its tries. What the call returned is kept if only its
    /// completion failed.
    async fn call_failed(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        index: usize,
        place: &Place,
        error: HandlerError,
        returned: Option<&str>,
    ) -> Result<()> {
        let (lane, front) = (&mut session.lanes[index], &mut fronts.lanes[index]);
        let Some(due) = front.window.due(place.sequence) else { return Ok(()) };
        // What is nobody's fault does not count.
        let is_counted = !error.is_transient();
        due.call.attempts -= u32::from(!is_counted);
        due.call.result = returned.map(str::to_owned);
        due.call.error = Some(error.to_string());
        let attempts = due.call.attempts;
        let failing = Failing { attempts, error: Some(error) };
        let next = match is_counted {
            true => failing.next(lane.parked.room(session.kept.alike), self.clock.now()),
            false => Next::Try(attempts + 1),
        };
        if let Next::Park(tries) = next {
            return self.park_call(session, fronts, index, place.sequence, tries).await;
        }
        self.database.record_call(&lane.claim, &due.call).await?;
        tracing::warn!(subscription = self.subscription.name, topic = %place.topic, partition = place.partition,
            sequence = place.sequence, event = %place.id, attempts, "is called for again: {}", failing.text());
        lane.attempted(place.id, attempts);
        front.window.put_off(place.sequence, Instant::now() + RETRY.jittered(attempts.saturating_sub(1)));
        self.metrics.retries.get_or_create(&self.of()).inc();
        if let Next::Stuck(why) = next {
            self.stick(session, index, why);
        }
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

    /// These are done, and the cursor has moved: there may be room to read on.
    pub(super) fn settled(
        &mut self,
        session: &mut Session,
        index: usize,
        done: &[u64],
        to: Option<Cursor>,
        behind: Duration,
    ) {
        let front = &mut self.lanes[index];
        done.iter().for_each(|&sequence| front.window.done(sequence));
        let Some(to) = to else { return };
        session.lanes[index].moved(to, behind, front.window.moved(to));
        if !front.window.is_full()
            && let Some(stream) = front.held_back.take()
        {
            session.streams.insert(index, stream);
        }
    }
}

/// What is kept of what a call returned.
pub(super) fn kept(json: &str) -> String {
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
