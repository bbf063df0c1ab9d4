//! A subscription's worker: reads batches from its cursors and has them handled.
//!
//! takes: batches of the partitions that it holds · writes: effects, outbox rows and cursors, in the consumer's database ·
//! commits when: all events of a batch are handled, in one transaction · if we crash here: nothing of the batch
//! happened, and its cursor says so · if it repeats: the cursor has moved, so the repeat is refused.
//!
//! Invariant: a cursor moves only by compare-and-set from where the worker began, together with the effects of exactly
//! the events in between. Leases are for liveness; the compare-and-set is what keeps the promise.

mod apply;
mod effect;
mod lane;
mod turn;
mod parking;
mod tries;
mod redrive;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use http::Extensions;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamMap;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Batch, Bus, Read, Record, RecordStream, Topic};
use tombolo_db::{Claim, Database, ParkedHead, Publisher, StartAt};
use tombolo_event::operator::PartitionOf;
use tombolo_event::{Backoff, Cursor, KeyHash, ServiceName, barrier};

use crate::life::Life;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::settings::Lease;
use crate::sharing::Membership;
use crate::status::{Board, State, SubscriptionStatus};
use crate::subscription::{Role, Start, Subscription};
use crate::{App, Clock, Error, Kind, Result};
use apply::Delivery;
use lane::Lane;
use requests::Redriving;
pub(crate) use requests::VIEW_RESET;
use turn::LookAhead;

/// How often it is looked for what does not come by itself: a topic that does not exist yet, a turn that another replica holds up.
const LOOK_AGAIN: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
/// Events of one transaction, at most.
const BATCH_EVENTS_MAX: usize = 1_000;

/// What a worker needs.
pub(crate) struct Worker<D: Database> {
    pub(crate) subscription: Subscription<D>,
    pub(crate) database: D,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) publisher: Publisher,
    pub(crate) app: App<D>,
    pub(crate) states: Arc<Extensions>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) board: Arc<Board>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) clock: Clock,
    pub(crate) lease: Lease,
    pub(crate) life: Life,
    /// What it remembers from one session to the next.
    pub(crate) kept: Kept,
    /// Changes whenever an operator may have asked for something.
    pub(crate) announced: watch::Receiver<u64>,
    /// Changes whenever a service registers: a topic that did not exist may exist now.
    pub(crate) registered: watch::Receiver<u64>,
    pub(crate) stop: CancellationToken,
}

/// One life of a worker: from claiming its partitions to losing them.
struct Session {
    lanes: Vec<Lane>,
    streams: StreamMap<usize, RecordStream>,
    /// The topics that exist.
    topics: Topics,
    /// Topics that do not exist yet.
    absent: BTreeSet<ServiceName>,
    /// When it is looked whether what is parked in earlier generations has left.
    look_ahead: LookAhead,
    /// What is heard of the leases.
    membership: Membership,
    /// How many events the next transaction takes; grows while they are quick.
    batch_events: usize,
    /// Redrives that were asked for and are under way.
    redriving: Vec<Redriving>,
    kept: Kept,
}

/// Topics as they are on the bus.
type Topics = BTreeMap<ServiceName, Topic>;

/// What a worker remembers from one session to the next.
#[derive(Default)]
pub(crate) struct Kept {
    /// Keys that were parked one after the other, without one event handled between them.
    alike: u32,
    /// Of each partition that it held: under which lease epoch, and up to where events are tried alone.
    held: BTreeMap<PartitionOf, (u64, u64)>,
}

impl Kept {
    /// Up to where the events of a claimed partition are tried alone: past what a holder that did not give it up may have
    /// had in hand. An earlier session of this same worker did not die.
    fn careful_to(&self, claim: &Claim, in_hand: u32) -> u64 {
        let of = PartitionOf { topic: claim.topic.clone(), partition: claim.partition };
        match self.held.get(&of) {
            Some((epoch, careful_to)) if epoch + 1 == claim.lease_epoch => *careful_to,
            _ if claim.abandoned => claim.cursor.sequence + u64::from(in_hand),
            _ => 0,
        }
    }
}

impl Session {
    /// The lane of a partition, if it is held here.
    fn lane_of(&self, of: &PartitionOf) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.of() == *of)
    }

    /// When the next parked key is due.
    fn redrive_at(&self) -> Option<Timestamp> {
        let lanes = self.lanes.iter().filter(|lane| !lane.rests());
        lanes.filter_map(|lane| lane.parked.next_due()).map(|(at, _)| at).min()
    }

    /// A parked key whose time has come, with its lane.
    fn due(&self, now: Timestamp) -> Option<(usize, KeyHash)> {
        let lanes = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.rests());
        let due = lanes.filter_map(|(index, lane)| Some((lane.parked.next_due()?, index))).min();
        due.filter(|((at, _), _)| *at <= now).map(|((_, key), index)| (index, key))
    }
}

