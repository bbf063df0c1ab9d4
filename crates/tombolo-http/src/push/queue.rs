//! What of a topic is under way to one subscriber: which events are read and not done, and which may start now. Pure.
//!
//! ```text
//!            cursor               read ahead
//!   ─ done ─ 41 ┆ 42   43   44   45 ┆ …
//!               ┆ key  done key  key ┆   42 fails: 44 (same key) waits behind it, 45 (another) goes on
//! ```
//!
//! Invariant: of one key at most one event is under way, in the order of the partition; a cursor stands before the first event that is not done.

use std::collections::{BTreeSet, HashMap, VecDeque};

use tombolo_bus::Batch;
use tombolo_event::{Cursor, EventId};

use super::event::{Event, Key, Place};
use super::settings::Order;

/// From how many open events on a partition is not read further.
pub(crate) const READ_AHEAD: usize = 64;

/// Where a subscription stands in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) partition: u32,
    /// All up to here is done.
    pub(crate) cursor: Cursor,
    /// What is done after it.
    pub(crate) done: BTreeSet<u64>,
    /// Up to here events may have come to the subscriber before.
    pub(crate) repeated_to: u64,
    /// Only up to here events can have been under way when the bus ended; 0 if it ended with none.
    pub(crate) started_to: u64,
}

impl Standing {
    pub(crate) fn new(partition: u32, cursor: Cursor) -> Self {
        Self { partition, cursor, done: BTreeSet::new(), repeated_to: 0, started_to: 0 }
    }
}

/// What a subscription has read and not done.
#[derive(Debug)]
pub(crate) struct Queue {
    order: Order,
    parts: HashMap<u32, Part>,
    lines: HashMap<Key, Line>,
    ready: VecDeque<Key>,
    /// Of the events that failed before the bus began: how often, and why.
    failed: HashMap<Place, (u32, String)>,
}

#[derive(Debug)]
struct Part {
    standing: Standing,
    /// All events after the cursor that were read, and the ends of what was passed over.
    slots: VecDeque<Slot>,
    tail: u64,
    /// Those of the keys' first events up to here may have been under way when the bus ended.
    unsure_to: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    sequence: u64,
    id: EventId,
    is_done: bool,
}

/// The events of a key.
#[derive(Debug, Default)]
struct Line {
    events: VecDeque<Event>,
    is_started: bool,
    /// Whether the first one was looked at since the bus began.
    is_known: bool,
}

impl Queue {
    pub(crate) fn new(order: Order, failed: HashMap<Place, (u32, String)>) -> Self {
        Self { order, parts: HashMap::new(), lines: HashMap::new(), ready: VecDeque::new(), failed }
    }

    /// Begins to read a partition, which ends at `tail` now. The first event of each key may have been under way before, as far as
    /// events had started.
    pub(crate) fn open(&mut self, standing: Standing, tail: u64) {
        let unsure_to = standing.started_to.min(tail);
        let part = Part { slots: VecDeque::new(), tail, unsure_to, standing };
        self.parts.insert(part.standing.partition, part);
    }

