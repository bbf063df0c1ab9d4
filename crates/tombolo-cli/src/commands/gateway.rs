//! `tombolo gateway`: the door in front of a system's services.
//!
//! Invariant: replicas come from one place: the runner of `tombolo dev`, else the bus, else the manifest's own ports. What
//! cannot be asked for a moment leaves them as they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tombolo::Clock;
use tombolo::auth::door::Place;
use tombolo::auth::{Auth, Door};
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;
use tombolo_gateway::{Outside, Settings, Sink};

use crate::arguments::Gateway;
use crate::commands::bus::{end_on_signal, trace};
use crate::commands::connect;
use crate::error::{Context, Error, Result};
use crate::folder::{Run, find};
use crate::manifest::{GATEWAY, Manifest};
use crate::mistake::{Mistake, show};
use crate::runner::control::{Request, ServiceStatus, Status, ask};

/// How soon the runner is asked again after it did not answer. Else it answers when something has changed.
const ASK_RUNNER_EVERY: Duration = Duration::from_millis(200);
/// How often the bus is.
const ASK_BUS_EVERY: Duration = Duration::from_secs(1);
/// How often the configuration is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Serves until it is told to end.
pub(crate) async fn gateway(arguments: Gateway) -> Result<()> {
    trace();
    raise_open_files();
    let path = place(&arguments.config);
    let settings = read(&path)?;
    let found = Found::open(&arguments, &path).await?;
    let log: Option<Sink> = settings.access_log.then(|| Box::new(std::io::stdout()) as Sink);
    let bus = bus(&settings, &arguments).await?;
    let outside = Outside { log, door: checks(&settings, bus.clone())? };
    let started = tombolo_gateway::Gateway::start(settings, outside).await;
    let door = started.context(|| "cannot start the gateway".into())?;
    tracing::info!("the gateway listens on {}", door.address());
    if let Some(admin) = door.admin_address() {
        tracing::info!("its operators look at http://{admin}/ready, /metrics, /replicas");
    }
    let stop = CancellationToken::new();
    let ended = end_on_signal(stop.clone(), None)?;
    let following = stop.run_until_cancelled(found.follow(&door));
    let looking = stop.run_until_cancelled(read_again(&door, &path));
    tokio::join!(ended, following, looking);
    tracing::info!("the gateway takes no more requests, and ends when the last is answered");
    door.stop().await;
    found.close().await;
    if let Some(bus) = bus {
        bus.close().await;
    }
    Ok(())
}

/// The bus on which blocks are heard and services find the gateway's key, if a route asks for tokens.
async fn bus(settings: &Settings, arguments: &Gateway) -> Result<Option<Arc<dyn Bus>>> {
    let Some(url) = arguments.bus.as_ref().filter(|_| settings.asks_for_tokens()) else { return Ok(None) };
    let name = ServiceName::new(GATEWAY).context(|| "cannot join the bus".into())?;
    Ok(Some(connect(url, &Identity::Service(name)).await?))
}

/// What checks tokens, if a route asks for them: the issuer of the manifest, with what the environment says of it.
fn checks(settings: &Settings, bus: Option<Arc<dyn Bus>>) -> Result<Option<Arc<Door>>> {
    if !settings.asks_for_tokens() {
        return Ok(None);
    }
    let wrong = |error: tombolo::Error| {
        Error::usage(format!(
            "{error}; a route of the gateway asks for tokens: say issuer = \"http://…\" in [gateway]"
        ))
    };
    let mut auth = Auth::local(settings.issuer.as_deref().unwrap_or_default());
    if let Some(topic) = &settings.blocks {
        auth = auth.blocks_in(topic, topic);
    }
    let auth = auth.with_env().map_err(wrong)?;
    let door = Door::open(auth, &Place::named(GATEWAY), bus, &Clock::default()).map_err(wrong)?;
    Ok(Some(Arc::new(door)))
}

/// As many files at once as this process may have: each connection is one.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the bound of open files stays as it was, and with it that of connections");
    }
}

fn place(config: &Path) -> PathBuf {
    if config.is_dir() { config.join(crate::manifest::FILE_NAME) } else { config.to_owned() }
}

fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::usage(format!("cannot read {}: {error}; name a tombolo.toml: --config FILE", path.display()))
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let settings = Settings::read(&text, folder).map_err(|mistakes| {
        let shown =
            mistakes.into_iter().map(|it| Mistake { at: it.at, message: it.message, advice: it.advice });
        Error::usage(show(path, &text, shown.collect()))
    })?;
    settings.ok_or_else(|| {
        Error::usage(format!(
            "{} has no table [gateway]; add one with port = 7100 and [[gateway.route]]",
            path.display()
        ))
    })
}

