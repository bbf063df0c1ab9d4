//! The bus of a world: the embedded log with a bad line to it.
//!
//! Everybody has a line of their own to the same log. A line can be cut; the bus can be away, crash and come back, lose
//! acknowledgements, or be another one from now on.
//!
//! Invariant: it does nothing that the port does not allow: what it acknowledged is stored, and a partition is read in
//! order without a hole.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::{
    Append, Appended, Bus, Error, Guarantee, Kind, Reach, Read, RecordStream, Registration, Result, Signal,
    SignalStream, Tail, Topic, TopicSpec,
};
use tombolo_event::{Generations, Incarnation, ServiceName, barrier};

use super::PATIENCE;
use super::dice::{Dice, lock};
use super::fate::Fate;
use super::shuffle::Tables;
use super::weather::{ACKNOWLEDGEMENTS, BROKEN_MAX, READS, Weather};

/// The size of the log's files in bytes: small, because they may lie in memory.
const SEGMENT_BYTES: u64 = 8 << 20;

/// One line to the bus of a world. Clones are the same line.
#[derive(Clone)]
pub struct WorldBus {
    shared: Arc<Shared>,
    /// Whose line it is.
    of: String,
    connection: Switch,
    /// The life that the line belongs to: with it, it ends.
    fate: Option<Arc<Fate>>,
}

struct Shared {
    folder: TempDir,
    /// None while the bus is down.
    up: Mutex<Option<Up>>,
    /// How many logs there were before this one.
    replaced: AtomicU32,
    /// Signals are stored nowhere, so they need no log; who listens goes on listening after a crash.
    signals: Arc<Log>,
    present: Switch,
    /// So many more appends are stored but not acknowledged.
    lose: AtomicU32,
    weather: Weather,
    dice: Dice,
    tables: Tables,
    /// What the weather broke already: on whose line, what, where.
    broken: Mutex<BTreeMap<(String, &'static str), BTreeSet<Place>>>,
}

/// One life of the log.
struct Up {
    log: Arc<Log>,
    fate: Arc<Fate>,
}

/// Something that is there or not. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<Mutex<CancellationToken>>);

impl Switch {
    pub(super) fn off(&self) {
        lock(&self.0).cancel();
    }

    pub(super) fn on(&self) {
        *lock(&self.0) = CancellationToken::new();
    }

    pub(super) fn is_off(&self) -> bool {
        lock(&self.0).is_cancelled()
    }

    /// Waits until what is there now has gone.
    fn broken(&self) -> impl Future<Output = ()> + Send + 'static {
        lock(&self.0).clone().cancelled_owned()
    }
}

/// A place on the bus: topic, partition, sequence.
type Place = (ServiceName, u32, u64);

impl WorldBus {
    /// A bus in the given weather, in a folder of its own.
    pub(super) fn new(weather: Weather, dice: Dice) -> Self {
        let folder = super::folder();
        let up = open(folder.path().join("0"), weather, dice);
        let signals =
            Log::in_memory(Options::default()).expect("the default options are within their bounds");
        let shared = Shared {
            folder,
            up: Mutex::new(Some(up)),
            replaced: AtomicU32::new(0),
            signals,
            present: Switch::default(),
            lose: AtomicU32::new(0),
            weather,
            dice,
            tables: Tables::new(dice),
            broken: Mutex::default(),
        };
        Self { shared: Arc::new(shared), of: "the test".into(), connection: Switch::default(), fate: None }
    }

    /// A bus that does nothing unasked.
    #[must_use]
    pub fn calm() -> Self {
        Self::new(Weather::calm(), Dice { seed: 0 })
    }

    /// A line of its own for one life of a service.
    pub(super) fn line(&self, of: String, fate: Arc<Fate>, connection: Switch) -> Self {
        Self { shared: Arc::clone(&self.shared), of, connection, fate: Some(fate) }
    }

    /// From now on nobody reaches the bus, and every read breaks.
    pub fn away(&self) {
        self.shared.present.off();
    }

    /// The bus can be reached again.
    pub fn back(&self) {
        self.shared.present.on();
    }