    pub(crate) fn is_open(&self, partition: u32) -> bool {
        self.parts.contains_key(&partition)
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Standing> {
        self.parts.values().map(|part| &part.standing)
    }

    /// Remembers that events up to `sequence` can be under way.
    pub(crate) fn started_to(&mut self, partition: u32, sequence: u64) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.standing.started_to = sequence;
        }
    }

    pub(crate) fn standing(&self, partition: u32) -> Option<&Standing> {
        self.parts.get(&partition).map(|part| &part.standing)
    }

    /// Remembers how far a partition goes.
    pub(crate) fn reaches(&mut self, partition: u32, tail: u64) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.tail = part.tail.max(tail);
        }
    }

    /// Whether everything of a partition that is known is done.
    pub(crate) fn is_at_tail(&self, partition: u32) -> bool {
        self.parts.get(&partition).is_some_and(|part| part.standing.cursor.sequence >= part.tail)
    }

    /// How many events are known to be not done.
    pub(crate) fn lag(&self) -> u64 {
        let of = |part: &Part| {
            part.tail.saturating_sub(part.standing.cursor.sequence + part.standing.done.len() as u64)
        };
        self.parts.values().map(of).sum()
    }

    /// The events that wait or are under way, oldest of each key first.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        self.lines.values().flat_map(|line| &line.events)
    }

    /// The first event of each key.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = &Event> {
        self.lines.values().filter_map(|line| line.events.front())
    }

    pub(crate) fn has_room(&self, partition: u32) -> bool {
        self.parts.get(&partition).is_some_and(|part| part.slots.len() < READ_AHEAD)
    }

    /// Takes what was read. True if it moved the cursor by itself: nothing of it is for this subscriber.
    pub(crate) fn take(
        &mut self,
        partition: u32,
        batch: Batch,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<bool, tombolo_event::Error> {
        let Some(part) = self.parts.get_mut(&partition) else { return Ok(false) };
        part.tail = part.tail.max(batch.tail);
        let before = part.standing.cursor.sequence;
        let mut last = 0;
        for record in batch.records {
            let (sequence, id) = (record.sequence, record.id);
            let is_done = part.standing.done.contains(&sequence) || !is_wanted(record.type_name());
            part.slots.push_back(Slot { sequence, id, is_done });
            last = sequence;
            if !is_done {
                let mut event = Event::new(partition, record, self.order)?;
                event.is_repeated = sequence <= part.standing.repeated_to;
                if let Some((attempts, cause)) = self.failed.remove(&event.place) {
                    (event.attempts, event.cause, event.is_repeated) = (attempts, cause, true);
                }
                let line = self.lines.entry(event.key.clone()).or_default();
                if !line.is_known {
                    event.is_repeated |= sequence <= part.unsure_to;
                    line.is_known = true;
                }
                line.events.push_back(event);
                if line.events.len() == 1 && !line.is_started {
                    self.ready.push_back(line.events[0].key.clone());
                }
            }
        }
        if last < batch.last {
            part.slots.push_back(Slot { sequence: batch.last, id: batch.last_id, is_done: true });
        }
        part.advance();
        Ok(part.standing.cursor.sequence > before)
    }

    /// The next event that may start, if there is one. Its key is taken until [`Queue::finished`] or [`Queue::again`].
    pub(crate) fn start(&mut self) -> Option<Event> {
        while let Some(key) = self.ready.pop_front() {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            if let (false, Some(event)) = (line.is_started, line.events.front()) {
                line.is_started = true;
                return Some(event.clone());
            }
        }
        None
    }

    /// Whether something may start.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether nothing of a key is under way.
    pub(crate) fn is_free(&self, key: &str) -> bool {
        self.lines.get(key).is_none_or(|line| !line.is_started)
    }

    /// Takes a key of which nothing is under way.
    pub(crate) fn hold(&mut self, key: &Key) {
        self.lines.entry(key.clone()).or_default().is_started = true;
    }

    /// The first event of `key`, to say what became of it.
    pub(crate) fn first_mut(&mut self, key: &str) -> Option<&mut Event> {
        self.lines.get_mut(key)?.events.front_mut()
    }

    /// The first event of `key` is done. The key stays taken until [`Queue::release`].
    pub(crate) fn finished(&mut self, key: &str) -> Option<Place> {
        let event = self.lines.get_mut(key)?.events.pop_front()?;
        let (partition, sequence) = event.place;
        if let Some(part) = self.parts.get_mut(&partition) {
            part.done(sequence);
        }
        Some(event.place)
    }

    /// The next event of `key` may start.
    pub(crate) fn release(&mut self, key: &Key) {
        let Some(line) = self.lines.get_mut(key) else { return };
        line.is_started = false;
        match (line.events.is_empty(), self.order) {
            (false, _) => self.ready.push_back(key.clone()),
            // A key that comes again later is not unsure any more; the one line of all stays.
            (true, Order::Key) if self.is_sure(key) => drop(self.lines.remove(key)),
            (true, _) => {}
        }
    }

    /// The same event of `key` is tried again, before others.
    pub(crate) fn again(&mut self, key: &Key) {
        if let Some(line) = self.lines.get_mut(key) {
            line.is_started = false;
            self.ready.push_front(key.clone());
        }
    }

    /// Whether nothing read from now on can have been under way when the bus ended.
    fn is_sure(&self, _key: &str) -> bool {
        self.parts.values().all(|part| {
            part.slots.back().map_or(part.standing.cursor.sequence, |slot| slot.sequence) >= part.unsure_to
        })
    }

    /// The end of what was read of a partition; what is after it was never under way.
    pub(crate) fn end(&self, partition: u32) -> Option<Cursor> {
        let part = self.parts.get(&partition)?;
        let cursor = part.standing.cursor;
        Some(part.slots.back().map_or(cursor, |slot| Cursor::at(cursor.incarnation, slot.sequence, slot.id)))
    }
}

