//! A service that runs: its tasks, started in the order in which data flows, and joined when it stops.
//!
//! Invariant: every task has an owner here that joins it; one token stops them all; a task that panics stops the service.

mod guard;
mod relaying;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Archived, Bus, Identity, Registration};
use tombolo_db::{Database, Holder, Owner, Publisher};
use tombolo_event::ServiceName;
use tombolo_event::descriptor::Descriptor;
use uuid::Uuid;

use crate::app::Shared;
use crate::directory::Directory;
use crate::life::{Life, Tasks};
use crate::metrics::Metrics;
use crate::operator::Desk;
use crate::progress::Progress;
use crate::question::Listeners;
use crate::question::answer::{self, Answerers};
use crate::question::ask::Asker;
use crate::question::inbox::Inbox;
use crate::recovery::Recovery;
use crate::settings::Lease;
use crate::sharing::Sharing;
use crate::status::Board;
use crate::subscription::Subscription;
use crate::view::{Builds, Keeper};
use crate::worker::{Kept, Worker};
use crate::{App, Clock, Error, Kind, Result, Service, Settings, edge};

/// How long a starting service waits for the bus before it serves without.
const READY_WITHOUT_BUS: Duration = Duration::from_secs(1);

/// A running service. Dropped, its tasks end at once, as in a crash; [`Running::shutdown`] is the clean way.
pub struct Running<D: Database> {
    /// The service, as its own code sees it.
    pub app: App<D>,
    /// Where it is called; empty for one that was started beside a program without saying where.
    pub url: String,
    /// Its routes: the user's, and beside them what every service answers.
    pub router: Router,
    stop: CancellationToken,
    tasks: Tasks,
    grace: Duration,
}

impl<D: Database> Running<D> {
    /// Stops taking work, finishes what was begun, and returns.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(self.grace, all).await.is_err() {
            tracing::warn!(
                "not everything ended within {:?}; what is left is cut off, and found again at the next start",
                self.grace
            );
        }
    }

    /// Ends every task where it is, as a crash does, and returns when none is left.
    #[cfg(feature = "testing")]
    pub(crate) async fn cut_off(mut self) {
        self.tasks.cut_off().await;
    }

    /// Waits until the service stops by itself, which it only does if one of its tasks failed.
    ///
    /// # Errors
    /// What failed.
    pub async fn failed(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Err(error)) => {
                Err(Error::new(Kind::Failed, format!("a task of the service failed: {error}")))
            }
            _ => Err(Error::new(Kind::Failed, "a task of the service ended by itself")),
        }
    }
}

pub(crate) async fn run<D: Database>(service: Service<D>) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        ["--describe"] => return describe(&service),
        _ => {
            let found = arguments.join(" ");
            return Err(Error::new(
                Kind::Settings,
                format!(
                    "found the arguments {found:?}; expected none, or --describe; all settings come from the environment (TOMBOLO_BUS, TOMBOLO_LISTEN, TOMBOLO_DATABASE, …)"
                ),
            ));
        }
    }
    log_to_stderr();
    #[cfg(feature = "barriers")]
    crate::barriers::install_from_env()?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Error::new(Kind::Settings, error.to_string()))?;
    let mut running = start(service, Settings::from_env()?).await?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        failed = running.failed() => return failed,
    }
    running.shutdown().await;
    Ok(())
}

fn describe<D: Database>(service: &Service<D>) -> Result<()> {
    let descriptor = serde_json::to_string_pretty(&service.describe()?);
    println!("{}", descriptor.map_err(|error| Error::new(Kind::Wiring, error.to_string()))?);
    Ok(())
}

/// A subscriber of our own, unless the user has set one.
fn log_to_stderr() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init()
        .ok();
}

pub(crate) async fn start<D: Database>(mut service: Service<D>, settings: Settings) -> Result<Running<D>> {
    let prepared = prepare(&mut service, &settings).await?;
    let (listener, url) = bind(&settings).await?;
    let starting = Starting::new(&prepared, &settings, &url, service.clock.clone(), service.life.clone())?;
    Ok(starting.spawn(service, prepared, Some(listener), url, settings.grace).await)
}

