//! What a running gateway is: its table in force, and the tasks that it owns.
//!
//! Invariant: every task is counted, and has ended when [`Gateway::stop`] returns.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use http::Uri;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_bus::server::{Certificate, Seal};

use crate::admin;
use crate::asking::Doorkeeper;
use crate::config::{Settings, Source};
use crate::error::{Error, Kind, Result};
use crate::log::{Log, Observer, Sink};
use crate::metrics::Metrics;
use crate::mutant::{self, Mutant};
use crate::server::{self, Entrance};
use crate::table::{Known, Lane, Table};
use crate::upstream::{Ground, target, trust};
use crate::workers::Workers;

/// How often what is not needed any more is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// What all of a gateway's tasks share.
pub(crate) struct Core {
    table: RwLock<Arc<Table>>,
    known: Mutex<Known>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) ground: Ground,
    pub(crate) keeper: Doorkeeper,
    /// Whether it was heard where services have replicas.
    heard: watch::Sender<bool>,
    is_draining: AtomicBool,
}

/// What a gateway is given from outside.
#[derive(Default)]
pub struct Outside {
    /// Takes the lines of the access log.
    pub log: Option<Sink>,
    /// Checks tokens, and vouches for who showed them.
    pub door: Option<Arc<tombolo::auth::Door>>,
}

impl Core {
    /// The table in force.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests should come.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining.load(Ordering::Acquire) && self.keeper.is_ready() && self.has_heard()
    }

    /// Whether it is known of each service where its replicas are, or that it has none.
    fn has_heard(&self) -> bool {
        let is_named = |lane: &Arc<Lane>| matches!(lane.route.source, Source::Service(_));
        *self.heard.borrow()
            || mutant::is_on(Mutant::IsReadyUnheard)
            || !self.table().lanes.iter().any(is_named)
    }

    async fn forget(&self) {
        let mut clock = interval(FORGET_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            self.table().lanes.iter().for_each(|lane| lane.rates.forget());
        }
    }
}

/// A gateway that runs.
pub struct Gateway {
    core: Arc<Core>,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    visits: TaskTracker,
    /// Ends the taking of requests.
    drain: CancellationToken,
    /// What carries requests, and what writes the log.
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Listens, and passes requests on from now on.
    ///
    /// # Errors
    /// `Settings` for a certificate that cannot be used, or routes that ask for tokens without a door that checks them;
    /// `Machine` for an address that cannot be listened on.
    pub async fn start(settings: Settings, outside: Outside) -> Result<Self> {
        let keeper = Doorkeeper::new(outside.door.clone());
        keeper.suits(&settings)?;
        let listener = bind(settings.listen).await?;
        let admin = match settings.admin {
            Some(listen) => Some(bind(listen).await?),
            None => None,
        };
        let seal = |own: &Certificate| {
            Seal::open(own.clone(), None).map_err(|error| Error::new(Kind::Settings, error.to_string()))
        };
        let seal = settings.tls.as_ref().map(seal).transpose()?;
        let (log, writer) = outside.log.map(Log::start).unzip();
        let core = core(settings, Observer { metrics: Metrics::new(), log }, keeper)?;
        let (drain, visits) = (core.ground.stop.child_token(), TaskTracker::new());
        let at = |listener: &TcpListener| {
            listener
                .local_addr()
                .map_err(|error| Error::new(Kind::Machine, "the own address is unknown").because(error))
        };
        let (address, admin_address) = (at(&listener)?, admin.as_ref().map(at).transpose()?);
        let threads = writer.into_iter().collect();
        let mut gateway = Self { core, address, admin: admin_address, visits, drain, threads };
        gateway.spawn(listener, admin, seal)?;
        if let Some(door) = outside.door {
            let stop = gateway.core.ground.stop.clone();
            gateway.core.ground.tasks.spawn(async move { door.run(stop).await });
        }
        Ok(gateway)
    }

    fn spawn(&mut self, listener: TcpListener, admin: Option<TcpListener>, seal: Option<Seal>) -> Result<()> {
        let ground = &self.core.ground;
        let limits = self.core.table().settings.limits;
        if let Some(seal) = seal.clone() {
            self.spawn_one(async move { seal.follow().await });
        }
        let core = self.core.clone();
        self.spawn_one(async move { core.forget().await });
        if let Some(admin) = admin {
            let serve = admin::serve(admin, self.core.clone(), ground.stop.clone());
            ground.tasks.spawn(serve);
        }
        let entrance = Entrance {
            core: self.core.clone(),
            seal,
            drain: self.drain.clone(),
            visits: self.visits.clone(),
        };
        let (workers, threads) = Workers::start(&entrance)?;
        self.threads.extend(threads);
        self.spawn_one(server::accept(entrance, workers, listener, limits));
        Ok(())
    }

    fn spawn_one(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.core.ground.stop.clone();
        self.core.ground.tasks.spawn(async move { stop.run_until_cancelled_owned(task).await });
    }

