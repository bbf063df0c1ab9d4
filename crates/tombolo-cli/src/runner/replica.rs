//! One process and its life: started, watched until ready, started again when it dies by itself, ended on order.
//!
//! Invariant: while this task runs it is the only one that starts, signals or ends its process; when the task has
//! ended, the process and everything that it started in its group have ended too.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_event::Backoff;

use crate::plan::Process;
use crate::process::{Identity, members_of_group};
use crate::runner::Shared;
use crate::runner::log::{Log, pump};
use crate::runner::ready::until_ready;

/// How long a process has between SIGTERM and SIGKILL: twice what a service of Tombolo gives itself.
const STOP_BOUND: Duration = Duration::from_secs(10);
/// How long before what died by itself is started again.
const RESTART: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// How long a process must have been ready before its next death counts as the first.
const RESTART_FORGIVEN_AFTER: Duration = Duration::from_secs(10);
/// How long the last lines of a process are waited for after it ended.
const LAST_LINES_BOUND: Duration = Duration::from_secs(1);

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It runs and has not said yet that it is ready.
    Starting,
    /// It has been ready.
    Ready,
    /// It died by itself and waits to be started again.
    Waiting,
    /// It was stopped on order.
    Stopped,
}

/// What is known of a process at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Where it stands.
    pub(crate) phase: Phase,
    /// Its number, while it runs.
    pub(crate) pid: Option<i32>,
    /// How often it died without having been ready, since it was ordered to start.
    pub(crate) early_exits: u32,
    /// How it ended last.
    pub(crate) last_exit: Option<String>,
}

impl Standing {
    pub(crate) fn new() -> Self {
        Self { phase: Phase::Starting, pid: None, early_exits: 0, last_exit: None }
    }
}

/// What an operator may want of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// End it, and leave it ended.
    Stop,
    /// Start it, if it does not run.
    Start,
    /// Kill it without a warning, as if it died by itself.
    Kill,
}

/// An order with the way to say that it was carried out (start: taken).
pub(crate) type Ordered = (Order, Acknowledge);

/// Tells who gave an order that it was carried out.
pub(crate) struct Acknowledge(pub(crate) oneshot::Sender<()>);

impl Acknowledge {
    fn done(self) {
        // Whoever gave the order may have gone; the order holds.
        self.0.send(()).ok();
    }
}

/// The task that owns one process.
pub(crate) struct Replica {
    pub(crate) unit: String,
    pub(crate) process: Process,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<Log>,
    pub(crate) orders: mpsc::Receiver<Ordered>,
    pub(crate) standing: watch::Sender<Standing>,
    /// Ends the task and its process.
    pub(crate) stop: CancellationToken,
    /// Deaths in a row, for the back-off.
    pub(crate) deaths: u32,
}

/// What comes after a step of the life.
enum Next {
    Run,
    Wait(Duration),
    Rest,
    End,
}

/// A process that no longer runs.
struct Ended {
    /// How it ended, unless it was told to.
    by_itself: Option<io::Result<ExitStatus>>,
    /// Who waits for that.
    acknowledge: Option<Acknowledge>,
    /// When it was ready first.
    ready_at: Option<Instant>,
}

impl Replica {
    /// Lives until the token is cancelled.
    pub(crate) async fn live(mut self) {
        let mut next = Next::Run;
        loop {
            next = match next {
                Next::Run => self.run().await,
                Next::Wait(delay) => self.wait(delay).await,
                Next::Rest => self.rest().await,
                Next::End => return,
            };
        }
    }