pub(crate) async fn start_beside<D: Database>(
    mut service: Service<D>,
    settings: Settings,
) -> Result<Running<D>> {
    let prepared = prepare(&mut service, &settings).await?;
    let url = settings.url.clone().unwrap_or_default();
    let starting = Starting::new(&prepared, &settings, &url, service.clock.clone(), service.life.clone())?;
    Ok(starting.spawn(service, prepared, None, url, settings.grace).await)
}

/// What is there before the first task.
struct Prepared<D: Database> {
    descriptor: Descriptor,
    bus: Arc<dyn Bus>,
    builds: Arc<Builds<D>>,
    guard: guard::Prepared,
}

/// Makes the database ready, joins the bus, and makes the tables of the views.
async fn prepare<D: Database>(service: &mut Service<D>, settings: &Settings) -> Result<Prepared<D>> {
    let descriptor = service.describe()?;
    let guard = guard::Prepared::new(service, &descriptor)?;
    let owner = Owner { service: descriptor.service.clone(), partitions: descriptor.partitions };
    service.database.prepare(&owner, settings.schema).await?;
    if let Some(foreign) = service.foreign {
        service.database.prepare_foreign(foreign, settings.schema).await?;
    }
    if let Some(setup) = service.setup.take() {
        setup(service.database.clone()).await?;
    }
    let bus = match service.bus.take() {
        Some(bus) => bus,
        None => reach(&descriptor.service, settings).await?,
    };
    let (views, database) = (std::mem::take(&mut service.views), service.database.clone());
    let holder = Holder::new(replica(&descriptor.service, settings.replica));
    let leases = Arc::new(database.clone());
    let sharing = Sharing::new(leases, holder, settings.lease, Arc::clone(&bus), &descriptor.service);
    let builds = Arc::new(Builds::prepare(views, database, Arc::clone(&bus), Arc::new(sharing)).await?);
    Ok(Prepared { descriptor, bus, builds, guard })
}

/// The bus that the settings name, with its archive if they name one.
async fn reach(service: &ServiceName, settings: &Settings) -> Result<Arc<dyn Bus>> {
    let identity = Identity::Service(service.clone());
    let bus = tombolo_bus::connect(&settings.bus, &identity).await?;
    let Some(archive) = &settings.archive else { return Ok(bus) };
    let archive = tombolo_bus::connect(archive, &identity).await?;
    Ok(Arc::new(Archived::new(bus, archive)))
}

async fn bind(settings: &Settings) -> Result<(TcpListener, String)> {
    let listen = &settings.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let message = format!("cannot serve on {listen}: {error}; free the port, or set TOMBOLO_LISTEN to another (port 0 takes a free one)");
        Error::new(Kind::Listen, message).because(error)
    })?;
    let address: SocketAddr =
        listener.local_addr().map_err(|error| Error::new(Kind::Listen, error.to_string()))?;
    let url = settings.url.clone().unwrap_or_else(|| format!("http://{address}"));
    Ok((listener, url))
}

/// What the tasks share.
struct Starting {
    bus: Arc<dyn Bus>,
    publisher: Publisher,
    woken: Arc<Notify>,
    directory: Arc<Directory>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
    desk: Arc<Desk>,
    progress: Arc<Progress>,
    clock: Clock,
    lease: Lease,
    life: Life,
    replica: u32,
    holder: Uuid,
    stop: CancellationToken,
    #[cfg(feature = "auth")]
    internal: Arc<crate::auth::Internal>,
}

impl Starting {
    fn new<D: Database>(
        prepared: &Prepared<D>,
        settings: &Settings,
        url: &str,
        clock: Clock,
        life: Life,
    ) -> Result<Self> {
        let (descriptor, bus) = (&prepared.descriptor, Arc::clone(&prepared.bus));
        let metrics = Arc::new(Metrics::new(descriptor.service.as_str()));
        let woken = Arc::new(Notify::new());
        let publisher = publisher(descriptor, &woken);
        let own = registration(descriptor, prepared.guard.described(descriptor)?, settings, url);
        let replica = own.replica;
        let directory = Arc::new(Directory::new(Arc::clone(&bus), own, needed(descriptor)));
        let inbox = Arc::new(Inbox::new(Arc::clone(&metrics)));
        let token = settings.operator_token.clone().map(|token| token.0);
        let desk = Arc::new(Desk::new(Arc::clone(&bus), &descriptor.service, token));
        let (board, progress, stop) = (Arc::default(), Arc::default(), CancellationToken::new());
        let holder = prepared.builds.sharing().replica();
        let lease = settings.lease;
        Ok(Self {
            #[cfg(feature = "auth")]
            internal: prepared.guard.internal(&directory, &clock),
            bus,
            publisher,
            woken,
            directory,
            inbox,
            metrics,
            board,
            desk,
            progress,
            clock,
            lease,
            life,
            replica,
            holder,
            stop,
        })
    }

