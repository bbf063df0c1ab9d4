//! Puts a commit group together: checks each request against what is synced and what the group already holds.
//!
//! - takes: requests, in the order in which they came; writes: nothing, only bytes in memory;
//! - commits when: never; the writer syncs the group and then publishes it, or drops it whole;
//! - if we crash here: nothing was acknowledged; if it repeats: a repeat finds its records stored and compares their ids.
//!
//! Invariant: an answer is decided here and given only after the sync of everything that it depends on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

use super::format::{Group, SYSTEM_TOPIC, System};
use super::index::Entry;
use super::options::{Mutant, Options};
use super::published::{Published, TopicView};
use super::source::Source;
use crate::{Append, Appended, Error, Kind, Registration, Result, Tail, Topic, TopicSpec};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What the writer is asked for.
pub(super) enum Request {
    /// [`crate::Bus::append`], already checked for its form, with its share of the bytes that may wait.
    Append(Append, Reply<Appended>, OwnedSemaphorePermit),
    /// [`crate::Bus::ensure_topic`].
    EnsureTopic(TopicSpec, Reply<Topic>),
    /// [`crate::Bus::raise_epoch`].
    RaiseEpoch(ServiceName, Incarnation, u64, Reply<Vec<Tail>>),
    /// [`crate::Bus::divide`].
    Divide(ServiceName, Incarnation, u64, Generations, Reply<Topic>),
    /// [`crate::Bus::register`].
    Register(Registration, Reply<()>),
}

impl Request {
    /// The bytes that it adds to a group, roughly.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Append(append, ..) => append.records.iter().map(crate::Record::size).sum(),
            Self::Register(registration, _) => registration.descriptor.len(),
            Self::EnsureTopic(..) | Self::RaiseEpoch(..) | Self::Divide(..) => 0,
        }
    }

    /// Answers that nothing was stored.
    pub(super) fn refuse(self, kind: Kind, message: &str) {
        match self {
            Self::Append(_, reply, _) => send(reply, Err(Error::new(kind, message))),
            Self::EnsureTopic(_, reply) | Self::Divide(_, _, _, _, reply) => {
                send(reply, Err(Error::new(kind, message)));
            }
            Self::RaiseEpoch(_, _, _, reply) => send(reply, Err(Error::new(kind, message))),
            Self::Register(_, reply) => send(reply, Err(Error::new(kind, message))),
        }
    }
}

/// A caller that no longer waits needs no answer.
fn send<T>(reply: Reply<T>, answer: Result<T>) {
    drop(reply.send(answer));
}

/// An answer that was decided and not yet given.
enum Answer {
    Append(Reply<Appended>, Result<Appended>),
    Topic(Reply<Topic>, Result<Topic>),
    Tails(Reply<Vec<Tail>>, Result<Vec<Tail>>),
    Registered(Reply<()>, Result<()>),
}

impl Answer {
    fn give(self, refusal: Option<&str>) {
        fn settled<T>(decided: Result<T>, refusal: Option<&str>) -> Result<T> {
            refusal.map_or(decided, |message| Err(Error::new(Kind::ReadOnly, message)))
        }
        match self {
            Self::Append(reply, decided) => send(reply, settled(decided, refusal)),
            Self::Topic(reply, decided) => send(reply, settled(decided, refusal)),
            Self::Tails(reply, decided) => send(reply, settled(decided, refusal)),
            Self::Registered(reply, decided) => send(reply, settled(decided, refusal)),
        }
    }
}

/// A block of the group.
pub(super) struct Block {
    pub(super) topic: u32,
    pub(super) partition: u32,
    /// Where it begins in the group, and its length.
    pub(super) at: (u32, u32),
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) last_id: EventId,
}

impl Block {
    /// The block's place in the segment, for a group that lies at `offset`.
    pub(super) fn entry(&self, offset: u64) -> Entry {
        let offset = u32::try_from(offset).expect("segments are at most SEGMENT_BYTES_MAX") + self.at.0;
        Entry { first: self.first, offset, length: self.at.1 }
    }
}

