//! Testing services: a [`World`] in which they run, in one process, on the embedded engines.
//!
//! Beside the path; behind the feature `testing`, for dev-dependencies.
//!
//! Invariant: a world does to the path only what the field can do to it, and says by its seed how to do it again.

mod dice;
mod weather;
mod fate;
mod bus;
mod shuffle;
mod part;
mod fake;
mod settle;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tombolo_bus::{Bus, Read};
use tombolo_event::{Cursor, Envelope, Event, ServiceName};

pub use bus::WorldBus;
pub use fake::{Fake, FakeRecipe};
pub(crate) use fate::Fate;
pub use part::{Part, Response};
pub(crate) use settle::Reads;
pub use tombolo_db::ParkedEvent;
pub use weather::Weather;

use crate::sqlite::Sqlite;
use crate::{Clock, Database, Result, Service};
use dice::{Dice, lock};
use part::Version;
use settle::{Look, Member};

/// How long anything in a world may take before it is said not to happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a world that settles is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Where folders lie in memory, on systems that have it.
const IN_MEMORY: &str = "/dev/shm";

/// A folder that goes when it is dropped: in memory where there is room for files, else where temporary files are.
fn folder() -> TempDir {
    let name = || tempfile::Builder::new().prefix("tombolo-world-").to_owned();
    let in_memory = name().tempdir_in(Path::new(IN_MEMORY));
    in_memory.or_else(|_| name().tempdir()).expect("a test can make a folder for temporary files")
}

/// What the parts of a world share.
struct Ground {
    folder: TempDir,
    bus: WorldBus,
    clock: Clock,
    weather: Weather,
    dice: Dice,
    client: reqwest::Client,
    /// Everybody. Weak, because a part holds the ground that it stands on.
    members: Mutex<Vec<Weak<dyn Member>>>,
}

impl Ground {
    fn members(&self) -> Vec<Arc<dyn Member>> {
        lock(&self.members).iter().filter_map(Weak::upgrade).collect()
    }

    /// Has everybody look who there is, so that who has just started is found at its new address.
    async fn acquaint(&self) {
        for member in self.members().iter().filter(|member| member.is_working()) {
            // Who cannot look now, because the bus is away, looks again when it is back.
            member.peers().await.ok();
        }
    }
}

/// A world for services: the embedded bus, a database for each, a clock, and rough weather.
///
/// ```
/// use tombolo::testing::World;
/// # use tombolo::{Event, Handled, Service, View, sqlite::{Sqlite, Tx}};
/// # #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// # struct OrderPlaced { order: String, cents: i64 }
/// # impl Event for OrderPlaced {
/// #     const TYPE: &'static str = "orders.placed.v1";
/// #     fn key(&self) -> String { self.order.clone() }
/// # }
/// # async fn sum_up(event: OrderPlaced, tx: &mut Tx) -> Handled {
/// #     sqlx::query("UPDATE revenue SET cents = cents + ?").bind(event.cents).execute(&mut **tx).await?;
/// #     Ok(())
/// # }
/// # fn revenue(database: Sqlite) -> Service<Sqlite> {
/// #     Service::new("revenue", database)
/// #         .setup(async |database: Sqlite| {
/// #             let sql = "CREATE TABLE IF NOT EXISTS revenue AS SELECT 0 AS cents";
/// #             sqlx::raw_sql(sql).execute(database.pool()).await?;
/// #             Ok(())
/// #         })
/// #         .view(View::new("revenue", 1).on(sum_up))
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let world = World::new();
/// // The real service, started as its `main` would, but on the world's bus and a database of the world.
/// let revenue = world.start(revenue).await;
/// // A fake in place of a service that is not here.
/// let orders = world.fake("orders").publishes::<OrderPlaced>().start().await;
///
/// revenue.crash_at("subscription.after-effect");
/// orders.publish(&OrderPlaced { order: "o1".into(), cents: 1250 }).await;
/// revenue.crashed().await;
/// revenue.restart().await;
/// world.settle().await;
///
/// // Handled several times by now, and applied once.
/// let cents: i64 = sqlx::query_scalar("SELECT cents FROM revenue")
///     .fetch_one(revenue.database().pool())
///     .await
///     .unwrap();
/// assert_eq!(cents, 1250);
/// assert_eq!(world.published::<OrderPlaced>().await.len(), 1);
/// # }
/// ```
pub struct World {
    ground: Arc<Ground>,
    /// Keeps everybody in the world, whether or not the test keeps a handle.
    parts: Mutex<Vec<Arc<dyn Member>>>,
    databases: AtomicU32,
    expects_parked: AtomicBool,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world in rough weather. It prints its seed, which a failing test then shows; `TOMBOLO_TEST_SEED` sets it.
    #[must_use]
    pub fn new() -> Self {
        Self::made(Dice::from_env(), Weather::rough())
    }

