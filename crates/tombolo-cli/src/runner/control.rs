//! The control socket: how a second command talks to the runner.
//!
//! One connection, one order as a line of JSON, one answer as a line of JSON. Invariant: only the user who owns
//! the data folder can connect, because the socket's folder or its own mode keeps others out.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::{Context, Error, Result};
use crate::folder::{DataFolder, Run};
use crate::output;
use crate::process::ended_within;
use crate::runner::system::System;

/// The longest order.
const ORDER_BYTES_MAX: u64 = 4 << 10;
/// The longest answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// The most orders that are carried out at once.
const ORDERS_MAX: usize = 32;
/// How long an order may take to arrive once its sender has connected.
const ARRIVAL_BOUND: Duration = Duration::from_secs(5);
/// How long the answers to the last orders may take once everything has ended.
const LAST_ANSWERS_BOUND: Duration = Duration::from_secs(1);
/// How long a runner may take to end after everything that it ran has ended.
const RUNNER_END_BOUND: Duration = Duration::from_secs(5);

/// What can be asked of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Where everything stands.
    Status,
    /// The same by what is known already (no process is asked whether it is ready), as soon as it differs from what was
    /// known after so many changes.
    Follow {
        /// How many changes whoever asks knows.
        knows: Option<u64>,
        /// Whether it takes requests.
        is_ready: bool,
    },
    /// End this unit and leave it ended.
    Stop(String),
    /// Start this unit.
    Start(String),
    /// Kill this unit's processes.
    Kill(String),
    /// Run so many processes of this service.
    Scale(String, u32),
    /// End everything, the runner included.
    Down,
}

/// Where everything stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// How many changes led here.
    pub(crate) changes: u64,
    /// The bus.
    pub(crate) bus: BusStatus,
    /// The services, in the order of the manifest.
    pub(crate) services: Vec<ServiceStatus>,
}

/// Where the bus stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BusStatus {
    /// Its URL.
    pub(crate) url: String,
    /// Its process, if the runner runs it.
    pub(crate) pid: Option<i32>,
    /// Its state, for people.
    pub(crate) state: String,
}

/// Where a service stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its database's URL.
    pub(crate) database: Option<String>,
    /// Its processes.
    pub(crate) replicas: Vec<ReplicaStatus>,
}

/// Where a process stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaStatus {
    /// Its number, while it runs.
    pub(crate) pid: Option<i32>,
    /// Where it can be called.
    pub(crate) url: String,
    /// Whether it said just now that it is ready.
    pub(crate) ready: bool,
    /// Its state, for people.
    pub(crate) state: String,
    /// How it ended last, for people.
    pub(crate) last_exit: Option<String>,
}

impl Status {
    /// The same for people.
    pub(crate) fn table(&self) -> String {
        let pid = |pid: Option<i32>| pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        let mut rows =
            vec![["bus".into(), self.bus.url.clone(), self.bus.state.clone(), pid(self.bus.pid), "-".into()]];
        for service in &self.services {
            for replica in &service.replicas {
                let state = match (&*replica.state, replica.ready, &replica.last_exit) {
                    ("running", true, _) => "ready".to_owned(),
                    ("running", false, _) => "not ready".to_owned(),
                    (state, _, Some(exit)) if state.starts_with("waiting") => format!("{state} ({exit})"),
                    (state, ..) => state.to_owned(),
                };
                let database = service.database.clone().unwrap_or_else(|| "-".into());
                rows.push([service.name.clone(), replica.url.clone(), state, pid(replica.pid), database]);
            }
        }
        output::table(["SERVICE", "URL", "STATE", "PID", "DATABASE"], rows)
    }

    /// The same for scripts.
    pub(crate) fn json(&self) -> serde_json::Value {
        let replica = |replica: &ReplicaStatus| serde_json::json!({ "pid": replica.pid, "url": replica.url, "ready": replica.ready });
        let service = |service: &ServiceStatus| {
            let replicas: Vec<_> = service.replicas.iter().map(replica).collect();
            serde_json::json!({ "name": service.name, "database": service.database, "replicas": replicas })
        };
        serde_json::json!({
            "bus": { "url": self.bus.url, "pid": self.bus.pid },
            "services": self.services.iter().map(service).collect::<Vec<_>>(),
        })
    }
}

