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

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    Bus,
    Producer,
    Consumer,
}

impl Which {
    pub(crate) const ALL: [Self; 3] = [Self::Bus, Self::Producer, Self::Consumer];

    /// The process in which a barrier lies.
    pub(crate) fn of(barrier: &str) -> Self {
        match barrier.split('.').next() {
            Some("log") => Self::Bus,
            Some("subscription") => Self::Consumer,
            _ => Self::Producer,
        }
    }
}

/// The three processes and where their files are.
pub(crate) struct World<'a> {
    folder: PathBuf,
    pub(crate) databases: &'a Databases<'a>,
    pub(crate) producer_url: String,
    consumer_url: String,
    children: [Option<Child>; 3],
    http: reqwest::Client,
}

impl<'a> World<'a> {
    pub(crate) async fn start(folder: &Path, databases: &'a Databases<'a>) -> Outcome<Self> {
        let mut world = Self {
            folder: folder.to_owned(),
            databases,
            producer_url: format!("http://{}", free_port()?),
            consumer_url: format!("http://{}", free_port()?),
            children: [None, None, None],
            http: reqwest::Client::new(),
        };
        for which in Which::ALL {
            world.spawn(which, None)?;
        }
        for which in Which::ALL {
            world.ready(which).await?;
        }
        Ok(world)
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
            Which::Producer => command.arg("producer").env("TOMBOLO_LISTEN", listen(&self.producer_url)),
            Which::Consumer => command.arg("consumer").env("TOMBOLO_LISTEN", listen(&self.consumer_url)),
        };
        command.env("TOMBOLO_BUS", self.bus_url()).env("TOMBOLO_REPLICA", "1");
        command.env("TOMBOLO_DATABASE", self.databases.url(which));
        if let Some(kill_at) = kill_at {
            command.env("TOMBOLO_KILL_AT", kill_at);
        }
        self.children[which as usize] = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until a process serves, or until it is dead again, which a near barrier may make it.
    pub(crate) async fn ready(&mut self, which: Which) -> Outcome<()> {
        let url = match which {
            Which::Bus => return self.bus_ready().await,
            Which::Producer => self.producer_url.clone(),
            Which::Consumer => self.consumer_url.clone(),
        };
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

fn listen(url: &str) -> &str {
    url.trim_start_matches("http://")
}

fn free_port() -> Outcome<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// What a role's process says of an event, for the checks.
pub(crate) use roles::{Placed, Seen};
