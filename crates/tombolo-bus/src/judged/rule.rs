//! The rule by which everybody reads a topic's stream, and the decisions that follow from it. Pure.
//!
//! The server refuses nothing: it stores, in one order, whatever anybody sends. So the order is the judge. A message counts if
//! the messages before it allow it, and is *void* if they don't; everybody who reads the stream comes to the same result.
//!
//! ```text
//! offset  message                        counts?
//!   0     birth [2 partitions]           yes: the first
//!   1     raise to epoch 1               yes: higher
//!   2     epoch 1, partition 0, 1..=2    yes: it follows the end of its partition
//!   3     raise to epoch 2               yes
//!   4     epoch 1, partition 0, 3..=4    void: its relay was replaced at 3, and reads that here
//!   5     epoch 2, partition 0, 3..=3    yes
//!   6     epoch 2, partition 0, 3..=5    void: 3 is taken; its sender compares what is there and sends the rest
//! ```
//!
//! Invariant: [`State::apply`] depends on the messages alone, never on who reads them or when.

use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

use super::message::{Mark, Message, Records, Says};
use crate::{Append, Error, Kind, Record, Result, Tail, Topic};

/// A topic as its stream says it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Control {
    pub(super) incarnation: Incarnation,
    pub(super) generations: Generations,
    pub(super) epoch: u64,
}

/// The end of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct End {
    pub(super) sequence: u64,
    pub(super) id: Option<EventId>,
}

impl End {
    pub(super) fn of(record: &Record) -> Self {
        Self { sequence: record.sequence, id: Some(record.id) }
    }
}

/// All that the stream says up to an offset.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    /// The first offset that is not in it.
    pub(super) next: u64,
    /// None before the birth.
    pub(super) control: Option<Control>,
    /// The ends of all partitions of all generations.
    pub(super) ends: Vec<End>,
    /// The offset of the last mark, or the beginning.
    pub(super) marked: u64,
    #[cfg(feature = "mutants")]
    pub(super) mutant: Option<super::Mutant>,
}

impl State {
    /// The state that a mark holds, in place of `beginning`.
    pub(super) fn at_mark(beginning: Self, message: &Message, mark: &Mark) -> Self {
        let (incarnation, epoch) = (message.incarnation, message.epoch);
        let mut state = beginning;
        state.next = mark.at + 1;
        state.control = Some(Control { incarnation, generations: mark.generations.clone(), epoch });
        state.ends.clone_from(&mark.ends);
        state.marked = mark.at;
        state
    }

    /// What a mark of this state says.
    pub(super) fn mark(&self) -> Option<Mark> {
        let control = self.control.as_ref()?;
        let at = self.next.checked_sub(1)?;
        Some(Mark { at, generations: control.generations.clone(), ends: self.ends.clone() })
    }

    /// Reads the message at an offset; whether it counts.
    pub(super) fn apply(&mut self, at: u64, message: &Message) -> bool {
        self.next = at + 1;
        let Some(control) = &mut self.control else {
            let Says::Birth(generations) = &message.says else { return false };
            let (incarnation, epoch) = (message.incarnation, 0);
            self.ends = vec![End::default(); generations.partitions() as usize];
            self.control = Some(Control { incarnation, generations: generations.clone(), epoch });
            return true;
        };
        if message.incarnation != control.incarnation {
            return false;
        }
        match &message.says {
            Says::Birth(_) => false,
            Says::Look => true,
            Says::Raise => {
                let higher = message.epoch > control.epoch;
                control.epoch = control.epoch.max(message.epoch);
                higher
            }
            Says::Divide(generations) => {
                let counts = message.epoch == control.epoch && is_next(generations, &control.generations);
                if counts {
                    self.ends.resize(generations.partitions() as usize, End::default());
                    control.generations = generations.clone();
                }
                counts
            }
            Says::Mark(mark) => {
                self.marked = self.marked.max(mark.at);
                true
            }
            Says::Records(says) => self.append(message.epoch, says),
        }
    }

    fn append(&mut self, epoch: u64, says: &Records) -> bool {
        let takes_any_epoch = self.takes_any_epoch();
        let takes_any_place = self.takes_any_place();
        let Some(control) = &self.control else { return false };
        let partition = says.partition;
        let Some(end) = self.ends.get_mut(partition as usize) else { return false };
        let (Some(first), Some(last)) = (says.records.first(), says.records.last()) else { return false };
        let follows = first.sequence == end.sequence + 1 && says.after == end.id;
        let fenced = epoch != control.epoch && !takes_any_epoch;
        if fenced || control.generations.is_sealed(partition) || !(follows || takes_any_place) {
            return false;
        }
        *end = End::of(last);
        true
    }

    pub(super) fn topic(&self, name: &ServiceName) -> Option<Topic> {
        let Control { incarnation, generations, epoch } = self.control.clone()?;
        Some(Topic { name: name.clone(), generations, incarnation, epoch })
    }

