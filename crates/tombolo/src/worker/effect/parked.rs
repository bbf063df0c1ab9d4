//! Events that an effect could not call for: parked with their key, and called for again when their time comes.
//!
//! takes: calls that had their tries; parked events whose time has come · writes: parked rows, the marks that lift the cursor
//! over them, tries, and completions with the removal of the row · commits when: an event is parked, or its call has returned ·
//! if we crash here: it is parked or not, and its tries are on record · if it repeats: the row is there or gone, so it is refused.
//!
//! Invariant: of a key of which anything is parked nothing is called for but its first parked event.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_db::{Claim, Database, EffectCall, ParkedEvent, Transaction, Tries};
use tombolo_event::{Envelope, barrier};

use super::Fronts;
use super::calls::{Calls, Ended, Made, Place};
use super::settle::kept;
use crate::Result;
use crate::handler::HandlerError;
use crate::worker::apply::{Delivery, Undone};
use crate::worker::lane::Lane;
use crate::worker::parking::{self, Failing, Next};
use crate::worker::{Session, Worker};

/// A parked event whose call runs.
pub(super) struct Redriven {
    lane: usize,
    event: ParkedEvent,
    /// The try that runs.
    begun: Tries,
}

impl<D: Database> Worker<D> {
    /// Parks an event with everything of its key that was read behind it.
    pub(super) async fn park_call(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        index: usize,
        sequence: u64,
        tries: Tries,
    ) -> Result<()> {
        let claim = &session.lanes[index].claim;
        tracing::error!(subscription = claim.subscription, topic = %claim.topic, partition = claim.partition, sequence,
            attempts = tries.attempts, "is parked with its key: {}", tries.error.as_deref().unwrap_or_default());
        let line = fronts.lanes[index].window.line(sequence);
        self.park_all(session, fronts, index, &line, &tries).await?;
        session.kept.alike += 1;
        self.metrics.parked.get_or_create(&self.of()).inc();
        Ok(())
    }

    /// Parks what was read behind parked events of its key.
    pub(super) async fn park_behind(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        index: usize,
    ) -> Result<()> {
        let behind = std::mem::take(&mut fronts.lanes[index].behind);
        if behind.is_empty() {
            return Ok(());
        }
        if let Err(why) = session.lanes[index].parked.room_behind() {
            self.stick(session, index, why);
            return Ok(());
        }
        self.park_all(session, fronts, index, &behind, &Tries::default()).await
    }

    /// Parks events, of which the first had these tries, and moves the cursor over them if no hole is left.
    async fn park_all(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        index: usize,
        sequences: &[u64],
        first: &Tries,
    ) -> Result<()> {
        let (lane, front) = (&mut session.lanes[index], &mut fronts.lanes[index]);
        let (mut events, mut tx) = (Vec::new(), self.database.begin(&self.publisher).await?);
        for &sequence in sequences {
            let Some(due) = front.window.due(sequence) else { continue };
            let tries = if events.is_empty() { first.clone() } else { Tries::default() };
            let error = tries.error.clone().or_else(|| Some(BEHIND.into()));
            tx.complete(&lane.claim, &EffectCall { error, ..due.call.clone() }).await?;
            events.push(due.delivery.parked(&lane.claim, tries, self.clock.now()));
        }
        tx.park(&events).await?;
        let to = front.window.reach(sequences);
        if let Some(to) = &to {
            tx.advance(&lane.claim, to).await?;
        }
        barrier::reach("parking.before-commit");
        tx.commit().await?;
        for event in &events {
            match event.tries.attempts {
                0 => lane.parked.follow(event.key_hash, event.parked_at),
                _ => lane.parked.park(event.key_hash, &event.tries, event.parked_at),
            }
        }
        fronts.settled(session, index, sequences, to, Duration::ZERO);
        Ok(())
    }