/// What the group holds of a partition, after its published tail.
struct StagedTail {
    published: u64,
    ids: Vec<EventId>,
}

/// What becomes true when the group is synced.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) system: Vec<System>,
    pub(super) blocks: Vec<Block>,
    answers: Vec<Answer>,
}

impl Effects {
    /// Gives every answer: as it was decided, or `ReadOnly` with a message for all.
    pub(super) fn settle(self, refusal: Option<&str>) {
        for answer in self.answers {
            answer.give(refusal);
        }
    }
}

/// A group that is being put together.
pub(super) struct Staging<'a> {
    source: &'a Source,
    published: &'a Published,
    options: &'a Options,
    group: Group,
    tails: HashMap<(u32, u32), StagedTail>,
    epochs: HashMap<u32, u64>,
    /// The topics that are made or divided in this group, as they are then.
    topics: Vec<Arc<TopicView>>,
    registrations: BTreeMap<(ServiceName, u32), Registration>,
    effects: Effects,
}

impl<'a> Staging<'a> {
    pub(super) fn new(
        source: &'a Source,
        published: &'a Published,
        options: &'a Options,
        bytes: usize,
    ) -> Self {
        Self {
            source,
            published,
            options,
            group: Group::with_capacity(bytes),
            tails: HashMap::new(),
            epochs: HashMap::new(),
            topics: Vec::new(),
            registrations: BTreeMap::new(),
            effects: Effects::default(),
        }
    }

    /// Decides a request.
    pub(super) fn take(&mut self, request: Request) {
        let answer = match request {
            Request::Append(append, reply, permit) => {
                let decided = self.append(&append);
                drop(permit);
                Answer::Append(reply, decided)
            }
            Request::EnsureTopic(spec, reply) => Answer::Topic(reply, self.ensure_topic(&spec)),
            Request::RaiseEpoch(topic, incarnation, epoch, reply) => {
                Answer::Tails(reply, self.raise_epoch(&topic, incarnation, epoch))
            }
            Request::Divide(topic, incarnation, epoch, generations, reply) => {
                Answer::Topic(reply, self.divide(&topic, incarnation, epoch, generations))
            }
            Request::Register(registration, reply) => {
                self.register(registration);
                Answer::Registered(reply, Ok(()))
            }
        };
        self.effects.answers.push(answer);
    }

    pub(super) fn finish(self) -> (Group, Effects) {
        (self.group, self.effects)
    }

    fn topic(&self, name: &ServiceName) -> Result<Arc<TopicView>> {
        let staged = self.topics.iter().find(|view| view.name == *name).cloned();
        staged.or_else(|| self.published.topic(name)).ok_or_else(|| unknown_topic(name))
    }

    /// What everybody will see of a topic once the group is synced.
    fn to_topic(&self, view: &TopicView) -> Topic {
        Topic { epoch: self.epoch(view), ..view.to_topic() }
    }

    fn epoch(&self, view: &TopicView) -> u64 {
        self.epochs.get(&view.number).copied().unwrap_or_else(|| view.epoch())
    }

    fn tail(&self, view: &TopicView, partition: u32) -> (u64, Option<EventId>) {
        match self.tails.get(&(view.number, partition)) {
            Some(tail) => (tail.published + tail.ids.len() as u64, tail.ids.last().copied()),
            None => view.partition(partition).map_or((0, None), super::published::Partition::tail),
        }
    }

