//! The task of one subscription: reads its topic, sends each event, and moves on when it is known what became of it.
//!
//! | takes | writes | commits when | if we crash here | if it repeats |
//! |---|---|---|---|---|
//! | events of a topic, after the cursor | to the subscriber; then the cursor | the subscriber has answered | the event that was under way of each key is sent again | marked `Tombolo-Redelivery: possible` |
//!
//! Invariant: the next event of a key starts after the state of the one before is committed; nobody who publishes waits for this.

mod commands;
mod outcome;
mod reading;
mod redrive;
mod settling;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, header};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, RecordStream, Topic};
use tombolo_event::{Cursor, EventId};

use super::addresses::Reach;
use super::event::{Event, Key, Writing, request};
use super::handshake::{Permission, ask};
use super::lane::{Lane, Outcome};
use super::queue::{Queue, Standing};
use super::recovery::Recovery;
use super::settings::{Order, Subscription, target};
use super::state::{Change, Kept, Parked, State};
use crate::problem::Problem;

pub(crate) use commands::Command;
use reading::Reading;
pub(crate) use redrive::unknown;
use settling::Settling;

/// How long deliveries that are under way may still take when the bus closes.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How often the topic is looked at: whether it is there, or was divided.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a subscription's task is to do.
pub(crate) struct Assignment {
    pub(crate) definition: Subscription,
    /// Where it may send to.
    pub(crate) reach: Reach,
    /// The origin for which it asks before it sends, where it has to.
    pub(crate) origin: Option<String>,
    /// How long a subscriber that is back is waited for to ask for a snapshot; none where it never does.
    pub(crate) recovers: Option<Duration>,
    /// A deliberate fault.
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<super::Mutant>,
}

/// One subscription.
pub(crate) struct Runner {
    bus: Arc<dyn Bus>,
    state: Arc<State>,
    definition: Subscription,
    reach: Reach,
    writing: Writing,
    topic: Option<Topic>,
    is_new: bool,
    kept: HashMap<u32, Standing>,
    queue: Queue,
    readers: FuturesUnordered<BoxFuture<'static, Reading>>,
    resting: HashMap<u32, RecordStream>,
    reading: HashSet<u32>,
    /// Whether the log is not one that can be read on.
    is_unreadable: bool,
    lanes: Vec<Lane>,
    flights: FuturesUnordered<BoxFuture<'static, Flight>>,
    under_way: usize,
    committing: usize,
    later: BTreeMap<(Instant, u64), Key>,
    timers: u64,
    away: Away,
    paused: Option<String>,
    parked: HashMap<Key, usize>,
    full: Vec<Key>,
    redrive: HashMap<Key, VecDeque<Parked>>,
    redriving: HashSet<EventId>,
    recovery: Recovery,
    permission: Permission,
    settling: Option<Settling>,
    commands: mpsc::Receiver<Command>,
    is_recovering: Arc<AtomicBool>,
    #[cfg(feature = "mutants")]
    mutant: Option<super::Mutant>,
}

/// How long nothing is sent because the subscriber cannot be reached, or asked for time.
#[derive(Debug, Default)]
struct Away {
    tries: u32,
    until: Option<Instant>,
    cause: String,
}

/// What was under way, and has ended.
enum Flight {
    /// A delivery.
    Delivery(Box<Landed>),
    /// A connection that was to show whether the subscriber is there.
    Probe(Lane, Result<(), String>),
    /// The handshake.
    Handshake(Lane, Result<Permission, String>),
    /// What became of an event of this key is committed.
    Committed(Key),
    /// A snapshot was sent as a whole up to this cursor, or was not.
    Snapshot(Option<Cursor>),
}

/// A delivery that has ended.
struct Landed {
    lane: Lane,
    job: Job,
    outcome: Outcome,
}

/// What a delivery is of.
#[derive(Debug, Clone)]
enum Job {
    Event(Box<Event>),
    Parked(Key, Parked),
}

/// What is needed to speak to a task.
pub(crate) struct Wires {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) is_recovering: Arc<AtomicBool>,
}

impl Runner {
    /// The subscription as it was left.
    ///
    /// # Errors
    /// If what is kept of it cannot be read, or its target is none.
    pub(crate) async fn load(
        bus: Arc<dyn Bus>,
        state: Arc<State>,
        order: Assignment,
        wires: Wires,
    ) -> Result<Self, Problem> {
        let kept = state.kept(&order.definition.name).await?;
        let parked = state.parked(&order.definition.name).await?;
        let permission = Permission::needed(order.origin.clone(), kept.allowed.as_deref());
        let mut runner = Self { permission, ..Self::new(bus, state, order, wires)? };
        runner.remember(kept);
        for event in parked {
            let key = runner.key_of(&event);
            *runner.parked.entry(key).or_default() += 1;
        }
        Ok(runner)
    }