    async fn spawn<D: Database>(
        self,
        mut service: Service<D>,
        prepared: Prepared<D>,
        listener: Option<TcpListener>,
        url: String,
        grace: Duration,
    ) -> Running<D> {
        let mut tasks = Tasks::new(self.life.clone());
        let app = self.app(&mut service, &prepared.builds);
        let routes = std::mem::take(&mut service.routes);
        let Prepared { descriptor, builds, guard, .. } = prepared;
        let guard = self.guard(guard, &app, &mut tasks);
        let mut loaded = guard.loaded.clone();
        let states = Arc::new(service.take_states());
        self.spawn_path(&mut service, &app, &states, &mut tasks);
        let mut is_registered = self.spawn_questions(&app, &mut tasks);
        let stop = self.stop.clone();
        let (ready, is_ready) = watch::channel(false);
        let all_ready = std::iter::once(is_ready).chain(loaded.clone()).collect();
        let router = guard.over(edge::router(app.clone(), routes, descriptor, all_ready));
        let router = self.life.over(router);
        if let Some(listener) = listener {
            tasks.spawn(serve(listener, router.clone(), stop.clone()));
        }
        if builds.names().next().is_some() {
            tasks.spawn(self.keeper(&app, builds, states).run());
        }
        // Without the bus the service serves all the same; it only waits a moment for it.
        // What is seen is let go of at once: held until the others are there, it would stop the thread of whoever says it again.
        let all = loaded.iter_mut().chain([&mut is_registered]);
        let all = join_all(all.map(async |all| drop(all.wait_for(|&is| is).await)));
        timeout(READY_WITHOUT_BUS, all).await.ok();
        ready.send_replace(true);
        tracing::info!(service = %app.service(), url, "ready");
        Running { app, url, router, stop, tasks, grace }
    }

    /// The relay, a worker for each subscription that is no view's, and what they lean on.
    fn spawn_path<D: Database>(
        &self,
        service: &mut Service<D>,
        app: &App<D>,
        states: &Arc<http::Extensions>,
        tasks: &mut Tasks,
    ) {
        if app.recovery().is_relayed() {
            tasks.spawn(self.relay(&service.database, app.recovery()).run());
        }
        if let Some(foreign) = service.foreign {
            tasks.spawn(self.watch(&service.database, foreign.notify).run());
        }
        for subscription in std::mem::take(&mut service.subscriptions) {
            tasks.spawn(self.worker(subscription, app, states).run());
        }
        tasks.spawn(Arc::clone(app.sharing()).run(self.stop.clone()));
        let requests = Arc::new(service.database.clone());
        tasks.spawn(Arc::clone(&self.desk).run(requests, self.stop.clone()));
    }

    /// Answers and asks, and registers once everybody who asks would be heard.
    fn spawn_questions<D: Database>(&self, app: &App<D>, tasks: &mut Tasks) -> watch::Receiver<bool> {
        let listeners = Listeners::new();
        for question in app.answerers().keys() {
            let (bus, heard) = (Arc::clone(&self.bus), listeners.expect());
            tasks.spawn(answer::listen(app.clone(), bus, question.clone(), heard, self.stop.clone()));
        }
        tasks.spawn(Arc::clone(&self.inbox).run(
            Arc::clone(&self.bus),
            listeners.expect(),
            self.stop.clone(),
        ));
        let (registered, is_registered) = watch::channel(false);
        tasks.spawn(Arc::clone(&self.directory).run(listeners, registered, self.stop.clone()));
        is_registered
    }

