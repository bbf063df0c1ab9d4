//! The views' part of the port: which builds there are, and which one is read.
//!
//! ```text
//!  view "history"  ── pointer (epoch 3) ──┐
//!    build v1-b1   tables of its own, cursors of its own     retired, still kept current
//!    build v2-b1   tables of its own, cursors of its own  ◄──┘ live
//!    build v2-b2   tables of its own, cursors of its own     building
//! ```
//!
//! A build is a subscription of its own, so it has cursors and parked rows of its own. Nothing else runs in one: reactors and
//! effects are other subscriptions, which a rebuild does not touch.
//!
//! Invariants, which the conformance suite checks case by case for every database:
//! - the pointer's epoch only goes up, and it moves only by compare-and-set;
//! - it never moves to a build whose cursors are below those of the one that is read, compared in the transaction of the move,
//!   nor to one with parked keys that nobody accepted;
//! - a build's tables and its row appear and go together, and its name is never given to another.

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
mod deciding;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tombolo_event::{Incarnation, ServiceName};
use uuid::Uuid;

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
use crate::tables::declare_the_same;
use crate::{Error, Kind, Result, Tables};
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) use deciding::{At, Known, Making, behind, find, not_reached, one, refusal};

/// The most rows that are shown of one table when builds are compared.
pub const ROWS_SHOWN_MAX: usize = 1_000;
/// How long a build stays after it was switched away from, because readers may not have heard of it yet.
pub const READERS_HEAR_WITHIN: Duration = Duration::from_secs(2);

/// The views' part of the port.
#[async_trait]
pub trait Views: Send + Sync + 'static {
    /// Every view and its builds, without those that were dropped.
    async fn views(&self) -> Result<Vec<ViewState>>;

    /// Makes a build, tables and row together. The first of a view is live at once.
    ///
    /// Without a request a version that has builds keeps them: the oldest that was not dropped is returned, none if all were.
    /// With one it gets a further build, once for each request.
    ///
    /// # Errors
    /// `View` if the version's tables were declared otherwise before; `Database` with what the database said to the declaration.
    async fn make_build(&self, wanted: &Wanted) -> Result<Option<Build>>;

    /// Moves the pointer, or says why not: then nothing was changed.
    async fn switch(&self, switch: &Switch) -> Result<Switched>;

    /// Takes every lease of a subscription, whoever has it, so that its cursors stand still until `release` or the end of `lease`.
    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()>;

    /// Drops a build, unless it was dropped before: its tables, its cursors, what is parked.
    ///
    /// # Errors
    /// `View` if it is live, was live until just now, or never was.
    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()>;

    /// Compares the tables of two builds, in one snapshot of both.
    ///
    /// # Errors
    /// `View` for a build that has no tables of its own.
    async fn compare(&self, old: &Build, new: &Build, sample: Sample) -> Result<Vec<Compared>>;

    /// The tables of a build.
    fn tables(&self, build: &Build) -> Tables;
}

/// A view as its database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewState {
    /// Its name.
    pub view: String,
    /// The build that is read.
    pub live: BuildId,
    /// Counts the switches, from 1; only goes up.
    pub epoch: u64,
    /// Its builds, from the oldest version and number on.
    pub builds: Vec<Build>,
}

impl ViewState {
    /// One of its builds.
    #[must_use]
    pub fn build(&self, id: BuildId) -> Option<&Build> {
        self.builds.iter().find(|build| build.id == id)
    }
}

/// Which build of a view: `v2-b1` is the first of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId {
    /// The version of the view.
    pub version: u32,
    /// Counts the builds of the version, from 1.
    pub number: u32,
}

impl BuildId {
    /// The subscription of this build: `history-v2`, and `history-v2-b2` from the second on.
    #[must_use]
    pub fn subscription(self, view: &str) -> String {
        match self.number {
            1 => format!("{view}-v{}", self.version),
            number => format!("{view}-v{}-b{number}", self.version),
        }
    }

    /// What its tables are told apart by: `history_v2_b1`.
    #[must_use]
    pub fn namespace(self, view: &str) -> String {
        format!("{}_v{}_b{}", view.replace('-', "_"), self.version, self.number)
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}-b{}", self.version, self.number)
    }
}

impl FromStr for BuildId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.strip_prefix('v').and_then(|rest| rest.split_once("-b"));
        let id = parts.and_then(|(version, number)| {
            Some(Self { version: version.parse().ok()?, number: number.parse().ok()? })
        });
        id.ok_or_else(|| {
            let message =
                format!("found the build {text:?}; expected one like v2-b1: version 2, its first build");
            Error::new(Kind::View, message)
        })
    }
}

impl TryFrom<String> for BuildId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.to_string()
    }
}

