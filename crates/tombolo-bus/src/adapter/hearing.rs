//! Who listens in this process, for engines whose server knows processes and not listeners: one place for each pair of subject
//! and group, with a number by which a message names it.
//!
//! Invariant: a signal that names a place reaches everybody there, or one member if it is a group's; a slow listener loses its
//! oldest signals and holds nobody up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::signal::SIGNALS_WAITING_MAX;
use crate::{Signal, SignalStream};

/// A subject, and the group if it is one's.
pub(crate) type Name = (String, Option<String>);

/// The listeners of one connection.
#[derive(Default)]
pub(crate) struct Hearing {
    places: Mutex<Places>,
    /// Told whenever a place is begun or left.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Places {
    last: u32,
    numbers: HashMap<Name, u32>,
    by_number: BTreeMap<u32, Place>,
    closed: bool,
}

struct Place {
    name: Name,
    listeners: Vec<Arc<Listener>>,
    /// Whose turn it is in a group.
    turn: usize,
}

#[derive(Default)]
struct Listener {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Signal>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hearing {
    /// Listens on a subject; the stream ends when this is closed.
    pub(crate) fn join(self: &Arc<Self>, subject: &str, group: Option<&str>) -> SignalStream {
        let name = (subject.to_owned(), group.map(str::to_owned));
        let listener = Arc::new(Listener::default());
        let mut places = lock(&self.places);
        lock(&listener.queue).closed = places.closed;
        let number = places.number(&name);
        let begun = || Place { name, listeners: Vec::new(), turn: 0 };
        places.by_number.entry(number).or_insert_with(begun).listeners.push(Arc::clone(&listener));
        drop(places);
        self.changed.notify_one();
        let ear = Ear { hearing: Arc::clone(self), number, listener };
        Box::pin(futures_util::stream::unfold(ear, |ear| async {
            let signal = ear.listener.next().await?;
            Some((signal, ear))
        }))
    }

    /// Every place where somebody listens, by number.
    pub(crate) fn places(&self) -> BTreeMap<u32, Name> {
        let places = lock(&self.places);
        places.by_number.iter().map(|(number, place)| (*number, place.name.clone())).collect()
    }

    /// Hands a signal to the places with these numbers.
    pub(crate) fn deliver(&self, numbers: &[u32], signal: &Signal) {
        let mut places = lock(&self.places);
        for number in numbers {
            let Some(place) = places.by_number.get_mut(number) else { continue };
            place.turn = place.turn.wrapping_add(1);
            match place.name.1 {
                None => place.listeners.iter().for_each(|listener| listener.push(signal.clone())),
                Some(_) => {
                    place.listeners[place.turn % place.listeners.len()].push(signal.clone());
                }
            }
        }
    }

    /// Ends every stream once it has given what waits.
    pub(crate) fn close(&self) {
        let mut places = lock(&self.places);
        places.closed = true;
        for listener in places.by_number.values().flat_map(|place| &place.listeners) {
            lock(&listener.queue).closed = true;
            listener.arrived.notify_one();
        }
    }
}

impl Places {
    fn number(&mut self, name: &Name) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.last += 1;
        self.numbers.insert(name.clone(), self.last);
        self.last
    }
}

impl Listener {
    fn push(&self, signal: Signal) {
        let mut queue = lock(&self.queue);
        if queue.waiting.len() >= SIGNALS_WAITING_MAX {
            queue.waiting.pop_front();
        }
        queue.waiting.push_back(signal);
        drop(queue);
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<Signal> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if let Some(signal) = queue.waiting.pop_front() {
                    return Some(signal);
                }
                if queue.closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }
}

/// A stream's place, given back when the stream is dropped.
struct Ear {
    hearing: Arc<Hearing>,
    number: u32,
    listener: Arc<Listener>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut places = lock(&self.hearing.places);
        let Some(place) = places.by_number.get_mut(&self.number) else { return };
        place.listeners.retain(|listener| !Arc::ptr_eq(listener, &self.listener));
        if place.listeners.is_empty() {
            let name = places.by_number.remove(&self.number).map(|place| place.name);
            name.and_then(|name| places.numbers.remove(&name));
            drop(places);
            self.hearing.changed.notify_one();
        }
    }
}

/// A signal as it travels: where to reply (nothing if nowhere), a line feed, the content.
pub(crate) fn encode(signal: &Signal) -> Bytes {
    let reply_to = signal.reply_to.as_deref().unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(reply_to.len() + 1 + signal.payload.len());
    bytes.extend_from_slice(reply_to.as_bytes());
    bytes.extend_from_slice(b"\n");
    bytes.extend_from_slice(&signal.payload);
    bytes.freeze()
}

/// What [`encode`] wrote; nothing if it did not.
pub(crate) fn decode(bytes: &Bytes) -> Option<Signal> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let reply_to = std::str::from_utf8(&bytes[..end]).ok()?;
    let reply_to = (!reply_to.is_empty()).then(|| reply_to.to_owned());
    Some(Signal { reply_to, payload: bytes.slice(end + 1..) })
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn heard(stream: &mut SignalStream) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(Some(signal)) = stream.next().now_or_never() {
            all.push(String::from_utf8_lossy(&signal.payload).into_owned());
        }
        all
    }

    fn signal(text: &str) -> Signal {
        Signal { reply_to: None, payload: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn everybody_hears_and_one_of_a_group() {
        let hearing = Arc::new(Hearing::default());
        let mut all = [hearing.join("a", None), hearing.join("a", None)];
        let mut group = [hearing.join("a", Some("g")), hearing.join("a", Some("g"))];
        let numbers: Vec<u32> = hearing.places().into_keys().collect();
        assert_eq!(numbers.len(), 2);
        hearing.deliver(&numbers, &signal("1"));
        hearing.deliver(&numbers, &signal("2"));
        assert!(all.iter_mut().all(|listener| heard(listener) == ["1", "2"]));
        let shares: Vec<_> = group.iter_mut().map(heard).collect();
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1], "each its turn: {shares:?}");
    }

    #[test]
    fn a_place_that_everybody_left_is_gone_and_its_number_is_not_given_again() {
        let hearing = Arc::new(Hearing::default());
        let first = hearing.join("a", None);
        let before = hearing.places();
        drop(first);
        assert!(hearing.places().is_empty());
        let _again = hearing.join("a", None);
        assert!(hearing.places().keys().all(|number| !before.contains_key(number)));
    }

    #[test]
    fn a_slow_listener_loses_its_oldest_signals() {
        let hearing = Arc::new(Hearing::default());
        let mut slow = hearing.join("a", None);
        for n in 0..=SIGNALS_WAITING_MAX {
            hearing.deliver(&[1], &signal(&n.to_string()));
        }
        let kept = heard(&mut slow);
        assert_eq!((kept.len(), kept[0].as_str()), (SIGNALS_WAITING_MAX, "1"));
    }

    #[test]
    fn a_signal_is_read_as_it_was_written() {
        for reply_to in [None, Some("a.b".to_owned())] {
            let sent = Signal { reply_to, payload: Bytes::from_static(b"\n\0x\n") };
            assert_eq!(decode(&encode(&sent)), Some(sent));
        }
        assert_eq!(decode(&Bytes::from_static(b"nothing")), None);
    }
}
