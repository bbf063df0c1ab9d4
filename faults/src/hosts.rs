//! The servers of other engines in a run: started for it in a scratch folder, killed, stopped and started again on their files.
//!
//! Invariant: only what was started here, and its children, is signalled; nothing of it outlives the run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::task::block_in_place;
use tokio::time::{interval, timeout};
use tombolo_servers::{Engine, Programs, Scratch, Server, programs};

use crate::process::Outcome;

/// How long a server may take to be ready: RabbitMQ takes five seconds on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The servers of a run.
#[derive(Default)]
pub(crate) struct Hosts {
    hosts: BTreeMap<&'static str, Host>,
    /// Goes after the servers.
    _scratch: Option<Scratch>,
}

impl Hosts {
    /// Starts a server of each engine.
    pub(crate) async fn start(engines: &[Engine]) -> Outcome<Self> {
        if engines.is_empty() {
            return Ok(Self::default());
        }
        let (programs, scratch) = (programs::find(engines, false)?, Scratch::create()?);
        let mut hosts = BTreeMap::new();
        for &engine in engines {
            let folder = scratch.folder.join(engine.to_string());
            hosts.insert(engine.variable(), Host::start(engine, folder, &programs).await?);
        }
        Ok(Self { hosts, _scratch: Some(scratch) })
    }

    /// The server of an engine that was started.
    pub(crate) fn of(&self, engine: Engine) -> &Host {
        &self.hosts[engine.variable()]
    }
}

/// A server, and what it needs beside it.
pub(crate) struct Host {
    servers: Vec<(Server, Mutex<Option<Child>>)>,
    log: PathBuf,
}

impl Host {
    async fn start(engine: Engine, folder: PathBuf, programs: &Programs) -> Outcome<Self> {
        let servers = block_in_place(|| engine.make(&folder, programs))?;
        let log = folder.with_extension("log");
        let host = Self { servers: servers.into_iter().map(|it| (it, Mutex::default())).collect(), log };
        for (server, child) in &host.servers {
            host.ready(server, &mut *child.lock().await).await?;
        }
        Ok(host)
    }

    fn spawn(&self, server: &Server) -> Outcome<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::from(server.command());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(command.spawn()?)
    }

    /// Waits until a server answers; one that ends by itself is started again: PostgreSQL does while what is left of a killed
    /// one still goes.
    async fn ready(&self, server: &Server, child: &mut Option<Child>) -> Outcome<()> {
        let mut looks = interval(LOOK_EVERY);
        let answering = async {
            loop {
                let ended = child.as_mut().map(Child::try_wait).transpose()?.flatten();
                if child.is_none() || ended.is_some() {
                    *child = Some(self.spawn(server)?);
                }
                if block_in_place(|| server.is_ready()) {
                    return Outcome::Ok(());
                }
                looks.tick().await;
            }
        };
        timeout(PATIENCE, answering).await.unwrap_or_else(|_| {
            let log = self.log.display();
            Err(format!("{} was not ready within {PATIENCE:?}; see {log}", server.name).into())
        })
    }

    /// The one that clients find.
    fn main(&self) -> &(Server, Mutex<Option<Child>>) {
        &self.servers[self.servers.len() - 1]
    }

    pub(crate) fn url(&self) -> &str {
        &self.main().0.url
    }

    /// Kills the server with all its processes, now.
    pub(crate) async fn kill(&self) -> Outcome<()> {
        if self.main().1.lock().await.is_none() {
            return Ok(());
        }
        // Stopped first, so that none is born meanwhile.
        self.signal(Signal::SIGSTOP).await?;
        self.signal(Signal::SIGKILL).await?;
        if let Some(mut child) = self.main().1.lock().await.take() {
            child.wait().await?;
        }
        Ok(())
    }

    /// Starts it if it does not run, and waits until it answers.
    pub(crate) async fn restart(&self) -> Outcome<()> {
        let (server, child) = self.main();
        self.ready(server, &mut *child.lock().await).await
    }

    /// Signals the server and its children: it may be one process, or one for each connection.
    pub(crate) async fn signal(&self, signal: Signal) -> Outcome<()> {
        let child = self.main().1.lock().await;
        let id = child.as_ref().and_then(Child::id).ok_or("the server does not run")?;
        let own = i32::try_from(id)?;
        // Before, because of a killed one there are none any more; after, because one may have been born meanwhile.
        let before = children(own)?;
        kill(Pid::from_raw(own), signal)?;
        for child in before.into_iter().chain(children(own)?) {
            // It may have ended by itself.
            kill(Pid::from_raw(child), signal).ok();
        }
        Ok(())
    }
}

/// The processes that a process of ours has started, and that have not ended.
fn children(of: i32) -> Outcome<Vec<i32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse() else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything: the state, and the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(of) {
            children.push(id);
        }
    }
    Ok(children)
}
