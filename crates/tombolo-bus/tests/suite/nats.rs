//! The suite on real NATS servers: the one that `TOMBOLO_TEST_NATS` names, and one of our own that is killed with
//! SIGKILL whenever a case reopens the bus. And what this engine alone can get wrong.
//! Invariant: only servers that this test started are killed, and each of them is.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, StorageType};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory, Outcome};
use tombolo_bus::nats::{self, Mutant, Nats};
use tombolo_bus::{Bus, Kind, TopicSpec};
use tombolo_event::ServiceName;

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
    nats::connect(url).await.unwrap_or_else(|error| panic!("failed to connect to {url}: {error}"))
}

#[tokio::test]
async fn nats_passes_the_suite() {
    let Some(server) = shared("the suite on NATS") else { return };
    let url = format!("{server}/{}", unique("suite"));
    let record_bytes_max = connect(&url).await.record_bytes_max();
    let reopens = Ability::Cannot("the server is shared with other tests; the private one is killed instead");
    let abilities = Abilities { filters: FILTERS, reopens, record_bytes_max, ..Abilities::all() };
    conformance::run("nats", abilities, Arc::new(Shared { url, mutant: None })).await;
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
async fn the_suite_catches_every_mutant_of_nats() {
    let Some(server) = shared("the mutants of NATS") else { return };
    let caught_by = [
        (Mutant::ChainBySequenceAlone, "the_tails_of_a_raise_are_final_for_older_epochs"),
        (Mutant::AnswerFromMemory, "a_repeat_under_an_older_epoch_is_refused"),
        (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
        (Mutant::IgnoreTheEpoch, "an_append_that_was_prepared_before_a_raise_is_refused"),
    ];
    for (mutant, case) in caught_by {
        for (mutant, expected) in [(None, true), (Some(mutant), false)] {
            let factory = Arc::new(Shared { url: format!("{server}/{}", unique("mutant")), mutant });
            let abilities = Abilities { filters: FILTERS, ..Abilities::all() };
            let report =
                conformance::report(&format!("nats, {mutant:?}"), abilities, factory, &|name| name == case)
                    .await;
            let passed = report[0].1 == Outcome::Ok;
            assert_eq!(passed, expected, "{mutant:?} in {case}: {report:?}");
        }
    }
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
    let spec = TopicSpec { name: ServiceName::new("orders").unwrap(), partitions: 1 };
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
    let spec = TopicSpec { name: ServiceName::new("orders").unwrap(), partitions: 1 };
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
    let spec = TopicSpec { name: ServiceName::new("orders").unwrap(), partitions: 1 };
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
    let back = async {
        while let Err(error) = bus.topic(&spec.name).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await.unwrap_err();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.unwrap();
    server.kill().await;
}

/// A server that other tests use too; each handle is a connection.
struct Shared {
    url: String,
    mutant: Option<Mutant>,
}

#[async_trait]
impl Factory for Shared {
    async fn handle(&self) -> Arc<dyn Bus> {
        match self.mutant {
            None => Arc::new(connect(&self.url).await),
            Some(mutant) => Arc::new(Nats::connect_broken(&self.url, mutant).await.unwrap()),
        }
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

/// A server of our own, on a free port, in a scratch folder.
struct Private {
    folder: TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl Private {
    async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { folder: tempfile::tempdir().unwrap(), port, process: Mutex::default() };
        let store = server.folder.path().join("store");
        // A little above the largest event, so that the largest is really sent.
        let settings = format!("max_payload: 2MB\njetstream {{ store_dir: {store:?} }}\n");
        std::fs::write(server.folder.path().join("nats.conf"), settings).unwrap();
        server.run().await;
        server
    }

    async fn run(&self) {
        let settings = self.folder.path().join("nats.conf");
        let process = Command::new("nats-server")
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

    async fn connected(&self) -> Nats {
        let url = format!("nats://127.0.0.1:{}/private", self.port);
        let starting = async {
            loop {
                match nats::connect(&url).await {
                    Ok(bus) => break bus,
                    Err(_) => tokio::task::yield_now().await,
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