    fn app<D: Database>(&self, service: &mut Service<D>, builds: &Arc<Builds<D>>) -> App<D> {
        let answerers: Answerers<D> = std::mem::take(&mut service.answerers)
            .into_iter()
            .map(|answerer| (answerer.describe.question.clone(), answerer))
            .collect();
        let asker = Asker {
            service: self.publisher.service.to_string(),
            bus: Arc::clone(&self.bus),
            directory: Arc::clone(&self.directory),
            inbox: Arc::clone(&self.inbox),
            http: reqwest::Client::new(),
            metrics: Arc::clone(&self.metrics),
            next: AtomicUsize::new(0),
            #[cfg(feature = "auth")]
            internal: Arc::clone(&self.internal),
        };
        App::new(Shared {
            database: service.database.clone(),
            publisher: self.publisher.clone(),
            replica: self.replica,
            asker,
            answerers,
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            board: Arc::clone(&self.board),
            desk: Arc::clone(&self.desk),
            sharing: Arc::clone(builds.sharing()),
            progress: Arc::clone(&self.progress),
            readers: service.subscriptions.iter().map(Subscription::reader).collect(),
            recovery: Arc::new(Recovery::new(
                Arc::new(service.database.clone()),
                Arc::clone(&self.bus),
                self.publisher.clone(),
                !self.publisher.declared.is_empty() || service.foreign.is_some(),
                self.holder,
            )),
            builds: Arc::clone(builds),
        })
    }

    /// Keeps the builds of the views, with workers that come and go while the service runs.
    fn keeper<D: Database>(
        self,
        app: &App<D>,
        builds: Arc<Builds<D>>,
        states: Arc<http::Extensions>,
    ) -> Keeper<D> {
        let (app, life, stop) = (app.clone(), self.life.clone(), self.stop.clone());
        let asked = self.desk.announcements();
        let hire = move |subscription, stop| Worker { stop, ..self.worker(subscription, &app, &states) };
        Keeper { builds, hire: Box::new(hire), life, asked, stop }
    }

    fn worker<D: Database>(
        &self,
        subscription: Subscription<D>,
        app: &App<D>,
        states: &Arc<http::Extensions>,
    ) -> Worker<D> {
        Worker {
            subscription,
            database: app.database().clone(),
            app: app.clone(),
            bus: Arc::clone(&self.bus),
            publisher: self.publisher.clone(),
            states: Arc::clone(states),
            metrics: Arc::clone(&self.metrics),
            board: Arc::clone(&self.board),
            progress: Arc::clone(&self.progress),
            kept: Kept::default(),
            announced: self.desk.announcements(),
            clock: self.clock.clone(),
            lease: self.lease,
            life: self.life.clone(),
            registered: self.directory.changes(),
            stop: self.stop.clone(),
        }
    }
}

/// What the service may publish, and how a commit wakes its relay.
fn publisher(descriptor: &Descriptor, woken: &Arc<Notify>) -> Publisher {
    let wake = Arc::clone(woken);
    let declared: BTreeSet<String> =
        descriptor.publishes.iter().map(|published| published.event_type.clone()).collect();
    Publisher {
        service: descriptor.service.clone(),
        declared: Arc::new(declared),
        full: Arc::new(AtomicBool::new(false)),
        wake: Arc::new(move || wake.notify_one()),
    }
}

/// What the directory says of this replica.
fn registration(descriptor: &Descriptor, described: String, settings: &Settings, url: &str) -> Registration {
    Registration {
        service: descriptor.service.clone(),
        replica: settings.replica.unwrap_or(1),
        url: url.to_owned(),
        descriptor: described,
    }
}

/// Who a process is to the leases: a numbered replica is the same one after a restart, so it takes over at once what it
/// held before; its older self, should it still run, is fenced by the epochs.
fn replica(service: &ServiceName, number: Option<u32>) -> Uuid {
    match number {
        Some(number) => Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("tombolo:{service}/{number}").as_bytes()),
        None => Uuid::new_v4(),
    }
}

/// The (topic, type) pairs that somebody else has to publish.
fn needed(descriptor: &Descriptor) -> Vec<(String, String)> {
    let handled = descriptor.subscriptions.iter().flat_map(|subscription| &subscription.handles);
    handled.filter_map(|handled| Some((handled.topic.to_string(), handled.types.last()?.clone()))).collect()
}

async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!("stopped serving: {error}");
    }
}
