//! What the databases decide about builds in the same way: whether one is there, what a switch lacks, why something is refused.
//!
//! Pure. Invariant: the same state and the same wish come to the same answer in every database.

use uuid::Uuid;

use super::{Build, BuildId, Goal, READERS_HEAR_WITHIN, Switch, Switched, Wanted};
use crate::Result;

/// A build of a version, as the database remembers it.
pub(crate) struct Known {
    pub(crate) build: Build,
    /// Who asked for it, if it is a further one.
    pub(crate) request: Option<Uuid>,
    pub(crate) dropped: bool,
}

/// What is to be done about a wanted build.
pub(crate) enum Making {
    /// It is there, or was dropped.
    There(Option<Build>),
    /// It is to be made with this number, or with the next if its subscription's name is in use.
    New(u32),
}

/// Looks for a wanted build among all of its version, which are in order.
pub(crate) fn find(known: &[Known], wanted: &Wanted) -> Result<Making> {
    if let Some(other) = known.iter().find(|known| !known.build.is_declared_by(wanted)) {
        return Err(refusal::declared_otherwise(&other.build, wanted));
    }
    let standing = |known: &Known| (!known.dropped).then(|| known.build.clone());
    let next = known.last().map_or(1, |last| last.build.id.number + 1);
    Ok(match wanted.request {
        None if known.is_empty() => Making::New(next),
        None => Making::There(known.iter().find_map(standing)),
        asked => match known.iter().find(|known| known.request == asked) {
            Some(made) => Making::There(standing(made)),
            None => Making::New(next),
        },
    })
}

/// One build among all of its version.
pub(crate) fn one(known: Vec<Known>, view: &str, id: BuildId) -> Result<Known> {
    let one = known.into_iter().find(|known| known.build.id == id);
    one.ok_or_else(|| refusal::no_build(view, id))
}

/// Where a cursor is: what a switch compares.
pub(crate) struct At {
    pub(crate) subscription: String,
    pub(crate) goal: Goal,
}

/// What `to` has not reached of the places of `from` and the goals, and by how many events it has not.
pub(crate) fn behind(switch: &Switch, cursors: &[At], from: &str, to: &str) -> Option<Switched> {
    let of = |subscription: &str| {
        let own = cursors.iter().filter(move |at| at.subscription == *subscription);
        own.map(|at| &at.goal).collect::<Vec<_>>()
    };
    let (from, to) = (of(from), of(to));
    let is_read = |goal: &&Goal| switch.reads.contains(&goal.topic);
    let goals = from.into_iter().filter(is_read).chain(&switch.goals);
    let mut events = 0;
    let mut lacks = |goal: &&Goal| {
        let same = |at: &&&Goal| {
            at.topic == goal.topic && at.partition == goal.partition && at.incarnation == goal.incarnation
        };
        let reached = to.iter().find(same).map(|at| at.sequence);
        events += goal.sequence.saturating_sub(reached.unwrap_or(0));
        reached.is_none_or(|reached| reached < goal.sequence)
    };
    let goals: Vec<Goal> = goals.filter(&mut lacks).cloned().collect();
    (!goals.is_empty()).then_some(Switched::Behind { goals, events })
}

/// The places that these cursors have not reached, or that their partition is to go back from.
pub(crate) fn not_reached(places: &[Goal], cursors: &[(Goal, bool)]) -> Vec<Goal> {
    let is_reached = |place: &&Goal| {
        cursors.iter().any(|(at, goes_back)| {
            let is_its = at.topic == place.topic && at.partition == place.partition;
            is_its && at.incarnation == place.incarnation && at.sequence >= place.sequence && !goes_back
        })
    };
    places.iter().filter(|place| !is_reached(place)).cloned().collect()
}

/// Why a build cannot be made or dropped, in the same words by every database.
pub(crate) mod refusal {
    use super::{Build, BuildId, READERS_HEAR_WITHIN, Wanted};
    use crate::{Error, Kind};

    pub(crate) fn declared_otherwise(build: &Build, wanted: &Wanted) -> Error {
        let (view, version) = (&wanted.view, wanted.version);
        Error::new(
            Kind::View,
            format!(
                "the tables of view {view:?} version {version} were made by other SQL than this program's ({}, whose tables stand in the database); give the view version {} with `.replaces(…)`, so that its new tables are built beside the old",
                build.of(),
                version + 1
            ),
        )
    }

    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    pub(crate) fn not_made(build: &Build, error: sqlx::Error) -> Error {
        let error = Error::from(error);
        let kind = if error.is_transient() { error.kind() } else { Kind::View };
        Error::new(kind, format!("cannot make the tables of {}: {error}", build.of())).because(error)
    }

    pub(crate) fn no_tables(build: &Build) -> Error {
        Error::new(
            Kind::View,
            format!("{} has no tables of its own, so there is nothing to compare", build.of()),
        )
    }

    pub(crate) fn no_view(view: &str) -> Error {
        Error::new(
            Kind::View,
            format!("this service has no view {view:?}; `tombolo views list` shows those that it has"),
        )
    }

    pub(crate) fn no_build(view: &str, id: BuildId) -> Error {
        Error::new(
            Kind::View,
            format!("view {view:?} has no build {id}; `tombolo views list` shows those that it has"),
        )
    }

    pub(crate) fn live(view: &str, id: BuildId) -> Error {
        Error::new(
            Kind::View,
            format!(
                "build {id} of view {view:?} is the live one; switch to another one before it is dropped"
            ),
        )
    }

    pub(crate) fn just_live(view: &str, id: BuildId) -> Error {
        let seconds = READERS_HEAR_WITHIN.as_secs();
        Error::new(
            Kind::View,
            format!(
                "build {id} of view {view:?} was live until just now, and somebody may still read it; drop it {seconds} s after the switch"
            ),
        )
    }

    pub(crate) fn dropped(subscription: &str) -> Error {
        Error::new(Kind::View, format!("the build of subscription {subscription:?} was dropped"))
    }
}
