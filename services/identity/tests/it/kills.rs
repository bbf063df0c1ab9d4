//! Identity as a process of its own, killed again and again while people register, sign in and refresh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tombolo::bus::{Bus, Cursor, Envelope, Log, Options, Read};

use crate::engines::serve;
use crate::ground::Ground;
use crate::stage::{PASSWORD, eventually};

const KILLS: usize = 8;
const WORKERS: usize = 6;
/// How many requests are answered from one kill to the next, at least and beyond that by chance.
const ANSWERED_MIN: u64 = 5;
const ANSWERED_MORE: u64 = 20;

/// A little less than for how long a used token gives its successor once more.
const GRACE: Duration = Duration::from_secs(9);

/// The process, its place and its bus.
struct Killed {
    ground: Ground,
    folder: tempfile::TempDir,
    listen: String,
    bus: String,
    key: String,
}

impl Killed {
    async fn new(bus: &str) -> Self {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let key = crate::stub::base64_standard(&[7; 32]);
        let folder = tempfile::tempdir().unwrap();
        Self { ground: Ground::new(folder.path()).await, folder, listen, bus: bus.to_owned(), key }
    }

    fn start(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo-identity"));
        command.env_clear().current_dir(self.folder.path()).kill_on_drop(true).stdin(Stdio::null());
        command.stderr(Stdio::null()).env("TOMBOLO_BUS", &self.bus).env("TOMBOLO_LISTEN", &self.listen);
        command.env("TOMBOLO_DATABASE", &self.ground.address).env("TOMBOLO_SCHEMA", "apply");
        command.env("TOMBOLO_IDENTITY_KEY", &self.key).env("TOMBOLO_REPLICA", "1").spawn().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }
}

/// What the people have been told.
#[derive(Default)]
struct Told {
    answered: AtomicUsize,
    is_over: AtomicBool,
}

impl Told {
    /// The answer to a request, if one came whole.
    async fn ask(&self, request: RequestBuilder) -> Option<(StatusCode, Value)> {
        let answer = request.timeout(Duration::from_secs(10)).send().await.ok()?;
        let (status, body) = (answer.status(), answer.text().await.ok()?);
        self.answered.fetch_add(1, Ordering::SeqCst);
        Some((status, serde_json::from_str(&body).unwrap_or_default()))
    }
}

/// A session, as its user has it.
struct Session {
    token: String,
    /// Since when an answer is missing: the token may have been used, and gives its successor once more for a while.
    unanswered: Option<Instant>,
}

impl Session {
    /// Goes on with the next token, if the answer comes; whether the session goes on as far as anybody knows.
    async fn refresh(&mut self, http: &Client, identity: &Killed, told: &Told) -> bool {
        let sent = Instant::now();
        let form = [("grant_type", "refresh_token"), ("refresh_token", self.token.as_str())];
        match told.ask(http.post(identity.url("/token")).form(&form)).await {
            Some((StatusCode::OK, tokens)) => {
                tokens["refresh_token"].as_str().unwrap().clone_into(&mut self.token);
                self.unanswered = None;
            }
            Some((StatusCode::BAD_REQUEST, said)) => {
                let is_late = self.unanswered.is_some_and(|since| since.elapsed() > GRACE);
                assert!(is_late, "a session that was answered is lost: {said}");
                return false;
            }
            Some((status, said)) => assert!(status.is_server_error(), "{status} {said}"),
            None => drop(self.unanswered.get_or_insert(sent)),
        }
        true
    }
}

/// One of the people: registers until that is answered, signs in, and refreshes until it is over. The sessions that go on then.
async fn worker(http: &Client, identity: &Killed, told: &Told, number: usize) -> Vec<Session> {
    let email = format!("user{number}@example.org");
    let body = json!({ "name": format!("User {number}"), "email": email, "password": PASSWORD });
    let register = || http.post(identity.url("/users")).json(&body);
    while told.ask(register()).await.is_none_or(|(status, _)| status != StatusCode::ACCEPTED) {}
    let mut sessions: Vec<Session> = Vec::new();
    while !told.is_over.load(Ordering::SeqCst) {
        if sessions.len() < 3 {
            let sign_in =
                http.post(identity.url("/sign-in")).json(&json!({ "email": email, "password": PASSWORD }));
            if let Some((StatusCode::OK, tokens)) = told.ask(sign_in).await {
                let token = tokens["refresh_token"].as_str().unwrap().to_owned();
                sessions.push(Session { token, unanswered: None });
            }
        }
        let mut going_on = Vec::new();
        for mut session in sessions {
            if session.refresh(http, identity, told).await {
                going_on.push(session);
            }
        }
        sessions = going_on;
    }
    sessions
}

/// Kills the process when some requests were answered, and starts it again.
async fn kill(identity: &Killed, told: &Told, seed: u64) -> Child {
    let (mut child, mut chance) = (identity.start(), seed);
    for _ in 0..KILLS {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let more = usize::try_from(ANSWERED_MIN + (chance >> 33) % ANSWERED_MORE).unwrap();
        let until = told.answered.load(Ordering::SeqCst) + more;
        eventually("requests are answered", async || told.answered.load(Ordering::SeqCst) >= until).await;
        child.kill().await.unwrap();
        child = identity.start();
    }
    told.is_over.store(true, Ordering::SeqCst);
    child
}

/// Who registered, as the topic says, and how often.
async fn said(bus: &Arc<dyn Bus>) -> BTreeMap<String, usize> {
    let topic = bus.topic(&"identity".parse().unwrap()).await.unwrap();
    let mut said = BTreeMap::new();
    for partition in 0..topic.partitions() {
        let read = Read::to_tail(&topic.name, partition, Cursor::start(topic.incarnation));
        let mut batches = bus.read(read).await.unwrap();
        while let Some(batch) = batches.next().await {
            for record in batch.unwrap().records {
                let event = Envelope::decode(record.bytes).unwrap();
                if event.event_type == "identity.registered.v1" {
                    *said.entry(event.key).or_default() += 1;
                }
            }
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_it_loses_no_session_and_stores_nobody_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
    let (address, _serving) = serve(&log, "tombolo://127.0.0.1:0").await;
    let identity = Killed::new(&address).await;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let (http, told) = (Client::builder().no_proxy().build().unwrap(), Told::default());
    let people = join_all((0..WORKERS).map(|number| worker(&http, &identity, &told, number)));
    let (sessions, _child) = futures_util::future::join(people, kill(&identity, &told, seed)).await;
    let sessions: Vec<Session> = sessions.into_iter().flatten().collect();
    assert!(sessions.len() >= WORKERS, "{} sessions", sessions.len());
    eventually("it runs", async || {
        told.ask(http.get(identity.url("/ready"))).await.is_some_and(|(status, _)| status.is_success())
    })
    .await;
    for mut session in sessions {
        session.refresh(&http, &identity, &told).await;
    }
    let all = "SELECT users.id, account FROM users LEFT JOIN passwords ON user_id = users.id";
    let stored: Vec<(String, String)> = identity.ground.rows(all).await;
    assert_eq!(stored.len(), WORKERS, "each once, with one password: {stored:?}");
    let ids: BTreeSet<String> = stored.into_iter().map(|(id, _)| id).collect();
    let bus = Arc::clone(&log) as Arc<dyn Bus>;
    eventually("the topic agrees", async || said(&bus).await.into_keys().collect::<BTreeSet<_>>() == ids)
        .await;
    assert!(said(&bus).await.values().all(|times| *times == 1), "each is said once");
}
