//! The one way in to this repository's chores. Reads the command line and hands over; each command
//! is a module of its own. Invariant: no command touches a process or a server that it didn't start.

mod bench;
mod chore;
mod ci;
mod faults;
mod fuzz;
mod interrupt;
mod proto;
mod packages;
mod services;
mod shop;
mod test;
mod tidy;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tombolo_servers::Error;
use workspace::Workspace;

/// The chores of this repository. `.ci/run` is `ci` and then `test --install`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the tests, with real servers started privately for them.
    ///
    /// A full run starts PostgreSQL, MariaDB, NATS, RabbitMQ and Redis on free ports, runs every test with
    /// every feature, the slow ones and the doc tests included, and stops the servers again. It fails if
    /// a test was skipped because a server was missing. A server named in TOMBOLO_TEST_POSTGRES,
    /// TOMBOLO_TEST_MARIADB, TOMBOLO_TEST_NATS, TOMBOLO_TEST_RABBITMQ or TOMBOLO_TEST_REDIS is used as it is,
    /// and never stopped.
    Test(test::Options),
    /// Run every static check: format, clippy, tidy, docs, each feature alone, the protocol's code.
    Ci,
    /// Check the habits of this code: floors, headers, sizes, words, dead files, manifests.
    ///
    /// Exceptions for sizes and sleeps stand in xtask/tidy-exceptions.txt, each with its reason.
    /// The list may only shrink: an entry that allows more than is needed fails too.
    Tidy(tidy::Options),
    /// Start, stop or show private PostgreSQL, MariaDB, NATS, RabbitMQ and Redis servers for tests run by hand.
    ///
    /// They listen on free ports of 127.0.0.1 and keep their files in a scratch folder. After
    /// `start`, `set -a; . target/services/env` gives their addresses to a shell.
    Services(services::Options),
    /// Build the shop and run it: `tombolo dev examples/shop`.
    Shop(shop::Options),
    /// Kill real processes at every barrier of the path, and check that nothing was lost, doubled or reordered.
    Faults(faults::Options),
    /// Throw bytes at the gateway's parsing and rewriting for some minutes (`--minutes 60`), guided by libFuzzer.
    ///
    /// Builds libFuzzer's targets of `fuzz` beside the workspace, with the stable compiler; needs one of C++. What it
    /// learns stays in target/fuzz/corpus for the next time.
    Fuzz(fuzz::Options),
    /// Measure the speed, each figure beside a yardstick of the same run, and print a table.
    ///
    /// Builds in release first, the shop included. What follows is passed on: `--only NAME`,
    /// `--format json`, `--folder DIR` (on the disk that is to be measured).
    Bench(bench::Options),
    /// Generate the code of the server protocol from its .proto files.
    Proto(proto::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    let workspace = Workspace::find()?;
    match command {
        Command::Test(options) => test::run(&workspace, &options),
        Command::Ci => ci::run(&workspace),
        Command::Tidy(options) => tidy::run(&workspace, &options),
        Command::Services(options) => services::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Shop(options) => shop::run(&workspace, &options),
        Command::Faults(options) => faults::run(&workspace, &options),
        Command::Fuzz(options) => fuzz::run(&workspace, &options),
        Command::Proto(options) => proto::run(&workspace, &options),
    }
}
