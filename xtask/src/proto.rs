//! `cargo xtask proto`: calls the generator that stands beside the .proto files. It is a program of its
//! own so that xtask builds in seconds. Invariant: `--check` writes nothing into the sources.

use crate::chore;
use crate::workspace::Workspace;
use clap::Args;
use tombolo_servers::Error;

/// The generator's manifest.
const GENERATOR: &str = "crates/tombolo-bus/proto/generate/Cargo.toml";

#[derive(Args)]
pub(crate) struct Options {
    /// Only say whether the generated code is what the .proto files give.
    #[arg(long)]
    pub(crate) check: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    if !workspace.root.join(GENERATOR).exists() {
        return Err(Error::new(format!("there is no {GENERATOR}, which generates the protocol's code")));
    }
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--manifest-path", GENERATOR, "--target-dir"]);
    command.arg(workspace.target.join("generate")).arg("--");
    chore::run(command.args(options.check.then_some("--check")))
}