/// What the runner answers: where everything stands then, or why not.
pub(crate) type Answer = std::result::Result<Status, Error>;

/// The socket before anybody is served.
pub(crate) struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Binds it, in place of one that an earlier runner left. The folder must be locked.
    pub(crate) fn bind(folder: &DataFolder) -> Result<Self> {
        let path = folder.control_socket()?;
        let doing = || format!("cannot listen on {}", path.display());
        // The lock says that nobody serves it; it is not there after a clean end.
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path).context(doing)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context(doing)?;
        Ok(Self { path, listener })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves orders until the system has ended.
    pub(crate) fn serve(self, system: Arc<System>) -> Serving {
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(self.listener, system));
        Serving { tasks }
    }
}

/// The task that serves orders.
pub(crate) struct Serving {
    tasks: JoinSet<()>,
}

impl Serving {
    /// Waits until the last answers are given.
    pub(crate) async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn serve(listener: UnixListener, system: Arc<System>) {
    let places = Arc::new(Semaphore::new(ORDERS_MAX));
    let mut open = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned();
        let accepted = async { (place.await, listener.accept().await) };
        tokio::select! {
            (place, accepted) = accepted => if let (Ok(place), Ok((stream, _))) = (place, accepted) {
                let system = system.clone();
                open.spawn(async move {
                    // Whoever asked has gone if this fails; nobody is left to be told.
                    drop(converse(stream, &system).await);
                    drop(place);
                });
            },
            Some(_) = open.join_next() => {}
            () = system.ended.cancelled() => break,
        }
    }
    let last = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS_BOUND, last).await.is_err() {
        open.shutdown().await;
    }
}

async fn converse(mut stream: UnixStream, system: &System) -> std::io::Result<()> {
    let mut line = String::new();
    let asking = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (reader, _) = stream.split();
    let mut reader = BufReader::new(reader.take(ORDER_BYTES_MAX));
    tokio::time::timeout(ARRIVAL_BOUND, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Follow { knows, is_ready }) => {
            if let (Some(pid), Some(count), true) = (asking, knows, is_ready) {
                system.known_to(pid, count);
            }
            tokio::select! {
                standing = system.standing_after(knows) => Ok(standing),
                // Nothing more is to come: whoever asked has gone.
                _ = reader.read_u8() => return Ok(()),
            }
        }
        Ok(request) => carry_out(request, system).await,
        Err(error) => Err(Error::usage(format!("the order cannot be read: {error}"))),
    };
    let text = serde_json::to_string(&answer)? + "\n";
    stream.write_all(text.as_bytes()).await
}

async fn carry_out(request: Request, system: &System) -> Answer {
    match request {
        Request::Status => {}
        Request::Follow { .. } => return Ok(system.standing()),
        Request::Stop(name) => system.stop(&name).await?,
        Request::Start(name) => system.start(&name).await?,
        Request::Kill(name) => system.kill(&name).await?,
        Request::Scale(name, count) => system.scale(&name, count).await?,
        Request::Down => {
            system.down.cancel();
            system.ended.cancelled().await;
        }
    }
    Ok(system.status().await)
}

/// Asks a runner for something and waits for the answer.
pub(crate) async fn ask(run: &Run, request: &Request) -> Result<Status> {
    let unreachable = |error: std::io::Error| {
        Error::not_running(format!(
            "the runner (pid {}) does not answer on {}: {error}",
            run.runner.pid,
            run.control.display()
        ))
    };
    let stream = UnixStream::connect(&run.control).await.map_err(unreachable)?;
    let answer = exchange(stream, request).await.map_err(unreachable)?;
    if *request == Request::Down && !ended_within(run.runner, RUNNER_END_BOUND).await {
        return Err(Error::failed(format!("the runner (pid {}) has not ended", run.runner.pid)));
    }
    answer
}

async fn exchange(mut stream: UnixStream, request: &Request) -> std::io::Result<Answer> {
    let text = serde_json::to_string(request)? + "\n";
    stream.write_all(text.as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(std::io::Error::other("it ended before it answered"));
    }
    Ok(serde_json::from_str(&line)?)
}