    pub(super) fn tails(&self) -> Vec<Tail> {
        let tail = |(partition, end): (u32, &End)| Tail { partition, sequence: end.sequence, id: end.id };
        (0..).zip(&self.ends).map(tail).collect()
    }

    /// Refuses what would go beyond the end of a sealed partition.
    pub(super) fn check_open(&self, append: &Append) -> Result<()> {
        let is_sealed = |control: &Control| control.generations.is_sealed(append.partition);
        match self.end(append.partition) {
            Some(end) if self.control.as_ref().is_some_and(is_sealed) => Err(sealed(append, &end)),
            _ => Ok(()),
        }
    }

    pub(super) fn end(&self, partition: u32) -> Option<End> {
        self.ends.get(partition as usize).copied()
    }
}

#[cfg(feature = "mutants")]
impl State {
    fn takes_any_epoch(&self) -> bool {
        self.mutant == Some(super::Mutant::TakeOlderEpochs)
    }

    fn takes_any_place(&self) -> bool {
        self.mutant == Some(super::Mutant::TakeAnyPlace)
    }
}

#[cfg(not(feature = "mutants"))]
#[expect(clippy::unused_self, reason = "the switches of the test build ask the state")]
impl State {
    fn takes_any_epoch(&self) -> bool {
        false
    }

    fn takes_any_place(&self) -> bool {
        false
    }
}

/// Whether `new` is `old` and one generation more.
pub(super) fn is_next(new: &Generations, old: &Generations) -> bool {
    new.each().len() == old.each().len() + 1 && new.continue_from(old)
}

/// What to do with an append, as far as a state tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It follows the end.
    Send,
    /// The first so many records have numbers that are taken: their ids are to be compared.
    Compare(usize),
    /// Some of its numbers are on their way, and their fate is to be waited for.
    Wait,
}

/// A refusal, and whether it holds however much the stream has grown since the state was read.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: Error,
    pub(super) for_good: bool,
}

/// Decides an append in a state, with `ahead` the end of its partition once what is on its way has landed.
pub(super) fn decide(
    state: &State,
    ahead: Option<End>,
    append: &Append,
) -> std::result::Result<(Decision, End), Refused> {
    let (topic, partition) = (&append.topic, append.partition);
    let for_good = |error| Refused { error, for_good: true };
    let for_now = |error| Refused { error, for_good: false };
    let Some(control) = &state.control else { return Err(for_now(unknown(topic))) };
    check_incarnation(topic, control, append.incarnation).map_err(for_good)?;
    if append.epoch != control.epoch && !state.takes_any_epoch() {
        let error = older(topic, append.epoch, control.epoch);
        return Err(Refused { error, for_good: append.epoch < control.epoch });
    }
    let Some(end) = state.end(partition) else {
        return Err(for_now(unknown_partition(topic, partition, state.ends.len())));
    };
    let ahead = ahead.filter(|ahead| ahead.sequence > end.sequence);
    let after = ahead.unwrap_or(end);
    let first = append.records.first().map_or(0, |record| record.sequence);
    if first > end.sequence && control.generations.is_sealed(partition) {
        return Err(for_now(sealed(append, &end)));
    }
    if first > after.sequence + 1 {
        return Err(for_now(hole(append, first, after.sequence + 1)));
    }
    if first == after.sequence + 1 {
        return Ok((Decision::Send, after));
    }
    if ahead.is_some() {
        return Ok((Decision::Wait, after));
    }
    let taken = usize::try_from(end.sequence + 1 - first).unwrap_or(usize::MAX).min(append.records.len());
    Ok((Decision::Compare(taken), end))
}

pub(super) fn unknown(topic: &ServiceName) -> Error {
    Error::new(Kind::UnknownTopic, format!("there is no topic {topic} on this server"))
}

pub(super) fn unknown_partition(topic: &ServiceName, partition: u32, found: usize) -> Error {
    let message = format!("topic {topic} has {found} partitions from 0; there is none {partition}");
    Error::new(Kind::UnknownPartition, message)
}

pub(super) fn check_incarnation(topic: &ServiceName, control: &Control, expected: Incarnation) -> Result<()> {
    let found = control.incarnation;
    if found == expected {
        return Ok(());
    }
    let message = format!(
        "topic {topic} is incarnation {found}; expected {expected}: it was made again, or this is another server"
    );
    Err(Error::new(Kind::OtherIncarnation, message))
}

pub(super) fn older(topic: &ServiceName, epoch: u64, found: u64) -> Error {
    let what = if epoch < found { "another relay took over" } else { "this epoch was never raised" };
    Error::new(Kind::OlderEpoch, format!("topic {topic} is at epoch {found}, the caller at {epoch}: {what}"))
}

fn hole(append: &Append, first: u64, expected: u64) -> Error {
    let message = format!(
        "append to {}/{} begins at {first}; expected {expected}: read the outbox again",
        append.topic, append.partition
    );
    Error::new(Kind::Hole, message)
}

