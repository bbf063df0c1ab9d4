//! The runner: owns every process of a run from the first to the last.
//!
//! Third step of `tombolo dev`. Invariant: every task and process that is started here is joined here before
//! [`run`] returns; services end before the bus, so that what they still have to say is heard.

pub(crate) mod log;
pub(crate) mod ready;
pub(crate) mod replica;
pub(crate) mod system;
pub(crate) mod control;

use std::fs::File;
use std::sync::{Arc, Mutex as Quick, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Result};
use crate::folder::{DataFolder, Run};
use crate::plan::{Plan, Planner, Process, Unit};
use crate::process::{self, Identity};
use crate::runner::control::ControlSocket;
use crate::runner::log::{Log, Terminal};
use crate::runner::replica::{Replica, Standing};
use crate::runner::system::{ReplicaHandle, System, UnitHandle};

/// The most orders that wait for one process.
const ORDERS_WAITING_MAX: usize = 16;
/// How long what an earlier runner left behind has between SIGTERM and SIGKILL.
const ORPHANS_BOUND: Duration = Duration::from_secs(3);

/// What the tasks of a run share.
pub(crate) struct Shared {
    /// The run's name.
    pub(crate) run: String,
    /// Where people read.
    pub(crate) terminal: Arc<Terminal>,
    /// Asks processes whether they are ready.
    pub(crate) client: reqwest::Client,
    /// Cancelled when waiting for a process to end by itself is over.
    pub(crate) hurry: CancellationToken,
    /// Counts what changes about where processes stand. A change is made first and counted then.
    pub(crate) changes: watch::Sender<u64>,
    folder: DataFolder,
    record: Quick<Run>,
}

impl Shared {
    /// Says that something has changed about where processes stand.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Records a process before anything else can happen to it.
    pub(crate) fn record(&self, process: Identity) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.processes.retain(Identity::is_alive);
        record.processes.push(process);
        if let Err(error) = self.folder.record(&record) {
            self.terminal
                .say(&format!("{error}; the process {} is known by its environment only", process.pid));
        }
    }
}

/// How a run is to be.
pub(crate) struct Setting {
    /// Where people read.
    pub(crate) terminal: Arc<Terminal>,
    /// How long everything may take to be ready; a failure to start ends the run. Without it the runner keeps trying.
    pub(crate) ready_within: Option<Duration>,
    /// When the command was given.
    pub(crate) began: Instant,
}

/// Ends what an earlier runner in this folder left behind when it was killed. The folder must be locked.
pub(crate) async fn end_orphans(folder: &DataFolder, terminal: &Terminal) -> Result<()> {
    let Some(earlier) = folder.recorded() else { return Ok(()) };
    let orphans = earlier.orphans();
    if !orphans.is_empty() {
        let pids: Vec<_> = orphans.iter().map(|orphan| orphan.pid.to_string()).collect();
        terminal.say(&format!("ending what a killed runner left behind: pid {}", pids.join(", ")));
    }
    let left = process::end_all(&orphans, ORPHANS_BOUND).await;
    match left.first() {
        None => Ok(()),
        Some(left) => Err(Error::failed(format!(
            "process {} of an earlier run does not end, not even by SIGKILL; end it before starting again",
            left.pid
        ))),
    }
}

/// Runs a plan until somebody ends it. `report` hears once whether everything became ready.
pub(crate) async fn run(
    plan: Plan,
    folder: &DataFolder,
    lock: File,
    setting: Setting,
    report: impl FnOnce(&Result<control::Status>),
) -> Result<()> {
    let mut signals = Signals::new()?;
    let control = ControlSocket::bind(folder)?;
    let record = first_record(&plan, folder, &control)?;
    folder.record(&record)?;
    folder.announce(&record)?;
    let shared = Arc::new(Shared {
        run: plan.run.clone(),
        terminal: setting.terminal.clone(),
        client: client()?,
        hurry: CancellationToken::new(),
        changes: watch::Sender::new(0),
        folder: folder.clone(),
        record: Quick::new(record),
    });
    let (mut crew, system) = Crew::start(plan, &shared)?;
    let system = Arc::new(system);
    let orders = control.serve(system.clone());
    let outcome = attend(&system, &setting, &mut signals, report).await;
    crew.end(&mut signals).await;
    system.ended.cancel();
    orders.join().await;
    folder.clear();
    drop(lock);
    outcome
}

/// Waits until everything is ready and says so, then until the run is to end.
async fn attend(
    system: &System,
    setting: &Setting,
    signals: &mut Signals,
    report: impl FnOnce(&Result<control::Status>),
) -> Result<()> {
    let ready = tokio::select! {
        ready = system.ready(setting.ready_within) => ready,
        () = system.down.cancelled() => return report_end(report),
        () = signals.next() => return report_end(report),
    };
    let outcome = match ready {
        Ok(()) => Ok(system.status().await),
        Err(error) => Err(error),
    };
    if let Ok(status) = &outcome {
        let seconds = setting.began.elapsed().as_secs_f32();
        setting.terminal.plain(&format!("{}\nready in {seconds:.2} s", status.table()));
    }
    report(&outcome);
    outcome?;
    tokio::select! {
        () = system.down.cancelled() => {}
        () = signals.next() => {}
    }
    setting.terminal.say("ending");
    Ok(())
}

