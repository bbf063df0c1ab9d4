//! Redrive: parked events are handled in order, key by key, when their time comes or when it is told.
//!
//! takes: the parked events of a key, first to last · writes: what the handler writes, and the removal of the parked row ·
//! commits when: one event is handled, under the lease · if we crash here: the row is still there, with the try on record ·
//! if it repeats: the row is gone, so it is refused.
//!
//! Invariant: order is kept in both directions. A key's events go one after the other and stop at the first that fails; its
//! live events are parked behind until nothing of it is left. One task does both, so neither can overtake.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_db::{Claim, Database, ParkedEvent, Transaction};
use tombolo_event::KeyHash;
use tombolo_event::barrier;

use super::apply::{Delivery, Undone};
use super::{Session, Worker, parking};
use crate::Result;

/// How long redriving goes on before what is live has its turn.
const TURN: Duration = Duration::from_millis(250);
/// Parked events that are read at once.
const EVENTS_AT_ONCE: usize = 100;

/// What became of one try.
enum Tried {
    Handled,
    Failed,
}

impl<D: Database> Worker<D> {
    /// Tries the keys whose time has come, for a while.
    pub(super) async fn redrive(&self, session: &mut Session) -> Result<()> {
        let ends = Instant::now() + TURN;
        while let Some((lane, key)) = session.due(self.clock.now()) {
            self.redrive_key(session, lane, key, ends).await?;
            if Instant::now() >= ends {
                break;
            }
        }
        self.finish_redrives(session).await
    }

    /// Handles a key's parked events in order, until one fails, none is left, or the turn is over.
    async fn redrive_key(
        &self,
        session: &mut Session,
        lane: usize,
        key: KeyHash,
        ends: Instant,
    ) -> Result<()> {
        loop {
            let claim = &session.lanes[lane].claim;
            let events = self.database.parked_of(claim, key, EVENTS_AT_ONCE).await?;
            let is_all = events.len() < EVENTS_AT_ONCE;
            for event in &events {
                let tried = self.redrive_one(session, lane, event).await?;
                session.tell_redrive(lane, key, matches!(tried, Tried::Handled));
                if matches!(tried, Tried::Failed) {
                    return Ok(());
                }
                if Instant::now() >= ends {
                    session.lanes[lane].parked.schedule(key, Some(Timestamp::MIN));
                    return Ok(());
                }
            }
            if is_all {
                session.lanes[lane].parked.remove(key);
                return Ok(());
            }
        }
    }

    async fn redrive_one(&self, session: &mut Session, lane: usize, event: &ParkedEvent) -> Result<Tried> {
        let begun = parking::begun(&event.tries, self.clock.now());
        let claim = &session.lanes[lane].claim;
        self.database.record_tries(claim, event.sequence, &begun).await?;
        barrier::reach("redrive.after-attempt");
        match self.redrive_transaction(claim, event).await {
            Ok(()) => {
                session.kept.alike = 0;
                session.lanes[lane].parked.leave(event.key_hash);
                self.metrics.redriven.get_or_create(&self.of()).inc();
                Ok(Tried::Handled)
            }
            Err(Undone::Away(error)) => Err(error),
            Err(Undone::Failed(failure)) => {
                let failed = parking::failed(&begun, &failure.error, self.clock.now());
                let lane = &mut session.lanes[lane];
                self.database.record_tries(&lane.claim, event.sequence, &failed).await?;
                lane.parked.schedule(event.key_hash, failed.retry_at);
                tracing::warn!(subscription = self.subscription.name, topic = %event.topic,
                    partition = event.partition, sequence = event.sequence, event = %event.id,
                    attempts = failed.attempts, "stays parked: {}", failure.error);
                Ok(Tried::Failed)
            }
        }
    }

    /// The event's effect and its removal, under the lease.
    async fn redrive_transaction(&self, claim: &Claim, event: &ParkedEvent) -> Result<(), Undone> {
        let mut tx = self.begin_for_events().await?;
        self.handle(&Delivery::of_parked(event), &mut tx).await?;
        tx.unpark(claim, event.sequence).await?;
        barrier::reach("redrive.before-commit");
        tx.commit().await?;
        Ok(())
    }
}
