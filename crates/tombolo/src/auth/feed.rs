//! Reads identity's topic for who was blocked, in every replica, from a token's life ago.
//!
//! takes: events of identity · writes: a cursor that trails by as long as blocks are kept · commits: the cursor alone, now and
//! then · if we crash here: what is kept in memory is read again from the cursor · if it repeats: it is joined again.
//!
//! Invariant: the service is not ready, and nobody is let in by a local check, before everything is heard that was in the topic when
//! reading began.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::stream::{SelectAll, select_all};
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Batch, Bus, Read, Tail};
use tombolo_event::propagation::Known;
use tombolo_event::{Cursor, Envelope, ServiceName};

use super::User;
use super::blocks::{Blocks, Said, Verdict};
use super::mutant::{Mutant, Mutation};
use super::trail::Trail;
use crate::{Clock, Error, Kind, Result};

/// The name of the cursor in the service's database.
pub(crate) const SUBSCRIPTION: &str = "auth-blocks";
/// How long the holder of the cursor keeps it, should it die while it moves it.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// How often the cursor is moved and what is old is forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// How long a topic that is not there is waited for before it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The most places that are remembered in a partition between two moves of the cursor.
const MARKS_MAX: usize = 1_000;

/// What was heard, and since when nothing is.
pub(crate) struct Heard {
    blocks: RwLock<Blocks>,
    loaded: watch::Sender<bool>,
    cut_since: Mutex<Option<Instant>>,
    reached: Mutex<BTreeMap<u32, u64>>,
}

impl Heard {
    pub(crate) fn new(mutation: Mutation) -> Self {
        let loaded = watch::Sender::new(mutation.is(Mutant::OpensUnloaded));
        Self {
            blocks: RwLock::new(Blocks::new(mutation)),
            loaded,
            cut_since: Mutex::default(),
            reached: Mutex::default(),
        }
    }

    /// What becomes of a token; none before everything is loaded.
    pub(crate) fn judge(&self, user: &User) -> Option<Verdict> {
        if !*self.loaded.borrow() {
            return None;
        }
        Some(self.blocks.read().unwrap_or_else(PoisonError::into_inner).judge(user))
    }

    /// Turns true once everything is loaded, and stays so.
    pub(crate) fn is_loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    /// For how long nothing could be heard, if that is so now.
    pub(crate) fn cut_off_for(&self) -> Option<Duration> {
        self.cut().map(|since| since.elapsed())
    }

