//! The service's views with their builds, as the database has them: what the keeper keeps, readers read and operators change.
//!
//! Invariant: what is remembered here is only ever older than the database, never other than it once was.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tombolo_bus::Bus;
use tombolo_db::{Build, Database, ViewState, Wanted};
use uuid::Uuid;

use super::progress::Pace;
use super::{Live, Version, View};
use crate::freshness::Reader;
use crate::sharing::Sharing;
use crate::{Error, Kind, Result};

/// How old what readers know of a switch may be. A build stays for longer than that after it was switched away from.
const READERS_LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The service's views and their builds.
pub(crate) struct Builds<D: Database> {
    pub(super) declared: Vec<View<D>>,
    pub(super) database: D,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) pace: Pace,
    sharing: Arc<Sharing>,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

/// What was read last, and when.
struct Known {
    views: Arc<[ViewState]>,
    read_at: Instant,
}

impl<D: Database> Builds<D> {
    /// Makes the builds that the declared versions do not have yet.
    pub(crate) async fn prepare(
        declared: Vec<View<D>>,
        database: D,
        bus: Arc<dyn Bus>,
        sharing: Arc<Sharing>,
    ) -> Result<Self> {
        let known = Known { views: Arc::new([]), read_at: Instant::now() };
        let builds = Self {
            declared,
            database,
            bus,
            pace: Pace::default(),
            sharing,
            known: Mutex::new(known),
            changed: watch::Sender::new(0),
        };
        if builds.declared.is_empty() {
            return Ok(builds);
        }
        let there = builds.refresh().await?;
        for view in &builds.declared {
            let live = there.iter().find(|state| state.view == view.name()).map(|state| state.live);
            let newest = view.newest();
            let switches = live.is_some_and(|live| live.version < newest.number);
            builds.database.make_build(&Wanted { switches, ..newest.wanted() }).await?;
        }
        builds.refresh().await?;
        Ok(builds)
    }

    /// The leases of the workers that keep them.
    pub(crate) fn sharing(&self) -> &Arc<Sharing> {
        &self.sharing
    }

    /// Reads what the database has.
    pub(super) async fn refresh(&self) -> Result<Arc<[ViewState]>> {
        let read_at = Instant::now();
        let views: Arc<[ViewState]> = self.database.views().await?.into();
        let mut known = self.known();
        if known.views != views {
            known.views = Arc::clone(&views);
            self.changed.send_modify(|count| *count += 1);
        }
        known.read_at = read_at;
        Ok(views)
    }

    /// Changes whenever the views or their builds do, as far as this process has heard.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The views as they were read last.
    pub(super) fn views(&self) -> Arc<[ViewState]> {
        Arc::clone(&self.known().views)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The build of `name` to be read now.
    pub(crate) async fn live(&self, name: &str) -> Result<Live> {
        let view = self.declared(name)?;
        let is_old = self.known().read_at.elapsed() > READERS_LOOK_AGAIN;
        // Away, the database does not answer the reader's own query either; let that one say so.
        let views = if is_old { self.refresh().await.unwrap_or_else(|_| self.views()) } else { self.views() };
        let state = views.iter().find(|state| state.view == name);
        let build = state.and_then(|state| readable(view, state)).ok_or_else(|| {
            let message = format!(
                "view {name:?} has no build of a version that this program has (version {}): ask for one with `tombolo views rebuild {name}`",
                view.newest().number
            );
            Error::new(Kind::Database, message)
        })?;
        Ok(Live::new(build, self.database.tables(build)))
    }

    /// The subscription that keeps the live build of `name`; none if there is no such view.
    pub(crate) async fn reader(&self, name: &str) -> Result<Option<Reader>> {
        if !self.names().any(|view| view == name) {
            return Ok(None);
        }
        let live = self.live(name).await?;
        let version = self.declared(name)?.version(live.version());
        let topics = version.map(|version| version.fold.topics()).unwrap_or_default();
        let subscription = live.subscription().to_owned();
        Ok(Some(Reader { name: name.to_owned(), subscription, topics }))
    }

    /// The names of the views.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().map(View::name)
    }

    pub(super) fn declared(&self, name: &str) -> Result<&View<D>> {
        self.declared.iter().find(|view| view.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            let message = format!("this service has no view {name:?}; it has: {}", names.join(", "));
            Error::new(Kind::Wiring, message)
        })
    }

    /// The version of a build, if this program has it.
    pub(super) fn version_of(&self, build: &Build) -> Option<&Version<D>> {
        let view = self.declared.iter().find(|view| view.name() == build.view)?;
        view.version(build.id.version)
    }

    /// The subscriptions of the builds that this program keeps, and the builds that are to be switched to.
    #[cfg(feature = "testing")]
    pub(crate) async fn kept(&self) -> Result<(Vec<crate::testing::Reads>, Vec<String>)> {
        let (mut reads, mut switches) = (Vec::new(), Vec::new());
        for view in self.refresh().await?.iter() {
            for build in &view.builds {
                let Some(version) = self.version_of(build) else { continue };
                let subscription = build.subscription.clone();
                if build.switches && build.live_epoch.is_none() {
                    switches.push(subscription.clone());
                }
                reads.push(crate::testing::Reads { subscription, topics: version.fold.topic_names()? });
            }
        }
        Ok((reads, switches))
    }

    /// Makes a further build of the program's version, because somebody asked for it.
    pub(super) async fn rebuild(&self, name: &str, request: Uuid, switches: bool) -> Result<Option<Build>> {
        let newest = self.declared(name)?.newest();
        if newest.tables.is_none() {
            return Err(Error::new(
                Kind::Wiring,
                format!(
                    "view {name:?} has no tables of its own, so it cannot be built beside itself; declare them with `.tables(…)` in a next version of it, or raise its version and clear its tables in `setup`"
                ),
            ));
        }
        let wanted = Wanted { request: Some(request), switches, ..newest.wanted() };
        let build = self.database.make_build(&wanted).await?;
        self.refresh().await?;
        Ok(build)
    }
}

/// The build to be read: the live one, if the program knows its version. A program that is older than the live version (while
/// a new one is rolled out, or after it was rolled back) reads the newest build that it knows.
fn readable<'s, D: Database>(view: &View<D>, state: &'s ViewState) -> Option<&'s Build> {
    let known = |build: &&Build| view.version(build.id.version).is_some();
    let live = state.build(state.live).filter(known);
    live.or_else(|| state.builds.iter().filter(known).max_by_key(|build| (build.live_epoch, build.id)))
}
