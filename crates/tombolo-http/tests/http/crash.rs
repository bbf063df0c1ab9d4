//! The bus and its subscribers are real processes, killed, stopped and started again at random under load.
//!
//! Each subscriber writes what it gets to a file, in one write, before it answers. In the end each has every event, in order, and
//! what it has twice was marked. `TOMBOLO_CRASH_FAULTS` and `TOMBOLO_CRASH_SEED` make a long run of it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Client;
use serde_json::{Value, json};
use tombolo_bus::server::{Listen, Server};
use tombolo_http::{Door, Settings, push};

use crate::stage::open_log;
use crate::subscriber::nobody;

const ROLE: &str = "TOMBOLO_CRASH_ROLE";
const TOLD: &str = "TOMBOLO_CRASH_TOLD";
/// Faults of the short run.
const FAULTS: u32 = 14;
/// How long the rest may take, once nothing is broken any more.
const CALM_MAX: Duration = Duration::from_secs(60);
const KEYS: u64 = 7;

/// A process of this test, killed with it.
struct Process {
    role: &'static str,
    told: Value,
    child: Child,
}

impl Process {
    fn start(role: &'static str, told: Value) -> Self {
        let child = Self::spawn(role, &told);
        Self { role, told, child }
    }

    fn spawn(role: &str, told: &Value) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "crash::a_process_of_the_crash_test", "--nocapture"]);
        command.env(ROLE, role).env(TOLD, told.to_string()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.start_again();
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(self.role, &self.told);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Not a test of its own: the other processes of the one below.
#[test]
fn a_process_of_the_crash_test() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let told: Value = serde_json::from_str(&std::env::var(TOLD).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match role.as_str() {
        "bus" => runtime.block_on(be_the_bus(told)),
        _ => runtime.block_on(be_a_subscriber(told)),
    }
}

async fn be_the_bus(told: Value) {
    let folder = PathBuf::from(told["folder"].as_str().unwrap());
    let bus = open_log(&folder).await;
    let settings = Settings {
        folder: folder.join("http"),
        plain: serde_json::from_value(told["plain"].clone()).unwrap(),
        push: push(&told),
        ..Settings::default()
    };
    let door = Door::open(bus.clone(), settings).await.unwrap();
    let port = u16::try_from(told["port"].as_u64().unwrap()).unwrap();
    let listen = [Listen::Tcp { host: "127.0.0.1".into(), port }];
    let server = Server::bind(&listen, bus).await.unwrap().beside(door.routes());
    server.serve(tokio_util::sync::CancellationToken::new()).await.unwrap();
}

fn push(told: &Value) -> push::Settings {
    let subscriptions = serde_json::from_value(told["push"].clone()).unwrap();
    #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "only a mutant changes it"))]
    let mut settings = push::Settings::new(subscriptions, push::Webhooks::default());
    #[cfg(feature = "mutants")]
    {
        settings.mutant = serde_json::from_value(told["mutant"].clone()).unwrap();
    }
    settings
}

async fn be_a_subscriber(told: Value) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(told["file"].as_str().unwrap());
    let file = Arc::new(file.unwrap());
    let handler = move |headers: axum::http::HeaderMap, body: Bytes| {
        let file = file.clone();
        async move {
            let event: Value = serde_json::from_slice(&body).unwrap();
            let key = headers.get("ce-subject").map_or("", |it| it.to_str().unwrap());
            let is_marked = headers.contains_key("tombolo-redelivery");
            let mut line = String::new();
            writeln!(line, "{},{},{is_marked}", event["n"], key).unwrap();
            (&*file).write_all(line.as_bytes()).unwrap();
        }
    };
    let listener = tokio::net::TcpListener::bind(told["address"].as_str().unwrap()).await.unwrap();
    axum::serve(listener, axum::Router::new().fallback(handler)).await.unwrap();
}

/// What a subscriber got: number, key, and whether it was marked.
fn got(file: &Path) -> Vec<(u64, String, bool)> {
    let read = |line: &str| {
        let mut parts = line.split(',');
        let n = parts.next().unwrap().parse().unwrap();
        (n, parts.next().unwrap().to_owned(), parts.next().unwrap() == "true")
    };
    std::fs::read_to_string(file).unwrap_or_default().lines().map(read).collect()
}