    /// One that has done nothing yet.
    fn new(bus: Arc<dyn Bus>, state: Arc<State>, order: Assignment, wires: Wires) -> Result<Self, Problem> {
        let writing = writing(&order.definition)?;
        Ok(Self {
            queue: Queue::new(order.definition.order, HashMap::new()),
            bus,
            state,
            reach: order.reach,
            writing,
            is_new: true,
            paused: None,
            permission: Permission::needed(order.origin, None),
            definition: order.definition,
            topic: None,
            kept: HashMap::new(),
            readers: FuturesUnordered::new(),
            resting: HashMap::new(),
            reading: HashSet::new(),
            is_unreadable: false,
            lanes: Vec::new(),
            flights: FuturesUnordered::new(),
            under_way: 0,
            committing: 0,
            later: BTreeMap::new(),
            timers: 0,
            away: Away::default(),
            parked: HashMap::new(),
            full: Vec::new(),
            redrive: HashMap::new(),
            redriving: HashSet::new(),
            recovery: Recovery::new(order.recovers),
            settling: None,
            commands: wires.commands,
            is_recovering: wires.is_recovering,
            #[cfg(feature = "mutants")]
            mutant: order.mutant,
        })
    }

    fn remember(&mut self, kept: Kept) {
        self.is_new = kept.standings.is_empty();
        self.paused = kept.paused;
        let survived = self.state.survived;
        let standings = kept.standings.into_iter().map(|mut it| {
            if !survived && it.started_to > 0 {
                // The file may lie behind what was delivered before the machine went down.
                it.repeated_to = u64::MAX;
            }
            #[cfg(feature = "mutants")]
            if self.mutant == Some(super::Mutant::MarksNothing) {
                it.started_to = 0;
            }
            (it.partition, it)
        });
        self.kept = standings.collect();
        self.queue = Queue::new(self.definition.order, kept.failed);
    }