    fn append(&mut self, append: &Append) -> Result<Appended> {
        let view = self.topic(&append.topic)?;
        check_incarnation(&view, append.incarnation)?;
        if view.partition(append.partition).is_none() {
            return Err(unknown_partition(&view, append.partition));
        }
        let epoch = self.epoch(&view);
        if append.epoch != epoch && !self.options.is(Mutant::NoFencing) {
            return Err(other_epoch(&view, append.epoch, epoch));
        }
        let (last, _) = self.tail(&view, append.partition);
        let is_sealed = view.generations.is_sealed(append.partition);
        let first = append.records.first().map_or(0, |record| record.sequence);
        let Some(overlap) = (last + 1).checked_sub(first) else {
            return Err(if is_sealed { sealed(append, last) } else { hole(append, first, last) });
        };
        let stored = usize::try_from(overlap).unwrap_or(usize::MAX).min(append.records.len());
        self.check_repeat(append, &view, stored)?;
        if stored == append.records.len() {
            return Ok(Appended { last });
        }
        if is_sealed {
            return Err(sealed(append, last));
        }
        Ok(Appended { last: self.push(append, &view, stored, last) })
    }

    /// Compares the ids of the records that are stored already.
    fn check_repeat(&self, append: &Append, view: &TopicView, stored: usize) -> Result<()> {
        let Some((from, to)) = append.records[..stored].first().zip(append.records[..stored].last()) else {
            return Ok(());
        };
        let staged = self.tails.get(&(view.number, append.partition));
        let published = staged.map_or(u64::MAX, |tail| tail.published);
        let mut ids = Vec::new();
        if from.sequence <= published {
            ids = self.source.ids(view, append.partition, from.sequence, to.sequence.min(published))?;
        }
        if let Some(tail) = staged.filter(|_| to.sequence > published) {
            let skip = usize::try_from(from.sequence.saturating_sub(published + 1)).unwrap_or(usize::MAX);
            ids.extend(tail.ids.iter().skip(skip));
        }
        match append.records[..stored].iter().zip(&ids).find(|(record, id)| record.id != **id) {
            Some((record, id)) => Err(other_id(append, record.sequence, record.id, *id)),
            None => Ok(()),
        }
    }

    fn push(&mut self, append: &Append, view: &TopicView, stored: usize, last: u64) -> u64 {
        let new = &append.records[stored..];
        let first = last + 1;
        let at = self.group.push((view.number, append.partition, append.epoch), new.iter(), first);
        let tail = self
            .tails
            .entry((view.number, append.partition))
            .or_insert_with(|| StagedTail { published: last, ids: Vec::new() });
        tail.ids.extend(new.iter().map(|record| record.id));
        let last = last + new.len() as u64;
        let last_id = new.last().map_or_else(EventId::default, |record| record.id);
        let (topic, partition) = (view.number, append.partition);
        self.effects.blocks.push(Block { topic, partition, at, first, last, last_id });
        last
    }

    fn push_system(&mut self, system: System) {
        let record = system.to_record();
        self.group.push((SYSTEM_TOPIC, 0, 0), std::iter::once(&record), 1);
        self.effects.system.push(system);
    }

    fn ensure_topic(&mut self, spec: &TopicSpec) -> Result<Topic> {
        if let Ok(view) = self.topic(&spec.name) {
            return self.to_topic(&view).matching(spec);
        }
        let published = self.published.topics().len();
        let made = self.topics.iter().filter(|view| view.number as usize > published).count();
        let number = u32::try_from(published + made + 1)
            .map_err(|_| Error::new(Kind::TooLarge, "the log holds as many topics as it can number"))?;
        let (name, incarnation) = (spec.name.clone(), spec.incarnation.unwrap_or_default());
        let mut steps = spec.generations.steps();
        let first = steps.next().unwrap_or_else(|| spec.generations.clone());
        let partitions = first.partitions();
        self.push_system(System::TopicCreated { number, name: name.clone(), partitions, incarnation });
        for generations in steps {
            self.push_system(System::TopicDivided { topic: number, generations });
        }
        let view = Arc::new(TopicView::new(number, name, spec.generations.clone(), incarnation));
        self.topics.push(view.clone());
        Ok(view.to_topic())
    }

