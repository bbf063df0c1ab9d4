//! The processes of a run: started, killed, stopped and let go on by their id, started again.
//!
//! Invariant: only what was started here is signalled, and nothing of it outlives the run.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};
use tombolo::ServiceStatus;
use tombolo::status::{State, SubscriptionStatus};
use tombolo_event::key::PARTITIONS_DEFAULT;

use crate::databases::Databases;
use crate::hosts::Host;
use crate::office::Office;
use crate::roles;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long a process may take to be ready, to come to its barrier, or to find out what is wrong: what has stopped by name
/// looks again every half minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Which of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    Bus,
    /// The producer's first replica, which leads at first.
    Producer,
    /// Its second replica on the same database: it goes on writing while the first is dead, so that what waits in the
    /// outbox is not what waited when the numbers were given.
    SecondProducer,
    Consumer,
    /// The consumer's second replica.
    SecondConsumer,
    /// The producer once more, with a copy of its database: it believes to be the first replica.
    CopiedProducer,
}

impl Which {
    /// All that belong to a whole world.
    pub(crate) const ALL: [Self; 5] =
        [Self::Bus, Self::Producer, Self::SecondProducer, Self::Consumer, Self::SecondConsumer];
    const NUMBER: usize = 6;

    /// The process in which a barrier lies.
    pub(crate) fn of(barrier: &str) -> Self {
        match barrier.split('.').next() {
            Some("log") => Self::Bus,
            Some("subscription" | "parking" | "redrive" | "effect") => Self::Consumer,
            _ => Self::Producer,
        }
    }

    /// The folder of what it keeps, as if it were on a machine of its own.
    pub(crate) fn home(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Producer | Self::SecondProducer | Self::CopiedProducer => "orders",
            Self::Consumer | Self::SecondConsumer => "history",
        }
    }

    /// The replicas of the same service.
    pub(crate) fn replicas(self) -> &'static [Self] {
        match self {
            Self::Bus => &[Self::Bus],
            Self::CopiedProducer => &[Self::CopiedProducer],
            Self::Producer | Self::SecondProducer => &[Self::Producer, Self::SecondProducer],
            Self::Consumer | Self::SecondConsumer => &[Self::Consumer, Self::SecondConsumer],
        }
    }
}

/// What a process does to itself at a barrier, as `NAME:PASSES`.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Kill(&'a str),
    Stop(&'a str),
}

/// What a world is made of.
pub(crate) struct Scene<'a> {
    /// Its folder, with one below it for each home.
    pub(crate) folder: PathBuf,
    pub(crate) databases: &'a Databases<'a>,
    pub(crate) cast: &'static [Which],
    /// What the processes are told by the environment.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// Where the consumer's letters arrive, if it sends any.
    pub(crate) office: Option<Office>,
    /// Between two orders of a writer, instead of the load's own.
    pub(crate) pace: Option<Duration>,
}

/// The processes and where their files are.
pub(crate) struct World<'a> {
    pub(crate) scene: Scene<'a>,
    /// Where each serves; the bus has a socket instead.
    urls: [String; Which::NUMBER],
    children: [Option<Child>; Which::NUMBER],
    http: reqwest::Client,
}

impl<'a> World<'a> {
    /// Starts everybody, the first replicas first.
    pub(crate) async fn start(scene: Scene<'a>) -> Outcome<Self> {
        for which in Which::ALL {
            fs::create_dir_all(scene.folder.join(which.home()))?;
        }
        let mut world = Self {
            scene,
            urls: [String::new(), url()?, url()?, url()?, url()?, url()?],
            children: Default::default(),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?,
        };
        for which in [Which::Bus, Which::Producer, Which::Consumer] {
            world.spawn(which, None).await?;
        }
        world.until_leader(&[Which::Producer]).await?;
        for second in [Which::SecondProducer, Which::SecondConsumer] {
            if world.scene.cast.contains(&second) {
                world.spawn(second, None).await?;
            }
        }
        world.all_ready().await?;
        Ok(world)
    }

    /// Where orders are placed: at each replica of the producer.
    pub(crate) fn producers(&self) -> Vec<&str> {
        let replicas = self.scene.cast.iter().filter(|which| which.home() == "orders");
        replicas.map(|&which| self.urls[which as usize].as_str()).collect()
    }

    pub(crate) fn url(&self, which: Which) -> &str {
        &self.urls[which as usize]
    }

    pub(crate) fn bus_url(&self) -> String {
        let other = self.scene.databases.bus_url();
        other.unwrap_or_else(|| format!("tombolo+unix://{}", self.socket().display()))
    }

