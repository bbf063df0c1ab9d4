//! `cargo xtask bench`: builds the benches, the runner and the shop in release, and becomes the benches. Invariant:
//! nothing is compiled while anything is measured.

use crate::chore;
use crate::shop;
use crate::workspace::Workspace;
use clap::Args;
use std::process::Command;
use tombolo_servers::Error;

/// The crate of the benches, and its program.
const BENCHES: &str = "tombolo-bench";

#[derive(Args)]
pub(crate) struct Options {
    /// What to pass to the benches; `--help` tells.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", BENCHES]);
    for package in shop::packages(&workspace.packages)? {
        build.args(["--package", package]);
    }
    chore::run(&mut build)?;
    let mut benches = Command::new(workspace.target.join("release").join(BENCHES));
    benches.current_dir(&workspace.root).args(&options.rest);
    Err(chore::exec(&mut benches))
}