    /// Whether nobody reaches the bus.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.shared.present.is_off() || self.life().is_err()
    }

    /// The bus goes down. What it acknowledged is in its files.
    pub async fn crash(&self) {
        self.away();
        let up = lock(&self.shared.up).take();
        if let Some(up) = up {
            up.fate.end("was crashed".into());
            up.log.close().await;
        }
    }

    /// The bus goes down the next time that its writer comes to a named point of the path: `log.before-write`,
    /// `log.after-write` or `log.after-sync`.
    ///
    /// # Panics
    /// If it is down already, or has no point of that name.
    pub fn crash_at(&self, point: &str) {
        match &*lock(&self.shared.up) {
            Some(up) => up.fate.arm(point, 1, |point| point.starts_with("log.")),
            None => panic!("the bus cannot crash: it is down"),
        }
    }

    /// Waits until it has gone down at the point that was named.
    ///
    /// # Panics
    /// If it never does.
    pub async fn crashed(&self) {
        let fate = lock(&self.shared.up).as_ref().map(|up| Arc::clone(&up.fate));
        if let Some(fate) = fate {
            let over = timeout(PATIENCE, fate.over()).await;
            assert!(over.is_ok(), "the bus did not crash within {PATIENCE:?}: it never came to the point");
        }
        self.crash().await;
    }

    /// The bus comes back, with what is in its files.
    ///
    /// # Panics
    /// If it did not crash.
    pub fn restart(&self) {
        let mut up = lock(&self.shared.up);
        assert!(up.is_none(), "the bus runs; crash it first");
        *up = Some(self.open());
        drop(up);
        self.back();
    }

    /// From now on the bus is another, empty one, as after a disaster.
    pub fn replace(&self) {
        self.shared.replaced.fetch_add(1, Ordering::SeqCst);
        *lock(&self.shared.up) = Some(self.open());
    }

    /// The next `count` appends are stored, but not acknowledged.
    pub fn lose_acknowledgements(&self, count: u32) {
        self.shared.lose.fetch_add(count, Ordering::SeqCst);
    }

    /// How many of those acknowledgements are still to be lost.
    #[must_use]
    pub fn acknowledgements_to_lose(&self) -> u32 {
        self.shared.lose.load(Ordering::SeqCst)
    }

    fn open(&self) -> Up {
        let number = self.shared.replaced.load(Ordering::SeqCst).to_string();
        open(self.shared.folder.path().join(number), self.shared.weather, self.shared.dice)
    }

    /// The log, if this line reaches it.
    fn reach(&self) -> Result<Arc<Log>> {
        Ok(self.life()?.0)
    }

    /// The same with the life that it is in.
    fn life(&self) -> Result<(Arc<Log>, Arc<Fate>)> {
        self.check()?;
        let up = lock(&self.shared.up);
        let up = up.as_ref().filter(|up| up.fate.end_of().is_none());
        up.map(|up| (Arc::clone(&up.log), Arc::clone(&up.fate))).ok_or_else(|| unavailable("the bus is down"))
    }

    fn check(&self) -> Result<()> {
        if self.fate.as_ref().is_some_and(|fate| fate.end_of().is_some()) {
            return Err(unavailable("this life of the service has ended"));
        }
        if self.shared.present.is_off() {
            return Err(unavailable("the bus is away"));
        }
        if self.connection.is_off() {
            return Err(unavailable("the line to the bus is cut"));
        }
        Ok(())
    }

    /// Whether the acknowledgement of the append at `place` is lost.
    fn loses_acknowledgement(&self, place: Place) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        let told = self.shared.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        told || self.breaks("acknowledgement", ACKNOWLEDGEMENTS, place)
    }

    /// Whether the weather breaks something at `place`: one of so many, once there, and not too often on one line.
    fn breaks(&self, what: &'static str, one_of: u64, place: Place) -> bool {
        let (topic, partition, sequence) = &place;
        let name = format!("{what}/{}/{topic}/{partition}/{sequence}", self.of);
        if !self.shared.weather.broken || !self.shared.dice.picks(one_of, name) {
            return false;
        }
        let mut broken = lock(&self.shared.broken);
        let places = broken.entry((self.of.clone(), what)).or_default();
        places.len() < BROKEN_MAX && places.insert(place)
    }

    /// The stream over this line: it breaks when the bus goes, and where the weather breaks it.
    fn over_the_line(&self, read: &Read, stream: RecordStream, fate: Arc<Fate>) -> RecordStream {
        let (gone, cut) = (self.shared.present.broken(), self.connection.broken());
        let breaks = async move {
            tokio::select! {
                () = gone => {}
                () = cut => {}
                () = fate.over() => {}
            }
        };
        let (line, topic, partition) = (self.clone(), read.topic.clone(), read.partition);
        let passed_on = move |batch: Result<tombolo_bus::Batch>| {
            let last = batch.as_ref().map_or(0, |batch| batch.last);
            let breaks = last > 0 && line.breaks("read", READS, (topic.clone(), partition, last));
            let error = breaks.then(|| Err(unavailable("the connection broke after a batch")));
            futures_util::stream::iter([Some(batch), error].into_iter().flatten())
        };
        let end = futures_util::stream::once(async { Err(unavailable("the connection to the bus broke")) });
        let stream: RecordStream = if self.shared.weather.shuffled {
            self.shared.tables.seat(&self.of, &read.topic, read.partition, stream)
        } else {
            stream
        };
        Box::pin(stream.flat_map(passed_on).take_until(Box::pin(breaks)).chain(end))
    }
}