    async fn run(&mut self) -> Next {
        let began = Instant::now();
        let (mut child, identity) = match self.start() {
            Ok(started) => started,
            Err(error) => return self.died(&format!("could not be started: {error}"), None),
        };
        let mut lines = self.pumps(&mut child);
        let ended = self.attend(&mut child, identity, began).await;
        self.sweep(identity);
        if tokio::time::timeout(LAST_LINES_BOUND, async { while lines.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            lines.shutdown().await;
        }
        let next = match ended.by_itself {
            Some(status) => self.died(&how_it_ended(status), ended.ready_at),
            None => {
                self.stands(|standing| (standing.phase, standing.pid) = (Phase::Stopped, None));
                Next::Rest
            }
        };
        ended.acknowledge.into_iter().for_each(Acknowledge::done);
        next
    }

    fn start(&self) -> io::Result<(Child, Identity)> {
        let mut command = Command::new(&self.process.program);
        command.args(&self.process.arguments).current_dir(&self.process.folder);
        command.envs(self.process.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        end_with_parent(&mut command);
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let identity = pid.and_then(Identity::of).ok_or_else(|| io::Error::other("it is not in /proc"))?;
        self.shared.record(identity);
        self.stands(|standing| {
            (standing.phase, standing.pid) = (Phase::Starting, Some(identity.pid));
        });
        Ok((child, identity))
    }

    fn pumps(&self, child: &mut Child) -> JoinSet<()> {
        let mut lines = JoinSet::new();
        let (name, unit) = (&self.process.name, &self.unit);
        if let Some(out) = child.stdout.take() {
            lines.spawn(pump(out, self.log.clone(), name.clone(), unit.clone()));
        }
        if let Some(err) = child.stderr.take() {
            lines.spawn(pump(err, self.log.clone(), name.clone(), unit.clone()));
        }
        lines
    }

    /// Watches a running process and takes orders, until it no longer runs.
    async fn attend(&mut self, child: &mut Child, identity: Identity, began: Instant) -> Ended {
        let mut ready_at = None;
        let ready = until_ready(self.shared.client.clone(), self.process.probe, self.process.listen);
        tokio::pin!(ready);
        let (order, acknowledge) = loop {
            tokio::select! {
                status = child.wait() => return Ended { by_itself: Some(status), acknowledge: None, ready_at },
                () = self.stop.cancelled() => break (Order::Stop, None),
                order = self.orders.recv() => match order {
                    Some((Order::Start, acknowledge)) => acknowledge.done(),
                    Some((order, acknowledge)) => break (order, Some(acknowledge)),
                    None => break (Order::Stop, None),
                },
                () = &mut ready, if ready_at.is_none() => {
                    ready_at = Some(Instant::now());
                    self.is_ready(began);
                }
            }
        };
        let by_itself = if order == Order::Kill {
            signal_group(identity, Signal::SIGKILL);
            Some(child.wait().await)
        } else {
            self.end(child, identity).await;
            None
        };
        Ended { by_itself, acknowledge, ready_at }
    }

    fn stands(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_modify(change);
        self.shared.changed();
    }

    fn is_ready(&self, began: Instant) {
        let again = self.standing.borrow().last_exit.is_some();
        self.stands(|standing| (standing.phase, standing.early_exits) = (Phase::Ready, 0));
        if again {
            let seconds = began.elapsed().as_secs_f32();
            self.shared.terminal.say(&format!("{} is ready again after {seconds:.2} s", self.process.name));
        }
    }

    /// Asks a process to end, and ends it if it does not.
    async fn end(&self, child: &mut Child, identity: Identity) {
        signal_group(identity, Signal::SIGTERM);
        tokio::select! {
            _ = child.wait() => return,
            () = tokio::time::sleep(STOP_BOUND) => {
                let seconds = STOP_BOUND.as_secs();
                self.shared.terminal.say(&format!(
                    "{} did not end within {seconds} s after SIGTERM; it is killed",
                    self.process.name
                ));
            }
            () = self.shared.hurry.cancelled() => {}
        }
        signal_group(identity, Signal::SIGKILL);
        if let Err(error) = child.wait().await {
            self.shared.terminal.say(&format!("{} cannot be waited for: {error}", self.process.name));
        }
    }

    /// Ends what a process left in its group, which would hold its port against its successor.
    fn sweep(&self, identity: Identity) {
        for left in members_of_group(&self.shared.run, identity.pid) {
            left.signal(Signal::SIGKILL);
        }
    }

    fn died(&mut self, how: &str, ready_at: Option<Instant>) -> Next {
        if ready_at.is_some_and(|since| since.elapsed() >= RESTART_FORGIVEN_AFTER) {
            self.deaths = 0;
        }
        let delay = RESTART.jittered(self.deaths);
        self.deaths = self.deaths.saturating_add(1);
        self.stands(|standing| {
            (standing.phase, standing.pid) = (Phase::Waiting, None);
            standing.early_exits += u32::from(ready_at.is_none());
            standing.last_exit = Some(how.to_owned());
        });
        let early = if ready_at.is_none() { " before it was ready" } else { "" };
        let seconds = delay.as_secs_f32();
        self.shared
            .terminal
            .say(&format!("{} {how}{early}; starting it again in {seconds:.1} s", self.process.name));
        Next::Wait(delay)
    }

    /// Waits to start again what died.
    async fn wait(&mut self, delay: Duration) -> Next {
        tokio::select! {
            () = tokio::time::sleep(delay) => Next::Run,
            () = self.stop.cancelled() => Next::End,
            order = self.orders.recv() => match order {
                Some((Order::Start, acknowledge)) => self.begin_anew(acknowledge),
                Some((Order::Kill, acknowledge)) => {
                    acknowledge.done();
                    Next::Wait(delay)
                }
                Some((Order::Stop, acknowledge)) => {
                    self.stands(|standing| standing.phase = Phase::Stopped);
                    acknowledge.done();
                    Next::Rest
                }
                None => Next::End,
            },
        }
    }

    /// Stays ended until it is ordered to start.
    async fn rest(&mut self) -> Next {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Next::End,
                order = self.orders.recv() => match order {
                    Some((Order::Start, acknowledge)) => return self.begin_anew(acknowledge),
                    Some((_, acknowledge)) => acknowledge.done(),
                    None => return Next::End,
                },
            }
        }
    }

    fn begin_anew(&mut self, acknowledge: Acknowledge) -> Next {
        self.deaths = 0;
        self.stands(|standing| (standing.phase, standing.early_exits) = (Phase::Starting, 0));
        acknowledge.done();
        Next::Run
    }
}

/// Signals a process and all that it started, while the process is not waited for: until then the kernel gives
/// its number, which is also its group's, to nobody else.
fn signal_group(identity: Identity, signal: Signal) {
    // The one failure left is that the whole group has ended.
    killpg(Pid::from_raw(identity.pid), signal).ok();
}

fn how_it_ended(status: io::Result<ExitStatus>) -> String {
    match status {
        Err(error) => format!("cannot be waited for ({error})"),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended by itself with exit code {code}"),
            (_, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => format!("was killed by {signal}"),
                Err(_) => format!("was killed by signal {number}"),
            },
            _ => format!("ended ({status})"),
        },
    }
}

/// Has the kernel send SIGTERM to the process when the runner dies, so that not even `kill -9` of the runner
/// leaves services behind which heed SIGTERM; for the others see [`crate::folder::Run::orphans`].
///
/// The kernel ties this to the *thread* that forked. All processes are started on the runner's single-threaded
/// runtime, on the thread of `main`, which ends when the runner ends and not before.
fn end_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called, and no memory allocated.
    // `prepare` makes two system calls, prctl and getppid, which are; it captures one integer; an error is made
    // from an errno, which `io::Error` keeps without allocating. It touches no lock and no memory of the parent.
    unsafe { command.pre_exec(prepare) };
}