    /// The server that is the bus, if it is one of another engine.
    fn bus_server(&self, which: Which) -> Option<&'a Host> {
        self.scene.databases.ground.bus().filter(|_| which == Which::Bus)
    }

    fn socket(&self) -> PathBuf {
        self.scene.folder.join("bus.sock")
    }

    /// Waits until one of these processes leads the outbox of its service.
    pub(crate) async fn until_leader(&self, of: &[Which]) -> Outcome<Which> {
        let leading = async |world: &Self| {
            for &which in of {
                if world.status(which).await.is_some_and(|status| leads(&status)) {
                    return Some(which);
                }
            }
            None
        };
        self.until("a leader of the outbox", leading).await
    }

    /// Waits until one of these processes holds a partition.
    pub(crate) async fn until_holder(&self, of: &[Which]) -> Outcome<Which> {
        let holding = async |world: &Self| {
            for &which in of {
                if world.status(which).await.is_some_and(|status| holds(&status)) {
                    return Some(which);
                }
            }
            None
        };
        self.until("a holder of partitions", holding).await
    }

    /// Looks until there is something.
    pub(crate) async fn until<T>(&self, what: &str, look: impl AsyncFn(&Self) -> Option<T>) -> Outcome<T> {
        let mut looks = interval(LOOK_EVERY);
        let found = async {
            loop {
                looks.tick().await;
                if let Some(found) = look(self).await {
                    return found;
                }
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.map_err(|_| {
            format!("waited {PATIENCE:?} for {what}; see the logs in {}", self.scene.folder.display()).into()
        })
    }

    /// What a service says of itself, if it answers.
    pub(crate) async fn status(&self, which: Which) -> Option<ServiceStatus> {
        let answer = self.http.get(format!("{}/tombolo/status", self.url(which))).send().await.ok()?;
        answer.json().await.ok()
    }

    /// Asks something of a subscription, as an operator does, and waits until it is written down.
    pub(crate) async fn ask(
        &self,
        which: Which,
        subscription: &str,
        action: &serde_json::Value,
    ) -> Outcome<()> {
        let mut ask = action.clone();
        ask["subscription"] = subscription.into();
        ask["asked_by"] = "faults".into();
        let answer =
            self.http.post(format!("{}/tombolo/requests", self.url(which))).json(&ask).send().await?;
        let (status, said) = (answer.status(), answer.text().await?);
        if status.is_success() { Ok(()) } else { Err(format!("was refused: {said}").into()) }
    }

    /// Decides, as an operator does, about the halt that a service is in.
    pub(crate) async fn decide(&self, which: Which, choice: &str) -> Outcome<()> {
        let door = format!("{}/tombolo/recovery", self.url(which));
        let report: serde_json::Value = self.http.get(&door).send().await?.error_for_status()?.json().await?;
        let decision = serde_json::json!({ "halt": report["halt"]["id"], "choice": choice, "by": "faults" });
        let answer = self.http.post(&door).json(&decision).send().await?;
        let (status, said) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            return Err(format!("could not decide: {said}").into());
        }
        let goes_on = async |world: &Self| world.stopped(&[which]).await.is_none().then_some(());
        self.until("the service to go on after a decision", goes_on).await
    }

    /// Whether a process has written this into its log.
    pub(crate) fn has_said(&self, which: Which, text: &str) -> bool {
        fs::read_to_string(self.log(which)).is_ok_and(|log| log.contains(text))
    }

    fn log(&self, which: Which) -> PathBuf {
        self.scene.folder.join(format!("{which:?}.log"))
    }

    /// What has stopped by name among these processes, if anything.
    pub(crate) async fn stopped(&self, of: &[Which]) -> Option<String> {
        for &which in of {
            let Some(status) = self.status(which).await else { continue };
            if let Some(relay) = status.relay.filter(|relay| relay.state.starts_with("stopped")) {
                return Some(format!("the relay of {which:?} {}", relay.state));
            }
            let mut partitions = status.subscriptions.into_iter().flat_map(|one| one.partitions);
            if let Some(stopped) = partitions.find(|one| one.state == State::Stopped) {
                return Some(format!("{which:?} stopped reading: {}", stopped.error.unwrap_or_default()));
            }
        }
        None
    }

    /// Starts a process, with what it is to do to itself if anything.
    pub(crate) async fn spawn(&mut self, which: Which, at: Option<At<'_>>) -> Outcome<()> {
        if let Some(server) = self.bus_server(which) {
            return server.restart().await;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(self.log(which))?)
            .kill_on_drop(true)
            .env("TOMBOLO_SCHEMA", "apply");
        match which {
            Which::Bus => command.arg("bus").arg(self.scene.folder.join(which.home())).arg(self.socket()),
            Which::Producer | Which::SecondProducer | Which::CopiedProducer => command.arg("producer"),
            Which::Consumer | Which::SecondConsumer => command.arg("consumer"),
        };
        let replica = if which == which.replicas()[0] { "1" } else { "2" };
        command.env("TOMBOLO_BUS", self.bus_url()).env("TOMBOLO_REPLICA", replica);
        command.env("TOMBOLO_LISTEN", self.url(which).trim_start_matches("http://"));
        command.env("TOMBOLO_DATABASE", self.scene.databases.url(which));
        command.envs(self.scene.office.iter().map(|office| (roles::LETTERS, &office.url)));
        command.envs(self.scene.variables.iter().map(|(name, value)| (name, value)));
        match at {
            Some(At::Kill(place)) => command.env("TOMBOLO_KILL_AT", place),
            Some(At::Stop(place)) => command.env("TOMBOLO_STOP_AT", place),
            None => &mut command,
        };
        self.children[which as usize] = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until everybody serves.
    pub(crate) async fn all_ready(&mut self) -> Outcome<()> {
        for &which in self.scene.cast {
            self.ready(which).await?;
        }
        Ok(())
    }

    /// Waits until a process serves, or until it is dead again, which a near barrier may make it.
    pub(crate) async fn ready(&mut self, which: Which) -> Outcome<()> {
        if self.bus_server(which).is_some() {
            return Ok(());
        }
        let ready = format!("{}/ready", self.url(which));
        let socket = self.socket();
        let mut looks = interval(LOOK_EVERY);
        let serving = async {
            loop {
                looks.tick().await;
                let serves = if which == Which::Bus {
                    tokio::net::UnixStream::connect(&socket).await.is_ok()
                } else {
                    self.http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success())
                };
                if serves || self.is_dead(which) {
                    return;
                }
            }
        };
        let late = timeout(PATIENCE, serving).await.is_err();
        if late { Err(self.complaint(which, &format!("was not ready within {PATIENCE:?}"))) } else { Ok(()) }
    }

    fn complaint(&self, which: Which, what: &str) -> Box<dyn std::error::Error> {
        format!("{which:?} {what}; see its log in {}", self.scene.folder.display()).into()
    }

    pub(crate) fn is_dead(&mut self, which: Which) -> bool {
        self.children[which as usize]
            .as_mut()
            .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Waits until a process has killed itself at its barrier.
    pub(crate) async fn killed_itself(&mut self, which: Which) -> Outcome<()> {
        let Some(child) = &mut self.children[which as usize] else { return Ok(()) };
        match timeout(PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.signal() == Some(Signal::SIGKILL as i32) => Ok(()),
            Ok(status) => Err(self.complaint(which, &format!("ended by itself: {status:?}"))),
            Err(_) => Err(self.complaint(which, "never came to its barrier so often")),
        }
    }

    /// Waits until a process has stopped itself at its barrier, or was stopped.
    pub(crate) async fn until_stopped(&self, which: Which) -> Outcome<()> {
        if self.bus_server(which).is_some() {
            return Ok(());
        }
        let stat = format!("/proc/{}/stat", self.pid(which)?);
        let stopped = async |_: &Self| {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ").filter(|(_, state)| state.starts_with('T')).map(|_| ())
        };
        self.until(&format!("{which:?} to stop at its barrier"), stopped).await
    }

    /// Stops a process, or lets it go on.
    pub(crate) async fn signal(&self, which: Which, signal: Signal) -> Outcome<()> {
        if let Some(server) = self.bus_server(which) {
            return server.signal(signal).await;
        }
        Ok(kill(self.pid(which)?, signal)?)
    }

    /// The id of a child that nobody has waited for, so that it is still its own.
    fn pid(&self, which: Which) -> Outcome<Pid> {
        let id = self.children[which as usize].as_ref().and_then(Child::id);
        let id = id.ok_or_else(|| format!("{which:?} does not run"))?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// Kills a process, now.
    pub(crate) async fn kill(&mut self, which: Which) -> Outcome<()> {
        if let Some(server) = self.bus_server(which) {
            return server.kill().await;
        }
        if let Some(mut child) = self.children[which as usize].take() {
            child.kill().await?;
        }
        Ok(())
    }
}

/// Whether a process leads the outbox of its service.
pub(crate) fn leads(status: &ServiceStatus) -> bool {
    status.relay.as_ref().is_some_and(|relay| relay.leading)
}

/// Whether a process holds a partition.
fn holds(status: &ServiceStatus) -> bool {
    status.subscriptions.iter().any(|one| one.partitions.iter().any(|one| one.held))
}

/// Whether a process holds every partition, for all its subscriptions.
pub(crate) fn holds_all(status: &ServiceStatus) -> bool {
    let held = |one: &SubscriptionStatus| one.partitions.iter().filter(|one| one.held).count();
    status.subscriptions.iter().all(|one| held(one) == PARTITIONS_DEFAULT as usize)
}

/// An address with a port that is free.
fn url() -> Outcome<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}

/// What a role's process says of an event, for the checks.
pub(crate) use roles::{Placed, Seen};
