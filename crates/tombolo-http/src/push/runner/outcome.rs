//! What follows from what became of a delivery.
//!
//! Invariant: what was not reached never counts towards parking; what failed is counted on disk before it is tried again.

use tokio::time::Instant;

use super::{Away, Change, Flight, Job, Key, Landed, Parked, Runner};
use crate::push::event::Event;
use crate::push::handshake::Permission;
use crate::push::lane::{Failure, Lane, Outcome};
use crate::push::settings::Order;

impl Runner {
    /// Goes on after something that was under way has ended.
    pub(super) async fn ended(&mut self, flight: Flight) {
        match flight {
            Flight::Delivery(landed) => {
                let Landed { lane, job, outcome } = *landed;
                self.landed(lane);
                let outcome = self.judged(outcome);
                self.note(&outcome);
                match job {
                    Job::Event(event) => self.delivered(*event, outcome).await,
                    Job::Parked(key, parked) => self.redriven(key, parked, outcome).await,
                }
            }
            Flight::Probe(lane, found) => {
                self.landed(lane);
                match found {
                    Ok(()) => {
                        self.away = Away::default();
                        self.recovery.found(Instant::now());
                    }
                    Err(cause) => self.note(&Outcome::NotReached(cause)),
                }
            }
            Flight::Handshake(lane, answer) => {
                self.landed(lane);
                self.shook_hands(answer).await;
            }
            Flight::Committed(key) => {
                self.committing -= 1;
                self.queue.release(&key);
            }
            Flight::Snapshot(to) => {
                self.recovery.ends(to.is_some());
                if let Some(to) = to {
                    self.settle_at_snapshot(to);
                }
            }
        }
    }

    fn landed(&mut self, lane: Lane) {
        self.under_way -= 1;
        self.lanes.push(lane);
    }

