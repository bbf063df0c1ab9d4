//! What operators, owners and readers of snapshots ask of a subscription.
//!
//! Invariant: what was asked for is on disk when it is answered.

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tombolo_event::{Cursor, EventId};

use super::{Away, Change, Flight, Runner, reply};
use crate::problem::{Problem, Refusal};
use crate::push::event::Place;

type Answer<T> = oneshot::Sender<Result<T, Problem>>;

/// A wish.
pub(crate) enum Command {
    /// Send nothing more until it is resumed.
    Pause(String, Answer<()>),
    /// Go on, at once.
    Resume(Answer<()>),
    /// Deliver parked events again.
    Redrive(Option<EventId>, Answer<usize>),
    /// Let a parked event go.
    Discard(EventId, Answer<()>),
    /// Go past an event that fails; tells which.
    Skip(Option<Place>, Answer<Value>),
    /// Move the cursors.
    Reset(Vec<(u32, Cursor)>, Answer<()>),
    /// Where it stands.
    Stands(oneshot::Sender<Value>),
    /// A snapshot begins; tells whether it counts. Its end comes with the place up to which it was sent whole.
    Snapshot(oneshot::Sender<bool>, oneshot::Receiver<Cursor>),
}

impl Runner {
    /// Does what is asked.
    pub(super) async fn obey(&mut self, command: Command) {
        match command {
            Command::Pause(reason, to) => {
                self.pause(reason).await;
                reply(to, Ok(()));
            }
            Command::Resume(to) => {
                self.resume().await;
                reply(to, Ok(()));
            }
            Command::Redrive(id, to) => {
                let count = self.redrive(id).await;
                reply(to, count);
            }
            Command::Discard(id, to) => {
                let done = self.discard(id).await;
                reply(to, done);
            }
            Command::Skip(place, to) => {
                let skipped = self.skip(place).await;
                reply(to, skipped);
            }
            Command::Reset(cursors, to) => match self.settling.is_some() {
                true => {
                    reply(
                        to,
                        Err(Problem::new(Refusal::Unavailable, "the cursor is being moved; ask again")),
                    );
                }
                false => self.settle_at(cursors, to),
            },
            Command::Stands(to) => reply(to, self.stands()),
            Command::Snapshot(to, ended) => reply(to, self.begin_snapshot(ended)),
        }
    }

    fn begin_snapshot(&mut self, ended: oneshot::Receiver<Cursor>) -> bool {
        let counts = self.recovery.begins();
        if counts {
            self.flights.push(Box::pin(async { Flight::Snapshot(ended.await.ok()) }));
        }
        counts
    }

    async fn resume(&mut self) {
        self.paused = None;
        self.is_unreadable = false;
        self.away = Away::default();
        drop(self.state.write(&self.definition.name, vec![Change::Paused(None)]).await.await);
        self.look().await;
    }

    /// Goes past an event that fails, undelivered. Of its key the next ones follow.
    async fn skip(&mut self, place: Option<Place>) -> Result<Value, Problem> {
        let waiting = self.queue.firsts().filter(|event| {
            place.map_or_else(|| event.attempts > 0 || self.away.tries > 0, |it| it == event.place)
        });
        let Some(event) = waiting.min_by_key(|event| event.place).cloned() else {
            let detail =
                "no event that is next would be skipped by this; GET the subscription to see which fail";
            return Err(Problem::new(Refusal::NotFound, detail));
        };
        let timer = self.later.iter().find(|(_, key)| **key == event.key).map(|(at, _)| *at);
        match timer {
            Some(at) => drop(self.later.remove(&at)),
            None if self.queue.is_free(&event.key) => self.queue.hold(&event.key),
            None => {
                let detail = format!("event {} is being delivered at this moment; ask again", event.id);
                return Err(Problem::new(Refusal::Unavailable, detail));
            }
        }
        let (partition, sequence) = event.place;
        tracing::warn!(subscription = %self.definition.name, partition, sequence, id = %event.id, cause = %event.cause, "an event is skipped");
        let mut changes = self.done(&event);
        changes.push(Change::Cleared(event.place));
        self.commit(&event.key, changes).await;
        Ok(json!({"partition": partition, "sequence": sequence, "id": event.id}))
    }

    /// Where it stands, as a document.
    fn stands(&self) -> Value {
        let oldest = self.queue.events().map(|event| event.envelope.time).min();
        let age_ms = oldest.map(|time| jiff::Timestamp::now().duration_since(time).as_millis().max(0));
        let mut standings: Vec<_> = self.queue.partitions().chain(self.kept.values()).collect();
        standings.sort_by_key(|it| it.partition);
        let cursors = standings.into_iter().map(|it| {
            json!({"partition": it.partition, "sequence": it.cursor.sequence, "id": it.cursor.id, "done_after": it.done})
        });
        let failing = self.failing().map(|event| {
            json!({
                "partition": event.place.0, "sequence": event.place.1, "id": event.id, "key": event.envelope.key,
                "attempts": event.attempts, "cause": event.cause,
            })
        });
        json!({
            "name": self.definition.name, "topic": self.definition.topic, "url": self.definition.url,
            "state": self.word(), "detail": self.detail(),
            "lag": {"events": self.queue.lag(), "ms": age_ms.unwrap_or(0) as i64},
            "in_flight": self.under_way + self.committing, "parked": self.parked.values().sum::<usize>(),
            "cursors": cursors.collect::<Vec<_>>(), "failing": failing.collect::<Vec<_>>(),
        })
    }

    fn word(&self) -> &'static str {
        match () {
            () if self.paused.is_some() => "paused",
            () if self.topic.is_none() => "waiting-for-topic",
            () if self.permission.is_asked_for() => "not-allowed-yet",
            () if self.is_stuck() || (self.away.tries > 0 && self.queue.lag() > 0) => "stuck",
            () if self.queue.lag() > 0 => "behind",
            () => "current",
        }
    }

    fn detail(&self) -> Option<&str> {
        let away = (self.away.tries > 0).then_some(self.away.cause.as_str());
        let failing = self.failing().next().map(|event| event.cause.as_str());
        self.paused.as_deref().or(away).or(failing)
    }
}
