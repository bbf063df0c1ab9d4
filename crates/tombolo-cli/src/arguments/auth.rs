//! The command line of `tombolo auth`. Invariant: as in the file above.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Reached;
use crate::output::Format;

/// What can be seen of who is let in.
#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Show at which services the last block, unblock or sign-out of a user has taken effect, and since when
    Propagation(Propagation),
}

/// Options of `auth propagation`.
#[derive(Debug, Args)]
pub(crate) struct Propagation {
    /// The user's id
    pub(crate) user: String,
    #[command(flatten)]
    pub(crate) reached: Reached,
    /// Wait so many seconds for it to take effect everywhere
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0")]
    pub(crate) wait: Duration,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is no number of seconds"))
}
