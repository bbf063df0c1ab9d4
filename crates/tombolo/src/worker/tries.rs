//! Trying an event alone: each try recorded before it begins, a few at once, then its key is parked.
//!
//! takes: one event that failed, or that the holder before may have died of · writes: the attempts, and in the end the
//! event's effect or its parked row, with the cursor · commits when: the event is handled or parked · if we crash here:
//! the attempts say so, and the next holder goes on counting · if it repeats: the cursor has moved, so it is refused.
//!
//! Invariant: no event is tried a second time before the first try is on record.

use tombolo_db::{Database, Transaction, Tries};
use tombolo_event::barrier;

use super::apply::{Delivery, Undone};
use super::lane::Step;
use super::parking::{Failing, Next};
use super::{Session, Worker};
use crate::handler::HandlerError;
use crate::{Error, Kind, Result};

impl<D: Database> Worker<D> {
    /// Has one step done whatever it takes: handled, parked, or waited for. `failed` is what its first try failed with.
    pub(super) async fn alone(
        &self,
        session: &mut Session,
        step: &Step,
        failed: Option<HandlerError>,
    ) -> Result<()> {
        let lane = &session.lanes[step.lane];
        let to_handle = step.delivery.as_ref().filter(|delivery| !lane.parked.contains(delivery.key_hash));
        let Some(delivery) = to_handle else { return self.pass(session, step).await };
        let mut failing = failed.map_or_else(|| lane.failing(delivery.record.id), Failing::first);
        let mut tries_anyway = lane.was_stuck();
        while !session.lanes[step.lane].is_halted() {
            let lane = &session.lanes[step.lane];
            let room = lane.parked.room(session.kept.alike);
            let attempt = match failing.next(room, self.clock.now()) {
                Next::Try(attempt) => attempt,
                _ if tries_anyway => failing.attempts + 1,
                Next::Park(tries) => return self.park(session, step, delivery, tries).await,
                Next::Stuck(why) => {
                    self.stick(session, step.lane, why);
                    return Ok(());
                }
            };
            tries_anyway = false;
            self.record(session, step.lane, delivery, attempt, &failing).await?;
            match self.transaction(session, std::slice::from_ref(step)).await {
                Ok(_) => return Ok(()),
                Err(Undone::Away(error)) => return Err(error),
                Err(Undone::Failed(failure)) => {
                    failing = Failing { attempts: attempt, error: Some(failure.error) };
                }
            }
        }
        Ok(())
    }

    /// A step in which nothing is handled: a failure of it is nobody's fault.
    async fn pass(&self, session: &mut Session, step: &Step) -> Result<()> {
        match self.transaction(session, std::slice::from_ref(step)).await {
            Ok(_) => Ok(()),
            Err(Undone::Away(error)) => Err(error),
            Err(Undone::Failed(failure)) => Err(Error::new(Kind::Database, failure.error.to_string())),
        }
    }

    async fn record(
        &self,
        session: &mut Session,
        lane: usize,
        delivery: &Delivery,
        attempt: u32,
        failing: &Failing,
    ) -> Result<()> {
        let lane = &mut session.lanes[lane];
        self.database.record_attempt(&lane.claim, delivery.record.id, attempt, &failing.text()).await?;
        lane.attempted(delivery.record.id, attempt);
        if failing.error.is_some() {
            self.metrics.retries.get_or_create(&self.of()).inc();
            tracing::warn!(subscription = self.subscription.name, topic = %lane.claim.topic,
                partition = lane.claim.partition, sequence = delivery.record.sequence, event = %delivery.record.id, attempt,
                "is tried again: {}", failing.text());
        }
        barrier::reach("parking.after-attempt");
        Ok(())
    }

    /// Parks the event with its key, and moves the cursor over it.
    async fn park(
        &self,
        session: &mut Session,
        step: &Step,
        delivery: &Delivery,
        tries: Tries,
    ) -> Result<()> {
        let now = self.clock.now();
        let lane = &mut session.lanes[step.lane];
        let mut tx = self.database.begin(&self.publisher).await?;
        tx.park(&[delivery.parked(&lane.claim, tries.clone(), now)]).await?;
        tx.advance(&lane.claim, &step.to).await?;
        barrier::reach("parking.before-commit");
        tx.commit().await?;
        lane.parked.park(delivery.key_hash, &tries, now);
        lane.moved(step.to, std::time::Duration::ZERO, std::iter::once(step.to));
        session.kept.alike += 1;
        self.metrics.parked.get_or_create(&self.of()).inc();
        let lane = &session.lanes[step.lane];
        tracing::error!(subscription = self.subscription.name, topic = %lane.claim.topic,
            partition = lane.claim.partition, sequence = delivery.record.sequence, event = %delivery.record.id,
            attempts = tries.attempts, "is parked with its key: {}", tries.error.unwrap_or_default());
        Ok(())
    }

    /// Lets a lane wait, because something general is wrong.
    pub(super) fn stick(&self, session: &mut Session, lane: usize, why: String) {
        session.streams.remove(&lane);
        let lane = &mut session.lanes[lane];
        tracing::error!(subscription = self.subscription.name, topic = %lane.claim.topic,
            partition = lane.claim.partition, "is stuck: {why}");
        lane.stick(why);
    }
}
