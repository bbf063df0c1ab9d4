//! The running system as orders see it: units by name, where each stands, and what may be asked of it.
//!
//! Invariant: an order that was answered was carried out; one that cannot be is answered with the reason and the
//! last lines of what failed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Quick, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::manifest::{BUS, GATEWAY, REPLICAS_MAX};
use crate::output::without_password;
use crate::plan::Probe;
use crate::runner::control::{BusStatus, ReplicaStatus, ServiceStatus, Status};
use crate::runner::log::Log;
use crate::runner::ready::is_ready;
use crate::runner::replica::{Acknowledge, Order, Ordered, Phase, Standing};
use crate::runner::{Services, Shared};

/// How often a process may die before it was ready until starting it counts as failed.
const START_TRIES_MAX: u32 = 3;
/// How long `tombolo start` waits for a service to be ready.
const START_BOUND: Duration = Duration::from_secs(60);

/// Everything that runs.
pub(crate) struct System {
    bus: String,
    has_own_bus: bool,
    units: Vec<UnitHandle>,
    services: Arc<Mutex<Services>>,
    shared: Arc<Shared>,
    /// What the gateway knows: its process, and the count of changes up to which.
    gateway_knows: watch::Sender<Option<(i32, u64)>>,
    /// Cancelled when the run is to end.
    pub(crate) down: CancellationToken,
    /// Cancelled when every process has ended.
    pub(crate) ended: CancellationToken,
}

/// The bus, or a service.
pub(crate) struct UnitHandle {
    pub(crate) name: String,
    pub(crate) database: Option<String>,
    /// Numbered from 1, without holes.
    replicas: Quick<Vec<ReplicaHandle>>,
    pub(crate) log: Arc<Log>,
}

/// One process.
#[derive(Clone)]
pub(crate) struct ReplicaHandle {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) listen: SocketAddr,
    pub(crate) probe: Probe,
    pub(crate) orders: mpsc::Sender<Ordered>,
    pub(crate) standing: watch::Receiver<Standing>,
}

impl System {
    pub(crate) fn new(
        bus: String,
        has_own_bus: bool,
        units: Vec<UnitHandle>,
        services: Arc<Mutex<Services>>,
        shared: Arc<Shared>,
    ) -> Self {
        let (down, ended) = (CancellationToken::new(), CancellationToken::new());
        let gateway_knows = watch::Sender::new(None);
        Self { bus, has_own_bus, units, services, shared, gateway_knows, down, ended }
    }

    /// Waits until everything is ready, and the gateway knows it. With a bound, a failure to start is an error; without, it is
    /// tried for ever.
    pub(crate) async fn ready(&self, bound: Option<Duration>) -> Result<()> {
        let tries = bound.map(|_| START_TRIES_MAX);
        let bound = bound.unwrap_or(Duration::MAX);
        try_join_all(self.units.iter().map(|unit| unit.ready(tries, bound))).await?;
        self.until_gateway_knows(bound).await
    }

    /// Waits until the gateway, if one runs, takes requests and knows where everything stands now.
    async fn until_gateway_knows(&self, bound: Duration) -> Result<()> {
        let Some(unit) = self.units.iter().find(|unit| unit.name == GATEWAY) else { return Ok(()) };
        let wanted = *self.shared.changes.borrow();
        let (mut knows, mut standing) = (self.gateway_knows.subscribe(), unit.replicas()[0].standing.clone());
        let known = async {
            loop {
                let now = standing.borrow_and_update().clone();
                let has_heard = |(pid, count): (i32, u64)| now.pid == Some(pid) && count >= wanted;
                if now.phase == Phase::Stopped || knows.borrow_and_update().is_some_and(has_heard) {
                    return;
                }
                tokio::select! {
                    _ = knows.changed() => {}
                    // An error says that it was ended.
                    changed = standing.changed() => if changed.is_err() { return },
                }
            }
        };
        tokio::time::timeout(bound, known).await.map_err(|_| {
            Error::failed(format!(
                "the gateway does not know after {} s where the services are, or who was blocked; its last lines:\n{}",
                bound.as_secs(),
                unit.log.tail()
            ))
        })
    }

