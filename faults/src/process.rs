//! The processes of a run: started, killed by their id, started again.
//!
//! Invariant: only what was started here is killed, and nothing of it outlives the run.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::databases::Databases;
use crate::roles;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long a process may take to be ready, or to come to its barrier.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    Bus,
    /// The producer's first replica, which leads.
    Producer,
    Consumer,
    /// Its second replica on the same database: it goes on writing while the first is dead, so that what waits in the
    /// outbox is not what waited when the numbers were given.
    SecondProducer,
}

impl Which {
    pub(crate) const ALL: [Self; 4] = [Self::Bus, Self::Producer, Self::Consumer, Self::SecondProducer];

    /// The process in which a barrier lies.
    pub(crate) fn of(barrier: &str) -> Self {
        match barrier.split('.').next() {
            Some("log") => Self::Bus,
            Some("subscription") => Self::Consumer,
            _ => Self::Producer,
        }
    }
}

/// The processes and where their files are.
pub(crate) struct World<'a> {
    folder: PathBuf,
    pub(crate) databases: &'a Databases<'a>,
    /// Where each serves, by its place in [`Which::ALL`]; the bus has a socket instead.
    urls: [String; 4],
    children: [Option<Child>; 4],
    http: reqwest::Client,
}

impl<'a> World<'a> {
    pub(crate) async fn start(folder: &Path, databases: &'a Databases<'a>) -> Outcome<Self> {
        let mut world = Self {
            folder: folder.to_owned(),
            databases,
            urls: [String::new(), url()?, url()?, url()?],
            children: [None, None, None, None],
            http: reqwest::Client::new(),
        };
        for which in [Which::Bus, Which::Producer, Which::Consumer] {
            world.spawn(which, None)?;
        }
        world.leads(Which::Producer).await?;
        world.spawn(Which::SecondProducer, None)?;
        for which in Which::ALL {
            world.ready(which).await?;
        }
        Ok(world)
    }

    /// Where orders are placed: at each replica of the producer.
    pub(crate) fn producers(&self) -> [&str; 2] {
        [Which::Producer, Which::SecondProducer].map(|which| self.urls[which as usize].as_str())
    }

    /// Waits until a process leads the outbox of its service.
    async fn leads(&self, which: Which) -> Outcome<()> {
        let status = format!("{}/tombolo/status", self.urls[which as usize]);
        let mut look = interval(Duration::from_millis(5));
        let leading = async {
            loop {
                look.tick().await;
                let Ok(answer) = self.http.get(&status).send().await else { continue };
                let Ok(status) = answer.json::<tombolo::ServiceStatus>().await else { continue };
                if status.relay.is_some_and(|relay| relay.leading) {
                    return;
                }
            }
        };
        timeout(PATIENCE, leading).await.map_err(|_| format!("{which:?} never led its outbox").into())
    }

    pub(crate) fn bus_url(&self) -> String {
        format!("tombolo+unix://{}/bus.sock", self.folder.display())
    }

    /// Starts a process, which kills itself at `kill_at` if one is given.
    pub(crate) fn spawn(&mut self, which: Which, kill_at: Option<&str>) -> Outcome<()> {
        let log =
            File::options().create(true).append(true).open(self.folder.join(format!("{which:?}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .env("RUST_LOG", "warn");
        match which {
            Which::Bus => command.arg("bus").arg(&self.folder),
            Which::Producer | Which::SecondProducer => command.arg("producer"),
            Which::Consumer => command.arg("consumer"),
        };
        let replica = if which == Which::SecondProducer { "2" } else { "1" };
        command
            .env("TOMBOLO_SCHEMA", "apply")
            .env("TOMBOLO_BUS", self.bus_url())
            .env("TOMBOLO_REPLICA", replica);
        command.env("TOMBOLO_LISTEN", self.urls[which as usize].trim_start_matches("http://"));
        command.env("TOMBOLO_DATABASE", self.databases.url(which));
        if let Some(kill_at) = kill_at {
            command.env("TOMBOLO_KILL_AT", kill_at);
        }
        self.children[which as usize] = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until a process serves, or until it is dead again, which a near barrier may make it.
    pub(crate) async fn ready(&mut self, which: Which) -> Outcome<()> {
        if which == Which::Bus {
            return self.bus_ready().await;
        }
        let url = self.urls[which as usize].clone();
        let mut look = interval(Duration::from_millis(5));
        let serving = async {
            loop {
                look.tick().await;
                let answered = self.http.get(format!("{url}/ready")).send().await;
                if answered.is_ok_and(|answer| answer.status().is_success()) || self.is_dead(which) {
                    return;
                }
            }
        };
        timeout(PATIENCE, serving).await.map_err(|_| {
            format!("{which:?} was not ready within {PATIENCE:?}; see its log in {}", self.folder.display())
                .into()
        })
    }

    async fn bus_ready(&mut self) -> Outcome<()> {
        let socket = self.folder.join("bus.sock");
        let mut look = interval(Duration::from_millis(5));
        let listening = async {
            while tokio::net::UnixStream::connect(&socket).await.is_err() && !self.is_dead(Which::Bus) {
                look.tick().await;
            }
        };
        timeout(PATIENCE, listening).await.map_err(|_| "the bus did not listen".into())
    }

    fn is_dead(&mut self, which: Which) -> bool {
        self.children[which as usize]
            .as_mut()
            .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Waits until a process has killed itself at its barrier; false if it did not come there in time.
    pub(crate) async fn killed_itself(&mut self, which: Which) -> Outcome<bool> {
        let Some(child) = &mut self.children[which as usize] else { return Ok(false) };
        match timeout(PATIENCE, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(|status| status.signal() == Some(9)) => Ok(true),
            Ok(status) => Err(format!(
                "{which:?} ended by itself: {status:?}; see its log in {}",
                self.folder.display()
            )
            .into()),
            Err(_) => Ok(false),
        }
    }

    /// Kills a process, now.
    pub(crate) async fn kill(&mut self, which: Which) -> Outcome<()> {
        if let Some(mut child) = self.children[which as usize].take() {
            child.kill().await?;
        }
        Ok(())
    }
}

/// An address with a port that is free.
fn url() -> Outcome<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}

/// What a role's process says of an event, for the checks.
pub(crate) use roles::{Placed, Seen};