fn sealed(append: &Append, end: &End) -> Error {
    let message = format!(
        "{}/{} is sealed at {}: its topic was divided anew, and what is new goes to the present generation",
        append.topic, append.partition, end.sequence
    );
    Error::new(Kind::Sealed, message)
}

/// Compares a record with the id that is stored under its number.
pub(super) fn same_id(append: &Append, record: &Record, found: Option<EventId>) -> Result<()> {
    if found == Some(record.id) {
        return Ok(());
    }
    let found = found.map_or_else(|| "no event".to_owned(), |id| format!("event {id}"));
    let message = format!(
        "{}/{} holds {found} at {}; expected {}: the caller's database is not the one that wrote it",
        append.topic, append.partition, record.sequence, record.id
    );
    Err(Error::new(Kind::OtherId, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::super::message::Tag;
    use super::*;

    fn message(epoch: u64, says: Says) -> Message {
        let incarnation = Incarnation(Uuid::from_u128(1));
        Message { tag: Tag { sender: 0, number: 0 }, incarnation, epoch, says }
    }

    fn id(of: u64) -> EventId {
        EventId(Uuid::from_u128(u128::from(of)))
    }

    /// `count` records from `first`, of which the ids say who wrote them.
    fn records(partition: u32, after: Option<u64>, first: u64, count: u64, writer: u64) -> Says {
        let record = |sequence| Record {
            sequence,
            id: id(writer * 1_000 + sequence),
            event_type: bytes::Bytes::new(),
            bytes: bytes::Bytes::new(),
        };
        let records = (first..first + count).map(record).collect();
        Says::Records(Records { partition, after: after.map(id), records })
    }

    fn counts(messages: &[Message]) -> Vec<bool> {
        let mut state = State::default();
        (0..).zip(messages).map(|(at, message)| state.apply(at, message)).collect()
    }

    #[test]
    fn what_a_replaced_relay_sends_late_is_void() {
        let two = Generations::first(2).unwrap();
        let divided = two.and(1).unwrap();
        let messages = [
            (0, Says::Look, false),
            (0, Says::Birth(two.clone()), true),
            (0, Says::Birth(two), false),
            (1, Says::Raise, true),
            (1, records(0, None, 1, 2, 7), true),
            (1, records(0, Some(7_002), 4, 1, 7), false),
            (2, Says::Raise, true),
            (1, records(0, Some(7_002), 3, 1, 7), false),
            (1, Says::Raise, false),
            (1, Says::Divide(divided.clone()), false),
            (2, records(0, Some(8_002), 3, 1, 8), false),
            (2, records(0, Some(7_002), 3, 1, 8), true),
            (2, records(0, Some(7_002), 3, 1, 8), false),
            (2, Says::Divide(divided.clone()), true),
            (2, Says::Divide(divided), false),
            (2, records(0, Some(8_003), 4, 1, 8), false),
            (2, records(2, None, 1, 1, 8), true),
            (2, records(3, None, 1, 1, 8), false),
        ];
        let expected: Vec<bool> = messages.iter().map(|(_, _, counts)| *counts).collect();
        let messages: Vec<Message> = messages.map(|(epoch, says, _)| message(epoch, says)).into();
        assert_eq!(counts(&messages), expected);
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let any_records = (0..4_u32, 0..4_u64, 1..4_u64, 1..3_u64, 0..2_u64).prop_map(
            |(partition, after, first, count, writer)| {
                records(partition, (after > 0).then_some(writer * 1_000 + after), first, count, writer)
            },
        );
        let divided = Generations::first(2).unwrap().and(1).unwrap();
        let says = prop_oneof![
            1 => Just(Says::Raise),
            1 => Just(Says::Divide(divided)),
            1 => Just(Says::Look),
            8 => any_records,
        ];
        (0..3_u64, says).prop_map(|(epoch, says)| message(epoch, says))
    }

    proptest! {
        #[test]
        fn who_begins_at_any_mark_comes_to_the_same(
            messages in prop::collection::vec(any_message(), 1..60),
            at in 0..60_usize,
        ) {
            let birth = message(0, Says::Birth(Generations::first(2).unwrap()));
            let all: Vec<Message> = std::iter::once(birth).chain(messages).collect();
            let at = at.min(all.len() - 1);
            let mut whole = State::default();
            let mut marked = None;
            for (offset, message) in (0..).zip(&all) {
                whole.apply(offset, message);
                if offset == at as u64 {
                    let control = whole.control.clone().unwrap();
                    let mark = whole.mark().unwrap();
                    let by = Message { epoch: control.epoch, ..message.clone() };
                    marked = Some(State::at_mark(State::default(), &by, &mark));
                }
            }
            let mut from_mark = marked.unwrap();
            for (offset, message) in (0..).zip(&all).skip(at + 1) {
                from_mark.apply(offset, message);
            }
            prop_assert_eq!(from_mark.control, whole.control);
            prop_assert_eq!(from_mark.ends, whole.ends);
            prop_assert_eq!(from_mark.next, whole.next);
        }
    }
}
