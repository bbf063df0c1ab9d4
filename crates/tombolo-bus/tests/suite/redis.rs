//! The suite on real Redis servers: the one that `TOMBOLO_TEST_REDIS` names, and one of our own that is killed with
//! SIGKILL whenever a case reopens the bus. And what this engine alone can get wrong.
//! Invariant: only servers that this test started are killed, and each of them is.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use redis::{Value, cmd};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::redis::{self as engine, Redis};
use tombolo_bus::signal::SIGNAL_BYTES_MAX;
use tombolo_bus::{Append, Bus, Kind, Reach, Read, Signal};
use tombolo_event::Cursor;

use crate::load::{self, Killable, acknowledged_before_a_kill_is_there_after, orders, record};

const FILTERS: Ability = Ability::Cannot("a stream is read whole: Redis looks into no entry");
/// As `cargo xtask services` starts it.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// The server that the environment names; says so if there is none.
fn shared(what: &str) -> Option<String> {
    let url = std::env::var("TOMBOLO_TEST_REDIS").ok();
    if url.is_none() {
        eprintln!("skipped: {what}: TOMBOLO_TEST_REDIS is not set; run cargo xtask test --install");
    }
    url
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

async fn connect(url: &str) -> Redis {
    engine::connect(url).await.unwrap_or_else(|error| panic!("failed to connect: {error}"))
}

/// What is wrong with `url`.
async fn refusal(url: &str) -> tombolo_bus::Error {
    engine::connect(url).await.map(drop).unwrap_err()
}

async fn bare(server: &str) -> redis::aio::MultiplexedConnection {
    redis::Client::open(server).unwrap().get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test]
async fn redis_passes_the_suite() {
    let Some(server) = shared("the suite on Redis") else { return };
    let url = format!("{server}?namespace={}", unique("suite"));
    let reopens = Ability::Cannot("the server is shared with other tests; the private one is killed instead");
    let abilities = Abilities { filters: FILTERS, reopens, ..Abilities::all() };
    conformance::run("redis", abilities, Arc::new(Shared { url })).await;
}

#[tokio::test]
async fn redis_passes_the_suite_while_its_server_is_killed() {
    if shared("the suite on a Redis server that is killed").is_none() {
        return;
    }
    let server = Arc::new(Private::start(&DURABLE).await);
    let abilities = Abilities { filters: FILTERS, ..Abilities::all() };
    conformance::run("redis, killed", abilities, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_acknowledged_before_a_kill_is_there_once_and_in_order() {
    if shared("a Redis server that is killed under load").is_none() {
        return;
    }
    acknowledged_before_a_kill_is_there_after(&Private::start(&DURABLE).await).await;
}

#[tokio::test]
async fn keys_that_are_not_ours_are_not_touched() {
    let Some(server) = shared("foreign keys on Redis") else { return };
    let mut client = bare(&server).await;
    for (key, kind) in [("topic", "string"), ("topic", "hash"), ("0", "stream"), ("ends", "set")] {
        let namespace = unique("foreign");
        let name = format!("tombolo:{namespace}:{{orders}}:{key}");
        let make: &[&str] = match kind {
            "string" => &["SET", &name, "theirs"],
            "hash" => &["HSET", &name, "mark", "theirs"],
            "stream" => &["XADD", &name, "1-0", "theirs", "1"],
            _ => &["SADD", &name, "theirs"],
        };
        cmd(make[0]).arg(&make[1..]).query_async::<Value>(&mut client).await.unwrap();
        let before: Vec<u8> = cmd("DUMP").arg(&name).query_async(&mut client).await.unwrap();
        let bus = connect(&format!("{server}?namespace={namespace}")).await;
        let error = bus.ensure_topic(&orders()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TopicDiffers, "{kind}: {error}");
        let after: Vec<u8> = cmd("DUMP").arg(&name).query_async(&mut client).await.unwrap();
        assert_eq!(after, before, "the {kind} of others is as it was");
    }
}

#[tokio::test]
async fn settings_that_lose_events_are_refused_by_name_also_after_a_restart() {
    if shared("unsafe settings of Redis").is_none() {
        return;
    }
    let server = Private::start(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let error = refusal(&server.url()).await;
    assert_eq!(error.kind(), Kind::Unsafe);
    assert!(
        error.to_string().contains("appendfsync everysec") && error.to_string().contains("accept=unsynced")
    );
    let bus = connect(&format!("{}&accept=unsynced", server.url())).await;
    assert!(!bus.guarantee().survives_power_cut);
    bus.ensure_topic(&orders()).await.unwrap();
    let mut client = bare(&server.plain_url()).await;
    for (name, value, accept) in
        [("appendfsync", "always", ""), ("maxmemory-policy", "allkeys-lru", "evicting")]
    {
        cmd("CONFIG").arg("SET").arg(name).arg(value).query_async::<Value>(&mut client).await.unwrap();
        match accept {
            "" => assert!(connect(&server.url()).await.guarantee().survives_power_cut),
            accept => {
                let error = refusal(&server.url()).await;
                assert!(error.kind() == Kind::Unsafe && error.to_string().contains(accept), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_told() {
    if shared("wrong passwords on Redis").is_none() {
        return;
    }
    let server = Private::start(&[&DURABLE[..], &["--requirepass", "right-secret"]].concat()).await;
    let place = server.plain_url().split_once("://").unwrap().1.to_owned();
    for url in [format!("redis://:wrong-secret@{place}"), format!("redis://{place}")] {
        let error = refusal(&url).await;
        assert_eq!(error.kind(), Kind::Configuration, "{error}");
        assert!(!format!("{error} {error:?}").contains("-secret"), "{error:?}");
    }
    connect(&format!("redis://:right-secret@{place}")).await.ensure_topic(&orders()).await.unwrap();
}

#[tokio::test]
async fn a_server_without_memory_takes_nothing_and_loses_nothing() {
    if shared("a Redis server without memory").is_none() {
        return;
    }
    let server = Private::start(&DURABLE).await;
    let bus = connect(&server.url()).await;
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let append = |sequence| Append {
        topic: topic.name.clone(),
        incarnation: topic.incarnation,
        epoch: 1,
        partition: 0,
        records: vec![record(sequence)],
    };
    bus.append(append(1)).await.unwrap();
    let mut client = bare(&server.plain_url()).await;
    let mut limit = async |bytes: &str| {
        cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query_async::<Value>(&mut client).await.unwrap()
    };
    limit("1").await;
    assert_eq!(bus.append(append(2)).await.unwrap_err().kind(), Kind::ReadOnly);
    limit("0").await;
    assert_eq!(bus.tails(&topic.name).await.unwrap()[0].sequence, 1);
    let second = append(2);
    let first = Cursor::at(topic.incarnation, 2, second.records[0].id);
    bus.append(second).await.unwrap();
    limit("1").await;
    bus.trim(&topic.name, 0, first).await.unwrap();
    let start = Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation));
    assert_eq!(bus.read(start).await.err().unwrap().kind(), Kind::Trimmed, "a full server can make room");
    limit("0").await;
    bus.append(append(3)).await.unwrap();
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_given_to_it_again() {
    if shared("a Redis server that forgets its scripts").is_none() {
        return;
    }
    let server = Private::start(&DURABLE).await;
    let bus = connect(&server.url()).await;
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    let mut client = bare(&server.plain_url()).await;
    cmd("SCRIPT").arg("FLUSH").query_async::<Value>(&mut client).await.unwrap();
    let forgotten = bus.raise_epoch(&topic.name, topic.incarnation, 1).await;
    assert_eq!(forgotten.unwrap_err().kind(), Kind::Unavailable);
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
}

#[tokio::test]
async fn an_entry_that_somebody_deleted_is_named_and_never_passed_over() {
    let Some(server) = shared("deleted entries on Redis") else { return };
    let namespace = unique("deleted");
    let bus = connect(&format!("{server}?namespace={namespace}")).await;
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let (name, incarnation) = (topic.name.clone(), topic.incarnation);
    let records = (1..=5).map(record).collect();
    bus.append(Append { topic: name, incarnation, epoch: 1, partition: 0, records }).await.unwrap();
    let mut client = bare(&server).await;
    for (gone, read_before) in [("3-0", 2), ("5-0", 2), ("1-0", 0)] {
        let stream = format!("tombolo:{namespace}:{{orders}}:0");
        cmd("XDEL").arg(stream).arg(gone).query_async::<Value>(&mut client).await.unwrap();
        let read = Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation));
        let batches: Vec<_> = bus.read(read).await.unwrap().collect().await;
        let read: usize = batches.iter().flatten().map(|batch| batch.records.len()).sum();
        assert!(read <= read_before, "nothing behind the gap is read");
        let error = batches.into_iter().find_map(Result::err).expect("the gap is an error");
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
}

#[tokio::test]
async fn the_largest_signal_arrives_whole() {
    let Some(server) = shared("large signals on Redis") else { return };
    let url = format!("{server}?namespace={}", unique("large"));
    let (sender, hearer) = (connect(&url).await, connect(&url).await);
    let mut heard = hearer.listen("large", Some("g")).await.unwrap();
    let payload: Bytes = (0..SIGNAL_BYTES_MAX).map(|at| at as u8).collect::<Vec<u8>>().into();
    let sent = Signal { reply_to: Some("answer".into()), payload };
    assert_eq!(sender.signal("large", sent.clone()).await.unwrap(), Reach::Somebody);
    let heard = tokio::time::timeout(Duration::from_secs(20), heard.next()).await.unwrap();
    assert!(heard == Some(sent));
}

#[tokio::test]
async fn a_redis_that_is_away_is_said_at_once_and_found_again() {
    if shared("a Redis server that goes away").is_none() {
        return;
    }
    let server = Private::start(&DURABLE).await;
    let bus = connect(&server.url()).await;
    bus.ensure_topic(&orders()).await.unwrap();
    let mut heard = bus.listen("subject", None).await.unwrap();
    server.kill().await;
    load::away(&bus).await;
    let late = connect(&server.url()).await;
    assert_eq!(late.topics().await.unwrap_err().kind(), Kind::Unavailable);
    server.run().await;
    for bus in [&bus, &late] {
        load::eventually(bus).await;
        assert!(bus.topic(&orders().name).await.is_ok());
    }
    // A listener is known again to the server by itself.
    let signal = Signal { reply_to: None, payload: Bytes::from_static(b"again") };
    let again = async { while late.signal("subject", signal.clone()).await.unwrap() == Reach::Nobody {} };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("the listener is known again");
    assert_eq!(heard.next().await, Some(signal));
}

#[tokio::test]
#[ignore = "slow: waits until a server that has stopped answering is given up"]
async fn a_redis_that_stops_answering_is_given_up() {
    if shared("a Redis server that stops answering").is_none() {
        return;
    }
    let server = Private::start(&DURABLE).await;
    let bus = connect(&server.url()).await;
    bus.ensure_topic(&orders()).await.unwrap();
    server.signal("STOP").await;
    let asked = tokio::time::timeout(Duration::from_secs(30), bus.topics()).await;
    server.signal("CONT").await;
    assert_eq!(asked.expect("a silent server is given up").unwrap_err().kind(), Kind::Unavailable);
    load::eventually(&bus).await;
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
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
}

impl Private {
    async fn start(settings: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let server = Self { folder: tempfile::tempdir().unwrap(), port, settings, process: Mutex::default() };
        server.run().await;
        server
    }

    async fn run(&self) {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--dir"])
            .arg(self.folder.path())
            .args(&self.settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server is installed where TOMBOLO_TEST_REDIS is set");
        *self.process.lock().await = Some(process);
        let client = redis::Client::open(self.plain_url()).unwrap();
        let starting = async {
            loop {
                let Ok(mut client) = client.get_multiplexed_async_connection().await else { continue };
                match cmd("PING").query_async::<Value>(&mut client).await {
                    Err(error) if error.code() != Some("NOAUTH") => {}
                    _ => break,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), starting).await.expect("the server starts within 30 s");
    }

    async fn signal(&self, signal: &str) {
        if let Some(process) = self.process.lock().await.as_ref().and_then(Child::id) {
            let kill =
                std::process::Command::new("kill").args([format!("-{signal}"), process.to_string()]).status();
            assert!(kill.unwrap().success());
        }
    }

    async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            process.kill().await.unwrap();
        }
    }

    fn plain_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn url(&self) -> String {
        format!("{}?namespace=private", self.plain_url())
    }
}

#[async_trait]
impl Killable for Private {
    async fn kill_and_run(&self) {
        self.kill().await;
        self.run().await;
    }

    async fn connected(&self) -> Arc<dyn Bus> {
        Arc::new(connect(&self.url()).await)
    }
}

#[async_trait]
impl Factory for Private {
    async fn handle(&self) -> Arc<dyn Bus> {
        self.connected().await
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.kill_and_run().await;
        self.connected().await
    }
}

#[cfg(feature = "mutants")]
mod broken {
    //! Connections that are broken on purpose. Invariant: each fault fails a case that passes without it.

    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::redis::Mutant;

    use super::*;

    #[tokio::test]
    async fn the_suite_catches_every_mutant_of_redis() {
        let Some(server) = shared("the mutants of Redis") else { return };
        let caught_by = [
            (Mutant::IgnoreTheEpoch, "an_append_that_was_prepared_before_a_raise_is_refused"),
            (Mutant::IgnoreTheSeals, "a_division_seals_every_earlier_partition"),
            (Mutant::AcknowledgeAnyRepeat, "another_id_under_a_stored_number_is_refused"),
            (Mutant::TakeHoles, "a_hole_is_refused"),
            (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
            (Mutant::TellAllOfAGroup, "a_signal_is_heard_by_one_of_each_group"),
        ];
        for (mutant, case) in caught_by {
            let url = format!("{server}?namespace={}", unique("mutant"));
            let whole = play(case, Arc::new(Shared { url: url.clone() })).await;
            assert_eq!(whole, Outcome::Ok, "{case} without {mutant:?}");
            let broken = play(case, Arc::new(Broken { url, mutant })).await;
            assert!(matches!(broken, Outcome::Failed(_)), "{mutant:?} is not caught by {case}");
        }
    }

    async fn play(case: &str, factory: Arc<dyn Factory>) -> Outcome {
        let abilities = Abilities { filters: FILTERS, ..Abilities::all() };
        let mut report =
            conformance::report("redis, broken?", abilities, factory, &|name| name == case).await;
        report.remove(0).1
    }

    struct Broken {
        url: String,
        mutant: Mutant,
    }

    #[async_trait]
    impl Factory for Broken {
        async fn handle(&self) -> Arc<dyn Bus> {
            Arc::new(Redis::connect_broken(&self.url, self.mutant).await.unwrap())
        }

        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }
}