fn open(path: PathBuf, weather: Weather, dice: Dice) -> Up {
    let options = Options {
        segment_bytes: SEGMENT_BYTES,
        first_segment_bytes: SEGMENT_BYTES,
        prepare_ahead: false,
        ..Options::default()
    };
    let fate = Fate::new(weather, dice);
    let outer = barrier::owner();
    barrier::work_for(Some(Arc::<Fate>::clone(&fate)));
    let opened = Log::open(&path, options);
    barrier::work_for(outer);
    match opened {
        Ok((log, _)) => Up { log, fate },
        Err(error) => panic!("the world's bus cannot be opened in {}: {error}", path.display()),
    }
}

fn unavailable(why: &str) -> Error {
    Error::new(Kind::Unavailable, why)
}

/// What somebody at the other end of a connection sees of a bus that goes down.
fn as_seen<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| match error.kind() {
        Kind::Closed | Kind::ReadOnly => unavailable("the bus went down").because(error),
        _ => error,
    })
}

#[async_trait]
impl Bus for WorldBus {
    fn guarantee(&self) -> Guarantee {
        self.shared.signals.guarantee()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        as_seen(self.reach()?.ensure_topic(spec).await)
    }
    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        as_seen(self.reach()?.topic(name).await)
    }
    async fn topics(&self) -> Result<Vec<Topic>> {
        as_seen(self.reach()?.topics().await)
    }
    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        as_seen(self.reach()?.raise_epoch(topic, incarnation, epoch).await)
    }
    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        as_seen(self.reach()?.divide(topic, incarnation, epoch, generations).await)
    }
    async fn append(&self, append: Append) -> Result<Appended> {
        let log = self.reach()?;
        let first = append.records.first().map_or(0, |record| record.sequence);
        let place = (append.topic.clone(), append.partition, first);
        let mut appended = as_seen(log.append(append.clone()).await)?;
        if self.shared.weather.twice {
            appended = as_seen(log.append(append).await)?;
        }
        if self.loses_acknowledgement(place) {
            return Err(unavailable("the connection broke after the append"));
        }
        Ok(appended)
    }
    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        as_seen(self.reach()?.tails(topic).await)
    }
    async fn read(&self, read: Read) -> Result<RecordStream> {
        let (log, fate) = self.life()?;
        let stream = as_seen(log.read(read.clone()).await)?;
        Ok(if read.follow { self.over_the_line(&read, stream, fate) } else { stream })
    }
    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        self.check()?;
        self.shared.signals.signal(subject, signal).await
    }
    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        self.check()?;
        self.shared.signals.listen(subject, group).await
    }
    async fn register(&self, registration: &Registration) -> Result<()> {
        as_seen(self.reach()?.register(registration).await)
    }
    async fn registrations(&self) -> Result<Vec<Registration>> {
        as_seen(self.reach()?.registrations().await)
    }
    async fn close(&self) {
        self.crash().await;
    }
}
