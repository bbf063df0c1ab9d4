//! `cargo xtask shop`: builds the example and becomes `tombolo dev examples/shop`, or with `--one-process` the shop as one
//! program. Invariant: xtask is replaced by what it starts, so Ctrl-C and the exit code are that one's own.

use crate::chore;
use crate::workspace::{Package, Workspace};
use clap::Args;
use std::path::Path;
use std::process::Command;
use tombolo_servers::Error;

/// The folder of the example, which is also what `tombolo dev` is given.
const SHOP: &str = "examples/shop";

/// The crate of the binary `tombolo`.
const RUNNER: &str = "tombolo-cli";

/// The binary in which all its services are.
const ONE: &str = "shop-one";

#[derive(Args)]
pub(crate) struct Options {
    /// Build and run optimised binaries.
    #[arg(long)]
    release: bool,
    /// Run all services in one process, on the same data.
    #[arg(long)]
    one_process: bool,
    /// What else to pass to `tombolo dev`, or to the one program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let packages = packages(&workspace.packages)?;
    let mut build = workspace.cargo();
    build.arg("build").args(options.release.then_some("--release"));
    for package in packages {
        build.args(["--package", package]);
    }
    chore::run(&mut build)?;
    let profile = if options.release { "release" } else { "debug" };
    let program = |name: &str| Command::new(workspace.target.join(profile).join(name));
    let mut started = match options.one_process {
        true => program(ONE),
        false => program("tombolo"),
    };
    started.current_dir(&workspace.root).args((!options.one_process).then_some("dev"));
    Err(chore::exec(started.arg(SHOP).args(&options.rest)))
}

/// The runner, the shop's own crates, and the ready-made services that it uses.
pub(crate) fn packages(all: &[Package]) -> Result<Vec<&str>, Error> {
    let runner = all.iter().filter(|package| package.name == RUNNER);
    let inside = |folder: &'static str| {
        all.iter().filter(move |package| package.folder.starts_with(Path::new(folder)))
    };
    let shop = inside(SHOP).count();
    let found: Vec<&str> =
        runner.chain(inside(SHOP)).chain(inside("services")).map(|package| package.name.as_str()).collect();
    if !found.contains(&RUNNER) || shop == 0 {
        return Err(Error::new(format!(
            "the shop can't be built: it needs the crate {RUNNER} and the crates in {SHOP}, and the \
             workspace has only: {}",
            if found.is_empty() { "neither".into() } else { found.join(", ") }
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, folder: &str) -> Package {
        let (name, folder) = (name.to_owned(), folder.into());
        Package { name, folder, roots: vec![], features: vec![], dependencies: vec![] }
    }

    #[test]
    fn a_workspace_without_the_shop_is_refused_by_name() {
        let message = packages(&[package("tombolo-cli", "crates/tombolo-cli")]).unwrap_err().to_string();
        assert!(message.contains("examples/shop") && message.ends_with("tombolo-cli"), "{message}");
    }

    #[test]
    fn the_runner_the_shop_and_the_services_are_built() {
        let all = [
            package("shop-orders", "examples/shop/orders"),
            package("blog-posts", "examples/blog/posts"),
            package("identity", "services/identity"),
            package("tombolo-cli", "crates/tombolo-cli"),
        ];
        assert_eq!(packages(&all).unwrap(), ["tombolo-cli", "shop-orders", "identity"]);
    }
}