    /// A world that shuffles and breaks what another one with the same seed did.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::made(Dice { seed }, Weather::rough())
    }

    /// A world in the given weather.
    #[must_use]
    pub fn with_weather(weather: Weather) -> Self {
        Self::made(Dice::from_env(), weather)
    }

    fn made(dice: Dice, weather: Weather) -> Self {
        eprintln!("world: seed {0}; World::seeded({0}) does the same again", dice.seed);
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build();
        let ground = Ground {
            folder: folder(),
            bus: WorldBus::new(weather, dice),
            clock: Clock::default(),
            weather,
            dice,
            client: client.expect("an HTTP client without TLS needs nothing from the system"),
            members: Mutex::default(),
        };
        Self {
            ground: Arc::new(ground),
            parts: Mutex::default(),
            databases: AtomicU32::new(0),
            expects_parked: AtomicBool::new(false),
        }
    }

    /// Starts a service with a database of its own: SQLite, in a file that lies in memory where the system allows it, and
    /// that outlives the service's crashes. `service` makes the service, now and whenever it is started again.
    ///
    /// # Panics
    /// If the world has a service of that name already, or it does not start.
    pub async fn start<F>(&self, service: F) -> Part
    where
        F: Fn(Sqlite) -> Service<Sqlite> + Send + Sync + 'static,
    {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let file = self.ground.folder.path().join(format!("{number}.db"));
        let open = move || {
            let opened = Sqlite::open(file.to_string_lossy());
            opened.unwrap_or_else(|error| panic!("a database of the world cannot be opened: {error}"))
        };
        self.start_on(open, service).await
    }

    /// Starts a service with a database that the test brings: `open` opens it, now and whenever the service is started again.
    ///
    /// # Panics
    /// As [`World::start`].
    pub async fn start_on<D, O, F>(&self, open: O, service: F) -> Part<D>
    where
        D: Database,
        O: Fn() -> D + Send + Sync + 'static,
        F: Fn(D) -> Service<D> + Send + Sync + 'static,
    {
        let version = Version::new(Arc::new(open), service);
        let part = Part::new(Arc::clone(&self.ground), 1, version);
        let twice = self.replicas(&part) > 0;
        assert!(
            !twice,
            "{} is in the world already; for another replica of it use World::replicate",
            part.name()
        );
        self.enter(part).await
    }

    /// Starts another replica of a service, on the same database.
    pub async fn replicate<D: Database>(&self, part: &Part<D>) -> Part<D> {
        let number = self.replicas(part) + 1;
        self.enter(Part::new(Arc::clone(&self.ground), number, part.version())).await
    }

    /// How many replicas of its service are in the world.
    fn replicas<D: Database>(&self, part: &Part<D>) -> u32 {
        let same = |member: &&Arc<dyn Member>| member.service().as_str() == part.name();
        lock(&self.parts).iter().filter(same).map(|_| 1).sum()
    }

    async fn enter<D: Database>(&self, part: Part<D>) -> Part<D> {
        let member: Arc<dyn Member> = Arc::new(part.clone());
        lock(&self.ground.members).push(Arc::downgrade(&member));
        lock(&self.parts).push(member);
        part.restart().await;
        part
    }

    /// A fake in place of a service that is not in this world: it answers questions from closures, and publishes events.
    pub fn fake(&self, name: &str) -> FakeRecipe<'_> {
        FakeRecipe::new(self, name)
    }

    /// The bus, to have it go away and come back.
    #[must_use]
    pub fn bus(&self) -> &WorldBus {
        &self.ground.bus
    }

    /// The clock by which everything scheduled in this world is kept.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.ground.clock
    }

    /// Says that this test means events to be parked. What is parked waits for its time, and is not waited for before.
    pub fn expect_parked(&self) {
        self.expects_parked.store(true, Ordering::Relaxed);
    }

    /// Moves the clock ahead, and settles: what comes due by that is done.
    pub async fn advance(&self, by: Duration) {
        self.ground.clock.advance(by);
        self.settle().await;
    }

    /// Waits until nothing is left to do: every outbox is empty, every subscription is at the end of its topics, every new
    /// build of a view is switched to, nothing that is due is kept for later, and everybody knows everybody. What is down
    /// or cut off is not waited for.
    ///
    /// # Panics
    /// If that takes longer than 20 s, naming what is still open; at once if the bus is away; in the end if an event was parked
    /// and the test did not say that it means that ([`World::expect_parked`]).
    pub async fn settle(&self) {
        self.settle_within(PATIENCE).await;
    }

    /// The same with another bound.
    ///
    /// # Panics
    /// As [`World::settle`].
    pub async fn settle_within(&self, bound: Duration) {
        let members = self.ground.members();
        let deadline = Instant::now() + bound;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Look::default();
        loop {
            looks.tick().await;
            let look = self.look(&members).await;
            let seed = self.ground.dice.seed;
            if look.open.is_empty() && look == last {
                let meant = look.parked.is_empty() || self.expects_parked.load(Ordering::Relaxed);
                assert!(meant, "{}", settle::parked(&look.parked, seed));
                return;
            }
            assert!(Instant::now() < deadline, "{}", settle::unsettled(&look.open, seed, bound));
            last = look;
        }
    }

    async fn look(&self, members: &[Arc<dyn Member>]) -> Look {
        assert!(!self.bus().is_away(), "{}", settle::bus_away());
        let look = Look::at(members, self.bus()).await;
        look.unwrap_or_else(|error| Look::failed(&error))
    }

    /// All events of a type that are on the bus: those of a key in their order, the keys in none. Earlier versions are
    /// lifted. What is still in an outbox is not there yet: settle first.
    ///
    /// # Panics
    /// If an event cannot be read as an `E`.
    pub async fn published<E: Event>(&self) -> Vec<E> {
        let readable = tombolo_event::event::readable_types::<E>();
        let envelopes = self.envelopes(E::topic()).await;
        let envelopes =
            envelopes.unwrap_or_else(|error| panic!("topic {} cannot be read: {error}", E::topic()));
        let mut events = Vec::new();
        for envelope in envelopes {
            let is_readable = readable.contains(&envelope.event_type.as_str());
            if is_readable || tombolo_event::event::same_family(E::TYPE, &envelope.event_type) {
                let event = tombolo_event::event::read(&envelope);
                events.push(event.unwrap_or_else(|error| panic!("{error}")));
            }
        }
        events
    }

    /// Everything in a topic, by partition.
    async fn envelopes(&self, topic: &str) -> Result<Vec<Envelope>> {
        let name = ServiceName::new(topic)?;
        let topic = match self.bus().topic(&name).await {
            Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => return Ok(Vec::new()),
            topic => topic?,
        };
        let mut envelopes = Vec::new();
        for partition in 0..topic.partitions() {
            let read = Read::to_tail(&name, partition, Cursor::start(topic.incarnation));
            let mut batches = self.bus().read(read).await?;
            while let Some(batch) = batches.next().await {
                for record in batch?.records {
                    envelopes.push(Envelope::decode(record.bytes)?);
                }
            }
        }
        Ok(envelopes)
    }
}
