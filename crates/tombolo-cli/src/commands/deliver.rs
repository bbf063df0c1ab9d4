//! `tombolo deliver`: brings the events of topics to a program in any language, which applies each with a procedure of its own
//! database, in the transaction of the effect.
//!
//! takes: events after the cursor, whose own record is compared first · writes: nothing but leases; the program moves the
//! cursor · commits: in the program's own transaction · if we crash here: the cursor is where the last effect left it · if it
//! repeats: the procedure refuses what was applied.
//!
//! ```text
//!  bus ── read after the cursor ── POST ── program: BEGIN, effect, apply(…), COMMIT ── 2xx
//!                    ▲                                                                  │
//!                    └── the cursor has moved? the next one · it has not? said by name, and the same one again
//! ```
//!
//! Invariant: whatever the program answers, the cursor in its database decides; no event is stepped over.

mod lane;
mod post;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Identity, Topic};
use tombolo_db::{Claim, Database, ForeignParts, Holder, Owner, Schema, Share, StartAt};
use tombolo_event::key::PARTITIONS_DEFAULT;
use tombolo_event::{Cursor, ServiceName, name};
use uuid::Uuid;

use crate::arguments::{Begin, Deliver, OfDatabase};
use crate::commands::bus::{end_on_signal, trace};
use crate::commands::schema::{Opened, checked};
use crate::commands::{archived, connect, say};
use crate::error::{Error, Result, with_causes};
use crate::output::without_password;
use lane::Lane;
use post::Receiver;

/// How long a deliverer that says nothing keeps its partitions.
const LEASE: Duration = Duration::from_secs(15);
/// How often it says something, and looks for what is free, for new topics and for new partitions.
const LOOK: Duration = Duration::from_secs(5);
/// How long what was begun may take when it is told to end.
const GRACE: Duration = Duration::from_secs(5);

/// Delivers until it is told to end.
pub(crate) async fn deliver(arguments: Deliver) -> Result<()> {
    trace();
    let database = OfDatabase::from(&arguments.database);
    let opened = Opened::of(&database).await?;
    if let Some(why) = opened.without_sql() {
        return Err(Error::usage(format!(
            "{why}, so other programs cannot apply events there; expected sqlite:PATH, postgres://… or mysql://…"
        )));
    }
    checked(&database).await?;
    match opened {
        Opened::Sqlite(database) => begin(database, arguments).await,
        Opened::Postgres(database) => begin(database, arguments).await,
        Opened::Mysql(database) => begin(database, arguments).await,
        Opened::Documents(database) => begin(database, arguments).await,
        #[cfg(feature = "mongodb")]
        Opened::Mongodb(database) => begin(database, arguments).await,
    }
}

async fn begin<D: Database>(database: D, arguments: Deliver) -> Result<()> {
    name::check_subscription(&arguments.subscription).map_err(|error| Error::usage(error.to_string()))?;
    let partitions = database.standing(Uuid::nil()).await;
    let partitions = partitions.map_or(PARTITIONS_DEFAULT, |standing| standing.generations.present());
    let owner = Owner { service: arguments.service.clone(), partitions };
    database.prepare(&owner, Schema::Check).await?;
    let inbox = ForeignParts { inbox: true, ..ForeignParts::default() };
    database.prepare_foreign(inbox, Schema::Check).await?;
    let receiver = Receiver::new(&arguments.to, Duration::from_secs(arguments.within))?;
    let shutdown = CancellationToken::new();
    let ended = end_on_signal(shutdown.clone(), Some("ending"))?;
    let bus = connect(&arguments.bus, &Identity::Service(arguments.service.clone())).await?;
    let bus = archived(bus, arguments.archive.as_deref()).await?;
    say(&told(&arguments))?;
    let work =
        Work { database, bus, receiver: Arc::new(receiver), holder: holder(&arguments), arguments, shutdown };
    let done = tokio::select! {
        done = work.run() => done,
        // It ends by itself then, and this waits for it.
        () = async { ended.await; std::future::pending().await } => Ok(()),
    };
    work.bus.close().await;
    done
}

fn told(arguments: &Deliver) -> String {
    let Deliver { subscription, topics, to, bus, .. } = arguments;
    let topics: Vec<&str> = topics.iter().map(ServiceName::as_str).collect();
    let (topics, bus) = (topics.join(", "), without_password(bus));
    format!("delivers {topics} from {bus} to {to} as subscription {subscription}")
}