    /// What was heard of a user, and since when it counts.
    pub(crate) fn known(&self, user: &str) -> Option<Known> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).known(user)
    }

    /// Whether everything up to these ends was heard.
    pub(crate) fn has_reached(&self, tails: &[Tail]) -> bool {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |partition| reached.get(partition).copied().unwrap_or_default();
        *self.loaded.borrow() && tails.iter().all(|tail| place(&tail.partition) >= tail.sequence)
    }

    fn reach(&self, partition: u32, sequence: u64) {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, sequence);
    }

    fn cut(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.cut_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Blocks)) {
        change(&mut self.blocks.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn load(&self) {
        self.loaded.send_replace(true);
    }
}

/// What is to be read.
pub(crate) struct Feed {
    pub(crate) topic: ServiceName,
    pub(crate) types: String,
    pub(crate) kept: Duration,
    pub(crate) heard: Arc<Heard>,
    pub(crate) clock: Clock,
}

/// Where one partition is read.
struct Place {
    cursor: Cursor,
    /// Places that were passed, with the time of what was said there, oldest first.
    passed: VecDeque<(Timestamp, Cursor)>,
}

type Batches = SelectAll<stream::BoxStream<'static, (u32, Option<tombolo_bus::Result<Batch>>)>>;

/// One process's reading of it.
pub(crate) struct Reading {
    feed: Feed,
    trail: Box<dyn Trail>,
    bus: Arc<dyn Bus>,
    changes: watch::Receiver<u64>,
    places: BTreeMap<u32, Place>,
}

impl Feed {
    pub(crate) fn reading(
        self,
        trail: Box<dyn Trail>,
        bus: Arc<dyn Bus>,
        changes: watch::Receiver<u64>,
    ) -> Reading {
        Reading { feed: self, trail, bus, changes, places: BTreeMap::new() }
    }
}

impl Reading {
    /// Reads until it is stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut attempt = 0;
        loop {
            let read = tokio::select! {
                read = self.read() => read,
                () = stop.cancelled() => return,
            };
            match read {
                Ok(()) => attempt = 0,
                Err(error) => {
                    self.feed.heard.cut().get_or_insert_with(Instant::now);
                    if attempt == 0 {
                        tracing::warn!(
                            "who was blocked cannot be read from topic {}: {error}",
                            self.feed.topic
                        );
                    }
                    attempt += 1;
                }
            }
            let pause = if attempt == 0 { Duration::ZERO } else { crate::RETRY.jittered(attempt) };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads until the topic has more partitions, or something breaks.
    async fn read(&mut self) -> Result<()> {
        let topic = match self.bus.topic(&self.feed.topic).await {
            Ok(topic) => topic,
            Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => {
                return self.wait_for_topic().await;
            }
            Err(error) => return Err(error.into()),
        };
        self.settle_places(&topic).await?;
        let tails = self.bus.tails(&self.feed.topic).await?;
        let mut open: BTreeMap<u32, u64> = tails.iter().map(|tail| (tail.partition, tail.sequence)).collect();
        let mut batches = self.open().await?;
        *self.feed.heard.cut() = None;
        let mut tidy_at = self.tidy_next();
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        loop {
            open.retain(|partition, tail| {
                self.places.get(partition).is_none_or(|at| at.cursor.sequence < *tail)
            });
            if open.is_empty() {
                self.feed.heard.load();
            }
            tokio::select! {
                read = batches.next() => {
                    let (partition, batch) = read.ok_or_else(ended)?;
                    self.take(partition, batch.ok_or_else(ended)??);
                }
                () = self.feed.clock.until(tidy_at) => {
                    self.tidy().await;
                    tidy_at = self.tidy_next();
                }
                Ok(()) = changes.changed() => {
                    if self.bus.topic(&self.feed.topic).await?.partitions() != topic.partitions() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn tidy_next(&self) -> Timestamp {
        let every = SignedDuration::try_from(TIDY_EVERY).unwrap_or_default();
        self.feed.clock.now().checked_add(every).unwrap_or(Timestamp::MAX)
    }

    /// A topic that nobody made yet says nothing, so everything that it says is loaded.
    async fn wait_for_topic(&mut self) -> Result<()> {
        self.feed.heard.load();
        *self.feed.heard.cut() = None;
        tokio::select! {
            _ = self.changes.changed() => {}
            () = sleep(LOOK_AGAIN) => {}
        }
        Ok(())
    }

    /// Where each partition is read from: from where it was, else from the stored cursor, else from its start.
    async fn settle_places(&mut self, topic: &tombolo_bus::Topic) -> Result<()> {
        self.places.retain(|_, place| place.cursor.incarnation == topic.incarnation);
        let words = ["blocked", "unblocked", "signed_out", "roles_changed"];
        let types: Vec<String> = words.map(|word| format!("{}.{word}.v1", self.feed.types)).into();
        let start = Cursor::start(topic.incarnation);
        let kept = self.trail.places(topic, &types).await?;
        for partition in 0..topic.partitions() {
            let kept = kept.get(&partition).copied();
            let cursor = kept.filter(|kept| kept.incarnation == topic.incarnation).unwrap_or(start);
            let place =
                self.places.entry(partition).or_insert_with(|| Place { cursor, passed: VecDeque::new() });
            self.feed.heard.reach(partition, place.cursor.sequence);
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<Batches> {
        let mut streams = Vec::new();
        for (&partition, place) in &mut self.places {
            let read = Read::following(&self.feed.topic, partition, place.cursor);
            let stream = match self.bus.read(read).await {
                Err(error) if is_another_log(error.kind()) => {
                    tracing::warn!(
                        "topic {} is not the one that was read before, and is read from its start: {error}",
                        self.feed.topic
                    );
                    place.cursor = Cursor::start(place.cursor.incarnation);
                    place.passed.clear();
                    self.bus.read(Read::following(&self.feed.topic, partition, place.cursor)).await?
                }
                stream => stream?,
            };
            // A stream that ends without a word is a broken one, too.
            let words = stream.map(Some).chain(stream::once(async { None }));
            streams.push(words.map(move |batch| (partition, batch)).boxed());
        }
        Ok(select_all(streams))
    }

    fn take(&mut self, partition: u32, batch: Batch) {
        let now = self.feed.clock.now();
        let mut latest = if batch.records.is_empty() { now } else { Timestamp::MIN };
        for record in batch.records {
            let id = record.id;
            let envelope = match Envelope::decode(record.bytes) {
                Ok(envelope) => envelope,
                Err(error) => {
                    tracing::error!(%id, "an event of {} cannot be read: {error}", self.feed.topic);
                    continue;
                }
            };
            latest = latest.max(envelope.time);
            match Said::read(&self.feed.types, &envelope) {
                Ok(Some(said)) => {
                    latest = latest.max(said.at);
                    self.feed.heard.change(|blocks| {
                        let (user, version) = (said.user.clone(), said.version);
                        blocks.hear(said);
                        blocks.note(&user, version, now);
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%id, "an event of type {} says nothing of a user: {error}", envelope.event_type);
                }
            }
        }
        let Some(place) = self.places.get_mut(&partition) else { return };
        place.cursor = Cursor::at(place.cursor.incarnation, batch.last, batch.last_id);
        self.feed.heard.reach(partition, batch.last);
        if place.passed.len() < MARKS_MAX {
            place.passed.push_back((latest, place.cursor));
        }
    }

    /// Forgets what no token that may still be shown was issued before, and moves the cursor there.
    async fn tidy(&mut self) {
        let now = self.feed.clock.now();
        self.feed.heard.change(|blocks| blocks.forget(now, self.feed.kept));
        let kept = SignedDuration::try_from(self.feed.kept).unwrap_or(SignedDuration::MAX);
        let Ok(since) = now.checked_sub(kept) else { return };
        let mut moves = BTreeMap::new();
        for (&partition, place) in &mut self.places {
            while let Some(&(_, cursor)) = place.passed.front().filter(|(time, _)| *time < since) {
                moves.insert(partition, cursor);
                place.passed.pop_front();
            }
        }
        if moves.is_empty() {
            return;
        }
        if let Err(error) = self.trail.advance(&self.feed.topic, &moves).await {
            tracing::debug!("the cursor of {SUBSCRIPTION} is moved later: {error}");
        }
    }
}

fn ended() -> Error {
    Error::new(Kind::BusAway, "the bus ended a stream of events that was to go on")
}

fn is_another_log(kind: tombolo_bus::Kind) -> bool {
    use tombolo_bus::Kind as Bus;
    matches!(kind, Bus::OtherId | Bus::BeyondTail | Bus::OtherIncarnation)
}
