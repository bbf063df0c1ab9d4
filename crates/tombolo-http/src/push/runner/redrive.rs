//! Parked events are delivered again, when somebody asks for it.
//!
//! Invariant: of one key in order, and before anything of it that came later.

use std::collections::VecDeque;

use tombolo_bus::{Bus, Record, Topic};
use tombolo_event::EventId;

use super::{Change, Job, Key, Parked, Runner};
use crate::feed::record_at;
use crate::problem::{Problem, Refusal};
use crate::push::event::Event;
use crate::push::lane::{Failure, Outcome};
use crate::push::settings::Order;

/// The event of a parked one, from the log.
pub(super) async fn fetched(
    bus: &dyn Bus,
    topic: Option<&Topic>,
    parked: &Parked,
    order: Order,
) -> Result<Event, Outcome> {
    let gone = |cause: String| Outcome::Failed(Failure::Refused, cause);
    let topic = topic.ok_or_else(|| Outcome::NotReached("the topic is not there now".into()))?;
    let (partition, sequence) = parked.place;
    let bytes =
        record_at(bus, topic, partition, sequence, parked.id).await.map_err(|problem| {
            match problem.refusal() {
                Refusal::Unavailable => Outcome::NotReached(problem.detail().to_owned()),
                _ => gone(problem.detail().to_owned()),
            }
        })?;
    let record = Record { sequence, id: parked.id, event_type: bytes::Bytes::new(), bytes };
    let event = Event::new(partition, record, order).map_err(|error| gone(error.to_string()))?;
    Ok(Event { attempts: parked.attempts, is_repeated: true, ..event })
}

impl Runner {
    /// Delivers parked events again: the one with this id and those of its key, or all. Tells how many.
    pub(super) async fn redrive(&mut self, id: Option<EventId>) -> Result<usize, Problem> {
        let parked = self.state.parked(&self.definition.name).await?;
        let of = match id {
            Some(id) => Some(self.key_of(parked.iter().find(|it| it.id == id).ok_or_else(|| unknown(id))?)),
            None => None,
        };
        let mut lines: std::collections::HashMap<Key, VecDeque<Parked>> = std::collections::HashMap::new();
        for event in parked {
            let key = self.key_of(&event);
            let is_meant = match self.definition.order {
                Order::Key => of.as_ref().is_none_or(|of| *of == key),
                Order::Serial => id.is_none_or(|id| id == event.id),
            };
            if is_meant && !self.redriving.contains(&event.id) {
                lines.entry(key).or_default().push_back(event);
            }
        }
        let count = lines.values().map(VecDeque::len).sum();
        // A key that waits for room is free for what is parked of it.
        for key in self.full.extract_if(.., |key| lines.contains_key(key)) {
            self.queue.again(&key);
        }
        self.redrive.extend(lines);
        Ok(count)
    }

    /// The next parked event whose key has nothing under way.
    pub(super) fn next_redrive(&mut self) -> Option<Job> {
        let free = self.redrive.keys().find(|key| self.queue.is_free(key)).cloned()?;
        let line = self.redrive.get_mut(&free)?;
        let parked = line.pop_front();
        if line.is_empty() {
            self.redrive.remove(&free);
        }
        let parked = parked?;
        self.queue.hold(&free);
        self.redriving.insert(parked.id);
        Some(Job::Parked(free, parked))
    }

    /// Goes on after a parked event was delivered again, or not.
    pub(super) async fn redriven(&mut self, key: Key, mut parked: Parked, outcome: Outcome) {
        self.redriving.remove(&parked.id);
        match outcome {
            Outcome::Delivered => {
                self.unparked(&key);
                self.commit(&key, vec![Change::Unparked(parked.place)]).await;
            }
            Outcome::Failed(_, cause) => {
                if self.definition.order == Order::Key {
                    self.redrive.remove(&key);
                }
                (parked.attempts, parked.cause) = (parked.attempts + 1, cause);
                self.commit(&key, vec![Change::Parked(parked)]).await;
            }
            Outcome::Gone(cause) => {
                self.put_back(&key, parked);
                self.pause(cause).await;
            }
            Outcome::NotReached(_) | Outcome::NotNow(..) => self.put_back(&key, parked),
        }
    }

    fn put_back(&mut self, key: &Key, parked: Parked) {
        self.redrive.entry(key.clone()).or_default().push_front(parked);
        self.queue.release(key);
    }

    /// Lets a parked event go, undelivered.
    pub(super) async fn discard(&mut self, id: EventId) -> Result<(), Problem> {
        let parked = self.state.parked(&self.definition.name).await?;
        let event = parked.into_iter().find(|it| it.id == id).ok_or_else(|| unknown(id))?;
        let key = self.key_of(&event);
        if self.redriving.contains(&id) {
            let detail = format!("event {id} is being delivered at this moment; ask again");
            return Err(Problem::new(Refusal::Unavailable, detail));
        }
        if let Some(line) = self.redrive.get_mut(&key) {
            line.retain(|it| it.id != id);
        }
        self.redrive.retain(|_, line| !line.is_empty());
        tracing::warn!(subscription = %self.definition.name, %id, "a parked event is discarded");
        self.unparked(&key);
        drop(self.state.write(&self.definition.name, vec![Change::Unparked(event.place)]).await.await);
        Ok(())
    }
}

/// That no event with this id is parked.
pub(crate) fn unknown(id: EventId) -> Problem {
    Problem::new(Refusal::NotFound, format!("no event {id} is parked here; GET …/parked says which are"))
}