/// Takes the configuration again whenever its file changes, or on SIGHUP.
async fn read_again(door: &tombolo_gateway::Gateway, path: &Path) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    let mut clock = interval(LOOK_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = changed(path);
    loop {
        tokio::select! {
            _ = clock.tick() => if changed(path) == known { continue },
            hangup = hangups.recv() => if hangup.is_none() { return },
        }
        known = changed(path);
        let taken = read(path).and_then(|settings| {
            door.reload(settings).context(|| format!("cannot take what {} says now", path.display()))
        });
        match taken {
            Ok(()) => tracing::info!(config = %path.display(), "the configuration was read again"),
            Err(error) => tracing::error!("the configuration stays as it was: {error}"),
        }
    }
}

fn changed(path: &Path) -> Option<(SystemTime, u64)> {
    let found = path.metadata().ok()?;
    Some((found.modified().ok()?, found.len()))
}

/// Where replicas are found.
enum Found {
    /// At the runner of a data folder.
    Runner(Run),
    /// At the bus.
    Bus(Arc<dyn Bus>),
    /// Where the manifest says.
    Manifest(Known),
}

/// Where each service's replicas are.
type Known = BTreeMap<String, Vec<Uri>>;

impl Found {
    async fn open(arguments: &Gateway, path: &Path) -> Result<Self> {
        if let Some(data) = &arguments.data {
            return Ok(Self::Runner(find(Some(data))?));
        }
        if let Some(bus) = &arguments.bus {
            return Ok(Self::Bus(connect(bus, &Identity::Operator).await?));
        }
        // A gateway whose routes name their own addresses needs no services in its file.
        Ok(Self::Manifest(Manifest::read(path).map(|manifest| ports(&manifest)).unwrap_or_default()))
    }

    /// Tells the gateway whenever replicas change. Ends only when it is dropped, unless nothing ever changes.
    async fn follow(&self, door: &tombolo_gateway::Gateway) {
        match self {
            Self::Runner(run) => follow_runner(run, door).await,
            Self::Bus(bus) => follow_bus(bus.as_ref(), door).await,
            Self::Manifest(known) => tell(door, known.clone()),
        }
    }

    async fn close(self) {
        if let Self::Bus(bus) = self {
            bus.close().await;
        }
    }
}

/// The runner hears in turn what is known here, and waits for it before it says of anything that it is ready.
async fn follow_runner(run: &Run, door: &tombolo_gateway::Gateway) {
    let mut clock = pace(ASK_RUNNER_EVERY);
    let (mut knows, mut waits) = (None, true);
    loop {
        let is_ready = door.is_ready();
        let request = Request::Follow { knows, is_ready };
        let answer = tokio::select! {
            answer = ask(run, &request) => answer,
            () = door.ready(), if waits && !is_ready => {
                waits = false;
                continue;
            }
        };
        match answer {
            Ok(status) => {
                knows = Some(status.changes);
                tell(door, ready_ones(&status));
            }
            Err(error) => {
                tracing::warn!("the replicas stay as they were: {error}");
                clock.tick().await;
            }
        }
    }
}

async fn follow_bus(bus: &dyn Bus, door: &tombolo_gateway::Gateway) {
    let mut clock = pace(ASK_BUS_EVERY);
    loop {
        clock.tick().await;
        match bus.registrations().await {
            Ok(registered) => {
                let mut known: Known = Known::new();
                for it in &registered {
                    known.entry(it.service.to_string()).or_default().extend(it.url.parse::<Uri>());
                }
                tell(door, known);
            }
            Err(error) => tracing::warn!("the replicas stay as they were: {error}"),
        }
    }
}

fn pace(every: Duration) -> Interval {
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// The replicas that are ready, and the services that have none.
fn ready_ones(status: &Status) -> Known {
    let urls = |service: &ServiceStatus| {
        let ready = service.replicas.iter().filter(|replica| replica.ready);
        ready.filter_map(|replica| replica.url.parse().ok()).collect()
    };
    status.services.iter().map(|service| (service.name.clone(), urls(service))).collect()
}

fn tell(door: &tombolo_gateway::Gateway, known: Known) {
    known.into_iter().for_each(|(service, urls)| door.set_replicas(&service, urls));
    door.heard();
}

/// Where services listen that have ports of their own.
fn ports(manifest: &Manifest) -> Known {
    let of = |service: &crate::manifest::Service| {
        let first = service.port?;
        let ports = (first..).take(service.replicas as usize);
        let urls = ports.filter_map(|port| format!("http://127.0.0.1:{port}").parse().ok());
        Some((service.name.to_string(), urls.collect()))
    };
    manifest.services.iter().filter_map(of).collect()
}