impl Part {
    fn done(&mut self, sequence: u64) {
        let found = self.slots.binary_search_by_key(&sequence, |slot| slot.sequence);
        if let Some(slot) = found.ok().and_then(|at| self.slots.get_mut(at)) {
            slot.is_done = true;
            self.standing.done.insert(sequence);
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.is_done) {
            let incarnation = self.standing.cursor.incarnation;
            self.standing.cursor = Cursor::at(incarnation, slot.sequence, slot.id);
        }
        let after = self.standing.cursor.sequence + 1;
        self.standing.done = self.standing.done.split_off(&after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tombolo_bus::Record;
    use tombolo_event::{Envelope, Incarnation};
    use uuid::Uuid;

    fn batch(first: u64, keys: &[&str], tail: u64) -> Batch {
        let records: Vec<Record> = keys
            .iter()
            .zip(first..)
            .map(|(key, sequence)| {
                let id = EventId(Uuid::from_u128(u128::from(sequence)));
                let envelope = Envelope {
                    id,
                    source: "s".into(),
                    event_type: "t".into(),
                    key: (*key).into(),
                    time: jiff::Timestamp::UNIX_EPOCH,
                    content_type: "application/json".into(),
                    trace: None,
                    correlation: None,
                    causation: None,
                    extensions: tombolo_event::envelope::Extensions::default(),
                    data: Bytes::new(),
                };
                Record { sequence, id, event_type: "t".into(), bytes: envelope.encode() }
            })
            .collect();
        let last = records.last().unwrap();
        Batch { first, last: last.sequence, last_id: last.id, tail, records }
    }

    fn queue(order: Order) -> Queue {
        let mut queue = Queue::new(order, HashMap::new());
        queue.open(Standing::new(0, Cursor::start(Incarnation(Uuid::nil()))), 4);
        queue
    }

    fn started(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.start()).map(|event| event.place.1).collect()
    }

    #[test]
    fn keys_go_beside_each_other_and_events_of_one_behind_each_other() {
        let mut queue = queue(Order::Key);
        queue.take(0, batch(1, &["a", "b", "a", "c"], 4), |_| true).unwrap();
        assert_eq!(started(&mut queue), [1, 2, 4]);
        queue.finished("b");
        queue.release(&"b".into());
        assert_eq!((queue.standing(0).unwrap().cursor.sequence, queue.lag()), (0, 3));
        queue.finished("a");
        assert_eq!(queue.standing(0).unwrap().cursor.sequence, 2);
        assert_eq!(started(&mut queue), [0; 0], "the key is not released yet");
        queue.release(&"a".into());
        assert_eq!(started(&mut queue), [3]);
    }

    #[test]
    fn serial_events_wait_for_each_other() {
        let mut queue = queue(Order::Serial);
        queue.take(0, batch(1, &["a", "b"], 2), |_| true).unwrap();
        assert_eq!(started(&mut queue), [1]);
        queue.again(&"".into());
        assert_eq!(started(&mut queue), [1]);
        queue.finished("");
        queue.release(&"".into());
        assert_eq!(started(&mut queue), [2]);
    }

    #[test]
    fn what_was_done_before_a_restart_is_not_started_again() {
        let mut queue = Queue::new(Order::Key, HashMap::new());
        let mut standing = Standing::new(0, Cursor::start(Incarnation(Uuid::nil())));
        (standing.done, standing.started_to) = ([2, 4].into(), u64::MAX);
        queue.open(standing, 4);
        queue.take(0, batch(1, &["a", "a", "a", "b"], 4), |_| true).unwrap();
        let first = queue.start().unwrap();
        assert_eq!((first.place.1, first.is_repeated), (1, true));
        queue.finished("a");
        queue.release(&"a".into());
        let next = queue.start().unwrap();
        assert_eq!(
            (next.place.1, next.is_repeated, queue.standing(0).unwrap().cursor.sequence),
            (3, false, 2)
        );
        queue.finished("a");
        assert_eq!(queue.standing(0).unwrap().cursor.sequence, 4);
        assert!(queue.standing(0).unwrap().done.is_empty());
    }

    #[test]
    fn what_is_not_wanted_is_passed_over_and_moves_the_cursor() {
        let mut queue = queue(Order::Key);
        assert!(queue.take(0, batch(1, &["a", "b", "a", "b"], 4), |_| false).unwrap());
        assert_eq!((queue.standing(0).unwrap().cursor.sequence, queue.lag()), (4, 0));
        assert!(queue.is_at_tail(0));
    }
}
