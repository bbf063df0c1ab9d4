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
mod parked;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_bus::{Batch, Record, RecordStream};
use tombolo_db::{CallState, Claim, Database, EffectCall};
use tombolo_event::Cursor;
use tracing::Instrument;

use super::apply::Delivery;
use super::lane::{Lane, Step};
use super::parking::TRIES_AT_ONCE;
use super::{Ended as SessionEnded, Session, Worker, at};
use crate::{Error, Kind, Result};
pub(super) use calls::Calls;
use calls::Place;
use parked::Redriven;
use trying::Trying;
use window::{Due, Standing, Window};

/// What is under way in the lanes of a session, in their order.
struct Fronts {
    lanes: Vec<Front>,
    /// The lane whose turn it is to begin a call.
    turn: usize,
    /// The parked events whose calls run.
    redriven: HashMap<Place, Redriven>,
}

/// What is under way in one lane.
#[derive(Default)]
struct Front {
    window: Window,
    /// What was stored of the calls after the cursor when the session began.
    known: BTreeMap<u64, CallState>,
    /// Events that go behind parked ones of their key.
    behind: Vec<u64>,
    /// Events whose calls had all their tries before the session began.
    spent: Vec<u64>,
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

    /// Makes calls until it is stopped, or a new session has other partitions; either lets those that run end. A session that
    /// begins anew for another reason takes them over.
    async fn make_calls(&self, session: &mut Session, calls: &mut Calls) -> Result<SessionEnded> {
        let mut fronts = self.fronts(&session.lanes, calls).await?;
        let (mut announced, changed) = (self.announced.clone(), self.has_changed(session));
        announced.mark_changed();
        tokio::pin!(changed);
        let mut ending = None;
        loop {
            let goes_on = ending.is_none();
            match ending {
                Some(ended) if calls.running() == 0 => return Ok(ended),
                Some(_) => {}
                None => self.begin(session, &mut fronts, calls),
            }
            let retry_at = session.lanes.iter().filter_map(Lane::retry_at).min();
            let has_room = goes_on && calls.running() < self.subscription.calls.at_once;
            let call_at = fronts.next_at().filter(|_| has_room);
            let redrive_at = session.redrive_at().filter(|_| has_room);
            let (follow_at, keys) = (session.follow_at(), session.keys_ahead());
            tokio::select! {
                () = self.stop.cancelled(), if goes_on => ending = Some(SessionEnded::Stopped),
                () = &mut changed, if goes_on => ending = Some(SessionEnded::Again),
                () = calls.ended() => self.settle(session, &mut fronts, calls).await?,
                Some((index, batch)) = session.streams.next(), if goes_on && !session.streams.is_empty() => {
                    self.queue(session, &mut fronts, calls, index, batch)?;
                    self.settle(session, &mut fronts, calls).await?;
                }
                () = at(call_at) => {}
                () = self.clock.until(redrive_at.unwrap_or(Timestamp::MAX)), if redrive_at.is_some() => {
                    self.redrive_calls(session, &mut fronts, calls).await?;
                }
                Ok(()) = announced.changed(), if goes_on => {
                    if self.carry_out_anew(session).await? {
                        return Ok(SessionEnded::Again);
                    }
                    session.look_at_once();
                }
                () = at(follow_at), if goes_on => self.follow_on(session).await?,
                () = at(retry_at), if goes_on => {
                    if session.has_other_retries(Instant::now()) {
                        return Ok(SessionEnded::Again);
                    }
                    self.read_again(session).await?;
                }
            }
            self.pass_on(session, keys).await;
            self.report(session);
        }
    }

    /// Carries out what operators asked; returns whether that changed what the windows stand on.
    async fn carry_out_anew(&self, session: &mut Session) -> Result<bool> {
        let standings = |lanes: &[Lane]| -> Vec<(Cursor, bool)> {
            lanes.iter().map(|lane| (lane.claim.cursor, lane.is_paused())).collect()
        };
        let before = standings(&session.lanes);
        self.carry_out(session).await?;
        Ok(standings(&session.lanes) != before)
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
            lanes.push(Front { known, ..Front::default() });
        }
        Ok(Fronts { lanes, turn: 0, redriven: HashMap::new() })
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
        let (lane, front) = (&session.lanes[index], &mut fronts.lanes[index]);
        for step in steps {
            front.queue(lane, calls, step);
        }
        if front.window.is_full() {
            front.held_back = session.streams.remove(&index);
        }
        Ok(())
    }

    /// Begins as many calls as there is room for, lane by lane in turn.
    fn begin(&self, session: &Session, fronts: &mut Fronts, calls: &mut Calls) {
        let (now, lanes) = (Instant::now(), fronts.lanes.len());
        let mut idle = 0;
        while idle < lanes && calls.running() < self.subscription.calls.at_once {
            let index = fronts.turn % lanes;
            fronts.turn = index + 1;
            let lane = &session.lanes[index];
            let window = &mut fronts.lanes[index].window;
            let next = if lane.is_halted() { None } else { window.next(now) };
            match next.and_then(|sequence| window.due(sequence)) {
                Some(due) => {
                    idle = 0;
                    due.call.attempts += 1;
                    self.begin_call(&lane.claim, &due.delivery, &due.call, false, calls);
                }
                None => idle += 1,
            }
        }
    }

    /// Begins one try of a call, this try counted.
    fn begin_call(
        &self,
        claim: &Claim,
        delivery: &Delivery,
        call: &EffectCall,
        is_parked: bool,
        calls: &mut Calls,
    ) {
        let record = &delivery.record;
        let repeated = (claim.topic.as_str(), claim.partition, record.sequence);
        let trying = Trying {
            database: self.database.clone(),
            claim: claim.clone(),
            call: call.clone(),
            bytes: record.bytes.clone(),
            caller: self.subscription.caller(record.type_name()).map(Arc::clone),
            app: self.app.clone(),
            states: Arc::clone(&self.states),
            bound: self.subscription.calls.bound,
            is_parked,
            repeat: self.life.repeats(&claim.subscription, repeated),
        };
        let span = tracing::info_span!("call", subscription = self.subscription.name,
            event_type = record.type_name(), event = %record.id, sequence = record.sequence, attempt = call.attempts);
        let place = Place::of(claim, record.sequence, record.id);
        calls.begin(place, self.life.clone().lasts(trying.make().instrument(span)));
    }
}

impl Fronts {
    /// When the next event that was put off can begin.
    fn next_at(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|front| front.window.next_at()).min()
    }
}

impl Front {
    /// Adds what was read to the window: done, behind a parked event of its key, or due.
    fn queue(&mut self, lane: &Lane, calls: &Calls, step: Step) {
        let Some(delivery) = step.delivery else { return self.window.pass(step.to) };
        let (sequence, id) = (delivery.record.sequence, delivery.record.id);
        let known = self.known.remove(&sequence).filter(|state| state.call.id == id);
        if known.as_ref().is_some_and(|state| state.done_at.is_some()) {
            return self.window.pass(step.to);
        }
        let new = EffectCall { sequence, id, attempts: 0, result: None, error: None };
        let call = known.map_or(new, |state| state.call);
        let mut standing = Standing::Taken;
        if lane.parked.contains(delivery.key_hash) {
            self.behind.push(sequence);
        } else if calls.has(&Place::of(&lane.claim, sequence, id)) {
            // It goes on, or has ended and is settled next.
        } else if call.attempts >= TRIES_AT_ONCE {
            self.spent.push(sequence);
        } else {
            standing = Standing::Waits;
        }
        self.window.add(step.to, Due { delivery, call }, standing);
    }
}
