//! Keeping the builds: a worker for each, started and stopped as builds come and go; switches; what operators ask.
//!
//! takes: the builds that the database has, requests of operators · writes: builds and pointers · commits when: each by
//! itself, in one transaction · if we crash here: a build is there or not, whole; a request waits · if it repeats: a request's
//! build is found again, a switch is refused by its epoch, a dropped build stays dropped.
//!
//! Every replica has a keeper. Which of them folds a build, its leases decide; which of them carries a request out does not
//! matter, because each can be repeated.
//!
//! Invariant: a build is folded by a subscription of its own, and by nothing else: no reactor and no effect runs in a rebuild.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_db::{Build, Database, ViewState};
use tombolo_event::operator::{Action, Outcome, Request, of_view};

use super::switching::{self, named};
use super::{Builds, Stage};
use crate::life::{Life, Tasks};
use crate::subscription::Subscription;
use crate::worker::Worker;
use crate::{Error, Kind, Result};

/// How often the database is asked for builds that another replica made, switched or dropped.
const LOOK: Duration = Duration::from_secs(15);
/// The same while a build is catching up: also how often its progress is measured.
const LOOK_WHILE_BUILDING: Duration = Duration::from_millis(500);

/// Makes the worker of a subscription, which runs until the token says so.
type Hire<D> = Box<dyn Fn(Subscription<D>, CancellationToken) -> Worker<D> + Send + Sync>;

/// What the keeper needs.
pub(crate) struct Keeper<D: Database> {
    pub(crate) builds: Arc<Builds<D>>,
    pub(crate) hire: Hire<D>,
    pub(crate) life: Life,
    /// Changes whenever an operator may have asked for something.
    pub(crate) asked: watch::Receiver<u64>,
    pub(crate) stop: CancellationToken,
}

/// The workers of the builds.
struct Workers {
    tasks: Tasks,
    /// How to end each, by its subscription.
    stops: BTreeMap<String, CancellationToken>,
}

