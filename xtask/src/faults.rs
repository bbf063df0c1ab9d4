//! `cargo xtask faults`: builds the fault run in release and becomes it. Invariant: the exit code is the run's own.

use crate::chore;
use crate::workspace::Workspace;
use clap::Args;
use std::process::Command;
use tombolo_servers::Error;

/// The crate of the fault run, and its program.
const FAULTS: &str = "tombolo-faults";

#[derive(Args)]
pub(crate) struct Options {
    /// What to pass to the fault run; `--help` tells.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    chore::run(workspace.cargo().args(["build", "--release", "--all-features", "--package", FAULTS]))?;
    let mut faults = Command::new(workspace.target.join("release").join(FAULTS));
    faults.current_dir(&workspace.root).args(&options.rest);
    Err(chore::exec(&mut faults))
}