    fn divide(
        &mut self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: Generations,
    ) -> Result<Topic> {
        let view = self.topic(topic)?;
        check_incarnation(&view, incarnation)?;
        let present = self.epoch(&view);
        if epoch != present && !self.options.is(Mutant::NoFencing) {
            return Err(other_epoch(&view, epoch, present));
        }
        if !view.to_topic().is_to_be_divided(&generations)? {
            return Ok(self.to_topic(&view));
        }
        self.push_system(System::TopicDivided { topic: view.number, generations: generations.clone() });
        let divided = Arc::new(view.divided(generations));
        self.topics.retain(|staged| staged.number != divided.number);
        self.topics.push(divided.clone());
        Ok(self.to_topic(&divided))
    }

    fn raise_epoch(
        &mut self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        let view = self.topic(topic)?;
        check_incarnation(&view, incarnation)?;
        let present = self.epoch(&view);
        if epoch < present {
            return Err(other_epoch(&view, epoch, present));
        }
        if epoch > present {
            self.push_system(System::EpochRaised { topic: view.number, epoch });
            self.epochs.insert(view.number, epoch);
        }
        let tails = (0..).zip(&view.partitions).map(|(partition, _)| {
            let (sequence, id) = self.tail(&view, partition);
            Tail { partition, sequence, id }
        });
        Ok(tails.collect())
    }

    fn register(&mut self, registration: Registration) {
        let key = (registration.service.clone(), registration.replica);
        let published = || self.published.registration(&registration.service, registration.replica);
        if self.registrations.get(&key).cloned().or_else(published).as_ref() != Some(&registration) {
            self.push_system(System::Registered(registration.clone()));
            self.registrations.insert(key, registration);
        }
    }
}

/// No topic of this name.
pub(super) fn unknown_topic(name: &ServiceName) -> Error {
    Error::new(Kind::UnknownTopic, format!("there is no topic {name}; its owner makes it when it starts"))
}

/// No partition of this number.
pub(super) fn unknown_partition(view: &TopicView, partition: u32) -> Error {
    let message =
        format!("topic {} has partitions 0 to {}; found {partition}", view.name, view.partitions.len() - 1);
    Error::new(Kind::UnknownPartition, message)
}

/// Refuses another life of a topic.
pub(super) fn check_incarnation(view: &TopicView, found: Incarnation) -> Result<()> {
    if view.incarnation == found {
        return Ok(());
    }
    let message = format!(
        "topic {} is incarnation {}; the caller knows {found}: the topic was made again, or this is another bus; run `tombolo recover`",
        view.name, view.incarnation
    );
    Err(Error::new(Kind::OtherIncarnation, message))
}

fn other_epoch(view: &TopicView, found: u64, present: u64) -> Error {
    let message = if found < present {
        format!(
            "topic {} is at epoch {present}; found {found}: another relay has taken over, or the caller's database is an older copy",
            view.name
        )
    } else {
        format!(
            "topic {} is at epoch {present}; found {found}: raise the epoch before appending under it",
            view.name
        )
    };
    Error::new(Kind::OlderEpoch, message)
}

fn hole(append: &Append, first: u64, last: u64) -> Error {
    let place = format!("{}/{}", append.topic, append.partition);
    let message =
        format!("{place} ends at sequence {last}; the append begins at {first}, expected {}", last + 1);
    Error::new(Kind::Hole, message)
}

fn sealed(append: &Append, last: u64) -> Error {
    let message = format!(
        "{}/{} is sealed at sequence {last}: its topic was divided anew, and what is new goes to the present generation",
        append.topic, append.partition
    );
    Error::new(Kind::Sealed, message)
}

fn other_id(append: &Append, sequence: u64, found: EventId, stored: EventId) -> Error {
    let message = format!(
        "{}/{} holds event {stored} at sequence {sequence}; the append has {found} there: the caller's database is a copy or an older state",
        append.topic, append.partition
    );
    Error::new(Kind::OtherId, message)
}