    /// Takes note of what a process says that it knows. Only the gateway of this run is waited for.
    pub(crate) fn known_to(&self, pid: i32, count: u64) {
        self.gateway_knows.send_replace(Some((pid, count)));
    }

    /// Where everything stands now; each process is asked whether it is ready.
    pub(crate) async fn status(&self) -> Status {
        let services = join_all(self.services().iter().map(|service| service.status(&self.shared.client)));
        Status { changes: self.changes(), bus: self.bus(), services: services.await }
    }

    /// Where everything stood when it was last looked at.
    pub(crate) fn standing(&self) -> Status {
        // The count first: what changes meanwhile is told again.
        let changes = self.changes();
        let services = self.services().iter().map(UnitHandle::standing).collect();
        Status { changes, bus: self.bus(), services }
    }

    /// The same, as soon as it is not what was known after so many changes.
    pub(crate) async fn standing_after(&self, known: Option<u64>) -> Status {
        let mut changes = self.shared.changes.subscribe();
        tokio::select! {
            // The sender lives as long as this system.
            _ = changes.wait_for(|&count| Some(count) != known) => {}
            () = self.ended.cancelled() => {}
        }
        self.standing()
    }

    fn changes(&self) -> u64 {
        *self.shared.changes.borrow()
    }

    fn services(&self) -> &[UnitHandle] {
        &self.units[usize::from(self.has_own_bus)..]
    }

    fn bus(&self) -> BusStatus {
        let own = self.units.first().filter(|_| self.has_own_bus);
        let standing = own.map(|bus| bus.replicas()[0].standing.borrow().clone());
        BusStatus {
            url: without_password(&self.bus),
            pid: standing.as_ref().and_then(|standing| standing.pid),
            state: standing.map_or("elsewhere", |standing| word(standing.phase)).into(),
        }
    }

    /// Ends a unit and leaves it ended.
    pub(crate) async fn stop(&self, name: &str) -> Result<()> {
        self.unit(name)?.order(Order::Stop).await
    }

    /// Starts a unit and waits until it is ready.
    pub(crate) async fn start(&self, name: &str) -> Result<()> {
        let unit = self.unit(name)?;
        unit.order(Order::Start).await?;
        unit.ready(Some(START_TRIES_MAX), START_BOUND).await?;
        self.until_gateway_knows(START_BOUND).await
    }

    /// Kills a unit's processes as if they died by themselves.
    pub(crate) async fn kill(&self, name: &str) -> Result<()> {
        let unit = self.unit(name)?;
        if unit.replicas().iter().all(|replica| replica.standing.borrow().pid.is_none()) {
            return Err(Error::failed(format!("{name} does not run, so there is nothing to kill")));
        }
        unit.order(Order::Kill).await
    }

    /// Has so many processes of a service run: the last ones end as they would with the run, or further ones start and
    /// become ready.
    pub(crate) async fn scale(&self, name: &str, count: u32) -> Result<()> {
        let unit = self.unit(name)?;
        if name == BUS {
            return Err(Error::usage("the bus is one process: it cannot be scaled; scale services"));
        }
        if !(1..=REPLICAS_MAX).contains(&count) {
            return Err(Error::usage(format!(
                "found {count} replicas for {name}; expected 1 to {REPLICAS_MAX}: `tombolo stop {name}` ends all"
            )));
        }
        // Held until it is done, so that orders to scale are carried out one after the other.
        let mut services = self.services.lock().await;
        unit.shrink(count as usize).await?;
        while unit.replicas().len() < count as usize {
            let number = unit.replicas().len() as u32 + 1;
            unit.add(services.another(&unit.name, number, &unit.log)?);
        }
        drop(services);
        self.shared.changed();
        unit.ready(Some(START_TRIES_MAX), START_BOUND).await?;
        self.until_gateway_knows(START_BOUND).await
    }

    fn unit(&self, name: &str) -> Result<&UnitHandle> {
        let names: Vec<_> = self.units.iter().map(|unit| unit.name.as_str()).collect();
        let found = self.units.iter().find(|unit| unit.name == name);
        found.ok_or_else(|| unknown(name, &names, self.has_own_bus))
    }
}

