//! What is decided about an event that fails: try it again, park its key, or let the partition wait as stuck.
//!
//! Pure: the worker brings the time, and does what is decided here.
//!
//! Invariant: a key of which anything is parked, here or in an earlier generation of the topic's partitions, is in [`Parked`]
//! until its last event has left, so nothing of it goes straight through meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tombolo_db::{ParkedHead, Tries};
use tombolo_event::{Backoff, KeyHash};

use crate::handler::HandlerError;

/// Tries of an event before its key is parked.
pub(crate) const TRIES_AT_ONCE: u32 = 3;
/// Tries in a row in which the process died, after which a parked event is only tried when it is told.
pub(crate) const TRIES_UNFINISHED_MAX: u32 = 2 * TRIES_AT_ONCE;
/// Keys that failed one after the other, without one event handled between them, after which nothing more is parked.
pub(crate) const KEYS_ALIKE_MAX: u32 = 20;
/// Parked keys in one partition of a subscription, at most.
pub(crate) const PARKED_KEYS_MAX: usize = 1_000;
/// Parked events in one partition of a subscription, at most; passed by no more than one batch.
pub(crate) const PARKED_EVENTS_MAX: u64 = 100_000;
/// The pauses between the tries of a parked event.
const REDRIVE: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(3_600));

/// What is known of an event that is tried alone.
pub(super) struct Failing {
    /// Tries that were begun before.
    pub(super) attempts: u32,
    /// What the last of them failed with; none if it never ended, or if there was none.
    pub(super) error: Option<HandlerError>,
}

/// What to do with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try it, as this try.
    Try(u32),
    /// Park it with its key.
    Park(Tries),
    /// Let the partition wait: parking more would hide that something general is wrong.
    Stuck(String),
}

impl Failing {
    /// An event that was tried `attempts` times before, by a process that said nothing more of it.
    pub(super) fn unknown(attempts: u32) -> Self {
        Self { attempts, error: None }
    }

    /// An event of which the first try, in a batch with others, failed with `error`.
    pub(super) fn first(error: HandlerError) -> Self {
        Self { attempts: 1, error: Some(error) }
    }

    /// The text of what is known, to be stored beside the next try.
    pub(super) fn text(&self) -> String {
        match (&self.error, self.attempts) {
            (Some(error), _) => error.to_string(),
            (None, 0) => "it is tried alone, because the process before died with events in hand".into(),
            (None, tries) => {
                format!(
                    "{tries} tries were begun and none of them ended: the process died with the event in hand"
                )
            }
        }
    }

    /// What to do, if there is `room` to park (or why there is none), at `now`.
    pub(super) fn next(&self, room: Result<(), String>, now: Timestamp) -> Next {
        let rejected = self.error.as_ref().is_some_and(HandlerError::is_rejection);
        if !rejected && self.attempts < TRIES_AT_ONCE {
            return Next::Try(self.attempts + 1);
        }
        match room {
            Ok(()) => Next::Park(self.parked(rejected, now)),
            Err(why) => Next::Stuck(format!("{why}; the next event failed with: {}", self.text())),
        }
    }

    fn parked(&self, rejected: bool, now: Timestamp) -> Tries {
        Tries {
            attempts: self.attempts,
            unfinished: if self.error.is_none() { self.attempts } else { 0 },
            error: Some(self.text()),
            retry_at: if rejected { None } else { due(0, now) },
        }
    }
}

/// The tries of a parked event of which one more is about to begin: if the process dies in it, this is what stays.
pub(super) fn begun(tries: &Tries, now: Timestamp) -> Tries {
    let (attempts, unfinished) = (tries.attempts + 1, tries.unfinished + 1);
    let tame = unfinished < TRIES_UNFINISHED_MAX;
    let retry_at = if tame { due(attempts.saturating_sub(TRIES_AT_ONCE), now) } else { None };
    Tries { attempts, unfinished, error: tries.error.clone(), retry_at }
}

