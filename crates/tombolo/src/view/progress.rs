//! How far each build of each view is, and how long it will take.
//!
//! Invariant: events are counted as the topics count them, so "done of total" is the same for every replica that is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tombolo_db::{Build, CursorState, Database, ParkedCount, ViewState};
use tombolo_event::ServiceName;

use super::Builds;
use super::switching::lacks;
use crate::Result;

/// The rate is that of the last seconds.
const RATE_OVER: Duration = Duration::from_secs(10);
/// A build comes level while the live one is held if it lacks no more than it passes in a second; these many in any case,
/// and no more.
const LEVEL_EVENTS: std::ops::RangeInclusive<u64> = 100..=2_000;

/// The views of a service, at `GET /tombolo/views`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ViewsStatus {
    /// The service.
    pub service: String,
    /// Its views.
    pub views: Vec<ViewStatus>,
}

/// A view and its builds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ViewStatus {
    /// Its name.
    pub view: String,
    /// The build that is read, like `v2-b1`.
    pub live: String,
    /// Counts the switches, from 1.
    pub epoch: u64,
    /// Whether it has tables of its own, so that it can be built beside itself.
    pub rebuildable: bool,
    /// Its builds, the oldest first.
    pub builds: Vec<BuildStatus>,
}

/// How a build is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildStatus {
    /// Which one, like `v2-b1`.
    pub build: String,
    /// How it stands to the live one.
    pub stage: Stage,
    /// The subscription that keeps it.
    pub subscription: String,
    /// Whether this program has its version, and so keeps it current.
    pub kept: bool,
    /// Whether it is switched to as soon as it is ready.
    pub switches: bool,
    /// How many events of the live one it lacks; none while it has not begun.
    pub behind_live: Option<u64>,
    /// How many of its keys are parked.
    pub parked_keys: u64,
    /// How many events of its topics it has passed.
    pub events_done: u64,
    /// How many there are.
    pub events_total: u64,
    /// How many it passed in each of the last seconds; none while that is not known.
    pub events_per_second: Option<f64>,
    /// How long the rest takes at that rate; none while that is not known.
    pub seconds_to_go: Option<f64>,
    /// When it was made.
    pub made_at: Timestamp,
}

/// How a build stands to the live one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is read.
    Live,
    /// It was not read yet, and has not caught up.
    Building,
    /// It was not read yet, and is level with the live one, or so near that a switch takes it there.
    Ready,
    /// It was read before.
    Retired,
}

/// What the database and the bus say at one time.
struct Found {
    cursors: Vec<CursorState>,
    parked: Vec<ParkedCount>,
    /// The events of each topic.
    tails: BTreeMap<ServiceName, u64>,
}

/// How fast builds move: what was measured in the last seconds.
#[derive(Debug, Default)]
pub(super) struct Pace {
    measured: Mutex<BTreeMap<String, VecDeque<(Instant, u64)>>>,
}

impl Pace {
    /// Remembers where a build is, and returns how many events it passed in each of the last seconds.
    fn measure(&self, subscription: &str, done: u64) -> Option<f64> {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let of = measured.entry(subscription.to_owned()).or_default();
        let now = Instant::now();
        of.push_back((now, done));
        while of.len() > 2 && of.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_OVER) {
            of.pop_front();
        }
        rate(of)
    }

    /// So many events behind the live one a build comes level while that one is held.
    pub(super) fn level_events(&self, subscription: &str) -> u64 {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = measured.get(subscription).and_then(rate).unwrap_or_default();
        (rate as u64).clamp(*LEVEL_EVENTS.start(), *LEVEL_EVENTS.end())
    }

    /// Forgets the builds that are not there any more.
    pub(super) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.retain(|subscription, _| is_there(subscription));
    }
}

fn rate(measured: &VecDeque<(Instant, u64)>) -> Option<f64> {
    let ((from, first), (to, last)) = (measured.front()?, measured.back()?);
    let seconds = to.duration_since(*from).as_secs_f64();
    (seconds > 0.0).then(|| last.saturating_sub(*first) as f64 / seconds)
}

impl<D: Database> Builds<D> {
    /// Where every build is now.
    pub(crate) async fn status(&self, service: &str) -> Result<ViewsStatus> {
        let views = self.refresh().await?;
        let cursors = self.database.cursors().await?;
        let parked = self.database.parked_counts().await?;
        let mut tails: BTreeMap<ServiceName, u64> = BTreeMap::new();
        for cursor in &cursors {
            if !tails.contains_key(&cursor.topic) {
                tails.insert(cursor.topic.clone(), self.events_of(&cursor.topic).await);
            }
        }
        let found = Found { cursors, parked, tails };
        let status = |view: &ViewState| self.view_status(view, &found);
        Ok(ViewsStatus { service: service.to_owned(), views: views.iter().map(status).collect() })
    }

    /// The events of a topic; 0 if the bus is away, so that then only what is done is known.
    async fn events_of(&self, topic: &ServiceName) -> u64 {
        let tails = self.bus.tails(topic).await.unwrap_or_default();
        tails.iter().map(|tail| tail.sequence).sum()
    }

    fn view_status(&self, view: &ViewState, found: &Found) -> ViewStatus {
        let builds = view.builds.iter().map(|build| self.build_status(view, build, found)).collect();
        ViewStatus {
            view: view.view.clone(),
            live: view.live.to_string(),
            epoch: view.epoch,
            rebuildable: self.declared(&view.view).is_ok_and(|view| view.newest().tables.is_some()),
            builds,
        }
    }

    fn stage(&self, view: &ViewState, build: &Build, behind_live: Option<u64>) -> Stage {
        let level = self.pace.level_events(&build.subscription);
        match (build.id == view.live, build.live_epoch, behind_live) {
            (true, ..) => Stage::Live,
            (false, Some(_), _) => Stage::Retired,
            (false, None, Some(behind)) if behind <= level => Stage::Ready,
            (false, None, _) => Stage::Building,
        }
    }

    fn build_status(&self, view: &ViewState, build: &Build, found: &Found) -> BuildStatus {
        let Found { cursors, parked, tails } = found;
        let parked = parked.iter().find(|count| count.subscription == build.subscription);
        let mut own: Vec<_> =
            cursors.iter().filter(|cursor| cursor.subscription == build.subscription).collect();
        let done = own.iter().map(|cursor| cursor.cursor.sequence).sum();
        own.dedup_by_key(|cursor| &cursor.topic);
        let total: u64 = own.iter().filter_map(|cursor| tails.get(&cursor.topic)).sum();
        let total = total.max(done);
        let rate = self.pace.measure(&build.subscription, done);
        let seconds_to_go = match total - done {
            0 => Some(0.0),
            left => rate.filter(|rate| *rate > 0.0).map(|rate| left as f64 / rate),
        };
        let live = view.build(view.live);
        let behind_live = live.and_then(|live| lacks(cursors, build, live));
        BuildStatus {
            build: build.id.to_string(),
            stage: self.stage(view, build, behind_live),
            subscription: build.subscription.clone(),
            kept: self.version_of(build).is_some(),
            switches: build.switches,
            behind_live,
            parked_keys: parked.map_or(0, |count| count.keys),
            events_done: done,
            events_total: total,
            events_per_second: rate,
            seconds_to_go,
            made_at: build.made_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_between_the_first_and_the_last_measure() {
        let now = Instant::now();
        let at = |seconds, done| (now + Duration::from_secs(seconds), done);
        assert_eq!(rate(&VecDeque::from([at(0, 100)])), None);
        assert_eq!(rate(&VecDeque::from([at(0, 100), at(1, 300), at(4, 500)])), Some(100.0));
    }
}
