//! The command line of `tombolo gateway`. Invariant: where replicas are found is said by at most one of its options.

use std::path::PathBuf;

use clap::Args;

/// Options of `gateway`.
#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// The file whose `[gateway]` table says what it does: a `tombolo.toml`; read again when it changes
    #[arg(long, value_name = "FILE", default_value = "tombolo.toml")]
    pub(crate) config: PathBuf,
    /// Follow the replicas that `tombolo dev` runs in this data folder
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Follow the replicas that are registered at this bus, unless --data says better
    #[arg(long, value_name = "URL", env = "TOMBOLO_BUS", hide_env_values = true)]
    pub(crate) bus: Option<String>,
}