    /// No answer of one that never answers is a success.
    fn judged(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Failed(Failure::Unanswered, _) if !self.definition.answers => Outcome::Delivered,
            other => other,
        }
    }

    /// What the outcome says of the subscriber, apart from the event.
    fn note(&mut self, outcome: &Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Delivered => self.recovery.well(),
            Outcome::NotReached(_) | Outcome::Failed(Failure::Broken | Failure::Unanswered, _) => {
                self.recovery.suspect();
            }
            _ => {}
        }
        match outcome {
            Outcome::NotReached(cause) => {
                let until = now + self.definition.retry.backoff().jittered(self.away.tries);
                let tries = self.away.tries.saturating_add(1);
                self.away = Away { tries, until: Some(until), cause: cause.clone() };
            }
            Outcome::NotNow(wait, cause) => {
                let tries = self.away.tries.max(1);
                self.away = Away { tries, until: Some(now + *wait), cause: cause.clone() };
            }
            _ => self.away = Away::default(),
        }
    }

    async fn shook_hands(&mut self, answer: Result<Permission, String>) {
        match answer {
            Ok(given) => {
                let kept = given.kept(&self.permission.origin());
                self.permission = given;
                self.away = Away::default();
                drop(self.state.write(&self.definition.name, vec![Change::Allowed(Some(kept))]).await.await);
            }
            Err(cause) => {
                self.permission.refused();
                self.note(&Outcome::NotReached(cause));
            }
        }
    }

    async fn delivered(&mut self, mut event: Event, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => {
                let mut changes = self.done(&event);
                if event.attempts > 0 {
                    changes.push(Change::Cleared(event.place));
                }
                self.commit(&event.key, changes).await;
            }
            Outcome::NotReached(_) => self.queue.again(&event.key),
            Outcome::NotNow(..) => self.again_marked(&event.key),
            Outcome::Gone(cause) => {
                self.again_marked(&event.key);
                self.pause(format!("{cause}: it does not want any more events; resume it when it does"))
                    .await;
            }
            Outcome::Failed(_, cause) => {
                (event.attempts, event.cause) = (event.attempts + 1, cause);
                match event.attempts >= self.definition.retry.attempts && !self.is_full() {
                    true => self.park(event).await,
                    false => self.try_later(event).await,
                }
            }
        }
    }

    fn again_marked(&mut self, key: &Key) {
        if let Some(first) = self.queue.first_mut(key) {
            first.is_repeated = true;
        }
        self.queue.again(key);
    }

    /// The changes by which an event is done.
    pub(super) fn done(&mut self, event: &Event) -> Vec<Change> {
        self.queue.finished(&event.key);
        let standing = self.queue.standing(event.place.0).cloned();
        standing.map(Change::Stands).into_iter().collect()
    }

    async fn try_later(&mut self, event: Event) {
        let at = Instant::now() + self.definition.retry.backoff().jittered(event.attempts - 1);
        let (place, attempts, cause) = (event.place, event.attempts, event.cause.clone());
        tracing::debug!(subscription = %self.definition.name, %cause, attempts, "a delivery failed and is tried again");
        if let Some(first) = self.queue.first_mut(&event.key) {
            *first = Event { is_repeated: true, ..event.clone() };
        }
        drop(
            self.state
                .write(&self.definition.name, vec![Change::Failed { place, attempts, cause }])
                .await
                .await,
        );
        self.timers += 1;
        self.later.insert((at, self.timers), event.key);
    }

    /// Parks an event that failed too often.
    async fn park(&mut self, event: Event) {
        let (partition, sequence) = event.place;
        tracing::warn!(
            subscription = %self.definition.name, partition, sequence, cause = %event.cause, attempts = event.attempts,
            "an event is parked; see it with GET /subscriptions/{}/parked", self.definition.name
        );
        let mut changes = self.done(&event);
        changes.extend([Change::Parked(parked(&event)), Change::Cleared(event.place)]);
        *self.parked.entry(event.key.clone()).or_default() += 1;
        self.commit(&event.key, changes).await;
    }

    /// Parks an event because one of its key before it is; where there is no room, the key waits.
    pub(super) async fn park_behind(&mut self, mut event: Event) {
        if self.is_full() {
            self.full.push(event.key);
            return;
        }
        event.cause = "an event of the same key before it is parked".into();
        let mut changes = self.done(&event);
        changes.push(Change::Parked(parked(&event)));
        *self.parked.entry(event.key.clone()).or_default() += 1;
        self.commit(&event.key, changes).await;
    }

    /// Whether no event can be parked any more.
    pub(super) fn is_full(&self) -> bool {
        self.parked.values().sum::<usize>() >= self.definition.parked_max
    }

    /// An event is not parked any more.
    pub(super) fn unparked(&mut self, key: &Key) {
        if let Some(count) = self.parked.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.parked.remove(key);
            }
        }
        for key in std::mem::take(&mut self.full) {
            self.queue.again(&key);
        }
    }

    /// Stops sending, for a reason that is kept.
    pub(super) async fn pause(&mut self, reason: String) {
        tracing::warn!(subscription = %self.definition.name, reason, "a subscription is paused");
        self.paused = Some(reason.clone());
        drop(self.state.write(&self.definition.name, vec![Change::Paused(Some(reason))]).await.await);
    }

    /// Events that failed and are tried again.
    pub(super) fn failing(&self) -> impl Iterator<Item = &Event> {
        self.queue.events().filter(|event| event.attempts > 0)
    }

    /// Whether a failing event can only be parked where there is no room.
    pub(super) fn is_stuck(&self) -> bool {
        let keys_wait = !self.full.is_empty() && self.definition.order == Order::Key;
        keys_wait || self.failing().any(|event| event.attempts >= self.definition.retry.attempts)
    }
}

fn parked(event: &Event) -> Parked {
    Parked {
        place: event.place,
        id: event.id,
        key: event.envelope.key.clone(),
        event_type: event.envelope.event_type.clone(),
        attempts: event.attempts,
        cause: event.cause.clone(),
        at_ms: jiff::Timestamp::now().as_millisecond(),
    }
}