/// Whether it got these, in this order, and twice only what was marked: how many were.
fn checked(who: &str, got: &[(u64, bool)], expected: &[u64]) -> usize {
    let (mut at, mut doubles) = (0, 0);
    for (n, is_marked) in got {
        if expected.get(at) == Some(n) {
            at += 1;
            continue;
        }
        let is_repeat = at > 0 && expected[at - 1] == *n;
        assert!(is_repeat, "{who} got {n} where {:?} was next, after {} events", expected.get(at), at);
        assert!(is_marked, "{who} got {n} twice without a mark");
        doubles += 1;
    }
    assert_eq!(at, expected.len(), "{who} missed events from {:?} on", expected.get(at));
    doubles
}

/// The bus, and then the subscribers.
type Processes = Vec<Process>;

/// By whom the bus is loaded.
struct Load {
    plain: String,
    api: String,
    client: Client,
    is_over: AtomicBool,
    acknowledged: AtomicU64,
}

impl Load {
    async fn start(folder: &Path, mutant: Value) -> (Arc<Self>, Processes) {
        let (plain, api) = (nobody().await, nobody().await);
        let mut processes = Vec::new();
        let mut url = async |name: &str| {
            let address = nobody().await;
            let told = json!({"address": address, "file": folder.join(name)});
            processes.push(Process::start("subscriber", told));
            format!("http://{address}/events")
        };
        let retry = json!({"first_ms": 5, "max_ms": 50, "attempts": 1000});
        let named = [("one", url("one").await), ("two", url("two").await)];
        let named =
            named.map(|(name, url)| json!({"name": name, "url": url, "timeout_ms": 60_000, "retry": retry}));
        let told = json!({
            "folder": folder.join("bus"), "port": api.port(), "mutant": mutant,
            "plain": [{"listen": [plain], "topic": "events", "subscribers": named}],
            "push": [{"name": "keyed", "topic": "posts", "url": url("keyed").await, "timeout_ms": 60_000, "retry": retry}],
        });
        std::fs::create_dir_all(folder.join("bus")).unwrap();
        processes.insert(0, Process::start("bus", told));
        let load = Self {
            plain: format!("http://{plain}/events"),
            api: format!("http://{api}"),
            client: Client::builder().timeout(Duration::from_secs(10)).build().unwrap(),
            is_over: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        };
        (Arc::new(load), processes)
    }

    async fn is_sent(&self, url: String, media: &str, body: String) -> bool {
        let sent = self.client.post(url).header("content-type", media).body(body).send().await;
        let is_stored = sent.is_ok_and(|it| it.status().is_success());
        self.acknowledged.fetch_add(u64::from(is_stored), Ordering::SeqCst);
        is_stored
    }

    /// Publishes plain events until it is over. What was not acknowledged may be there or not.
    async fn publish_plain(&self) -> Vec<u64> {
        let mut acknowledged = Vec::new();
        for n in 1.. {
            if self.is_over.load(Ordering::SeqCst) {
                break;
            }
            match self.is_sent(self.plain.clone(), "application/json", json!({"n": n}).to_string()).await {
                true => acknowledged.push(n),
                false => pause(5).await,
            }
        }
        acknowledged
    }

    /// Publishes events with ids and keys, each until it is acknowledged; tells how many.
    async fn publish_keyed(&self) -> u64 {
        let mut n = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            n += 1;
            let event = json!({"specversion": "1.0", "id": n.to_string(), "source": "/crash", "type": "T",
                "subject": format!("k{}", n % KEYS), "data": {"n": n}});
            let url = format!("{}/topics/posts/events", self.api);
            while !self.is_sent(url.clone(), "application/cloudevents+json", event.to_string()).await {
                pause(5).await;
            }
        }
        n
    }

    /// Waits until so many more events were acknowledged.
    async fn loaded(&self, more: u64) {
        let until = self.acknowledged.load(Ordering::SeqCst) + more;
        let reached = async {
            while self.acknowledged.load(Ordering::SeqCst) < until {
                pause(2).await;
            }
        };
        tokio::time::timeout(CALM_MAX, reached).await.unwrap();
    }

    /// Waits until everything is delivered.
    async fn calm(&self) {
        let delivered = async {
            loop {
                let answer = self.client.get(format!("{}/subscriptions", self.api)).send().await;
                if let Ok(answer) = answer {
                    let all: Value = answer.json().await.unwrap();
                    let all = all["subscriptions"].as_array().unwrap().clone();
                    let is_done = |it: &Value| {
                        it["state"] == "current" && it["in_flight"] == 0 && it["lag"]["events"] == 0
                    };
                    if all.iter().all(is_done) {
                        return;
                    }
                }
                pause(20).await;
            }
        };
        tokio::time::timeout(CALM_MAX, delivered).await.expect("everything is delivered in the end");
    }
}

