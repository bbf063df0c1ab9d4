//! A bus with its archive, and the archiver between them. The whole suite on both together, trimmed behind each append; archivers that
//! die and contend; and archivers and seams that are broken on purpose.
//! Invariant: what a reader gets is what was appended, once and in order, wherever it is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_bus::archiving::{ARCHIVED, Archiver, Keep};
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::{
    Append, Appended, Archived, Bus, Guarantee, Kind, Reach, Read, Record, RecordStream, Registration,
    Result, Signal, SignalStream, Tail, Topic, TopicSpec,
};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};

use crate::model::Model;

const BOUND: Duration = Duration::from_secs(60);
const TRIMS: Ability = Ability::Cannot("what was trimmed is read from the archive, so it is not refused");
const SHARED: Ability = Ability::Cannot("the servers are shared with other tests");

fn orders() -> TopicSpec {
    TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap())
}

fn record(sequence: u64) -> Record {
    let (id, event_type) = (EventId::new(), Bytes::from_static(b"suite.happened.v1"));
    Record { sequence, id, event_type, bytes: vec![1; 200].into() }
}

fn log() -> Arc<Log> {
    Log::in_memory(Options::default()).unwrap()
}

/// A bus that can be trimmed, without a server.
async fn trimmable() -> Arc<dyn Bus> {
    Model::new(None).handle().await
}

fn archiver(bus: &Arc<dyn Bus>, archive: &Arc<dyn Bus>) -> Archiver {
    Archiver::new(Arc::clone(bus), Arc::clone(archive), orders().name)
}

const ALL_BUT_THE_LAST: Keep<'_> = Keep { events: 1, is_old: &|_| true };

async fn archive(archiver: &Archiver) -> Result<()> {
    archiver.to_present(&mut |_, _| {}).await
}

/// A relay's view of `orders`.
struct Line {
    bus: Arc<dyn Bus>,
    topic: Topic,
    ids: Vec<Vec<EventId>>,
}

impl Line {
    async fn on(bus: &Arc<dyn Bus>) -> Self {
        let topic = bus.ensure_topic(&orders()).await.unwrap();
        bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
        Self { bus: Arc::clone(bus), topic, ids: vec![Vec::new()] }
    }

    async fn append(&mut self, partition: u32, count: u64) {
        let ids = &mut self.ids[partition as usize];
        let first = ids.len() as u64 + 1;
        let records: Vec<_> = (first..first + count).map(record).collect();
        ids.extend(records.iter().map(|record| record.id));
        let (topic, incarnation) = (self.topic.name.clone(), self.topic.incarnation);
        let append = Append { topic, incarnation, epoch: 1, partition, records };
        // As a relay: again until it is acknowledged.
        while let Err(error) = self.bus.append(append.clone()).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        }
    }

    async fn divide(&mut self, partitions: u32) {
        let more = self.topic.generations.and(partitions).unwrap();
        let (name, incarnation) = (&self.topic.name, self.topic.incarnation);
        self.topic = self.bus.divide(name, incarnation, 1, &more).await.unwrap();
        self.ids.resize(self.topic.partitions() as usize, Vec::new());
    }

    fn start(&self) -> Cursor {
        Cursor::start(self.topic.incarnation)
    }

    /// Checks that `bus` has everything, from the start.
    async fn is_whole_on(&self, bus: &dyn Bus) {
        assert_eq!(bus.topic(&self.topic.name).await.unwrap().generations, self.topic.generations);
        for (partition, expected) in (0..).zip(&self.ids) {
            let found = ids(bus, Read::to_tail(&self.topic.name, partition, self.start())).await.unwrap();
            assert!(found == *expected, "partition {partition}: {} of {}", found.len(), expected.len());
        }
    }
}

/// Everything of a partition, checked to be without a hole or a double.
async fn ids(bus: &dyn Bus, read: Read) -> Result<Vec<EventId>> {
    let mut last = read.after.sequence;
    let mut batches = bus.read(read).await?;
    let mut ids = Vec::new();
    while let Some(batch) = tokio::time::timeout(BOUND, batches.next()).await.unwrap() {
        let batch = batch?;
        assert_eq!(batch.first, last + 1, "batches follow each other");
        last = batch.last;
        ids.extend(batch.records.iter().map(|record| record.id));
    }
    Ok(ids)
}

