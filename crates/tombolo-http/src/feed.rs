//! Numbers the events of a topic that has no outbox, and appends them.
//!
//! | takes | writes | commits when | if we crash here | if it repeats |
//! |---|---|---|---|---|
//! | events with ids of their publishers | the topic, under the bus's own epoch | the bus has acknowledged | nobody was told; a retry finds what is there by its id | the place of the first is told, nothing is stored |
//!
//! One task of each topic takes all that waits, leaves out what is there, numbers the rest and appends it, the partitions beside
//! each other: so publishers share a sync, and an id that comes twice at once is one event.
//!
//! Invariant: an event is acknowledged when it is on disk, and one source and id of a topic is one event for as long as the topic keeps it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tombolo_bus::feed::{FED_BY_BUS, is_fed_by_bus};
use tombolo_bus::{Append, Bus, Read, Record, Tail, Topic, TopicSpec};
use tombolo_event::key::PARTITIONS_DEFAULT;
use tombolo_event::{Cursor, Envelope, EventId, Generations, KeyHash, ServiceName};

use crate::index::{Index, Place, Run};
use crate::problem::{Problem, Refusal};

/// The most publishers of one topic that wait; then more of them wait for room.
const WAITING_MAX: usize = 1024;
/// The most events that are appended together.
const GROUP_EVENTS_MAX: usize = 8192;
/// The most bytes that are appended together.
const GROUP_BYTES_MAX: usize = 3 << 20;

/// Where an event is that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its identity in the log.
    pub id: EventId,
    /// Its partition.
    pub partition: u32,
    /// Its number there.
    pub sequence: u64,
    /// What its key's hash is.
    pub key_hash: KeyHash,
    /// Whether it was there already.
    pub is_repeated: bool,
}

/// An event with the bytes that it is stored as.
#[derive(Debug)]
struct Event {
    id: EventId,
    key_hash: KeyHash,
    event_type: Bytes,
    bytes: Bytes,
}

struct Publish {
    events: Vec<Event>,
    reply: oneshot::Sender<Result<Vec<Placed>, Problem>>,
}