    /// Where requests come in.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators look.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Whether requests should come: it is known where the replicas of services are, and who was blocked.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.core.is_ready()
    }

    /// Waits until [`Gateway::is_ready`].
    pub async fn ready(&self) {
        self.core.keeper.ready().await;
        if !self.core.has_heard() {
            // The sender is this gateway's own.
            self.core.heard.subscribe().wait_for(|&is| is).await.ok();
        }
    }

    /// All was said by [`Gateway::set_replicas`] that is known now: services of which nothing was said have no replica.
    pub fn heard(&self) {
        self.core.heard.send_replace(true);
    }

    /// The replicas of a service are at these addresses from now on.
    pub fn set_replicas(&self, service: &str, urls: impl IntoIterator<Item = Uri>) {
        let targets: Vec<_> = urls.into_iter().map(target).collect();
        let mut known = self.core.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(service) == Some(&targets) {
            return;
        }
        tracing::info!(service, replicas = targets.len(), "the replicas of a service changed");
        for upstream in self.core.table().upstreams() {
            if matches!(&upstream.group.source, Source::Service(name) if name == service) {
                upstream.set(targets.clone());
            }
        }
        known.insert(service.to_owned(), targets);
    }

    /// Takes another configuration. Requests under way go on with the one that they began with.
    ///
    /// # Errors
    /// `Settings` if it says what only a start can change, such as addresses.
    pub fn reload(&self, settings: Settings) -> Result<()> {
        self.core.keeper.suits(&settings)?;
        let known = self.core.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.core.table();
        if let Some(what) = of_a_start(&before.settings, &settings) {
            let message = format!(
                "{what} changed, which takes effect when the gateway is started again; the configuration before stays in force"
            );
            return Err(Error::new(Kind::Settings, message));
        }
        let core = &self.core;
        let next = Table::new(settings, Some(&before), &core.ground, &core.observer.metrics, &known);
        let next = Arc::new(next);
        *core.table.write().unwrap_or_else(PoisonError::into_inner) = next.clone();
        before.retire(&next);
        if mutant::is_on(Mutant::CutsAtReload) {
            core.ground.stop.cancel();
        }
        core.observer.metrics.reloads.inc();
        Ok(())
    }

    /// Takes no more requests, lets those under way finish as long as the configuration says, and ends.
    pub async fn stop(mut self) {
        self.core.is_draining.store(true, Ordering::Release);
        self.drain.cancel();
        self.visits.close();
        let patience = self.core.table().settings.limits.drain;
        if timeout(patience, self.visits.wait()).await.is_err() {
            tracing::warn!("{} connections did not finish in time and are cut", self.visits.len());
        }
        let ground = self.core.ground.clone();
        ground.stop.cancel();
        self.visits.wait().await;
        ground.tasks.close();
        ground.tasks.wait().await;
        let threads = std::mem::take(&mut self.threads);
        // With the last reference to the observer the log's thread ends.
        drop(self);
        let join = move || threads.into_iter().map(JoinHandle::join).all(|ended| ended.is_ok());
        if !tokio::task::spawn_blocking(join).await.is_ok_and(|sound| sound) {
            tracing::warn!("a thread of the gateway broke off; the access log may lack its last lines");
        }
    }
}

impl Drop for Gateway {
    /// Ends what [`Self::stop`] has not.
    fn drop(&mut self) {
        self.core.ground.stop.cancel();
        self.visits.close();
        self.core.ground.tasks.close();
    }
}

/// What differs that only a start can change.
fn of_a_start(before: &Settings, now: &Settings) -> Option<&'static str> {
    let of = |settings: &Settings| (settings.limits.connections_max, settings.limits.retry_percent);
    let changes = [
        ("the address", now.listen != before.listen),
        ("the address of the admin port", now.admin != before.admin),
        ("the place of the certificate", now.tls != before.tls),
        ("the issuer of tokens", now.issuer != before.issuer),
        ("the topic of blocks", now.blocks != before.blocks),
        ("resolvers", now.resolvers != before.resolvers),
        ("access_log", now.access_log != before.access_log),
        ("connections_max or retry_percent", of(now) != of(before)),
    ];
    changes.into_iter().find(|(_, changed)| *changed).map(|(what, _)| what)
}

fn core(settings: Settings, observer: Observer, keeper: Doorkeeper) -> Result<Arc<Core>> {
    let ground = Ground {
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        retry_percent: settings.limits.retry_percent,
        resolvers: settings.resolvers.clone(),
        trust: trust()?,
    };
    let known = Known::new();
    let table = Table::new(settings, None, &ground, &observer.metrics, &known);
    Ok(Arc::new(Core {
        table: RwLock::new(Arc::new(table)),
        known: Mutex::new(known),
        observer: Arc::new(observer),
        ground,
        keeper,
        heard: watch::Sender::new(false),
        is_draining: AtomicBool::new(false),
    }))
}

async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let message = format!("cannot listen on {listen}; choose another address, or end who has it");
        Error::new(Kind::Machine, message).because(error)
    })
}