#[tokio::test]
async fn an_archive_has_the_same_incarnation_generations_sequences_and_ids() {
    let (bus, kept) = (log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    line.append(0, 3_000).await;
    line.divide(2).await;
    line.append(1, 100).await;
    line.divide(3).await;
    line.append(4, 7).await;
    let archiver = archiver(&bus, &kept);
    assert_eq!(archiver.standing().await.unwrap().behind, 3_107);
    archive(&archiver).await.unwrap();
    line.is_whole_on(&*kept).await;
    let topic = kept.topic(&line.topic.name).await.unwrap();
    assert_eq!((topic.incarnation, topic.epoch), (line.topic.incarnation, ARCHIVED));
    line.append(4, 5).await;
    archive(&archiver).await.unwrap();
    line.is_whole_on(&*kept).await;
    let standing = archiver.standing().await.unwrap();
    assert_eq!((standing.archived, standing.behind), (3_112, 0));
    line.bus.raise_epoch(&line.topic.name, line.topic.incarnation, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_follows_a_topic_through_its_divisions() {
    let (bus, kept) = (log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    let follows = archiver(&bus, &kept);
    let archived = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&archived);
    let following = tokio::spawn(async move {
        let told = move |_: &Tail, events| {
            told.fetch_add(events, Ordering::Relaxed);
        };
        follows.follow(&told).await
    });
    for (partition, divide) in [(0, None), (2, Some(2)), (3, Some(2)), (4, None)] {
        if let Some(partitions) = divide {
            line.divide(partitions).await;
        }
        for _ in 0..20 {
            line.append(partition, 10).await;
        }
    }
    let all = async {
        while archived.load(Ordering::Relaxed) < 800 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, all).await.unwrap();
    line.is_whole_on(&*kept).await;
    following.abort();
}

/// Archivers that are dropped in the middle of anything, and two at once, under load, on real engines where there are some.
async fn dying_archivers_lose_and_double_nothing(bus: Arc<dyn Bus>, kept: Arc<dyn Bus>) {
    let seed: u64 = rand::random();
    eprintln!("TOMBOLO_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut line = Line::on(&bus).await;
    let over = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            while !over.load(Ordering::Relaxed) {
                line.append(0, 20).await;
                tokio::task::yield_now().await;
            }
            line.divide(2).await;
            line.append(1, 50).await;
            line
        }
    });
    for _ in 0..25 {
        let (one, other) = (archiver(&bus, &kept), archiver(&bus, &kept));
        let work = async {
            tokio::select! {
                ended = one.follow(&|_, _| {}) => panic!("one ended: {ended:?}"),
                ended = other.follow(&|_, _| {}) => panic!("the other ended: {ended:?}"),
            }
        };
        let life = Duration::from_millis(random.random_range(1..60));
        drop(tokio::time::timeout(life, work).await);
        if random.random_ratio(1, 2) {
            let trim = archiver(&bus, &kept);
            let work = async { trim.trim(&Keep { events: 30, is_old: &|_| true }).await };
            if let Ok(trimmed) = tokio::time::timeout(life, work).await {
                assert!(trimmed.is_ok() || is_unknown(&trimmed), "{trimmed:?}");
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    let line = tokio::time::timeout(BOUND, loading).await.unwrap().unwrap();
    archive(&archiver(&bus, &kept)).await.unwrap();
    line.is_whole_on(&*kept).await;
    line.is_whole_on(&Archived::new(bus, kept)).await;
}

/// The archive may not have been begun when trimming is tried first.
fn is_unknown(trimmed: &Result<u64>) -> bool {
    trimmed.as_ref().is_err_and(|error| error.kind() == Kind::UnknownTopic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archivers_that_die_in_memory_lose_and_double_nothing() {
    dying_archivers_lose_and_double_nothing(trimmable().await, log()).await;
}

#[tokio::test]
async fn a_reader_from_the_start_goes_through_the_seam_and_follows() {
    let (bus, kept) = (trimmable().await, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    line.append(0, 500).await;
    let archiver = archiver(&bus, &kept);
    archive(&archiver).await.unwrap();
    assert_eq!(archiver.trim(&Keep { events: 100, is_old: &|_| true }).await.unwrap(), 400);
    line.append(0, 50).await;
    let both = Archived::new(Arc::clone(&bus), Arc::clone(&kept));
    line.is_whole_on(&both).await;
    let name = line.topic.name.clone();
    let mut live = both.read(Read::following(&name, 0, line.start())).await.unwrap();
    let first = live.next().await.unwrap().unwrap();
    assert_eq!(first.tail, 550, "lag is that behind the bus");
    line.append(0, 10).await;
    let mut found: Vec<_> = first.records.iter().map(|record| record.id).collect();
    while found.len() < 560 {
        let batch = tokio::time::timeout(BOUND, live.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(batch.first, found.len() as u64 + 1);
        found.extend(batch.records.iter().map(|record| record.id));
    }
    assert!(found == line.ids[0]);
    for at in [1, 300, 399, 400, 401, 500, 560] {
        let after = Cursor::at(line.topic.incarnation, at, line.ids[0][at as usize - 1]);
        let found = ids(&both, Read::to_tail(&name, 0, after)).await.unwrap();
        assert!(found == line.ids[0][at as usize..], "after {at}");
    }
    let elsewhere = Cursor::at(line.topic.incarnation, 300, EventId::new());
    assert_eq!(both.read(Read::to_tail(&name, 0, elsewhere)).await.err().unwrap().kind(), Kind::OtherId);
}

#[tokio::test]
async fn only_what_the_archive_has_is_removed_and_the_last_event_never() {
    let (bus, kept) = (trimmable().await, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    line.append(0, 40).await;
    let archiver = archiver(&bus, &kept);
    assert!(is_unknown(&archiver.trim(&ALL_BUT_THE_LAST).await), "there is no archive yet");
    archive(&archiver).await.unwrap();
    line.append(0, 60).await;
    assert_eq!(archiver.trim(&ALL_BUT_THE_LAST).await.unwrap(), 39);
    assert_eq!(archiver.trim(&ALL_BUT_THE_LAST).await.unwrap(), 0);
    archive(&archiver).await.unwrap();
    let young = line.ids[0][69];
    let keep = Keep { events: 10, is_old: &|record| record.id != young };
    assert_eq!(archiver.trim(&keep).await.unwrap(), 30, "what is young stays, with what is behind it");
    assert_eq!(archiver.trim(&ALL_BUT_THE_LAST).await.unwrap(), 30);
    line.is_whole_on(&Archived::new(bus, kept)).await;
}

#[tokio::test]
async fn an_archive_that_lacks_what_was_removed_is_named() {
    let (bus, kept, late) = (trimmable().await, log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    line.append(0, 20).await;
    archive(&archiver(&bus, &late)).await.unwrap();
    line.append(0, 20).await;
    let first = archiver(&bus, &kept);
    archive(&first).await.unwrap();
    first.trim(&ALL_BUT_THE_LAST).await.unwrap();
    let error = archive(&archiver(&bus, &late)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Trimmed);
    assert!(error.to_string().contains("the archive lacks events of topic orders"), "{error}");
    let start = Read::to_tail(&line.topic.name, 0, line.start());
    for archive in [late, log()] {
        let both = Archived::new(Arc::clone(&bus), archive);
        let error = ids(&both, start.clone()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Trimmed, "{error}");
        assert!(error.to_string().contains("the bus has that no more"), "{error}");
    }
}

#[tokio::test]
async fn a_topic_that_somebody_publishes_to_is_no_archive() {
    let (bus, kept) = (log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
    let line = Line::on(&bus).await;
    let spec = TopicSpec { incarnation: Some(line.topic.incarnation), ..orders() };
    let topic = kept.ensure_topic(&spec).await.unwrap();
    kept.raise_epoch(&topic.name, topic.incarnation, 4).await.unwrap();
    assert_eq!(archive(&archiver(&bus, &kept)).await.unwrap_err().kind(), Kind::TopicDiffers);
    let other = log() as Arc<dyn Bus>;
    other.ensure_topic(&orders()).await.unwrap();
    assert_eq!(archive(&archiver(&bus, &other)).await.unwrap_err().kind(), Kind::TopicDiffers);
}

#[tokio::test]
async fn what_an_archive_has_can_be_moved_to_a_bus_and_published_to_again() {
    let (bus, kept, new) = (log() as Arc<dyn Bus>, log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
    let mut line = Line::on(&bus).await;
    line.append(0, 30).await;
    line.divide(2).await;
    line.append(2, 30).await;
    archive(&archiver(&bus, &kept)).await.unwrap();
    tombolo_bus::moving::topic(&*kept, &*new, &line.topic.name, |_, _| {}).await.unwrap();
    line.is_whole_on(&*new).await;
    new.raise_epoch(&line.topic.name, line.topic.incarnation, 1).await.unwrap();
    line.bus = Arc::clone(&new);
    line.append(2, 5).await;
    line.is_whole_on(&*new).await;
}

#[cfg(feature = "mutants")]
mod broken {
    //! Archivers and seams that are broken on purpose. Invariant: each loses something that the unbroken one does not.

    use tombolo_bus::archiving::Mutant;

    use super::*;

    #[tokio::test]
    async fn trimming_without_asking_the_archive_loses_events() {
        for mutant in [None, Some(Mutant::TrimWithoutAsking)] {
            let (bus, kept) = (trimmable().await, log() as Arc<dyn Bus>);
            let mut line = Line::on(&bus).await;
            line.append(0, 20).await;
            let whole = archiver(&bus, &kept);
            archive(&whole).await.unwrap();
            line.append(0, 20).await;
            let trimming = match mutant {
                None => whole,
                Some(mutant) => archiver(&bus, &kept).broken(mutant),
            };
            trimming.trim(&ALL_BUT_THE_LAST).await.unwrap();
            let both = Archived::new(bus, kept);
            let found = ids(&both, Read::to_tail(&line.topic.name, 0, line.start())).await;
            assert_eq!(found.is_ok_and(|found| found == line.ids[0]), mutant.is_none(), "{mutant:?}");
        }
    }

    #[tokio::test]
    async fn a_generation_that_is_begun_early_loses_events() {
        for mutant in [None, Some(Mutant::BeginGenerationsEarly)] {
            let (bus, kept) = (log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
            let mut line = Line::on(&bus).await;
            line.append(0, 20).await;
            line.divide(2).await;
            line.append(1, 20).await;
            let copying = match mutant {
                None => archiver(&bus, &kept),
                Some(mutant) => archiver(&bus, &kept).broken(mutant),
            };
            archive(&copying).await.unwrap();
            let found = ids(&*kept, Read::to_tail(&line.topic.name, 0, line.start())).await;
            assert_eq!(found.is_ok_and(|found| found == line.ids[0]), mutant.is_none(), "{mutant:?}");
            // And it is found out when the next archiver begins.
            assert_eq!(archive(&archiver(&bus, &kept)).await.is_ok(), mutant.is_none(), "{mutant:?}");
        }
    }

    #[tokio::test]
    async fn an_archive_of_another_history_is_refused_at_the_seam() {
        for believes in [false, true] {
            let (bus, kept, foreign) = (trimmable().await, log() as Arc<dyn Bus>, log() as Arc<dyn Bus>);
            let mut line = Line::on(&bus).await;
            line.append(0, 40).await;
            let archiver = archiver(&bus, &kept);
            archive(&archiver).await.unwrap();
            archiver.trim(&Keep { events: 21, is_old: &|_| true }).await.unwrap();
            // The same incarnation, twenty other events.
            let spec = TopicSpec { incarnation: Some(line.topic.incarnation), ..orders() };
            let topic = foreign.ensure_topic(&spec).await.unwrap();
            foreign.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
            let mut other = Line { bus: Arc::clone(&foreign), topic, ids: vec![Vec::new()] };
            other.append(0, 20).await;
            let both = match believes {
                false => Archived::new(bus, foreign),
                true => Archived::believing_the_seam(bus, foreign),
            };
            let found = ids(&both, Read::to_tail(&line.topic.name, 0, line.start())).await;
            match believes {
                false => assert_eq!(found.unwrap_err().kind(), Kind::OtherId),
                true => assert_eq!(found.unwrap().len(), 40, "two histories in one"),
            }
        }
    }
}

/// Archives and trims behind each append, so that whatever is read lies before the beginning of the bus.
struct TrimsBehind {
    bus: Arc<dyn Bus>,
    archive: Arc<dyn Bus>,
    both: Archived,
}

impl TrimsBehind {
    fn new(bus: Arc<dyn Bus>, archive: Arc<dyn Bus>) -> Self {
        let both = Archived::new(Arc::clone(&bus), Arc::clone(&archive));
        Self { bus, archive, both }
    }

    /// As far as it can: another handle may be ahead, or the bus be closed.
    async fn trim_behind(&self, topic: &ServiceName) {
        let archiver = Archiver::new(Arc::clone(&self.bus), Arc::clone(&self.archive), topic.clone());
        for step in 0..2 {
            let done = match step {
                0 => archive(&archiver).await,
                _ => archiver.trim(&ALL_BUT_THE_LAST).await.map(drop),
            };
            if let Err(error) = done {
                eprintln!("not trimmed: {error}");
                return;
            }
        }
    }
}

#[async_trait]
impl Bus for TrimsBehind {
    fn guarantee(&self) -> Guarantee {
        self.both.guarantee()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.both.ensure_topic(spec).await
    }
    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        self.both.topic(name).await
    }
    async fn topics(&self) -> Result<Vec<Topic>> {
        self.both.topics().await
    }
    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        self.both.raise_epoch(topic, incarnation, epoch).await
    }
    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.both.divide(topic, incarnation, epoch, generations).await
    }
    async fn append(&self, append: Append) -> Result<Appended> {
        let topic = append.topic.clone();
        let appended = self.both.append(append).await?;
        self.trim_behind(&topic).await;
        Ok(appended)
    }
    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        self.both.tails(topic).await
    }
    async fn read(&self, read: Read) -> Result<RecordStream> {
        self.both.read(read).await
    }
    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        self.both.signal(subject, signal).await
    }
    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        self.both.listen(subject, group).await
    }
    async fn register(&self, registration: &Registration) -> Result<()> {
        self.both.register(registration).await
    }
    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.both.registrations().await
    }
    async fn close(&self) {
        self.both.close().await;
    }
}

/// One bus in memory for all handles; nothing is kept when it is made anew.
struct InMemory {
    trims: bool,
    handle: tokio::sync::Mutex<Arc<dyn Bus>>,
}

impl InMemory {
    async fn new(trims: bool) -> Arc<Self> {
        Arc::new(Self { trims, handle: tokio::sync::Mutex::new(Self::made(trims).await) })
    }

    async fn made(trims: bool) -> Arc<dyn Bus> {
        match trims {
            true => Arc::new(TrimsBehind::new(trimmable().await, log())),
            false => Arc::new(Archived::new(log(), log())),
        }
    }
}

#[async_trait]
impl Factory for InMemory {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::clone(&*self.handle.lock().await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        *self.handle.lock().await = Self::made(self.trims).await;
        self.handle().await
    }
}

#[tokio::test]
async fn the_embedded_log_with_an_embedded_archive_passes_the_suite() {
    let abilities = Abilities { trims: TRIMS, reopens: SHARED, ..Abilities::all() };
    conformance::run("embedded, archived", abilities, InMemory::new(false).await).await;
}

#[tokio::test]
async fn a_bus_that_is_trimmed_behind_each_append_passes_the_suite_with_its_archive() {
    let abilities = Abilities { trims: TRIMS, reopens: SHARED, ..Abilities::all() };
    conformance::run("model, trimmed", abilities, InMemory::new(true).await).await;
}

#[cfg(all(feature = "postgres", feature = "redis"))]
mod servers {
    //! Redis, and its archive in PostgreSQL. Invariant: each test has a namespace of its own on both.

    use super::*;

    fn server(variable: &str) -> Option<String> {
        let url = std::env::var(variable).ok();
        if url.is_none() {
            eprintln!(
                "skipped: archives of Redis in PostgreSQL: {variable} is not set; run cargo xtask test --install"
            );
        }
        url
    }

    /// The addresses of both.
    fn urls() -> Option<(String, String)> {
        let (redis, postgres) = (server("TOMBOLO_TEST_REDIS")?, server("TOMBOLO_TEST_POSTGRES")?);
        let namespace = format!("archive-{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        Some((format!("{redis}?namespace={namespace}"), format!("{postgres}?namespace={namespace}")))
    }

    struct Servers(String, String);

    impl Servers {
        async fn connect(&self) -> (Arc<dyn Bus>, Arc<dyn Bus>) {
            let bus = Arc::new(tombolo_bus::redis::connect(&self.0).await.unwrap());
            (bus, Arc::new(tombolo_bus::postgres::connect(&self.1).await.unwrap()))
        }
    }

    #[async_trait]
    impl Factory for Servers {
        async fn handle(&self) -> Arc<dyn Bus> {
            let (bus, kept) = self.connect().await;
            Arc::new(TrimsBehind::new(bus, kept))
        }
        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn archivers_that_die_lose_and_double_nothing() {
        let Some((bus, kept)) = urls() else { return };
        let (bus, kept) = Servers(bus, kept).connect().await;
        dying_archivers_lose_and_double_nothing(bus, kept).await;
    }

    #[tokio::test]
    async fn redis_that_is_trimmed_behind_each_append_passes_the_suite_with_its_archive() {
        let Some((bus, kept)) = urls() else { return };
        let filters = Ability::Cannot("a stream is read whole: Redis looks into no entry");
        let abilities = Abilities { filters, trims: TRIMS, reopens: SHARED, ..Abilities::all() };
        conformance::run("redis, trimmed", abilities, Arc::new(Servers(bus, kept))).await;
    }
}