fn report_end(report: impl FnOnce(&Result<control::Status>)) -> Result<()> {
    report(&Err(Error::failed("it was ended before everything was ready")));
    Ok(())
}

fn first_record(plan: &Plan, folder: &DataFolder, control: &ControlSocket) -> Result<Run> {
    let runner = Identity::own().ok_or_else(|| Error::failed("cannot read /proc/self; is /proc mounted?"))?;
    Ok(Run {
        boot: process::boot(),
        run: plan.run.clone(),
        runner,
        control: control.path().to_owned(),
        data: folder.path().to_owned(),
        manifest: plan.manifest.clone(),
        bus: plan.bus.clone(),
        processes: Vec::new(),
    })
}

/// A client for addresses of this machine, whatever proxy the environment names. It keeps no connection open, which
/// a service that ends would have to wait for.
pub(crate) fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .context(|| "cannot make an HTTP client".into())
}

/// The processes of services: what owns them, and what is needed for more of them.
pub(crate) struct Services {
    tasks: JoinSet<()>,
    planner: Planner,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Services {
    /// Starts one more process of a service.
    pub(crate) fn another(&mut self, service: &str, number: u32, log: &Arc<Log>) -> Result<ReplicaHandle> {
        if self.stop.is_cancelled() {
            return Err(Error::not_running("the runner is ending"));
        }
        let process = self.planner.another(service, number)?;
        Ok(start_process(process, service, log, &self.shared, &mut self.tasks, &self.stop))
    }
}

/// The tasks that own processes.
struct Crew {
    shared: Arc<Shared>,
    services: Arc<Mutex<Services>>,
    gateway: JoinSet<()>,
    bus: JoinSet<()>,
    stop_gateway: CancellationToken,
    stop_services: CancellationToken,
    stop_bus: CancellationToken,
}

impl Crew {
    /// Starts everything at once; nothing waits for anything.
    fn start(plan: Plan, shared: &Arc<Shared>) -> Result<(Self, System)> {
        let (stop_services, stop_bus) = (CancellationToken::new(), CancellationToken::new());
        let (mut tasks, mut bus) = (JoinSet::new(), JoinSet::new());
        let (stop_gateway, mut gateway) = (CancellationToken::new(), JoinSet::new());
        let mut units = Vec::new();
        let has_own_bus = plan.own_bus.is_some();
        if let Some(unit) = plan.own_bus {
            units.push(start_unit(unit, shared, &mut bus, &stop_bus)?);
        }
        for unit in plan.services {
            units.push(start_unit(unit, shared, &mut tasks, &stop_services)?);
        }
        if let Some(unit) = plan.gateway {
            units.push(start_unit(unit, shared, &mut gateway, &stop_gateway)?);
        }
        let (planner, stop) = (plan.planner, stop_services.clone());
        let services = Arc::new(Mutex::new(Services { tasks, planner, shared: shared.clone(), stop }));
        let system = System::new(plan.bus, has_own_bus, units, services.clone(), shared.clone());
        let shared = shared.clone();
        Ok((Self { shared, services, gateway, bus, stop_gateway, stop_services, stop_bus }, system))
    }

    /// Ends everything; a second signal meanwhile spares the waiting.
    async fn end(&mut self, signals: &mut Signals) {
        let hurry = self.shared.hurry.clone();
        let end = async {
            // First the door, so that what it has begun to pass on is still answered.
            self.stop_gateway.cancel();
            while self.gateway.join_next().await.is_some() {}
            self.stop_services.cancel();
            while self.services.lock().await.tasks.join_next().await.is_some() {}
            self.stop_bus.cancel();
            while self.bus.join_next().await.is_some() {}
        };
        tokio::pin!(end);
        tokio::select! {
            () = &mut end => return,
            () = signals.next() => hurry.cancel(),
        }
        end.await;
    }
}

fn start_unit(
    unit: Unit,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Result<UnitHandle> {
    let log = Arc::new(Log::open(shared.folder.log(&unit.name), shared.terminal.clone())?);
    let start = |process| start_process(process, &unit.name, &log, shared, tasks, stop);
    let replicas = unit.replicas.into_iter().map(start).collect();
    Ok(UnitHandle::new(unit.name, unit.database, replicas, log))
}

fn start_process(
    process: Process,
    unit: &str,
    log: &Arc<Log>,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> ReplicaHandle {
    let (orders, incoming) = mpsc::channel(ORDERS_WAITING_MAX);
    let (standing, watched) = watch::channel(Standing::new());
    let handle = ReplicaHandle {
        name: process.name.clone(),
        url: process.url(),
        listen: process.listen,
        probe: process.probe,
        orders,
        standing: watched,
    };
    let replica = Replica {
        unit: unit.to_owned(),
        process,
        shared: shared.clone(),
        log: log.clone(),
        orders: incoming,
        standing,
        stop: stop.clone(),
        deaths: 0,
    };
    tasks.spawn(replica.live());
    handle
}

/// What asks the runner to end: Ctrl-C, `kill`, a terminal that is closed.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context(|| "cannot listen for signals".into());
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