fn unknown(name: &str, names: &[&str], has_own_bus: bool) -> Error {
    if name == BUS && !has_own_bus {
        return Error::not_found(
            "the bus is not run by this runner: it was given with --bus, or as url of [bus]",
        );
    }
    Error::not_found(format!("there is no service {name:?}; there are: {}", names.join(", ")))
}

impl UnitHandle {
    pub(crate) fn new(
        name: String,
        database: Option<String>,
        replicas: Vec<ReplicaHandle>,
        log: Arc<Log>,
    ) -> Self {
        Self { name, database, replicas: Quick::new(replicas), log }
    }

    fn replicas(&self) -> Vec<ReplicaHandle> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, replica: ReplicaHandle) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
    }

    /// Ends the processes numbered above `count`. Their tasks end with their handles.
    async fn shrink(&self, count: usize) -> Result<()> {
        let surplus: Vec<ReplicaHandle> = self.replicas().into_iter().skip(count).collect();
        try_join_all(surplus.iter().map(|replica| replica.order(Order::Stop))).await?;
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).truncate(count);
        Ok(())
    }

    async fn order(&self, order: Order) -> Result<()> {
        try_join_all(self.replicas().iter().map(|replica| replica.order(order))).await.map(drop)
    }

    async fn ready(&self, tries: Option<u32>, bound: Duration) -> Result<()> {
        let replicas = self.replicas();
        let all = try_join_all(replicas.iter().map(|replica| replica.ready(tries)));
        match tokio::time::timeout(bound, all).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => Err(Error::failed(format!("{why}; its last lines:\n{}", self.log.tail()))),
            Err(_) => Err(Error::failed(format!(
                "{} is not ready after {} s (GET /ready must answer 200); its last lines:\n{}",
                self.name,
                bound.as_secs(),
                self.log.tail()
            ))),
        }
    }

    fn standing(&self) -> ServiceStatus {
        let known = |replica: &ReplicaHandle| {
            let is_ready = replica.standing.borrow().phase == Phase::Ready;
            replica.status_if(is_ready)
        };
        let (name, database) = (self.name.clone(), self.database.as_deref().map(without_password));
        ServiceStatus { name, database, replicas: self.replicas().iter().map(known).collect() }
    }

    async fn status(&self, client: &reqwest::Client) -> ServiceStatus {
        ServiceStatus {
            name: self.name.clone(),
            database: self.database.as_deref().map(without_password),
            replicas: join_all(self.replicas().iter().map(|replica| replica.status(client))).await,
        }
    }
}

impl ReplicaHandle {
    async fn order(&self, order: Order) -> Result<()> {
        let ending = || Error::not_running("the runner is ending");
        let (done, answer) = oneshot::channel();
        self.orders.send((order, Acknowledge(done))).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }

    /// Waits until it is ready; the error says why it will not be.
    async fn ready(&self, tries: Option<u32>) -> std::result::Result<(), String> {
        let failed = |standing: &Standing| tries.is_some_and(|tries| standing.early_exits >= tries);
        let settled = |standing: &Standing| standing.phase == Phase::Ready || failed(standing);
        let mut watched = self.standing.clone();
        let Ok(standing) = watched.wait_for(settled).await else {
            return Err(format!("{} was ended", self.name));
        };
        if !failed(&standing) {
            return Ok(());
        }
        let how = standing.last_exit.as_deref().unwrap_or("ended");
        Err(format!(
            "{} does not start: {how}, {} times before it was ready",
            self.name, standing.early_exits
        ))
    }

    async fn status(&self, client: &reqwest::Client) -> ReplicaStatus {
        let runs = self.standing.borrow().pid.is_some();
        self.status_if(runs && is_ready(client, self.probe, self.listen).await)
    }

    fn status_if(&self, ready: bool) -> ReplicaStatus {
        let standing = self.standing.borrow().clone();
        ReplicaStatus {
            pid: standing.pid,
            url: self.url.clone(),
            ready,
            state: word(standing.phase).into(),
            last_exit: standing.last_exit,
        }
    }
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Ready => "running",
        Phase::Waiting => "waiting to be started again",
        Phase::Stopped => "stopped",
    }
}
