//! The suite on real NATS servers: the one that `TOMBOLO_TEST_NATS` names, and one of our own that is killed with
//! SIGKILL whenever a case reopens the bus. And what this engine alone can get wrong.
//! Invariant: only servers that this test started are killed, and each of them is.

mod cluster;
mod faults;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream::{Config, StorageType};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::nats::{self, Nats};
use tombolo_bus::{Append, Bus, Kind, Read, Record, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations, ServiceName};

const FILTERS: Ability = Ability::Cannot(
    "JetStream filters by subject, and the order of a partition needs one subject for all its types",
);

/// The server that the environment names; says so if there is none.
fn shared(what: &str) -> Option<String> {
    let url = std::env::var("TOMBOLO_TEST_NATS").ok();
    if url.is_none() {
        eprintln!("skipped: {what}: TOMBOLO_TEST_NATS is not set; run cargo xtask test --install");
    }
    url.map(|url| url.trim_end_matches('/').to_owned())
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

async fn connect(url: &str) -> Nats {
    let accepting = format!("{url}?accept=unsynced");
    nats::connect(&accepting).await.unwrap_or_else(|error| panic!("failed to connect to {url}: {error}"))
}

#[tokio::test]
async fn a_server_that_may_not_sync_is_refused_unless_that_is_accepted_by_name() {
    let refused = nats::connect("nats://127.0.0.1:1").await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsafe);
    assert!(refused.to_string().contains("accept=unsynced"), "{refused}");
    let replicas = nats::connect("nats://127.0.0.1:1?replicas=3").await.map(drop).unwrap_err();
    assert!(replicas.to_string().contains("majority of them at once"), "{replicas}");
    let accepted = nats::connect("nats://127.0.0.1:1?replicas=3&accept=unsynced").await.unwrap();
    assert!(accepted.guarantee().detail.contains("2 of 3 servers"), "{:?}", accepted.guarantee());
}

#[tokio::test]
async fn a_server_alone_is_not_enough_for_replicas_and_a_stream_on_one_is_refused_where_three_are_asked_for()
{
    let Some(program) = cluster::program("replicas on one NATS server") else { return };
    let server = Private::start_of(program).await;
    let spec = TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap());
    let three = nats::connect(&format!("{}?replicas=3&accept=unsynced", server.url())).await.unwrap();
    let refused = three.ensure_topic(&spec).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
    assert!(refused.to_string().contains("replicas=3"), "{refused}");
    connect(&server.url()).await.ensure_topic(&spec).await.unwrap();
    let refused = three.ensure_topic(&spec).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsafe, "{refused}");
    assert!(refused.to_string().contains("kept on 1 of the servers; expected 3"), "{refused}");
}

#[tokio::test]
async fn replicas_are_refused_on_servers_whose_clusters_lose_what_they_acknowledged() {
    let Some(server) = shared("replicas on an old NATS server") else { return };
    let version = async_nats::connect(&server).await.unwrap().server_info().version;
    if !version.starts_with("2.9.") {
        eprintln!("skipped: replicas on an old NATS server: this one is {version}");
        return;
    }
    let refused = nats::connect(&format!("{server}?replicas=3&accept=unsynced")).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
    assert!(refused.to_string().contains(&format!("{version}, and")), "{refused}");
    assert!(refused.to_string().contains("2.12 or later"), "{refused}");
}

#[tokio::test]
async fn nats_passes_the_suite() {
    let Some(server) = shared("the suite on NATS") else { return };
    let url = format!("{server}/{}", unique("suite"));
    let record_bytes_max = connect(&url).await.record_bytes_max();
    let reopens = Ability::Cannot("the server is shared with other tests; the private one is killed instead");
    let abilities = Abilities { filters: FILTERS, reopens, record_bytes_max, ..Abilities::all() };
    conformance::run("nats", abilities, Arc::new(Shared { url })).await;
}

#[tokio::test]
async fn nats_passes_the_suite_while_its_server_is_killed() {
    if shared("the suite on a NATS server that is killed").is_none() {
        return;
    }
    let server = Arc::new(Private::start().await);
    let abilities = Abilities { filters: FILTERS, ..Abilities::all() };
    conformance::run("nats, killed", abilities, server).await;
}

#[tokio::test]
async fn a_stream_that_is_not_ours_is_not_touched() {
    let Some(server) = shared("foreign streams on NATS") else { return };
    let namespace = unique("foreign");
    let client = async_nats::connect(&server).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let stream = Config {
        name: format!("tombolo_{namespace}_topic_orders"),
        subjects: vec![format!("{namespace}.anything")],
        storage: StorageType::File,
        ..Config::default()
    };
    let made = jetstream.create_stream(stream.clone()).await.unwrap();
    let bus = connect(&format!("{server}/{namespace}")).await;
    let spec = TopicSpec::new(ServiceName::new("orders").unwrap(), Generations::first(1).unwrap());
    let error = bus.ensure_topic(&spec).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TopicDiffers, "{error}");
    let info = made.get_info().await.unwrap();
    assert_eq!((info.state.messages, info.config.subjects), (0, stream.subjects));
}

