//! The command line of `tombolo views`. Invariant: as in the file above.

use clap::{Args, Subcommand};

use super::{How, OfBus};

/// What can be seen of views, and done with them.
#[derive(Debug, Subcommand)]
pub(crate) enum Views {
    /// List every build of every view, how far it is and how long it will take
    List(ListViews),
    /// Build a view anew from the first event, beside the build that is read
    Rebuild(RebuildView),
    /// Show what two builds of a view differ in
    Compare(Compared),
    /// Switch a view's readers to another build, once that has everything which the live one has
    Switch(SwitchView),
    /// Drop a build that is not read any more
    Drop(DropBuild),
}

/// Options of `views list`.
#[derive(Debug, Args)]
pub(crate) struct ListViews {
    #[command(flatten)]
    pub(crate) of: OfBus,
    /// Go on until nothing is being built
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// Which view is meant.
#[derive(Debug, Args)]
pub(crate) struct OfView {
    /// The view, or SERVICE/VIEW if several services have one of that name
    pub(crate) view: String,
    #[command(flatten)]
    pub(crate) how: How,
}

/// Options of `views rebuild`.
#[derive(Debug, Args)]
pub(crate) struct RebuildView {
    #[command(flatten)]
    pub(crate) view: OfView,
    /// Switch readers to the new build as soon as it is ready
    #[arg(long)]
    pub(crate) switch: bool,
}

/// Options of `views switch`.
#[derive(Debug, Args)]
pub(crate) struct SwitchView {
    #[command(flatten)]
    pub(crate) view: OfView,
    /// The build, like v2-b1 [default: the only one beside the live one]
    #[arg(long, value_name = "BUILD")]
    pub(crate) to: Option<String>,
    /// Switch although events are parked that the build lacks
    #[arg(long)]
    pub(crate) accept_parked: bool,
}

/// Options of `views drop`.
#[derive(Debug, Args)]
pub(crate) struct DropBuild {
    #[command(flatten)]
    pub(crate) view: OfView,
    /// The build, like v1-b1
    pub(crate) build: String,
}

/// Options of `views compare`.
#[derive(Debug, Args)]
pub(crate) struct Compared {
    #[command(flatten)]
    pub(crate) view: OfView,
    /// The old build [default: the live one]
    #[arg(long, value_name = "BUILD")]
    pub(crate) old: Option<String>,
    /// The new build [default: the newest other one]
    #[arg(long, value_name = "BUILD")]
    pub(crate) new: Option<String>,
    /// How many rows of each table are shown at most
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub(crate) rows: usize,
    /// Another seed shows other rows
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) seed: u64,
}