    /// Parks what had all its tries before this session, or lets it be tried once more if nothing may be parked.
    pub(super) async fn park_spent(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        index: usize,
    ) -> Result<()> {
        for sequence in std::mem::take(&mut fronts.lanes[index].spent) {
            let room = session.lanes[index].parked.room(session.kept.alike);
            let Some(due) = fronts.lanes[index].window.due(sequence) else { continue };
            let error = due.call.error.clone().map(|error| std::io::Error::other(error).into());
            let failing = Failing { attempts: due.call.attempts, error };
            match failing.next(room, self.clock.now()) {
                Next::Park(tries) => self.park_call(session, fronts, index, sequence, tries).await?,
                Next::Try(_) | Next::Stuck(_) => {
                    fronts.lanes[index].window.put_off(sequence, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Begins the calls of the parked keys whose time has come, as far as there is room.
    pub(super) async fn redrive_calls(
        &self,
        session: &mut Session,
        fronts: &mut Fronts,
        calls: &mut Calls,
    ) -> Result<()> {
        while calls.running() < self.subscription.calls.at_once {
            let Some((index, key)) = session.due(self.clock.now()) else { break };
            let lane = &mut session.lanes[index];
            let Some(event) = self.database.parked_of(&lane.claim, key, 1).await?.pop() else {
                lane.parked.remove(key);
                continue;
            };
            let begun = parking::begun(&event.tries, self.clock.now());
            self.database.record_tries(&lane.claim, event.sequence, &begun).await?;
            barrier::reach("redrive.after-attempt");
            let stored = self.database.call_at(&lane.claim, event.sequence).await?;
            let result =
                stored.filter(|stored| stored.call.id == event.id).and_then(|stored| stored.call.result);
            // Its next time is known once this try has ended.
            lane.parked.schedule(key, None);
            let redriven = Redriven { lane: index, event, begun };
            let call = redriven.call(result);
            self.begin_call(&lane.claim, &Delivery::of_parked(&redriven.event), &call, true, calls);
            fronts.redriven.insert(Place::of(&lane.claim, call.sequence, call.id), redriven);
        }
        self.finish_redrives(session).await
    }

    /// Stores what became of the call of a parked event.
    pub(super) async fn settle_redriven(
        &self,
        session: &mut Session,
        redriven: Redriven,
        made: Made,
    ) -> Result<()> {
        let claim = &session.lanes[redriven.lane].claim;
        let handled = match made.ended {
            Ended::Returned(json) => match self.complete_redriven(claim, &redriven, &json).await {
                Ok(()) => Ok(()),
                Err(Undone::Away(error)) => return Err(error),
                Err(Undone::Failed(failure)) => {
                    self.keep_result(claim, &redriven, &json, &failure.error).await?;
                    Err(failure.error)
                }
            },
            Ended::Failed(error) => Err(error),
            Ended::NotMade(error) => return Err(error.into()),
        };
        let key = redriven.event.key_hash;
        session.tell_redrive(redriven.lane, key, handled.is_ok());
        let lane = &mut session.lanes[redriven.lane];
        match handled {
            Ok(()) => {
                lane.parked.leave(key);
                // The next of its key at once; that there is none shows then.
                lane.parked.schedule(key, Some(Timestamp::MIN));
                session.kept.alike = 0;
                self.metrics.redriven.get_or_create(&self.of()).inc();
            }
            Err(error) => self.stays_parked(lane, &redriven, &error).await?,
        }
        self.finish_redrives(session).await
    }

    async fn stays_parked(&self, lane: &mut Lane, redriven: &Redriven, error: &HandlerError) -> Result<()> {
        let (event, failed) = (&redriven.event, parking::failed(&redriven.begun, error, self.clock.now()));
        self.database.record_tries(&lane.claim, event.sequence, &failed).await?;
        lane.parked.schedule(event.key_hash, failed.retry_at);
        tracing::warn!(subscription = self.subscription.name, topic = %event.topic, partition = event.partition,
            sequence = event.sequence, event = %event.id, attempts = failed.attempts, "stays parked: {error}");
        Ok(())
    }

    /// The completion of a parked event's call, what goes with it, and the removal of its row.
    async fn complete_redriven(&self, claim: &Claim, redriven: &Redriven, json: &str) -> Result<(), Undone> {
        let event = &redriven.event;
        let envelope = Envelope::decode(event.bytes.clone()).map_err(HandlerError::from)?;
        let mut tx = self.database.begin(&self.publisher).await?;
        if let Some(caller) = self.subscription.caller(&event.event_type) {
            let then = |tx| caller.then(&envelope, event.sequence, json, tx);
            self.handle_within(&envelope, event.sequence, &mut tx, then).await?;
        }
        tx.unpark(claim, event.sequence).await?;
        tx.complete(claim, &redriven.call(Some(kept(json)))).await?;
        barrier::reach("redrive.before-commit");
        tx.commit().await?;
        Ok(())
    }

    /// Keeps what the call returned, because only its completion failed.
    async fn keep_result(
        &self,
        claim: &Claim,
        redriven: &Redriven,
        json: &str,
        error: &HandlerError,
    ) -> Result<()> {
        let mut tx = self.database.begin(&self.publisher).await?;
        let call = EffectCall { error: Some(error.to_string()), ..redriven.call(Some(json.to_owned())) };
        tx.complete(claim, &call).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// What is stored of an event that waits behind a parked one.
const BEHIND: &str = "it waits behind a parked event of its key";

impl Redriven {
    fn call(&self, result: Option<String>) -> EffectCall {
        let (sequence, id) = (self.event.sequence, self.event.id);
        EffectCall { sequence, id, attempts: self.begun.attempts, result, error: None }
    }
}