#[tokio::test]
async fn settings_that_lose_events_are_refused_by_name() {
    let Some(server) = shared("unsafe settings on NATS") else { return };
    let namespace = unique("unsafe");
    let bus = connect(&format!("{server}/{namespace}")).await;
    let spec = TopicSpec::new(ServiceName::new("orders").unwrap(), Generations::first(1).unwrap());
    let topic = bus.ensure_topic(&spec).await.unwrap();
    let jetstream = async_nats::jetstream::new(async_nats::connect(&server).await.unwrap());
    let stream = jetstream.get_stream(format!("tombolo_{namespace}_topic_orders")).await.unwrap();
    let good = stream.cached_info().config.clone();
    let bad = [
        ("max_age", Config { max_age: Duration::from_secs(3600), ..good.clone() }),
        ("max_msgs", Config { max_messages: 1_000_000, ..good.clone() }),
        ("max_bytes", Config { max_bytes: 1 << 30, ..good.clone() }),
        ("discard", Config { discard: async_nats::jetstream::stream::DiscardPolicy::Old, ..good.clone() }),
    ];
    for (name, settings) in bad {
        jetstream.update_stream(settings).await.unwrap();
        let error = bus.raise_epoch(&spec.name, topic.incarnation, 1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    jetstream.update_stream(good).await.unwrap();
    bus.raise_epoch(&spec.name, topic.incarnation, 1).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_is_said_at_once_and_found_again() {
    if shared("a NATS server that goes away").is_none() {
        return;
    }
    let server = Private::start().await;
    let bus = server.connected().await;
    let spec = TopicSpec::new(ServiceName::new("orders").unwrap(), Generations::first(1).unwrap());
    bus.ensure_topic(&spec).await.unwrap();
    server.kill().await;
    let away = async {
        loop {
            match bus.topic(&spec.name).await {
                Err(error) => break error,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), away).await.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    server.run().await;
    eventually(&bus).await;
    assert!(bus.topic(&spec.name).await.is_ok());
    server.kill().await;
}

#[tokio::test]
async fn who_we_are_stands_in_the_address_and_who_is_not_let_in_is_told_so() {
    if shared("accounts of a NATS server").is_none() {
        return;
    }
    let settings = "authorization { user: shop, password: \"a/secret\" }\n";
    let server = Private::start_for("shop:a%2Fsecret@", settings).await;
    for login in ["shop:wrong@", "secret@", ""] {
        let url = format!("nats://{login}127.0.0.1:{}?accept=unsynced", server.port);
        let refused = nats::connect(&url).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
        assert!(refused.to_string().contains("check user and password"), "{refused}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_no_error() {
    if shared("a NATS server that starts late").is_none() {
        return;
    }
    let server = Private::start().await;
    server.kill().await;
    let bus = connect(&server.url()).await;
    assert_eq!(bus.topics().await.unwrap_err().kind(), Kind::Unavailable);
    server.run().await;
    eventually(&bus).await;
    server.kill().await;
}

/// Waits until the bus answers again.
async fn eventually(bus: &Nats) {
    let back = async {
        while let Err(error) = bus.topics().await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("the bus answers again within 30 s");
}

const KILLS: usize = 3;
const ROUND: u64 = 50;

/// One relay appends without end, one reader follows; the server is killed while both are at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_kill_is_there_once_and_in_order() {
    if shared("a NATS server that is killed under load").is_none() {
        return;
    }
    let server = Arc::new(Private::start().await);
    let bus = Arc::new(server.connected().await);
    let topic = bus
        .ensure_topic(&TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap()))
        .await
        .unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let (told, mut heard) = watch::channel(0_u64);
    let stop = Arc::new(AtomicBool::new(false));
    let relay = tokio::spawn(relay(Arc::clone(&bus), topic.clone(), told, Arc::clone(&stop)));
    for _ in 0..KILLS {
        let more = *heard.borrow() + 10 * ROUND;
        let appended = heard.wait_for(|acknowledged| *acknowledged >= more);
        tokio::time::timeout(Duration::from_secs(60), appended).await.unwrap().unwrap();
        server.kill().await;
        server.run().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = tokio::time::timeout(Duration::from_secs(60), relay).await.unwrap().unwrap();
    let found =
        tokio::time::timeout(Duration::from_secs(60), read(&server.connected().await, &topic, sent.len()))
            .await;
    assert!(found.unwrap() == sent, "the log holds what was acknowledged, once and in order");
    server.kill().await;
}

/// Appends rounds, each again until it is acknowledged, as a relay with its outbox does.
async fn relay(
    bus: Arc<Nats>,
    topic: Topic,
    told: watch::Sender<u64>,
    stop: Arc<AtomicBool>,
) -> Vec<EventId> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let first = sent.len() as u64 + 1;
        let records: Vec<_> = (first..first + ROUND).map(record).collect();
        sent.extend(records.iter().map(|record| record.id));
        let (incarnation, name) = (topic.incarnation, topic.name.clone());
        let append = Append { topic: name, incarnation, epoch: 1, partition: 0, records };
        loop {
            match bus.append(append.clone()).await {
                Ok(appended) => break assert_eq!(appended.last, first + ROUND - 1),
                Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
            }
            tokio::task::yield_now().await;
        }
        told.send_replace(sent.len() as u64);
    }
    sent
}

fn record(sequence: u64) -> Record {
    let (id, event_type) = (EventId::new(), Bytes::from_static(b"suite.happened.v1"));
    Record { sequence, id, event_type, bytes: vec![1; 200].into() }
}

async fn read(bus: &Nats, topic: &Topic, count: usize) -> Vec<EventId> {
    let mut batches =
        bus.read(Read::following(&topic.name, 0, Cursor::start(topic.incarnation))).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let batch = batches.next().await.unwrap().unwrap();
        assert_eq!(batch.first, found.len() as u64 + 1);
        found.extend(batch.records.iter().map(|record| record.id));
    }
    found
}

/// A server that other tests use too; each handle is a connection.
struct Shared {
    url: String,
}

#[async_trait]
impl Factory for Shared {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(connect(&self.url).await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

/// A server of our own, on a free port, in a scratch folder.
struct Private {
    program: PathBuf,
    folder: TempDir,
    port: u16,
    /// Who we are, as it stands in its address.
    login: &'static str,
    process: Mutex<Option<Child>>,
}

impl Private {
    async fn start() -> Self {
        Self::start_for("", "").await
    }

    /// One that has these settings, too, and lets only `login` in.
    async fn start_for(login: &'static str, settings: &str) -> Self {
        Self::start_with("nats-server".into(), login, settings).await
    }

    /// One of another version.
    async fn start_of(program: PathBuf) -> Self {
        Self::start_with(program, "", "").await
    }

    async fn start_with(program: PathBuf, login: &'static str, settings: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let server = Self { program, folder, port, login, process: Mutex::default() };
        let store = server.folder.path().join("store");
        // A little above the largest event, so that the largest is really sent.
        let settings = format!("max_payload: 2MB\njetstream {{ store_dir: {store:?} }}\n{settings}");
        std::fs::write(server.folder.path().join("nats.conf"), settings).unwrap();
        server.run().await;
        server
    }

    async fn run(&self) {
        let settings = self.folder.path().join("nats.conf");
        let process = Command::new(&self.program)
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string(), "--config"])
            .arg(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nats-server is installed where TOMBOLO_TEST_NATS is set");
        *self.process.lock().await = Some(process);
        drop(self.connected().await);
    }

    async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            process.kill().await.unwrap();
        }
    }

    fn url(&self) -> String {
        format!("nats://{}127.0.0.1:{}/private", self.login, self.port)
    }

    async fn connected(&self) -> Nats {
        let url = self.url();
        let starting = async {
            loop {
                let bus = connect(&url).await;
                match bus.topics().await {
                    Ok(_) => break bus,
                    Err(_) => bus.close().await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), starting).await.expect("the server starts within 20 s")
    }
}

#[async_trait]
impl Factory for Private {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(self.connected().await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.kill().await;
        self.run().await;
        self.handle().await
    }
}

#[cfg(feature = "mutants")]
mod broken {
    //! Connections that are broken on purpose. Invariant: each fault fails a case that passes without it.

    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::nats::Mutant;

    use super::*;

    #[tokio::test]
    async fn the_suite_catches_every_mutant_of_nats() {
        let Some(server) = shared("the mutants of NATS") else { return };
        let caught_by = [
            (Mutant::ChainBySequenceAlone, "what_another_relay_appended_elsewhere_leaves_no_hole"),
            (Mutant::AnswerFromMemory, "a_repeat_under_an_older_epoch_is_refused"),
            (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
            (Mutant::IgnoreTheEpoch, "an_append_that_was_prepared_before_a_raise_is_refused"),
            (Mutant::IgnoreTheSeals, "an_append_that_was_prepared_before_a_division_is_refused"),
        ];
        for (mutant, case) in caught_by {
            let url = format!("{server}/{}", unique("mutant"));
            let whole = play(case, Arc::new(Shared { url: url.clone() })).await;
            assert_eq!(whole, Outcome::Ok, "{case} without {mutant:?}");
            let broken = play(case, Arc::new(Broken { url, mutant })).await;
            assert!(matches!(broken, Outcome::Failed(_)), "{mutant:?} is not caught by {case}");
        }
    }

    async fn play(case: &str, factory: Arc<dyn Factory>) -> Outcome {
        let abilities = Abilities { filters: FILTERS, ..Abilities::all() };
        let mut report = conformance::report("nats, broken?", abilities, factory, &|name| name == case).await;
        report.remove(0).1
    }

    struct Broken {
        url: String,
        mutant: Mutant,
    }

    #[async_trait]
    impl Factory for Broken {
        async fn handle(&self) -> Arc<dyn Bus> {
            Arc::new(Nats::connect_broken(&self.url, self.mutant).await.unwrap())
        }

        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }
}
