//! Who listens to what, by the words in the stream of signals. Pure.
//!
//! ```text
//! offset  word
//!   0     7 hears orders.wake, questions as one of "orders"     said again every few seconds, and when it changes
//!   1     9 hears questions as one of "orders"
//!   2     a signal on questions      7 and 9 are in the group: the offset says whose turn it is, for both alike
//!   3     a signal on orders.wake    7 hears it; its sender reads here that somebody does
//! ```
//!
//! Invariant: who hears a signal depends on the words before it and on the times at which the broker stored them, never on who
//! reads them or when.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Signal;
use crate::adapter::hearing::{self, Name};

/// How long what a process hears is true without being said again, in milliseconds.
pub(super) const TRUE_FOR_MS: i64 = 20_000;

/// A word in the stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// What a process hears, by the numbers of its places.
    Hears(Hears),
    Signal {
        head: Head,
        signal: Signal,
    },
}

/// What a process hears.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Hears {
    pub(super) process: u64,
    /// Which of its words this is.
    pub(super) number: u64,
    pub(super) places: BTreeMap<u32, Name>,
}

/// Whose signal it is, and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) process: u64,
    pub(super) number: u64,
    pub(super) subject: String,
}

const HEARS: u8 = b'h';
const SIGNAL: u8 = b's';

impl Word {
    /// As bytes: a letter, JSON, a line feed; and behind it a signal.
    pub(super) fn encode(&self) -> serde_json::Result<Bytes> {
        let (kind, head, tail) = match self {
            Self::Hears(hears) => (HEARS, serde_json::to_vec(hears)?, Bytes::new()),
            Self::Signal { head, signal } => (SIGNAL, serde_json::to_vec(head)?, hearing::encode(signal)),
        };
        Ok([&[kind], &head[..], b"\n", &tail[..]].concat().into())
    }

    /// What [`Word::encode`] wrote; nothing if it did not.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head = bytes.get(1..end)?;
        match *bytes.first()? {
            HEARS => serde_json::from_slice(head).ok().map(Self::Hears),
            SIGNAL => {
                let head = serde_json::from_slice(head).ok()?;
                hearing::decode(&bytes.slice(end + 1..)).map(|signal| Self::Signal { head, signal })
            }
            _ => None,
        }
    }
}

/// All that was said up to an offset.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// What each process hears, and when it said so.
    processes: BTreeMap<u64, (i64, BTreeMap<u32, Name>)>,
}

impl Heard {
    pub(super) fn say(&mut self, stored_ms: i64, hears: &Hears) {
        self.processes.retain(|_, (said_ms, _)| is_true(*said_ms, stored_ms));
        self.processes.insert(hears.process, (stored_ms, hears.places.clone()));
    }

    fn living(&self, now_ms: i64) -> impl Iterator<Item = (u64, &BTreeMap<u32, Name>)> {
        let living = self.processes.iter().filter(move |(_, (said_ms, _))| is_true(*said_ms, now_ms));
        living.map(|(process, (_, places))| (*process, places))
    }

    /// Whether anybody hears a subject.
    pub(super) fn reaches(&self, subject: &str, now_ms: i64) -> bool {
        self.living(now_ms).any(|(_, places)| places.values().any(|name| name.0 == subject))
    }

    /// The places of a process that hear the signal at an offset.
    pub(super) fn places(&self, process: u64, subject: &str, at: u64, now_ms: i64) -> Vec<u32> {
        let Some((_, mine)) = self.processes.get(&process) else { return Vec::new() };
        let on_subject = mine.iter().filter(|(_, name)| name.0 == subject);
        let heard = on_subject.filter(|(_, name)| match &name.1 {
            None => true,
            Some(_) => self.turn(name, at, now_ms) == Some(process),
        });
        heard.map(|(number, _)| *number).collect()
    }

    /// Whose turn it is in a group.
    fn turn(&self, name: &Name, at: u64, now_ms: i64) -> Option<u64> {
        let members: Vec<u64> = self
            .living(now_ms)
            .filter(|(_, places)| places.values().any(|place| place == name))
            .map(|(process, _)| process)
            .collect();
        let turn = at.checked_rem(members.len() as u64)?;
        members.get(usize::try_from(turn).ok()?).copied()
    }
}

fn is_true(said_ms: i64, now_ms: i64) -> bool {
    now_ms - said_ms <= TRUE_FOR_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(process: u64, names: &[(&str, Option<&str>)]) -> Hears {
        let name =
            |(subject, group): &(&str, Option<&str>)| ((*subject).to_owned(), group.map(str::to_owned));
        Hears { process, number: 0, places: (1..).zip(names.iter().map(name)).collect() }
    }

    #[test]
    fn one_of_a_group_hears_a_signal_and_all_agree_whose_turn_it_is() {
        let mut heard = Heard::default();
        heard.say(0, &hears(7, &[("a", Some("g")), ("a", None)]));
        heard.say(0, &hears(9, &[("b", None), ("a", Some("g"))]));
        let mut turns = [0, 0];
        for at in 0..10 {
            let (mine, yours) = (heard.places(7, "a", at, 1), heard.places(9, "a", at, 1));
            assert!(mine.contains(&2), "who is in no group hears all");
            assert_eq!(usize::from(mine.contains(&1)) + yours.len(), 1, "one of the group hears {at}");
            turns[yours.len()] += 1;
        }
        assert_eq!(turns, [5, 5]);
        assert_eq!(heard.places(9, "b", 0, 1), [1]);
        assert!(heard.places(8, "a", 0, 1).is_empty() && heard.places(7, "a.b", 0, 1).is_empty());
    }

    #[test]
    fn who_says_nothing_any_more_is_passed_over() {
        let mut heard = Heard::default();
        heard.say(0, &hears(7, &[("a", Some("g"))]));
        heard.say(TRUE_FOR_MS, &hears(9, &[("a", Some("g"))]));
        assert!(heard.reaches("a", TRUE_FOR_MS));
        let later = TRUE_FOR_MS + 1;
        assert!((0..4).all(|at| heard.places(9, "a", at, later) == [1]));
        assert!(!heard.reaches("a", 2 * TRUE_FOR_MS + 1));
        heard.say(later, &hears(9, &[]));
        assert!(!heard.reaches("a", later));
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        let head = Head { process: 3, number: 4, subject: "a.b".into() };
        for signal in [
            Signal { reply_to: Some("c".into()), payload: Bytes::from_static(b"\n\0") },
            Signal { reply_to: None, payload: Bytes::new() },
        ] {
            let word = Word::Signal { head: head.clone(), signal };
            assert_eq!(Word::decode(&word.encode().unwrap()), Some(word));
        }
        let word = Word::Hears(hears(u64::MAX, &[("a", Some("g")), ("b", None)]));
        assert_eq!(Word::decode(&word.encode().unwrap()), Some(word));
        assert_eq!(Word::decode(&Bytes::from_static(b"x{}\n")), None);
    }
}
