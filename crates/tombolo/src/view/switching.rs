//! Switching readers to another build.
//!
//! takes: a build that has caught up · writes: the pointer of its view · commits when: its cursors have reached those of the
//! live build, compared in the same transaction · if we crash here: the pointer is where it was, and a hold ends by itself ·
//! if it repeats: the pointer has another epoch, so the repeat is refused.
//!
//! Under steady writes two builds run neck and neck, and at any moment one or the other is a few events ahead somewhere. So
//! the live one is held still for the moment that the other needs to come level.
//!
//! Invariant: nothing here decides that a build is ready; the database does, in the transaction that moves the pointer.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, interval};
use tombolo_db::{Build, BuildId, CursorState, Database, Goal, Holder, Switch, Switched, ViewState};
use tombolo_event::ServiceName;
use uuid::Uuid;

use super::{Builds, Version};
use crate::Result;

/// How long the live build is held at most, and how often is looked whether the other one is level.
const HOLD: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// What a switch came to, beside an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Readers read the build from now on.
    Switched,
    /// It is so many events behind the live one.
    Behind(u64),
    /// So many of its keys are parked, and nobody accepted that.
    Parked(u64),
    /// Somebody else switched meanwhile.
    Elsewhere,
}

impl<D: Database> Builds<D> {
    /// Switches readers of `view` to `to`, if it is level with the live build or comes level at once.
    pub(super) async fn switch(
        &self,
        view: &ViewState,
        to: &Build,
        version: &Version<D>,
        accept_parked: bool,
    ) -> Result<Outcome> {
        let switch = Switch {
            view: view.view.clone(),
            epoch: view.epoch,
            to: to.id,
            reads: version.fold.topic_names()?,
            goals: self.goals(view, version).await?,
            accept_parked,
        };
        let outcome = match self.database.switch(&switch).await? {
            Switched::Behind { events, .. } if events <= self.pace.level_events(&to.subscription) => {
                self.come_level(view, &switch).await?
            }
            other => outcome(other),
        };
        if outcome == Outcome::Switched {
            tracing::info!(view = view.view, from = %view.live, to = %to.id, "switched");
        }
        self.refresh().await?;
        Ok(outcome)
    }

    /// Holds the live build until the other one is level, and switches then.
    async fn come_level(&self, view: &ViewState, switch: &Switch) -> Result<Outcome> {
        let Some(live) = view.build(view.live) else { return Ok(Outcome::Elsewhere) };
        let holder = Holder::new(Uuid::new_v4());
        self.database.hold(&live.subscription, holder.replica, HOLD).await?;
        let held = Instant::now();
        let mut looks = interval(LOOK);
        let switched = loop {
            looks.tick().await;
            match self.database.switch(switch).await {
                Ok(Switched::Behind { .. }) if held.elapsed() < HOLD => {}
                other => break other,
            }
        };
        // A hold that cannot be given up ends by itself.
        self.database.release(&live.subscription, holder).await.ok();
        self.sharing().look().await;
        Ok(outcome(switched?))
    }

    /// The present ends of the topics that the live build does not read.
    async fn goals(&self, view: &ViewState, version: &Version<D>) -> Result<Vec<Goal>> {
        let cursors = self.database.cursors().await?;
        let live = view.build(view.live).map(|live| live.subscription.as_str());
        let is_read = |topic: &ServiceName| {
            cursors.iter().any(|cursor| Some(cursor.subscription.as_str()) == live && cursor.topic == *topic)
        };
        let mut goals = Vec::new();
        for topic in version.fold.topic_names()?.into_iter().filter(|topic| !is_read(topic)) {
            match self.bus.topic(&topic).await {
                Ok(found) => {
                    let tails = self.bus.tails(&topic).await?;
                    goals.extend(tails.into_iter().map(|tail| Goal {
                        topic: topic.clone(),
                        partition: tail.partition,
                        incarnation: found.incarnation,
                        sequence: tail.sequence,
                    }));
                }
                // Nobody has made it yet, so there is nothing to reach.
                Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(goals)
    }
}

fn outcome(switched: Switched) -> Outcome {
    match switched {
        Switched::Done(_) => Outcome::Switched,
        Switched::Elsewhere(_) => Outcome::Elsewhere,
        Switched::Parked(keys) => Outcome::Parked(keys),
        Switched::Behind { events, .. } => Outcome::Behind(events),
    }
}

/// How many events that `other` has `build` lacks, in the topics that both read; none while it has no cursors.
pub(super) fn lacks(cursors: &[CursorState], build: &Build, other: &Build) -> Option<u64> {
    let of = |subscription: &str| {
        let own = cursors.iter().filter(move |cursor| cursor.subscription == *subscription);
        own.map(|at| ((at.topic.as_str(), at.partition), at.cursor.sequence)).collect::<BTreeMap<_, _>>()
    };
    let (own, other) = (of(&build.subscription), of(&other.subscription));
    let lacks = |(place, sequence): (_, u64)| Some(sequence.saturating_sub(*own.get(&place)?));
    (!own.is_empty()).then(|| other.into_iter().filter_map(lacks).sum())
}

/// The build that an operator names.
pub(super) fn named(view: &ViewState, name: &str) -> std::result::Result<BuildId, String> {
    let id: BuildId = name.parse().map_err(|error: tombolo_db::Error| error.to_string())?;
    let builds: Vec<String> = view.builds.iter().map(|build| build.id.to_string()).collect();
    match view.build(id) {
        Some(_) => Ok(id),
        None => Err(format!("view {:?} has no build {id}; it has: {}", view.view, builds.join(", "))),
    }
}