impl<D: Database> Keeper<D> {
    /// Keeps the builds until it is stopped.
    pub(crate) async fn run(mut self) {
        let mut workers = Workers { tasks: Tasks::new(self.life.clone()), stops: BTreeMap::new() };
        let mut changes = self.builds.changes();
        let mut said = String::new();
        self.asked.mark_changed();
        self.hire_and_dismiss(&mut workers, &self.builds.views());
        loop {
            let pause = match self.look().await {
                Ok(is_building) if is_building => LOOK_WHILE_BUILDING,
                Ok(_) => LOOK,
                Err(error) => {
                    if said != error.to_string() {
                        said = error.to_string();
                        tracing::warn!("the views cannot be looked after: {error}");
                    }
                    LOOK
                }
            };
            self.hire_and_dismiss(&mut workers, &self.builds.views());
            changes.borrow_and_update();
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(pause) => {}
                // The senders live as long as the service.
                Ok(()) = self.asked.changed() => self.carry_out().await,
                Ok(()) = changes.changed() => {}
                Some(ended) = workers.tasks.join_next() => resume(ended),
            }
        }
        workers.stops.values().for_each(CancellationToken::cancel);
        while let Some(ended) = workers.tasks.join_next().await {
            resume(ended);
        }
    }

    /// Looks what there is, switches what is ready and is to be switched; returns whether a build is catching up.
    async fn look(&self) -> Result<bool> {
        let views = self.builds.refresh().await?;
        if views.iter().all(|view| view.builds.iter().all(|build| build.live_epoch.is_some())) {
            return Ok(false);
        }
        let mut is_building = false;
        for status in self.builds.status("").await?.views {
            is_building |= status.builds.iter().any(|build| build.stage == Stage::Building);
        }
        for view in views.iter() {
            for build in view.builds.iter().filter(|build| build.switches && build.id != view.live) {
                is_building |= !self.switch_if_ready(view, build).await?;
            }
        }
        Ok(is_building)
    }

    /// Switches to a build that waits for that; returns whether it is done with.
    async fn switch_if_ready(&self, view: &ViewState, build: &Build) -> Result<bool> {
        let Some(version) = self.builds.version_of(build) else { return Ok(true) };
        let outcome = self.builds.switch(view, build, version, false).await?;
        // What is parked waits for an operator, who is in no hurry.
        Ok(matches!(outcome, switching::Outcome::Switched | switching::Outcome::Parked(_)))
    }

    /// One worker for each build that this program can keep, none for those that are gone.
    fn hire_and_dismiss(&self, workers: &mut Workers, views: &[ViewState]) {
        let builds = views.iter().flat_map(|view| &view.builds);
        let kept: Vec<_> = builds.filter_map(|build| Some((build, self.builds.version_of(build)?))).collect();
        let names: BTreeSet<&str> = kept.iter().map(|(build, _)| build.subscription.as_str()).collect();
        workers.stops.retain(|subscription, stop| {
            let stays = names.contains(subscription.as_str());
            if !stays {
                stop.cancel();
            }
            stays
        });
        self.builds.pace.keep(|subscription| names.contains(subscription));
        for (build, version) in kept {
            if !workers.stops.contains_key(&build.subscription) {
                let tables = build.tables.is_some().then(|| self.builds.database.tables(build));
                let stop = self.stop.child_token();
                let worker = (self.hire)(version.kept_as(&build.subscription, tables), stop.clone());
                workers.stops.insert(build.subscription.clone(), stop);
                workers.tasks.spawn(worker.run());
            }
        }
    }

    /// Carries out what operators asked of the views.
    async fn carry_out(&self) {
        for view in self.builds.names() {
            let open = match self.builds.database.open_requests(&of_view(view)).await {
                Ok(open) => open,
                Err(error) => {
                    tracing::warn!(view, "requests cannot be read: {error}");
                    continue;
                }
            };
            for request in open {
                if let Err(error) = self.answer(view, &request).await {
                    tracing::warn!(view, request = %request.id, "waits: {error}");
                }
            }
        }
    }

    /// Does what a request asks for, and writes down what became of it. What fails for now waits, and is found again.
    async fn answer(&self, view: &str, request: &Request) -> Result<()> {
        // An action of a newer version of this program is left to a replica that knows it.
        let Ok(action) = serde_json::from_value(request.detail.clone()) else { return Ok(()) };
        let outcome = match self.act(view, request, action).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == Kind::DatabaseAway || error.kind() == Kind::BusAway => {
                return Err(error);
            }
            Err(error) => Outcome::refused(error.to_string()),
        };
        tracing::info!(
            view,
            by = request.asked_by,
            action = request.action,
            done = outcome.done,
            "{}",
            outcome.text
        );
        match self.builds.database.finish(request.id, &outcome).await {
            // Another replica did the same.
            Err(error) if error.kind() == tombolo_db::Kind::Refused => Ok(()),
            finished => Ok(finished?),
        }
    }

    async fn act(&self, view: &str, request: &Request, action: Action) -> Result<Outcome> {
        match action {
            Action::Rebuild { switch } => self.rebuild(view, request, switch).await,
            Action::Switch { to, accept_parked } => self.switch(view, &to, accept_parked).await,
            Action::Drop { build } => {
                let state = self.state(view).await?;
                let id = build.parse().map_err(|error: tombolo_db::Error| Error::from(error))?;
                self.builds.database.drop_build(view, id).await?;
                self.builds.refresh().await?;
                Ok(Outcome::done(format!("dropped build {id}; {} is live", state.live)))
            }
            other => Ok(Outcome::refused(format!("{:?} is for subscriptions, not for views", other.word()))),
        }
    }

    async fn rebuild(&self, view: &str, request: &Request, switch: bool) -> Result<Outcome> {
        let Some(build) = self.builds.rebuild(view, request.id, switch).await? else {
            return Ok(Outcome::refused("the build was dropped again"));
        };
        let then = match switch {
            true => "readers are switched to it when it is ready".to_owned(),
            false => format!("when it is ready: `tombolo views switch {view} --to {}`", build.id),
        };
        Ok(Outcome::done(format!("build {} is being made beside the live one; {then}", build.id)))
    }

    async fn switch(&self, view: &str, to: &str, accept_parked: bool) -> Result<Outcome> {
        let state = self.state(view).await?;
        let id = match named(&state, to) {
            Ok(id) => id,
            Err(why) => return Ok(Outcome::refused(why)),
        };
        if id == state.live {
            return Ok(Outcome::done(format!("build {id} is live")));
        }
        let build = state.build(id).expect("the build was just found by its name");
        let Some(version) = self.builds.version_of(build) else {
            return Ok(Outcome::refused(format!(
                "this program does not have version {}; add it with `.replaces(View::new({view:?}, {0})…)`, or start the program that has it",
                id.version
            )));
        };
        Ok(match self.builds.switch(&state, build, version, accept_parked).await? {
            switching::Outcome::Switched => {
                Outcome::done(format!("readers were switched from build {} to build {id}", state.live))
            }
            switching::Outcome::Behind(events) => Outcome::refused(format!(
                "build {id} is {events} events behind the live one, {}; look at `tombolo views list`, and switch when it is ready",
                state.live
            )),
            switching::Outcome::Parked(keys) => Outcome::refused(format!(
                "keys of build {id} that are parked: {keys}; it lacks their last events; look at `tombolo parked list {}`, redrive or discard them, or switch all the same with --accept-parked",
                build.subscription
            )),
            switching::Outcome::Elsewhere => {
                Outcome::refused("somebody else switched meanwhile; look at `tombolo views list`")
            }
        })
    }

    /// A view as the database has it now.
    async fn state(&self, view: &str) -> Result<ViewState> {
        let views = self.builds.refresh().await?;
        let state = views.iter().find(|state| state.view == view).cloned();
        state.ok_or_else(|| {
            Error::new(Kind::Database, format!("view {view:?} has no build; start the service again"))
        })
    }
}

/// A worker that panicked takes the keeper with it, and so the service: nothing of it may go missing unnoticed.
fn resume(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
