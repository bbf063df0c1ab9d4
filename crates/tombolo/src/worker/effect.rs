//! Carrying an effect out: calls outside any transaction, and their completions in short ones.
//!
//! takes: batches of the partitions that it holds · writes: each try before it is made, then what it returned with its
//! completion, and the cursor · commits when: a call has returned · if we crash here: a call that was begun is made again
//! with the same key, one that is done is not · if it repeats: the completion is there already: refused.
//!
//! Invariant: a call begins only after its try was recorded under the present lease, with no transaction open; and of one
//! key only after the completions of all events before it.

mod window;
mod calls;
mod trying;
mod settle;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;
use tombolo_bus::{Batch, Record, RecordStream};
use tombolo_db::{CallState, Claim, Database, EffectCall};
use tracing::Instrument;

use super::apply::Delivery;
use super::lane::{Lane, Step};
use super::{Ended as SessionEnded, Session, Worker, at};
use crate::{Error, Kind, Result};
pub(super) use calls::Calls;
use calls::Place;
use trying::Trying;
use window::{Due, Window};

/// What is under way in the lanes of a session, in their order.
struct Fronts {
    lanes: Vec<Front>,
    /// The lane whose turn it is to begin a call.
    turn: usize,
}

/// What is under way in one lane.
struct Front {
    window: Window,
    /// What was stored of the calls after the cursor when the session began.
    known: BTreeMap<u64, CallState>,
    /// The lane's stream, while the window is full.
    held_back: Option<RecordStream>,
    /// Where the cursor is when calls are forgotten next.
    forget_at: u64,
}

impl<D: Database> Worker<D> {
    /// Makes the calls of an effect once the database is known to be the one that counts: a copy of it makes none in the
    /// place of its original.
    pub(super) async fn call(&self, session: &mut Session, calls: &mut Calls) -> Result<SessionEnded> {
        let recovery = self.app.recovery();
        if recovery.until(true).now_or_never().is_none() {
            let why =
                "makes no calls until it is known that the service's database is no copy; see its relay";
            self.report_waiting(&Error::new(Kind::Restored, why));
            tokio::select! {
                () = self.stop.cancelled() => return Ok(SessionEnded::Stopped),
                () = recovery.until(true) => self.report(session),
            }
        }
        tokio::select! {
            ended = self.make_calls(session, calls) => ended,
            () = recovery.until(false) => Ok(SessionEnded::Again),
        }
    }

    /// Makes calls until it is stopped, or a new session has other partitions; either lets those that run end.
    async fn make_calls(&self, session: &mut Session, calls: &mut Calls) -> Result<SessionEnded> {
        let mut fronts = self.fronts(&session.lanes, calls).await?;
        let (membership, absent) = (session.membership.clone(), session.absent.clone());
        let changed = self.has_changed(&membership, &absent);
        tokio::pin!(changed);
        let mut ending = None;
        loop {
            match ending {
                None => self.begin(session, &mut fronts, calls),
                Some(ended) if calls.running() == 0 => return Ok(ended),
                Some(_) => {}
            }
            let goes_on = ending.is_none();
            let retry_at = session.lanes.iter().filter_map(Lane::retry_at).min();
            let call_at = fronts.lanes.iter().filter_map(|front| front.window.next_at()).min();
            tokio::select! {
                () = self.stop.cancelled(), if goes_on => ending = Some(SessionEnded::Stopped),
                () = &mut changed, if goes_on => ending = Some(SessionEnded::Again),
                () = calls.ended() => self.settle(session, &mut fronts, calls).await?,
                Some((index, batch)) = session.streams.next(), if goes_on && !session.streams.is_empty() => {
                    self.queue(session, &mut fronts, calls, index, batch)?;
                    self.settle(session, &mut fronts, calls).await?;
                }
                () = at(call_at), if goes_on && calls.running() < self.subscription.calls.at_once => {}
                () = at(retry_at), if goes_on => self.read_again(session).await?,
            }
            self.report(session);
        }
    }