/// A build of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The view.
    pub view: String,
    /// Which of its builds.
    pub id: BuildId,
    /// The subscription that keeps it.
    pub subscription: String,
    /// What its tables are told apart by.
    pub namespace: String,
    /// The SQL that makes them, with their names in braces; none if the view's tables are the user's own.
    pub tables: Option<String>,
    /// Whether it is switched to as soon as it is ready.
    pub switches: bool,
    /// The epoch under which it was switched to last; none if it never was.
    pub live_epoch: Option<u64>,
    /// When it was made.
    pub made_at: Timestamp,
}

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb",
    feature = "conformance"
))]
impl Build {
    /// The build `number` of what is wanted, with nothing in front of its namespace.
    pub(crate) fn new(wanted: &Wanted, number: u32) -> Self {
        let id = BuildId { version: wanted.version, number };
        Self {
            view: wanted.view.clone(),
            id,
            subscription: id.subscription(&wanted.view),
            namespace: id.namespace(&wanted.view),
            tables: wanted.tables.clone(),
            switches: wanted.switches,
            live_epoch: None,
            made_at: Timestamp::now(),
        }
    }
}

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
impl Build {
    /// Whether its tables are declared as they are wanted.
    pub(crate) fn is_declared_by(&self, wanted: &Wanted) -> bool {
        match (&self.tables, &wanted.tables) {
            (Some(one), Some(other)) => declare_the_same(one, other),
            (one, other) => one == other,
        }
    }

    /// Its name for people.
    pub(crate) fn of(&self) -> String {
        format!("build {} of view {:?}", self.id, self.view)
    }
}

/// A build that is to be there.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The view.
    pub view: String,
    /// Its version.
    pub version: u32,
    /// The SQL that makes its tables, if they are its own.
    pub tables: Option<String>,
    /// Who asked for a further build, although the version has one.
    pub request: Option<Uuid>,
    /// Whether it is switched to as soon as it is ready.
    pub switches: bool,
}

/// A move of the pointer.
#[derive(Debug, Clone)]
pub struct Switch {
    /// The view.
    pub view: String,
    /// The epoch that was seen: if it is another one now, somebody else switched.
    pub epoch: u64,
    /// The build to read from then on.
    pub to: BuildId,
    /// The topics that it reads. Cursors of the live build in other topics are not compared.
    pub reads: Vec<ServiceName>,
    /// What must be reached in topics that the live build does not read.
    pub goals: Vec<Goal>,
    /// Whether somebody accepted that the build lacks what is parked of it.
    pub accept_parked: bool,
}

/// A place that a cursor must have reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The log's incarnation.
    pub incarnation: Incarnation,
    /// The place.
    pub sequence: u64,
}

/// What became of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switched {
    /// The pointer moved; this is its epoch now.
    Done(u64),
    /// Somebody else switched; this is the epoch now.
    Elsewhere(u64),
    /// So many keys of the build are parked, and nobody accepted that it lacks them.
    Parked(u64),
    /// The build is behind the live one in these places: by so many events altogether.
    Behind {
        /// The places.
        goals: Vec<Goal>,
        /// How many events.
        events: u64,
    },
}

/// Which of the differences are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// How many of each table, at most; no more than [`ROWS_SHOWN_MAX`].
    pub rows: usize,
    /// Another seed shows others, the same seed the same ones.
    pub seed: u64,
}

/// How the tables of one name stand to each other in two builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The table, as the view calls it.
    pub table: String,
    /// Its rows in the old build; none if the old build does not have the table.
    pub old_rows: Option<u64>,
    /// Its rows in the new build; none if the new build does not have the table.
    pub new_rows: Option<u64>,
    /// Columns that only the old build has, which were not compared.
    pub only_old_columns: Vec<String>,
    /// Columns that only the new build has, which were not compared.
    pub only_new_columns: Vec<String>,
    /// Whether all rows are the same in the columns that both have.
    pub same: bool,
    /// A sample of the rows that are not.
    pub differences: Vec<Difference>,
}

/// A row that is not the same in both, by its columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The row in the old build; none if only the new one has it.
    pub old: Option<Map<String, Value>>,
    /// The row in the new build; none if only the old one has it.
    pub new: Option<Map<String, Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_known_by_version_and_number() {
        let first = BuildId { version: 2, number: 1 };
        let second = BuildId { version: 2, number: 2 };
        assert_eq!((first.to_string(), "v2-b1".parse().unwrap()), ("v2-b1".to_owned(), first));
        assert_eq!(
            (first.subscription("history"), second.subscription("history")),
            ("history-v2".into(), "history-v2-b2".into())
        );
        assert_eq!(second.namespace("order-history"), "order_history_v2_b2");
        assert!("v2".parse::<BuildId>().is_err());
    }
}