/// The same after the try has failed.
pub(super) fn failed(begun: &Tries, error: &HandlerError, now: Timestamp) -> Tries {
    let pause = begun.attempts.saturating_sub(TRIES_AT_ONCE);
    let retry_at = if error.is_rejection() { None } else { due(pause, now) };
    Tries { attempts: begun.attempts, unfinished: 0, error: Some(error.to_string()), retry_at }
}

fn due(pause: u32, now: Timestamp) -> Option<Timestamp> {
    let pause = SignedDuration::try_from(REDRIVE.jittered(pause)).unwrap_or(SignedDuration::MAX);
    Some(now.checked_add(pause).unwrap_or(Timestamp::MAX))
}

/// When a head is tried next. One that was never tried became one when the head before it left, so its time has come.
fn turn(head: &ParkedHead) -> Option<Timestamp> {
    if head.tries.attempts == 0 { Some(Timestamp::MIN) } else { head.tries.retry_at }
}

/// The parked keys of a partition, as its holder keeps them in memory.
#[derive(Debug, Default)]
pub(super) struct Parked {
    keys: BTreeMap<KeyHash, Key>,
    /// The keys whose time comes by itself.
    due: BTreeSet<(Timestamp, KeyHash)>,
    events: u64,
    /// The keys of which something is parked in an earlier generation: what comes of them goes behind it, and is not tried
    /// before that has left. Nothing is added to it while this partition is read, because what is parked there only leaves.
    ahead: BTreeSet<KeyHash>,
}

#[derive(Debug)]
struct Key {
    events: u64,
    parked_at: Timestamp,
    retry_at: Option<Timestamp>,
}