    /// What the database and this process know of the calls after the cursors.
    async fn fronts(&self, held: &[Lane], calls: &mut Calls) -> Result<Fronts> {
        let is_ahead =
            |place: &Place, claim: &Claim| place.is_in(claim) && place.sequence > claim.cursor.sequence;
        calls.retain(|place| held.iter().any(|lane| is_ahead(place, &lane.claim)));
        let mut lanes = Vec::new();
        for lane in held {
            let known = self.database.calls(&lane.claim).await?;
            let known = known.into_iter().map(|state| (state.call.sequence, state)).collect();
            lanes.push(Front { window: Window::default(), known, held_back: None, forget_at: 0 });
        }
        Ok(Fronts { lanes, turn: 0 })
    }

    /// Takes what was read into the lane's window; a full one is not read further.
    fn queue(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        calls: &Calls,
        index: usize,
        batch: tombolo_bus::Result<Batch>,
    ) -> Result<()> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return self.read_failed(session, index, error),
        };
        let mut steps = Vec::new();
        let deliver = |record: Record| {
            self.subscription.caller(record.type_name()).is_some().then(|| Delivery::new(record))
        };
        session.lanes[index].steps(index, batch, deliver, &mut steps)?;
        let (claim, front) = (&session.lanes[index].claim, &mut fronts.lanes[index]);
        for step in steps {
            self.queue_step(claim, front, calls, step);
        }
        if front.window.is_full() {
            front.held_back = session.streams.remove(&index);
        }
        Ok(())
    }

    fn queue_step(&self, claim: &Claim, front: &mut Front, calls: &Calls, step: Step) {
        let Some(Delivery { record, .. }) = step.delivery else {
            return front.window.pass(step.to);
        };
        let (sequence, id) = (record.sequence, record.id);
        let known = front.known.remove(&sequence).filter(|state| state.call.id == id);
        if known.as_ref().is_some_and(|state| state.done_at.is_some()) {
            return front.window.pass(step.to);
        }
        let new = EffectCall { sequence, id, attempts: 0, result: None, error: None };
        let call = known.map_or(new, |state| state.call);
        let is_running = calls.has(&Place::of(claim, sequence, id));
        front.window.add(step.to, Due::new(record, call), is_running);
    }

    /// Begins as many calls as there is room for, lane by lane in turn.
    fn begin(&self, session: &Session, fronts: &mut Fronts, calls: &mut Calls) {
        let (now, lanes) = (Instant::now(), fronts.lanes.len());
        let mut idle = 0;
        while idle < lanes && calls.running() < self.subscription.calls.at_once {
            let index = fronts.turn % lanes;
            fronts.turn = index + 1;
            let claim = &session.lanes[index].claim;
            let window = &mut fronts.lanes[index].window;
            match window.next(now).and_then(|sequence| window.due(sequence)) {
                Some(due) => {
                    idle = 0;
                    self.begin_call(claim, due, calls);
                }
                None => idle += 1,
            }
        }
    }

    fn begin_call(&self, claim: &Claim, due: &mut Due, calls: &mut Calls) {
        let Some(caller) = self.subscription.caller(due.record.type_name()) else { return };
        due.call.attempts += 1;
        let trying = Trying {
            database: self.database.clone(),
            claim: claim.clone(),
            call: due.call.clone(),
            bytes: due.record.bytes.clone(),
            caller: Arc::clone(caller),
            app: self.app.clone(),
            states: Arc::clone(&self.states),
            bound: self.subscription.calls.bound,
            repeat: self
                .life
                .repeats(&claim.subscription, (claim.topic.as_str(), claim.partition, due.record.sequence)),
        };
        let record = &due.record;
        let span = tracing::info_span!("call", subscription = self.subscription.name,
            event_type = record.type_name(), event = %record.id, sequence = record.sequence, attempt = due.call.attempts);
        let place = Place::of(claim, record.sequence, record.id);
        calls.begin(place, self.life.clone().lasts(trying.make().instrument(span)));
    }
}