/// Why a session ended without a failure.
#[derive(Clone, Copy)]
enum Ended {
    Stopped,
    /// A new session has other partitions.
    Again,
}

impl<D: Database> Worker<D> {
    /// Runs until it is stopped.
    pub(crate) async fn run(mut self) {
        self.board
            .subscription(SubscriptionStatus::blank(&self.subscription.name, self.subscription.role.name()));
        let mut attempt = 0;
        let mut said = String::new();
        let mut calls = effect::Calls::default();
        while !self.stop.is_cancelled() {
            let began = Instant::now();
            match self.session(&mut calls).await {
                Ok(Ended::Stopped) => break,
                Ok(Ended::Again) => attempt = 0,
                Err(error) => {
                    attempt = if began.elapsed() > self.lease.renew_every() { 0 } else { attempt + 1 };
                    if said != error.to_string() {
                        said = error.to_string();
                        tracing::warn!(subscription = self.subscription.name, "waits: {error}");
                    }
                    self.report_waiting(&error);
                    self.pause(crate::RETRY.jittered(attempt)).await;
                }
            }
        }
        self.app.sharing().leave(&self.subscription.name).await;
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = sleep(pause) => {}
        }
    }

    async fn session(&mut self, calls: &mut effect::Calls) -> Result<Ended> {
        self.registered.borrow_and_update();
        let (mut topics, mut absent) = self.find_topics().await?;
        self.open(&topics).await?;
        let share = self.subscription.share();
        let (claimed, membership) = self.app.sharing().claim(&self.subscription.name, share).await?;
        let is_known =
            |claim: &Claim| topics.get(&claim.topic).is_some_and(|topic| has(topic, claim.partition));
        if !claimed.claims.iter().all(is_known) {
            // Another replica has found a newer generation.
            (topics, absent) = self.find_topics().await?;
        }
        // What is parked changes only under the leases, so it is looked at once they are held.
        let heads = self.database.parked_heads(&self.subscription.name).await?;
        let mut session = Session {
            lanes: self.lanes(claimed.claims, &topics, &heads),
            streams: StreamMap::new(),
            topics,
            absent,
            look_ahead: LookAhead::new(),
            membership: membership.clone(),
            batch_events: 1,
            redriving: Vec::new(),
            kept: std::mem::take(&mut self.kept),
        };
        let work = async {
            self.read_all(&mut session).await?;
            match self.subscription.role {
                Role::Effect => self.call(&mut session, calls).await,
                Role::View | Role::Reactor => self.work(&mut session).await,
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            lost = membership.lost() => Err(lost),
        };
        self.kept = session.kept;
        ended
    }

    fn lanes(&mut self, claims: Vec<Claim>, topics: &Topics, heads: &[ParkedHead]) -> Vec<Lane> {
        let in_hand = claims.iter().map(|claim| claim.in_hand).max().unwrap_or_default();
        let mut lanes = Vec::new();
        for claim in claims {
            let careful_to = self.kept.careful_to(&claim, in_hand);
            let of = PartitionOf { topic: claim.topic.clone(), partition: claim.partition };
            self.kept.held.insert(of, (claim.lease_epoch, careful_to));
            let topic = topics.get(&claim.topic).filter(|topic| has(topic, claim.partition));
            lanes.push(Lane::new(claim, topic, heads, careful_to, &self.progress));
        }
        lanes
    }

    /// The topics that exist, and those that nobody has made yet, which are said by name.
    async fn find_topics(&self) -> Result<(Topics, BTreeSet<ServiceName>)> {
        let mut topics = Topics::new();
        let mut absent = BTreeSet::new();
        for name in self.subscription.topic_names()? {
            match self.bus.topic(&name).await {
                Ok(topic) => drop(topics.insert(name, topic)),
                Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => {
                    tracing::info!(
                        subscription = self.subscription.name,
                        "waits for topic {name:?}, which no service has made yet"
                    );
                    absent.insert(name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((topics, absent))
    }

    /// Makes the cursors that are not there yet.
    async fn open(&self, topics: &Topics) -> Result<()> {
        let mut starts = Vec::new();
        for topic in topics.values() {
            let tails = match self.subscription.start {
                Start::FromStart => Vec::new(),
                Start::FromNow => self.bus.tails(&topic.name).await?,
            };
            for partition in 0..topic.partitions() {
                let tail = tails.iter().find(|tail| tail.partition == partition);
                let cursor = match tail.and_then(|tail| Some((tail.sequence, tail.id?))) {
                    Some((sequence, id)) => Cursor::at(topic.incarnation, sequence, id),
                    None => Cursor::start(topic.incarnation),
                };
                starts.push(StartAt { topic: topic.name.clone(), partition, cursor });
            }
        }
        let accept = self.subscription.role != Role::View;
        let added =
            self.database.open(&self.subscription.name, &self.subscription.types(), &starts, accept).await?;
        self.check_added(&added)
    }

    /// A type that is new to an old subscription: its earlier events have been passed over already.
    fn check_added(&self, added: &[String]) -> Result<()> {
        let name = &self.subscription.name;
        if added.is_empty() {
            return Ok(());
        }
        let types = added.join(", ");
        if self.subscription.role == Role::View {
            return Err(Error::new(
                Kind::Wiring,
                format!(
                    "view {name:?} now folds {types}, whose earlier events it has passed over; give the view its next version, so that it is built from the first event"
                ),
            ));
        }
        tracing::warn!(
            subscription = name,
            "now handles {types}, from here on: earlier events of it have been passed over"
        );
        Ok(())
    }

    async fn read_all(&self, session: &mut Session) -> Result<()> {
        let lanes: Vec<usize> =
            (0..session.lanes.len()).filter(|&index| !session.lanes[index].is_paused()).collect();
        self.read_each(session, &lanes).await?;
        self.report(session);
        Ok(())
    }

    /// Begins to read a lane, if it is its turn.
    async fn read(&self, session: &mut Session, index: usize) -> Result<()> {
        self.read_each(session, &[index]).await
    }

    async fn read_each(&self, session: &mut Session, lanes: &[usize]) -> Result<()> {
        for index in self.turns(session, lanes).await? {
            self.read_now(session, index).await?;
        }
        Ok(())
    }

    /// Begins to read a lane after its cursor, or stops it by name if the log is not the one that the cursor was in.
    async fn read_now(&self, session: &mut Session, index: usize) -> Result<()> {
        let lane = &mut session.lanes[index];
        let claim = &lane.claim;
        match self.bus.read(Read::following(&claim.topic, claim.partition, claim.cursor)).await {
            Ok(stream) => {
                lane.resume();
                session.streams.insert(index, stream);
                Ok(())
            }
            Err(error) => self.read_failed(session, index, error),
        }
    }

    fn read_failed(&self, session: &mut Session, index: usize, error: tombolo_bus::Error) -> Result<()> {
        if error.is_transient() || error.kind() == tombolo_bus::Kind::Closed {
            return Err(error.into());
        }
        let lane = &mut session.lanes[index];
        tracing::error!(subscription = self.subscription.name, topic = %lane.claim.topic, partition = lane.claim.partition, "stops: {error}");
        lane.stop(error.to_string());
        session.streams.remove(&index);
        Ok(())
    }

    async fn work(&self, session: &mut Session) -> Result<Ended> {
        let mut announced = self.announced.clone();
        announced.mark_changed();
        let changed = self.has_changed(session);
        tokio::pin!(changed);
        loop {
            let retry_at = session.lanes.iter().filter_map(Lane::retry_at).min();
            let (redrive_at, follow_at) = (session.redrive_at(), session.follow_at());
            let keys = session.keys_ahead();
            tokio::select! {
                () = self.stop.cancelled() => return Ok(Ended::Stopped),
                Some((index, batch)) = session.streams.next(), if !session.streams.is_empty() => {
                    self.take(session, index, batch).await?;
                    self.report(session);
                }
                () = at(retry_at) => {
                    self.read_again(session).await?;
                    self.report(session);
                }
                () = at(follow_at) => self.follow_on(session).await?,
                () = self.clock.until(redrive_at.unwrap_or(Timestamp::MAX)), if redrive_at.is_some() => {
                    self.redrive(session).await?;
                    self.report(session);
                }
                Ok(()) = announced.changed() => {
                    self.carry_out(session).await?;
                    session.look_at_once();
                    self.report(session);
                }
                () = &mut changed => return Ok(Ended::Again),
            }
            self.pass_on(session, keys).await;
        }
    }

    /// Waits until a new session would have other partitions: they are shared anew, or a topic was made or divided anew.
    fn has_changed(&self, session: &Session) -> impl Future<Output = ()> + use<'_, D> {
        let membership = session.membership.clone();
        let (topics, absent) = (session.topics.clone(), session.absent.clone());
        async move {
            tokio::select! {
                () = membership.is_shared_anew() => {}
                () = self.is_other(&topics, &absent) => {}
            }
        }
    }

    /// Waits until one of the absent topics exists, or one of the others was divided anew. Its owner tells everybody when it
    /// does that, and everybody looks who there is now and then.
    async fn is_other(&self, topics: &Topics, absent: &BTreeSet<ServiceName>) {
        let mut registered = self.registered.clone();
        for look in 0.. {
            let again = (!absent.is_empty()).then(|| Instant::now() + LOOK_AGAIN.delay(look, 1.0));
            tokio::select! {
                Ok(()) = registered.changed() => {}
                () = at(again) => {}
            }
            for name in topics.keys().chain(absent) {
                let known = topics.get(name).map(|topic| &topic.generations);
                if self.bus.topic(name).await.is_ok_and(|topic| known != Some(&topic.generations)) {
                    return;
                }
            }
        }
    }

    /// Takes what is there now, up to a transaction's worth, and has it handled.
    async fn take(
        &self,
        session: &mut Session,
        index: usize,
        batch: tombolo_bus::Result<Batch>,
    ) -> Result<()> {
        let mut next = Some((index, batch));
        let mut steps = Vec::new();
        while let Some((index, batch)) = next {
            match batch {
                Ok(batch) => {
                    let deliver = |record| self.deliver(record);
                    session.lanes[index].steps(index, batch, deliver, &mut steps)?;
                }
                Err(error) => self.read_failed(session, index, error)?,
            }
            let more = steps.len() < session.batch_events;
            next = if more { session.streams.next().now_or_never().flatten() } else { None };
        }
        barrier::reach("subscription.after-read");
        self.apply(session, steps).await
    }

    /// The event in a record, if its type is handled here.
    fn deliver(&self, record: Record) -> Option<Delivery> {
        self.subscription.handler(record.type_name())?;
        Some(Delivery::new(record))
    }

    async fn read_again(&self, session: &mut Session) -> Result<()> {
        let now = Instant::now();
        let due: Vec<usize> = (0..session.lanes.len())
            .filter(|&index| session.lanes[index].retry_at().is_some_and(|at| at <= now))
            .collect();
        self.read_each(session, &due).await
    }

    fn report(&self, session: &Session) {
        let partitions: Vec<_> = session.lanes.iter().map(Lane::status).collect();
        let lag_events = partitions.iter().map(|partition| partition.lag_events).sum();
        let lag_seconds = session.lanes.iter().map(Lane::lag_seconds).fold(0.0, f64::max);
        let waiting = !session.absent.is_empty() || partitions.is_empty();
        let worst = partitions.iter().map(|partition| partition.state).max().unwrap_or(State::Waiting);
        let absent: Vec<&str> = session.absent.iter().map(ServiceName::as_str).collect();
        let of = self.of();
        let parked_keys = partitions.iter().map(|partition| partition.parked_keys).sum();
        let parked_events = partitions.iter().map(|partition| partition.parked_events).sum();
        self.metrics.parked_keys.get_or_create(&of).set(parked_keys as i64);
        self.metrics.parked_events.get_or_create(&of).set(parked_events as i64);
        self.metrics.lag_events.get_or_create(&of).set(lag_events as i64);
        self.metrics.lag_seconds.get_or_create(&of).set(lag_seconds);
        self.board.subscription(SubscriptionStatus {
            partitions,
            lag_events,
            lag_seconds,
            parked_keys,
            parked_events,
            oldest_parked: session.lanes.iter().filter_map(|lane| lane.parked.oldest()).min(),
            state: if waiting { worst.max(State::Waiting) } else { worst },
            detail: (!absent.is_empty())
                .then(|| format!("no service has made topic {} yet", absent.join(", "))),
            ..SubscriptionStatus::blank(&self.subscription.name, self.subscription.role.name())
        });
    }

    fn report_waiting(&self, error: &Error) {
        let state = if matches!(error.kind(), Kind::Wiring) { State::Stopped } else { State::Waiting };
        self.board.change(&self.subscription.name, |status| {
            status.state = state;
            status.detail = Some(error.to_string());
            status.partitions.clear();
        });
    }
}

/// Whether a topic has a partition.
fn has(topic: &Topic, partition: u32) -> bool {
    partition < topic.partitions()
}

/// Waits until `instant`, or for ever.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
