//! `cargo xtask ci`: every static check, in one go, with all failures named at the end. `.ci/run` runs
//! it before the tests. Invariant: it writes nothing but build output.

use crate::chore;
use crate::workspace::Workspace;
use crate::{proto, tidy};
use std::process::Command;
use std::time::Instant;
use tombolo_servers::{Error, programs};

/// The crates whose features are checked one by one; the others have none that matter alone.
const FEATURED: [&str; 3] = ["tombolo-bus", "tombolo-db", "tombolo"];

type Check = (&'static str, fn(&Workspace) -> Result<(), Error>);

const CHECKS: [Check; 6] = [
    ("format", format),
    ("tidy", |workspace| tidy::run(workspace, &tidy::Options::default())),
    ("protocol", |workspace| proto::run(workspace, &proto::Options { check: true })),
    ("clippy", clippy),
    ("features", features),
    ("docs", docs),
];

pub(crate) fn run(workspace: &Workspace) -> Result<(), Error> {
    need(workspace, "fmt", "rustfmt")?;
    need(workspace, "clippy", "clippy")?;
    programs::build_tools(false)?;
    let outcomes = CHECKS.map(|(name, check)| {
        let started = Instant::now();
        (name, check(workspace), started.elapsed())
    });
    let mut failed = Vec::new();
    eprintln!();
    for (name, outcome, took) in outcomes {
        match outcome {
            Ok(()) => eprintln!("xtask: ok      {name} ({} s)", took.as_secs()),
            Err(error) => {
                eprintln!("xtask: FAILED  {name}: {error}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::new(format!("failed checks: {}", failed.join(", ")))) }
}

fn need(workspace: &Workspace, subcommand: &str, component: &str) -> Result<(), Error> {
    if programs::succeeds(workspace.cargo().args([subcommand, "--version"])) {
        return Ok(());
    }
    Err(Error::new(format!(
        "`cargo {subcommand}` is not installed; install it with `rustup component add {component}`, \
         or the package of that name where Rust came from the system"
    )))
}

fn format(workspace: &Workspace) -> Result<(), Error> {
    chore::run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(workspace: &Workspace) -> Result<(), Error> {
    let mut command = workspace.cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]);
    chore::run(&mut command)
}

fn docs(workspace: &Workspace) -> Result<(), Error> {
    let mut command = workspace.cargo();
    command.args(["doc", "--workspace", "--no-deps", "--all-features"]);
    chore::run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn features(workspace: &Workspace) -> Result<(), Error> {
    for mut command in feature_checks(workspace) {
        chore::run(&mut command)?;
    }
    Ok(())
}

/// A check of each crate without any feature, and with each feature alone.
fn feature_checks(workspace: &Workspace) -> Vec<Command> {
    let mut commands = Vec::new();
    for package in FEATURED.iter().filter_map(|name| workspace.package(name)) {
        let alone = package.features.iter().filter(|feature| *feature != "default");
        for feature in [None].into_iter().chain(alone.map(Some)) {
            let mut command = workspace.cargo();
            command.args(["check", "--quiet", "--package", &package.name, "--no-default-features"]);
            command.args(feature.iter().flat_map(|name| ["--features", name]));
            commands.push(command);
        }
    }
    commands
}