impl Parked {
    /// What was found when the partition was claimed, and the keys of which something is parked in earlier generations.
    pub(super) fn load<'a>(heads: impl Iterator<Item = &'a ParkedHead>, ahead: BTreeSet<KeyHash>) -> Self {
        let mut parked = Self { ahead, ..Self::default() };
        for head in heads {
            let retry_at = if parked.ahead.contains(&head.key_hash) { None } else { turn(head) };
            parked.insert(head.key_hash, Key { events: head.events, parked_at: head.parked_at, retry_at });
        }
        parked
    }

    /// Of some keys nothing is parked in earlier generations any more: it is the turn of what waits here behind it.
    pub(super) fn follow_on<'a>(
        &mut self,
        heads: impl Iterator<Item = &'a ParkedHead>,
        ahead: &BTreeSet<KeyHash>,
    ) {
        let free: BTreeSet<KeyHash> = self.ahead.extract_if(.., |key| !ahead.contains(key)).collect();
        for head in heads.filter(|head| free.contains(&head.key_hash)) {
            self.schedule(head.key_hash, turn(head));
        }
    }

    /// Whether anything may wait here behind what is parked in earlier generations.
    pub(super) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Whether something of a key is parked in an earlier generation.
    pub(super) fn is_behind(&self, hash: KeyHash) -> bool {
        self.ahead.contains(&hash)
    }

    fn insert(&mut self, hash: KeyHash, key: Key) {
        self.events += key.events;
        self.due.extend(key.retry_at.map(|at| (at, hash)));
        self.keys.insert(hash, key);
    }

    /// Parks the first event of a key.
    pub(super) fn park(&mut self, hash: KeyHash, tries: &Tries, now: Timestamp) {
        self.insert(hash, Key { events: 1, parked_at: now, retry_at: tries.retry_at });
    }

    /// One more event waits behind the first of its key, which is here or in an earlier generation.
    pub(super) fn follow(&mut self, hash: KeyHash, now: Timestamp) {
        if let Some(key) = self.keys.get_mut(&hash) {
            key.events += 1;
            self.events += 1;
        } else if self.ahead.contains(&hash) {
            self.insert(hash, Key { events: 1, parked_at: now, retry_at: None });
        }
    }

    /// The first event of a key has left.
    pub(super) fn leave(&mut self, hash: KeyHash) {
        if let Some(key) = self.keys.get_mut(&hash) {
            key.events = key.events.saturating_sub(1);
            self.events = self.events.saturating_sub(1);
        }
    }

    /// Nothing of a key is parked any more.
    pub(super) fn remove(&mut self, hash: KeyHash) {
        if let Some(key) = self.keys.remove(&hash) {
            self.events = self.events.saturating_sub(key.events);
            self.due.retain(|(_, due)| *due != hash);
        }
    }

    /// When the key is tried next: at a time, or only when it is told. Never while something of it is parked ahead.
    pub(super) fn schedule(&mut self, hash: KeyHash, retry_at: Option<Timestamp>) {
        let retry_at = retry_at.filter(|_| !self.ahead.contains(&hash));
        if let Some(key) = self.keys.get_mut(&hash) {
            self.due.remove(&(key.retry_at.unwrap_or_default(), hash));
            key.retry_at = retry_at;
            self.due.extend(retry_at.map(|at| (at, hash)));
        }
    }

    /// Whether anything of a key is parked, here or ahead.
    pub(super) fn contains(&self, hash: KeyHash) -> bool {
        self.keys.contains_key(&hash) || self.ahead.contains(&hash)
    }

    /// The keys of which something is parked here.
    pub(super) fn hashes(&self) -> impl Iterator<Item = KeyHash> {
        self.keys.keys().copied()
    }

    /// The key whose time comes first, and when.
    pub(super) fn next_due(&self) -> Option<(Timestamp, KeyHash)> {
        self.due.first().copied()
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.keys.values().map(|key| key.parked_at).min()
    }

    /// Whether one more key may be parked, after `alike` keys failed in a row; else why not.
    pub(super) fn room(&self, alike: u32) -> Result<(), String> {
        if alike >= KEYS_ALIKE_MAX {
            return Err(format!(
                "{alike} keys failed one after the other, so something general is wrong and nothing more is parked: look at the errors with `tombolo parked list`, repair the handler or what it needs; it goes on by itself"
            ));
        }
        if self.keys.len() >= PARKED_KEYS_MAX {
            return Err(format!(
                "{} keys are parked here, and at most {PARKED_KEYS_MAX} may be: repair what they fail with, then `tombolo parked redrive` or `tombolo parked discard`",
                self.keys.len()
            ));
        }
        Ok(())
    }

    /// Whether more events may wait behind parked ones; else why not.
    pub(super) fn room_behind(&self) -> Result<(), String> {
        if self.events < PARKED_EVENTS_MAX {
            return Ok(());
        }
        Err(format!(
            "{} events are parked here, and at most {PARKED_EVENTS_MAX} may be: repair what their keys fail with, then `tombolo parked redrive` or `tombolo parked discard`",
            self.events
        ))
    }
}

#[cfg(test)]
mod tests {
    use tombolo_event::ServiceName;

    use super::*;
    use crate::reject;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn error() -> HandlerError {
        std::io::Error::other("no such product").into()
    }

    #[test]
    fn an_event_is_tried_a_few_times_and_then_parked_with_a_schedule() {
        let mut failing = Failing::first(error());
        for attempt in 2..=TRIES_AT_ONCE {
            assert_eq!(failing.next(Ok(()), NOW), Next::Try(attempt));
            failing = Failing { attempts: attempt, error: Some(error()) };
        }
        let Next::Park(tries) = failing.next(Ok(()), NOW) else { panic!("it is parked") };
        assert_eq!((tries.attempts, tries.unfinished), (TRIES_AT_ONCE, 0));
        assert!(tries.retry_at.is_some_and(|at| at > NOW));
        assert_eq!(tries.error.as_deref(), Some("no such product"));
    }

    #[test]
    fn a_rejection_is_parked_at_once_and_without_a_schedule() {
        let Next::Park(tries) = Failing::first(reject("never")).next(Ok(()), NOW) else {
            panic!("it is parked")
        };
        assert_eq!((tries.attempts, tries.retry_at), (1, None));
    }