/// The pace of the load and of the faults: nothing is concluded from it.
async fn pause(ms: u64) {
    drop(tokio::time::timeout(Duration::from_millis(ms), std::future::pending::<()>()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_subscriber_has_every_event_in_order_whoever_is_killed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let seed = number("TOMBOLO_CRASH_SEED").unwrap_or(20_261_129);
    let faults = number("TOMBOLO_CRASH_FAULTS").map_or(FAULTS, |it| u32::try_from(it).unwrap());
    run(Value::Null, seed, faults).await;
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_marks_nothing_or_moves_cursors_first_is_caught() {
    for (mutant, caught) in [("marks-nothing", "twice without a mark"), ("moves-first", "was next")] {
        // Whether a fault lands where it tells is chance; that none of many does is not.
        let mut said = None;
        for seed in 1..=12 {
            if let Err(broken) = tokio::spawn(run(json!(mutant), seed, FAULTS)).await {
                said = broken.into_panic().downcast::<String>().ok();
                break;
            }
        }
        let said = said.expect("the mutant is caught");
        assert!(said.contains(caught) || said.contains("missed events"), "{mutant}: {said}");
    }
}

async fn run(mutant: Value, seed: u64, faults: u32) {
    println!("seed {seed}, {faults} faults");
    let folder = tempfile::tempdir().unwrap();
    let (load, mut processes) = Load::start(folder.path(), mutant).await;
    let (plain, keyed) = (load.clone(), load.clone());
    let plain = tokio::spawn(async move { plain.publish_plain().await });
    let keyed = tokio::spawn(async move { keyed.publish_keyed().await });
    let mut chance = StdRng::seed_from_u64(seed);
    for _ in 0..faults {
        load.loaded(chance.random_range(1..80)).await;
        let victims = processes.len();
        break_one(&mut processes[chance.random_range(0..victims)], &mut chance).await;
    }
    load.is_over.store(true, Ordering::SeqCst);
    let (acknowledged, count) = (plain.await.unwrap(), keyed.await.unwrap());
    load.calm().await;

    let all: Vec<Value> = load.client.get(&load.plain).send().await.unwrap().json().await.unwrap();
    let stored: Vec<u64> = all.iter().map(|event| event["n"].as_u64().unwrap()).collect();
    assert!(acknowledged.iter().all(|n| stored.binary_search(n).is_ok()), "an acknowledged event is missing");
    let mut doubles = 0;
    for name in ["one", "two"] {
        let got: Vec<_> =
            got(&folder.path().join(name)).into_iter().map(|(n, _, marked)| (n, marked)).collect();
        doubles += checked(name, &got, &stored);
    }
    let mut by_key: HashMap<String, Vec<(u64, bool)>> = HashMap::new();
    for (n, key, is_marked) in got(&folder.path().join("keyed")) {
        by_key.entry(key).or_default().push((n, is_marked));
    }
    for key in 0..KEYS {
        let expected: Vec<u64> = (1..=count).filter(|n| n % KEYS == key).collect();
        let name = format!("k{key}");
        doubles += checked(&name, &by_key.remove(&name).unwrap_or_default(), &expected);
    }
    println!(
        "{} plain events to 2 subscribers, {count} keyed ones, {faults} faults: {doubles} doubles, all marked",
        stored.len()
    );
}

/// Kills a process and starts it again, at once or after a while; or stops it for a while.
async fn break_one(process: &mut Process, chance: &mut StdRng) {
    let while_ms = chance.random_range(1..300);
    match chance.random_range(0..3) {
        0 => process.kill_and_start_again(),
        1 => {
            process.child.kill().unwrap();
            process.child.wait().unwrap();
            pause(while_ms).await;
            process.start_again();
        }
        _ => {
            process.signal(Signal::SIGSTOP);
            pause(while_ms).await;
            process.signal(Signal::SIGCONT);
        }
    }
}
