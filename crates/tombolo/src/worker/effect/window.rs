//! A window: the events of one lane after its cursor, and how far the call of each has come. Pure.
//!
//! ```text
//!  cursor │ 4 done   5 running   6 done   7 waits for 5   8 ready   9 passed over
//!         │  key a    key b       key c    key b           key d     no event of this effect
//!         └ may move to 4 now, and to 6 once 5 is done
//! ```
//!
//! Invariants: of one key at most one event is ready, running or put off, and it is the first that is not done; the
//! cursor never moves over an event that is not done.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::time::Instant;
use tombolo_db::EffectCall;
use tombolo_event::{Cursor, KeyHash};

use crate::worker::apply::Delivery;

/// How many events a window holds before its lane is no longer read, done ones included.
const WINDOW_EVENTS_MAX: usize = 1_000;
/// The most bytes of events whose calls are not done before the lane is no longer read.
const WINDOW_BYTES_MAX: usize = 4 << 20;

/// The events of a lane after its cursor.
#[derive(Default)]
pub(super) struct Window {
    events: BTreeMap<u64, Entry>,
    /// The events of each key that are not done, in order.
    keys: HashMap<KeyHash, VecDeque<u64>>,
    /// Events whose calls can begin.
    ready: VecDeque<u64>,
    /// Events that are tried again at a time.
    put_off: BTreeMap<(Instant, u64), ()>,
    bytes: usize,
}

/// What there is to do for one event.
pub(super) struct Due {
    pub(super) delivery: Delivery,
    pub(super) call: EffectCall,
}

struct Entry {
    /// Where the cursor is after it.
    to: Cursor,
    /// None once it is done or passed over.
    due: Option<Due>,
}

/// How the call of an event stands when it is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can begin once the events of its key before it are done.
    Waits,
    /// It runs, or is to be parked: it does not begin.
    Taken,
}

impl Due {
    fn size(&self) -> usize {
        self.delivery.record.bytes.len()
    }
}

impl Window {
    /// Adds what needs no call: another type's event, or one whose call is done.
    pub(super) fn pass(&mut self, to: Cursor) {
        self.events.insert(to.sequence, Entry { to, due: None });
    }

    /// Adds an event whose call is not done.
    pub(super) fn add(&mut self, to: Cursor, due: Due, standing: Standing) {
        let queue = self.keys.entry(due.delivery.key_hash).or_default();
        queue.push_back(to.sequence);
        if queue.len() == 1 && standing == Standing::Waits {
            self.ready.push_back(to.sequence);
        }
        self.bytes += due.size();
        self.events.insert(to.sequence, Entry { to, due: Some(due) });
    }

    /// The events of an event's key that are not done, in order.
    pub(super) fn line(&self, sequence: u64) -> Vec<u64> {
        let due = self.events.get(&sequence).and_then(|entry| entry.due.as_ref());
        let queue = due.and_then(|due| self.keys.get(&due.delivery.key_hash));
        queue.map(|queue| queue.iter().copied().collect()).unwrap_or_default()
    }

