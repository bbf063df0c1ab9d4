//! What the workers of this process have applied, for readers that wait for it.
//!
//! Beside the path: a worker tells after each commit, and whoever waits for a place is woken. A reader whose process does not hold
//! the partition looks at the cursor in the database instead.
//!
//! Invariant: what is told here is committed, and told only while the lease is held: a lane that ends takes its
//! word back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tombolo_db::Claim;
use tombolo_event::{Cursor, EventId, Position, ServiceName};

/// How many of the events applied last in a partition are known by their ids, for positions without a sequence.
pub(crate) const RECENT_EVENTS: usize = 256;

/// A subscription in one partition.
type Place = (String, ServiceName, u32);

/// Where each held partition stands. One for each service of the process.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    places: Mutex<BTreeMap<Place, watch::Receiver<Applied>>>,
}

/// What is applied in one partition.
#[derive(Debug)]
pub(crate) struct Applied {
    cursor: Cursor,
    recent: VecDeque<EventId>,
}

/// A worker's side of one partition; dropped, nothing is told of it any more.
#[derive(Debug)]
pub(crate) struct Telling(watch::Sender<Applied>);

impl Progress {
    /// Begins to tell of a partition that was claimed.
    pub(crate) fn tell(&self, claim: &Claim) -> Telling {
        let (tell, told) = watch::channel(Applied { cursor: claim.cursor, recent: VecDeque::new() });
        let place = (claim.subscription.clone(), claim.topic.clone(), claim.partition);
        self.places().insert(place, told);
        Telling(tell)
    }

    /// Where a partition stands, if this process holds it.
    pub(crate) fn of(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
    ) -> Option<watch::Receiver<Applied>> {
        let place = (subscription.to_owned(), topic.clone(), partition);
        let told = self.places().get(&place).cloned();
        told.filter(|told| told.has_changed().is_ok())
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Place, watch::Receiver<Applied>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Telling {
    /// Everything up to the last of these places has committed.
    pub(crate) fn applied(&self, places: impl Iterator<Item = Cursor>) {
        self.0.send_modify(|applied| places.for_each(|place| applied.advance(place)));
    }
}

impl Applied {
    fn advance(&mut self, to: Cursor) {
        self.cursor = to;
        if self.recent.len() == RECENT_EVENTS {
            self.recent.pop_front();
        }
        self.recent.extend(to.id);
    }

    /// Whether the event at `position` is known to be applied.
    pub(crate) fn covers(&self, position: &Position) -> bool {
        covers(&self.cursor, position) || self.recent.contains(&position.id)
    }
}

/// Whether a cursor lies at or behind `position`, as far as it can tell.
pub(crate) fn covers(cursor: &Cursor, position: &Position) -> bool {
    match position.sequence {
        Some(sequence) => cursor.sequence >= sequence,
        None => cursor.id == Some(position.id),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_event::{Incarnation, KeyHash};

    use super::*;

    fn claim() -> Claim {
        Claim {
            subscription: "copies".into(),
            topic: ServiceName::new("orders").unwrap(),
            partition: 3,
            lease_epoch: 1,
            cursor: Cursor::start(Incarnation::new()),
            attempts: 0,
            attempted: None,
            abandoned: false,
            in_hand: 1,
            paused_by: None,
        }
    }

    fn position(id: EventId, sequence: Option<u64>) -> Position {
        let topic = ServiceName::new("orders").unwrap();
        Position { topic, partition: 3, key_hash: KeyHash::of("o1"), id, sequence }
    }

    #[test]
    fn what_was_applied_is_known_by_its_sequence_and_lately_by_its_id() {
        let (progress, claim) = (Progress::default(), claim());
        let telling = progress.tell(&claim);
        let ids: Vec<EventId> = (0..RECENT_EVENTS as u64 + 1).map(|_| EventId::new()).collect();
        let places = (1..).zip(&ids).map(|(n, id)| Cursor::at(claim.cursor.incarnation, n, *id));
        telling.applied(places);
        let told = progress.of("copies", &claim.topic, 3).unwrap();
        let covers = |position: Position| told.borrow().covers(&position);
        assert!(covers(position(ids[0], Some(1))) && covers(position(ids[1], None)));
        assert!(!covers(position(ids[0], None)), "too long ago to be known by its id");
        assert!(!covers(position(EventId::new(), Some(RECENT_EVENTS as u64 + 2))), "not there yet");
    }

    #[test]
    fn nothing_is_told_of_a_partition_that_is_no_longer_held() {
        let (progress, claim) = (Progress::default(), claim());
        let telling = progress.tell(&claim);
        assert!(progress.of("copies", &claim.topic, 3).is_some());
        assert!(progress.of("copies", &claim.topic, 4).is_none());
        drop(telling);
        assert!(progress.of("copies", &claim.topic, 3).is_none());
    }
}