    #[test]
    fn what_never_ended_is_parked_without_being_tried_again() {
        assert_eq!(Failing::unknown(0).next(Ok(()), NOW), Next::Try(1));
        assert_eq!(Failing::unknown(TRIES_AT_ONCE - 1).next(Ok(()), NOW), Next::Try(TRIES_AT_ONCE));
        let Next::Park(mut tries) = Failing::unknown(TRIES_AT_ONCE).next(Ok(()), NOW) else {
            panic!("it is parked")
        };
        let mut deaths = 0;
        while tries.retry_at.is_some() {
            tries = begun(&tries, NOW);
            deaths += 1;
        }
        assert_eq!(deaths, TRIES_UNFINISHED_MAX - TRIES_AT_ONCE, "then only when it is told");
        assert!(failed(&tries, &error(), NOW).retry_at.is_some(), "a try that ended is a tame one");
        assert_eq!(failed(&tries, &reject("never"), NOW).retry_at, None);
    }

    #[test]
    fn without_room_the_partition_waits() {
        let full = Parked::default().room(KEYS_ALIKE_MAX);
        let failing = Failing { attempts: TRIES_AT_ONCE, error: Some(error()) };
        let Next::Stuck(why) = failing.next(full, NOW) else { panic!("nothing more is parked") };
        assert!(why.contains("keys failed one after the other") && why.contains("no such product"), "{why}");
    }

    #[test]
    fn a_key_stays_parked_until_it_is_removed() {
        let (key, other) = (KeyHash::of("a"), KeyHash::of("b"));
        let later = NOW.checked_add(SignedDuration::from_secs(5)).unwrap();
        let mut parked = Parked::default();
        parked.park(key, &Tries { retry_at: Some(later), ..Tries::default() }, NOW);
        parked.follow(key, NOW);
        parked.follow(other, NOW);
        assert_eq!((parked.keys(), parked.events(), parked.next_due()), (1, 2, Some((later, key))));
        parked.leave(key);
        parked.leave(key);
        assert!(parked.contains(key) && !parked.contains(other));
        parked.schedule(key, None);
        assert_eq!(parked.next_due(), None);
        parked.schedule(key, Some(NOW));
        assert_eq!(parked.next_due(), Some((NOW, key)));
        parked.remove(key);
        assert_eq!((parked.keys(), parked.events(), parked.next_due()), (0, 0, None));
    }

    #[test]
    fn what_is_parked_in_an_earlier_generation_holds_its_key_and_no_other() {
        let (key, other) = (KeyHash::of("a"), KeyHash::of("b"));
        let head = |key_hash| ParkedHead {
            topic: ServiceName::new("orders").unwrap(),
            partition: 9,
            key_hash,
            events: 2,
            parked_at: NOW,
            tries: Tries::default(),
        };
        let mut parked = Parked::load([head(other)].iter(), BTreeSet::from([key]));
        assert!(parked.contains(key) && parked.contains(other));
        assert_eq!(parked.next_due(), Some((Timestamp::MIN, other)), "nothing of it is parked ahead");
        parked.remove(other);
        parked.follow(key, NOW);
        parked.follow(key, NOW);
        parked.schedule(key, Some(NOW));
        assert_eq!((parked.keys(), parked.events(), parked.next_due()), (1, 2, None), "told, it still waits");
        parked.follow_on([head(key)].iter(), &BTreeSet::from([key]));
        assert_eq!(parked.next_due(), None);
        parked.follow_on([head(key)].iter(), &BTreeSet::new());
        assert_eq!((parked.has_ahead(), parked.next_due()), (false, Some((Timestamp::MIN, key))));
        let again = Parked::load([head(key)].iter(), BTreeSet::from([key]));
        assert_eq!(again.next_due(), None, "after a restart it waits as before");
    }
}