    /// Whether its lane should not be read further.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= WINDOW_EVENTS_MAX || self.bytes >= WINDOW_BYTES_MAX
    }

    /// Takes an event whose call can begin.
    pub(super) fn next(&mut self, now: Instant) -> Option<u64> {
        while let Some(first) = self.put_off.first_entry().filter(|first| first.key().0 <= now) {
            self.ready.push_back(first.remove_entry().0.1);
        }
        while let Some(sequence) = self.ready.pop_front() {
            if self.due(sequence).is_some() {
                return Some(sequence);
            }
        }
        None
    }

    /// Whether an event after the cursor was read into the window.
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.events.contains_key(&sequence)
    }

    /// An event that is not done.
    pub(super) fn due(&mut self, sequence: u64) -> Option<&mut Due> {
        self.events.get_mut(&sequence)?.due.as_mut()
    }

    /// Puts an event that was taken off until `at`.
    pub(super) fn put_off(&mut self, sequence: u64, at: Instant) {
        self.put_off.insert((at, sequence), ());
    }

    /// When the next event that was put off can begin.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.put_off.first_key_value().map(|(&(at, _), ())| at)
    }

    /// Where the cursor can move to once the events `done` are done.
    pub(super) fn reach(&self, done: &[u64]) -> Option<Cursor> {
        let is_done = |(sequence, entry): &(&u64, &Entry)| entry.due.is_none() || done.contains(sequence);
        self.events.iter().take_while(is_done).last().map(|(_, entry)| entry.to)
    }

    /// The event is done: the next one of its key is ready.
    pub(super) fn done(&mut self, sequence: u64) {
        let Some(due) = self.events.get_mut(&sequence).and_then(|entry| entry.due.take()) else { return };
        self.bytes -= due.size();
        let Some(queue) = self.keys.get_mut(&due.delivery.key_hash) else { return };
        queue.pop_front();
        match queue.front() {
            Some(&next) => self.ready.push_back(next),
            None => drop(self.keys.remove(&due.delivery.key_hash)),
        }
    }

    /// The cursor has moved; returns the places that it has moved over.
    pub(super) fn moved(&mut self, cursor: Cursor) -> impl Iterator<Item = Cursor> + use<> {
        let after = self.events.split_off(&(cursor.sequence + 1));
        std::mem::replace(&mut self.events, after).into_values().map(|entry| entry.to)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use tombolo_bus::Record;
    use tombolo_event::{Envelope, EventId, Incarnation};

    use super::*;

    fn due(sequence: u64, key: &str) -> (Cursor, Due) {
        let id = EventId::new();
        let envelope = Envelope {
            id,
            source: "orders".into(),
            event_type: "orders.placed.v1".into(),
            key: key.into(),
            time: Timestamp::UNIX_EPOCH,
            content_type: tombolo_event::envelope::JSON.into(),
            trace: None,
            correlation: None,
            causation: None,
            extensions: tombolo_event::envelope::Extensions::new(),
            data: Bytes::from_static(b"{}"),
        };
        let record = Record { sequence, id, event_type: Bytes::new(), bytes: envelope.encode() };
        let call = EffectCall { sequence, id, attempts: 0, result: None, error: None };
        (Cursor::at(Incarnation::new(), sequence, id), Due { delivery: Delivery::new(record), call })
    }

    fn window(keys: &[&str]) -> Window {
        let mut window = Window::default();
        for (sequence, key) in (1..).zip(keys) {
            let (to, due) = due(sequence, key);
            window.add(to, due, Standing::Waits);
        }
        window
    }

    fn taken(window: &mut Window) -> Vec<u64> {
        std::iter::from_fn(|| window.next(Instant::now())).collect()
    }

    fn reached(window: &Window, done: &[u64]) -> Option<u64> {
        window.reach(done).map(|cursor| cursor.sequence)
    }

    #[test]
    fn of_each_key_one_event_at_a_time_in_order() {
        let mut window = window(&["a", "b", "a", "a", "b"]);
        assert_eq!(taken(&mut window), [1, 2]);
        window.done(2);
        assert_eq!(taken(&mut window), [5]);
        window.done(1);
        assert_eq!(taken(&mut window), [3]);
        window.done(5);
        assert_eq!(taken(&mut window), [0; 0]);
        window.done(3);
        assert_eq!(taken(&mut window), [4]);
    }

    #[test]
    fn the_cursor_moves_over_no_event_that_is_not_done() {
        let mut window = window(&["a", "b", "c"]);
        let (to, _) = due(4, "");
        window.pass(to);
        assert_eq!(reached(&window, &[2]), None);
        window.done(2);
        assert_eq!(reached(&window, &[1]), Some(2));
        window.done(3);
        assert_eq!((reached(&window, &[]), reached(&window, &[1])), (None, Some(4)));
        window.done(1);
        assert_eq!(window.moved(to).count(), 4);
        assert_eq!(reached(&window, &[]), None);
        assert!(window.events.is_empty() && window.keys.is_empty() && window.bytes == 0);
    }

    #[test]
    fn an_event_that_is_put_off_holds_its_key_and_no_other() {
        let mut window = window(&["a", "a", "b"]);
        assert_eq!(taken(&mut window), [1, 3]);
        let at = Instant::now() + std::time::Duration::from_secs(60);
        window.put_off(1, at);
        assert_eq!((taken(&mut window), window.next_at()), (vec![], Some(at)));
        assert_eq!((window.next(at), window.next_at()), (Some(1), None));
    }

    #[test]
    fn what_is_taken_does_not_begin_and_what_is_done_is_not_handed_out() {
        let mut window = window(&["a", "a", "b"]);
        let (to, due) = due(4, "c");
        window.add(to, due, Standing::Taken);
        assert_eq!((window.line(2), window.line(4)), (vec![1, 2], vec![4]));
        window.done(1);
        window.done(2);
        assert_eq!(taken(&mut window), [3]);
    }

    #[test]
    fn a_window_is_bounded() {
        let keys: Vec<String> = (0..WINDOW_EVENTS_MAX).map(|key| key.to_string()).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        assert!(!window(&keys[1..]).is_full());
        let mut full = window(&keys);
        assert!(full.is_full());
        full.done(2);
        assert!(full.is_full(), "what is done beyond the cursor counts, too");
        full.done(1);
        assert_eq!(full.moved(full.reach(&[]).unwrap()).count(), 2);
        assert!(!full.is_full());
    }
}