/// A replica is the same one after a restart, so that it takes over at once what it held.
fn holder(arguments: &Deliver) -> Holder {
    let Deliver { service, subscription, replica, .. } = arguments;
    let name = format!("tombolo:deliver/{service}/{subscription}/{replica}");
    Holder::new(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
}

/// What is to be done.
struct Work<D> {
    database: D,
    bus: Arc<dyn Bus>,
    receiver: Arc<Receiver>,
    holder: Holder,
    arguments: Deliver,
    shutdown: CancellationToken,
}

/// The partitions that are delivered, each by a task.
#[derive(Default)]
struct Lanes {
    tasks: JoinSet<()>,
    stops: BTreeMap<(ServiceName, u32), CancellationToken>,
}

impl<D: Database> Work<D> {
    async fn run(&self) -> Result<()> {
        let (mut lanes, mut said) = (Lanes::default(), String::new());
        let mut failed = Ok(());
        while !self.shutdown.is_cancelled() && failed.is_ok() {
            match self.look(&mut lanes).await {
                Ok(()) => said.clear(),
                Err(error) if said == error.message => {}
                Err(error) => {
                    said = error.message;
                    tracing::warn!("waits: {said}");
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = sleep(LOOK) => {}
            }
            failed = lanes.reap();
        }
        self.shutdown.cancel();
        let all = async { while lanes.tasks.join_next().await.is_some() {} };
        timeout(GRACE, all).await.ok();
        lanes.tasks.shutdown().await;
        if let Err(error) = self.database.release(&self.arguments.subscription, self.holder).await {
            tracing::warn!("could not give its partitions up, which others take in {LEASE:?}: {error}");
        }
        failed
    }

    /// Makes cursors for partitions that have none, takes the share of what there is, and delivers it.
    async fn look(&self, lanes: &mut Lanes) -> Result<()> {
        let mut missing = Ok(());
        let mut topics = BTreeMap::new();
        for name in &self.arguments.topics {
            match self.open(name).await {
                Ok(topic) => drop(topics.insert(name.clone(), topic)),
                Err(error) => missing = Err(error),
            }
        }
        let subscription = &self.arguments.subscription;
        let claimed = self.database.claim(subscription, self.holder, Share::Split, LEASE).await;
        let claims = claimed.inspect_err(|_| lanes.leave(&[]))?.claims;
        lanes.leave(&claims);
        for claim in claims {
            if let Some(topic) = topics.get(&claim.topic) {
                self.begin_lane(lanes, topic, &claim);
            }
        }
        missing
    }

    async fn open(&self, name: &ServiceName) -> Result<Topic> {
        let topic = self.bus.topic(name).await?;
        let tails = match self.arguments.from {
            Begin::Start => Vec::new(),
            Begin::Now => self.bus.tails(name).await?,
        };
        let start = |partition| {
            let tail = tails.iter().find(|tail| tail.partition == partition);
            let at = tail.and_then(|tail| Some(Cursor::at(topic.incarnation, tail.sequence, tail.id?)));
            let cursor = at.unwrap_or_else(|| Cursor::start(topic.incarnation));
            StartAt { topic: name.clone(), partition, cursor }
        };
        let starts: Vec<StartAt> = (0..topic.partitions()).map(start).collect();
        self.database.open(&self.arguments.subscription, &[], &starts, true).await?;
        Ok(topic)
    }

    fn begin_lane(&self, lanes: &mut Lanes, topic: &Topic, claim: &Claim) {
        let place = (claim.topic.clone(), claim.partition);
        if lanes.stops.contains_key(&place) {
            return;
        }
        let stop = self.shutdown.child_token();
        lanes.stops.insert(place, stop.clone());
        let lane = Lane {
            database: self.database.clone(),
            bus: Arc::clone(&self.bus),
            receiver: Arc::clone(&self.receiver),
            subscription: self.arguments.subscription.clone(),
            topic: topic.clone(),
            partition: claim.partition,
            stop,
        };
        lanes.tasks.spawn(lane.run());
    }
}

impl Lanes {
    /// Ends what is not held any more.
    fn leave(&mut self, claims: &[Claim]) {
        let is_held = |place: &(ServiceName, u32)| {
            claims.iter().any(|claim| (&claim.topic, claim.partition) == (&place.0, place.1))
        };
        self.stops.retain(|place, stop| {
            let held = is_held(place);
            if !held {
                stop.cancel();
            }
            held
        });
    }

    /// Joins what has ended, which only fails by a fault of this program.
    fn reap(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|error| Error::failed(format!("a task that delivers failed: {error}")))?;
        }
        Ok(())
    }
}

/// A failure of a database, for people.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(error)
}