    /// Runs until `stop`; then nothing more starts, and what is under way is waited for.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.start().await;
            self.is_recovering.store(self.recovery.is_recovering(), Ordering::Release);
            let wake = self.wakes_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(flight) = self.flights.next(), if !self.flights.is_empty() => self.ended(flight).await,
                Some(command) = self.commands.recv() => self.obey(command).await,
                Some(reading) = self.readers.next(), if !self.readers.is_empty() => self.took(reading).await,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.wake(),
                _ = look.tick() => self.look().await,
            }
        }
        self.finish().await;
    }

    /// Waits for what is under way, and says so where nothing is left of it.
    async fn finish(&mut self) {
        let all = async {
            while self.under_way + self.committing > 0 {
                match self.flights.next().await {
                    Some(flight) => self.ended(flight).await,
                    None => break,
                }
            }
        };
        if timeout(CLOSE_MAX, all).await.is_err() {
            tracing::warn!(subscription = %self.definition.name, "deliveries are under way while the bus closes; they are made again, marked");
            return;
        }
        let clean = self.queue.partitions().map(|it| Standing { started_to: 0, ..it.clone() });
        let changes = clean.map(Change::Stands).collect();
        drop(self.state.write(&self.definition.name, changes).await.await);
    }

    /// When something is to be done without anything having happened.
    fn wakes_at(&self) -> Option<Instant> {
        let later = self.later.keys().next().map(|(at, _)| *at);
        [later, self.away.until, self.recovery.wakes_at(), self.permission.wakes_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn wake(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            self.queue.again(&key);
        }
        if self.away.until.is_some_and(|until| until <= now) {
            self.away.until = None;
        }
        self.recovery.wake(now);
        self.permission.wake(now);
    }

    /// Whether a delivery may start, as far as the subscriber is concerned.
    fn is_open(&self) -> bool {
        let limit = if self.away.tries > 0 { 1 } else { self.definition.lanes() };
        self.paused.is_none()
            && self.settling.is_none()
            && self.away.until.is_none()
            && self.under_way < limit
            && !self.recovery.is_snapshot_under_way()
            && !self.permission.is_paced()
    }

    /// Starts what may start.
    async fn start(&mut self) {
        self.settle().await;
        self.read_on();
        while self.is_open() {
            if !self.queue.has_ready() && self.redrive.is_empty() {
                return;
            }
            if self.permission.is_missing() {
                return self.shake_hands();
            }
            if self.recovery.is_suspect() {
                return self.probe();
            }
            if self.recovery.is_held() {
                return;
            }
            let Some(job) = self.next_job().await else { return };
            #[cfg(feature = "mutants")]
            self.mutated(&job).await;
            self.fly(job);
        }
    }

    /// The cursor is moved before the delivery, as a naive bus does it.
    #[cfg(feature = "mutants")]
    async fn mutated(&mut self, job: &Job) {
        let (Some(super::Mutant::MovesFirst), Job::Event(event)) = (self.mutant, job) else { return };
        let (partition, sequence) = event.place;
        let Some(mut standing) = self.queue.standing(partition).cloned() else { return };
        if standing.cursor.sequence + 1 == sequence {
            standing.cursor = Cursor::at(standing.cursor.incarnation, sequence, event.id);
        } else {
            standing.done.insert(sequence);
        }
        drop(self.state.write(&self.definition.name, vec![Change::Stands(standing)]).await.await);
    }

    async fn next_job(&mut self) -> Option<Job> {
        if let Some(job) = self.next_redrive() {
            return Some(job);
        }
        while let Some(event) = self.queue.start() {
            let waits = self.definition.order == Order::Key && self.parked.contains_key(&event.key);
            if !waits {
                return Some(Job::Event(Box::new(event)));
            }
            self.park_behind(event).await;
        }
        None
    }

    fn lane(&mut self) -> Lane {
        self.under_way += 1;
        let new = || Lane::new(self.writing.target.clone(), self.reach.clone());
        self.lanes.pop().unwrap_or_else(new)
    }

    fn fly(&mut self, job: Job) {
        let mut lane = self.lane();
        self.permission.started();
        let (writing, patience) = (self.writing.clone(), self.definition.timeout());
        // Of one that recovers by a snapshot, a connection that is gone may mean that it is another process now.
        let is_retried = !self.recovery.is_watched();
        let (bus, topic, order) = (self.bus.clone(), self.topic.clone(), self.definition.order);
        self.flights.push(Box::pin(async move {
            let event = match &job {
                Job::Event(event) => Ok(Event::clone(event)),
                Job::Parked(_, parked) => redrive::fetched(&*bus, topic.as_ref(), parked, order).await,
            };
            let outcome = match event {
                Ok(event) => lane.deliver(request(&writing, &event), patience, is_retried).await,
                Err(outcome) => outcome,
            };
            Flight::Delivery(Box::new(Landed { lane, job, outcome }))
        }));
    }

    /// Shows whether the subscriber is there, without sending it anything.
    fn probe(&mut self) {
        let mut lane = self.lane();
        self.recovery.probing();
        self.flights.push(Box::pin(async move {
            let found = lane.connect().await;
            Flight::Probe(lane, found)
        }));
    }

    fn shake_hands(&mut self) {
        let (mut lane, writing) = (self.lane(), self.writing.clone());
        let (asked, patience) = (self.permission.asking(), self.definition.timeout());
        self.flights.push(Box::pin(async move {
            let answer = ask(&mut lane, &writing, &asked, patience).await;
            Flight::Handshake(lane, answer)
        }));
    }

    /// The line that a parked event stands in.
    fn key_of(&self, parked: &Parked) -> Key {
        match self.definition.order {
            Order::Key => parked.key.as_str().into(),
            Order::Serial => "".into(),
        }
    }

    /// Commits changes; the key stays taken until they are.
    async fn commit(&mut self, key: &Key, changes: Vec<Change>) {
        let written = self.state.write(&self.definition.name, changes).await;
        self.committing += 1;
        let key = key.clone();
        self.flights.push(Box::pin(async move {
            drop(written.await);
            Flight::Committed(key)
        }));
    }
}

fn writing(definition: &Subscription) -> Result<Writing, Problem> {
    let target = target(&definition.url)?;
    let wrong =
        |error: header::InvalidHeaderValue| Problem::new(crate::Refusal::InvalidParameter, error.to_string());
    let host = target.authority().map_or("", |it| it.as_str());
    Ok(Writing {
        subscription: HeaderValue::from_str(&definition.name).map_err(wrong)?,
        host: HeaderValue::from_str(host).map_err(wrong)?,
        mode: definition.mode,
        target,
    })
}

/// Answers to whoever asked; nobody needs to be there any more.
fn reply<T>(to: oneshot::Sender<T>, answer: T) {
    drop(to.send(answer));
}