/// The topics that the bus feeds.
pub struct Feeds {
    bus: Arc<dyn Bus>,
    index: Arc<Index>,
    topics: Mutex<HashMap<ServiceName, mpsc::Sender<Publish>>>,
    /// Held while a topic is taken over.
    opening: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

impl Feeds {
    pub(crate) fn new(bus: Arc<dyn Bus>, index: Arc<Index>) -> Self {
        Self {
            bus,
            index,
            topics: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Appends events to `topic`, all of them or, should the bus fail in the middle, so that a retry completes them.
    /// Returns when they are on disk.
    ///
    /// # Errors
    /// `FedByOutbox`; `IdReused` if one has the id of another event; `Unavailable`: then a retry finds out what was stored.
    pub async fn publish(&self, topic: &ServiceName, events: Vec<Envelope>) -> Result<Vec<Placed>, Problem> {
        let events = events.into_iter().map(Event::checked).collect::<Result<Vec<_>, _>>()?;
        let (reply, answer) = oneshot::channel();
        let gone = || {
            Problem::new(
                Refusal::Unavailable,
                format!("topic {topic} cannot be fed now; try again with the same ids"),
            )
        };
        self.feed(topic).await?.send(Publish { events, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Makes a topic that the bus feeds, or finds it.
    ///
    /// # Errors
    /// `FedByOutbox`, `TopicDiffers`.
    pub async fn ensure(&self, topic: &ServiceName, partitions: u32) -> Result<Topic, Problem> {
        let spec = TopicSpec::new(topic.clone(), Generations::first(partitions)?);
        let (feed, found) =
            (Feed::open(self.bus.clone(), self.index.clone(), &spec).await?, self.bus.topic(topic).await?);
        self.run(topic, feed);
        Ok(found)
    }

    /// Waits until nothing is half done. Whoever publishes from now on is refused.
    pub(crate) async fn close(&self) {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn running(&self, topic: &ServiceName) -> Option<mpsc::Sender<Publish>> {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic).filter(|feed| !feed.is_closed()).cloned()
    }

    async fn feed(&self, topic: &ServiceName) -> Result<mpsc::Sender<Publish>, Problem> {
        if let Some(running) = self.running(topic) {
            return Ok(running);
        }
        // Two that take a topic over would fence each other.
        let _opening = self.opening.lock().await;
        if let Some(running) = self.running(topic) {
            return Ok(running);
        }
        let generations = match self.bus.topic(topic).await {
            Ok(found) => found.generations,
            Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => {
                Generations::first(PARTITIONS_DEFAULT)?
            }
            Err(error) => return Err(error.into()),
        };
        let spec = TopicSpec::new(topic.clone(), generations);
        let feed = Feed::open(self.bus.clone(), self.index.clone(), &spec).await?;
        Ok(self.run(topic, feed))
    }

    /// Starts the task of a topic.
    fn run(&self, topic: &ServiceName, feed: Feed) -> mpsc::Sender<Publish> {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        self.tasks.spawn(feed.run(waiting));
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.clone(), sender.clone());
        sender
    }
}

impl Event {
    fn checked(envelope: Envelope) -> Result<Self, Problem> {
        tombolo_event::key::check(&envelope.key)?;
        let bytes = envelope.encode();
        if bytes.len() > tombolo_event::envelope::EVENT_BYTES_MAX {
            let detail = format!(
                "event {} is {} bytes as stored; expected at most {}: publish a reference to large data instead",
                envelope.id,
                bytes.len(),
                tombolo_event::envelope::EVENT_BYTES_MAX
            );
            return Err(Problem::new(Refusal::TooLarge, detail));
        }
        let key_hash = KeyHash::of(&envelope.key);
        Ok(Self { id: envelope.id, key_hash, event_type: envelope.event_type.into(), bytes })
    }
}

/// One topic, and where its partitions end.
struct Feed {
    bus: Arc<dyn Bus>,
    index: Arc<Index>,
    topic: Topic,
    epoch: u64,
    tails: Vec<Tail>,
}

impl Feed {
    /// Takes a topic over: fences whoever fed it before, and lets the index have what is there.
    async fn open(bus: Arc<dyn Bus>, index: Arc<Index>, spec: &TopicSpec) -> Result<Self, Problem> {
        let topic = bus.ensure_topic(spec).await?;
        let is_new = topic.epoch == 0;
        if !is_new && !is_fed_by_bus(topic.epoch) {
            let detail = format!(
                "topic {} is fed by the outbox of the service {0}, and takes nothing else; publish in its transactions, or to another topic",
                topic.name
            );
            return Err(Problem::new(Refusal::FedByOutbox, detail));
        }
        let epoch = topic.epoch.max(FED_BY_BUS) + 1;
        let mut feed = Self { bus, index, topic, epoch, tails: Vec::new() };
        feed.take_over().await?;
        Ok(feed)
    }

    async fn take_over(&mut self) -> Result<(), Problem> {
        let (name, incarnation) = (&self.topic.name, self.topic.incarnation);
        self.tails = self.bus.raise_epoch(name, incarnation, self.epoch).await?;
        try_join_all(self.tails.iter().map(|tail| self.catch_up(*tail))).await?;
        Ok(())
    }

    /// Reads from the log what the index does not have.
    async fn catch_up(&self, tail: Tail) -> Result<(), Problem> {
        let (name, incarnation, partition) = (&self.topic.name, self.topic.incarnation, tail.partition);
        let mut after = self.index.reached(name, incarnation, partition)?;
        if after.sequence > tail.sequence {
            // The log was restored from an older copy; what follows is noted anew.
            after = Cursor::start(incarnation);
        }
        let mut batches = self.bus.read(Read::to_tail(name, partition, after)).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let ids = batch.records.iter().map(|record| record.id).collect();
            self.index.room().await?;
            self.index.note(vec![self.noted(partition, batch.first, ids)])?;
        }
        Ok(())
    }

    fn noted(&self, partition: u32, first: u64, ids: Vec<EventId>) -> Run {
        Run { topic: self.topic.name.clone(), incarnation: self.topic.incarnation, partition, first, ids }
    }

    /// Feeds the topic until nobody is left who could publish, or somebody else feeds it.
    async fn run(mut self, mut waiting: mpsc::Receiver<Publish>) {
        let mut next = None;
        loop {
            let Some(first) = (match next.take() {
                Some(publish) => Some(publish),
                None => waiting.recv().await,
            }) else {
                return;
            };
            let group;
            (group, next) = together(first, &mut waiting);
            match self.store(&group).await {
                Ok(placed) => answer(group, placed),
                Err(problem) => {
                    // What became of it is not known: the log is asked before anything else is numbered.
                    tracing::warn!(topic = %self.topic.name, problem = problem.detail(), "events could not be appended");
                    refuse(group, &problem);
                    if self.take_over().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Where each event of a group is, those that are new after they were appended. The outer error concerns the whole group.
    async fn store(&mut self, group: &[Publish]) -> Result<Vec<Result<Vec<Placed>, Problem>>, Problem> {
        self.index.room().await?;
        let mut plan = Plan {
            generations: &self.topic.generations,
            tails: &self.tails,
            known: self.known(group).await?,
            runs: BTreeMap::new(),
        };
        let told = group.iter().map(|publish| plan.add(publish)).collect();
        let runs = plan.runs;
        try_join_all(runs.iter().map(|(partition, run)| self.append(*partition, run))).await?;
        let runs: Vec<(u32, Vec<EventId>)> = runs
            .into_iter()
            .map(|(partition, run)| (partition, run.iter().map(|event| event.id).collect()))
            .collect();
        let noted = runs.into_iter().map(|(partition, ids)| self.moved(partition, ids)).collect();
        self.index.note(noted)?;
        Ok(told)
    }

    /// Moves the end of a partition behind what was appended.
    fn moved(&mut self, partition: u32, ids: Vec<EventId>) -> Run {
        let first = self.tail(partition).sequence + 1;
        if let Some(tail) = self.tails.get_mut(partition as usize) {
            (tail.sequence, tail.id) = (tail.sequence + ids.len() as u64, ids.last().copied());
        }
        self.noted(partition, first, ids)
    }

    /// The events of a group that the log has already, with their bytes.
    async fn known(&self, group: &[Publish]) -> Result<Known, Problem> {
        let ids: Vec<EventId> =
            group.iter().flat_map(|publish| &publish.events).map(|event| event.id).collect();
        let mut known = Known::default();
        for (id, place) in ids.iter().zip(self.index.find(&ids)?) {
            let Some((partition, sequence)) = place else { continue };
            // What the index has and the log has not is of a log that was replaced by an older copy.
            if let Some(bytes) = found_at(&*self.bus, &self.topic, partition, sequence, *id).await? {
                known.insert(*id, ((partition, sequence), bytes));
            }
        }
        Ok(known)
    }

    fn tail(&self, partition: u32) -> Tail {
        let none = Tail { partition, sequence: 0, id: None };
        self.tails.get(partition as usize).copied().unwrap_or(none)
    }

    async fn append(&self, partition: u32, run: &[&Event]) -> Result<(), Problem> {
        let first = self.tail(partition).sequence + 1;
        let record = |(event, sequence): (&&Event, u64)| Record {
            sequence,
            id: event.id,
            event_type: event.event_type.clone(),
            bytes: event.bytes.clone(),
        };
        let append = Append {
            topic: self.topic.name.clone(),
            incarnation: self.topic.incarnation,
            epoch: self.epoch,
            partition,
            records: run.iter().zip(first..).map(record).collect(),
        };
        self.bus.append(append).await?;
        Ok(())
    }
}

/// What is known of ids: their places and their bytes.
type Known = HashMap<EventId, (Place, Bytes), BuildHasherDefault<IdHasher>>;

/// Ids are hashes already: some of their bits are as good as any others.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// What a group comes to: each publisher's events are placed, or none of them is. Pure.
struct Plan<'a> {
    generations: &'a Generations,
    tails: &'a [Tail],
    known: Known,
    /// What is to be appended, by partition.
    runs: BTreeMap<u32, Vec<&'a Event>>,
}

impl<'a> Plan<'a> {
    /// Places the events of one publisher.
    fn add(&mut self, publish: &'a Publish) -> Result<Vec<Placed>, Problem> {
        self.check(&publish.events)?;
        Ok(publish.events.iter().map(|event| self.place(event)).collect())
    }

    /// An id that was used for another event is no retry, but a mistake: nothing of it is stored.
    fn check(&self, events: &[Event]) -> Result<(), Problem> {
        let mut own: HashMap<EventId, &Bytes, BuildHasherDefault<IdHasher>> = HashMap::default();
        for (index, event) in events.iter().enumerate() {
            let first = self.known.get(&event.id).map(|(_, bytes)| bytes);
            if !first.or(own.get(&event.id).copied()).is_none_or(|first| is_same(event, first)) {
                let detail = "an event with this source and id was published before with other content; give another event another id";
                return Err(Problem::new(Refusal::IdReused, detail).with("index", index));
            }
            own.insert(event.id, &event.bytes);
        }
        Ok(())
    }

    fn place(&mut self, event: &'a Event) -> Placed {
        let placed = |(partition, sequence), is_repeated| Placed {
            id: event.id,
            partition,
            sequence,
            key_hash: event.key_hash,
            is_repeated,
        };
        if let Some((place, _)) = self.known.get(&event.id) {
            return placed(*place, true);
        }
        let partition = self.generations.partition(event.key_hash);
        let run = self.runs.entry(partition).or_default();
        run.push(event);
        let end = self.tails.get(partition as usize).map_or(0, |tail| tail.sequence);
        let place = (partition, end + run.len() as u64);
        self.known.insert(event.id, (place, event.bytes.clone()));
        placed(place, false)
    }
}

/// Whether an event is what is stored under its id. Its time is that of the first where the publisher gives none.
fn is_same(event: &Event, stored: &Bytes) -> bool {
    let (Ok(stored), Ok(sent)) = (Envelope::decode(stored.clone()), Envelope::decode(event.bytes.clone()))
    else {
        return false;
    };
    let sent = Envelope { time: stored.time, trace: stored.trace, ..sent };
    stored == sent
}

/// The bytes of one event whose place is known.
pub(crate) async fn record_at(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    sequence: u64,
    id: EventId,
) -> Result<Bytes, Problem> {
    let missing = || format!("event {id} is not at {}/{partition}/{sequence}, where it was", topic.name);
    let found = found_at(bus, topic, partition, sequence, id).await?;
    found.ok_or_else(|| Problem::new(Refusal::Internal, missing()))
}

/// The bytes of one event at a place; none if another event is there, or nothing.
async fn found_at(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    sequence: u64,
    id: EventId,
) -> Result<Option<Bytes>, Problem> {
    let before = match bus.cursor_at(topic, partition, sequence - 1).await {
        Ok(before) => before,
        Err(error) if error.kind() == tombolo_bus::Kind::BeyondTail => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let read = Read { batch_bytes_max: 1, ..Read::to_tail(&topic.name, partition, before) };
    let Some(batch) = bus.read(read).await?.next().await else { return Ok(None) };
    let record = batch?.records.into_iter().find(|record| record.id == id);
    Ok(record.map(|record| record.bytes))
}

/// All that waits, up to the bounds of a group; and what did not fit in any more.
fn together(first: Publish, waiting: &mut mpsc::Receiver<Publish>) -> (Vec<Publish>, Option<Publish>) {
    let size = |publish: &Publish| publish.events.iter().map(|event| event.bytes.len() + 64).sum::<usize>();
    let (mut events, mut bytes) = (first.events.len(), size(&first));
    let mut group = vec![first];
    while let Ok(publish) = waiting.try_recv() {
        events += publish.events.len();
        bytes += size(&publish);
        if events > GROUP_EVENTS_MAX || bytes > GROUP_BYTES_MAX {
            return (group, Some(publish));
        }
        group.push(publish);
    }
    (group, None)
}

fn answer(group: Vec<Publish>, placed: Vec<Result<Vec<Placed>, Problem>>) {
    for (publish, placed) in group.into_iter().zip(placed) {
        // Whoever does not wait any more will ask again with the same id.
        drop(publish.reply.send(placed));
    }
}

fn refuse(group: Vec<Publish>, problem: &Problem) {
    for publish in group {
        drop(publish.reply.send(Err(problem.clone())));
    }
}
