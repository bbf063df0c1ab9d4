//! `cargo xtask services`, and the servers of `cargo xtask test`: private PostgreSQL, MariaDB, NATS, RabbitMQ and
//! Redis on free loopback ports, with their files in a scratch folder. Invariant: only a process that a record
//! proves to be ours is ever stopped, and what is started is recorded before anybody waits for it.

mod address;
mod install;
mod mariadb;
mod nats;
mod postgres;
mod process;
mod rabbitmq;
mod record;
mod redis;
mod scratch;

use crate::error::{Context, Error};
use crate::interrupt::Interrupt;
use crate::workspace::Workspace;
use clap::{Args, ValueEnum};
pub(crate) use install::build_tools;
use record::Record;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The variables by which tests find their servers.
pub(crate) const POSTGRES_VARIABLE: &str = "TOMBOLO_TEST_POSTGRES";
pub(crate) const MARIADB_VARIABLE: &str = "TOMBOLO_TEST_MARIADB";
pub(crate) const NATS_VARIABLE: &str = "TOMBOLO_TEST_NATS";
pub(crate) const RABBITMQ_VARIABLE: &str = "TOMBOLO_TEST_RABBITMQ";
pub(crate) const REDIS_VARIABLE: &str = "TOMBOLO_TEST_REDIS";
/// All of them.
pub(crate) const VARIABLES: [&str; 5] =
    [POSTGRES_VARIABLE, MARIADB_VARIABLE, NATS_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE];

/// The record of what `services start` started; those of tests carry the number of their process.
const BY_HAND: &str = "started";

#[derive(Args)]
pub(crate) struct Options {
    /// Install what is missing (Debian and its kin, as root; also done when CI=true).
    #[arg(long)]
    install: bool,
    /// What to do.
    #[arg(value_enum, default_value = "start")]
    action: Action,
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    /// Start the servers, write target/services/env, and leave them running.
    Start,
    /// Stop them, and whatever a killed test run left behind.
    Stop,
    /// Show what runs.
    Status,
}

/// Running servers. Dropped, they are stopped.
pub(crate) struct Servers {
    record: Record,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let folder = folder(workspace);
    match options.action {
        Action::Start => start_by_hand(&folder, options.install),
        Action::Stop => stop_all(&folder),
        Action::Status => show(&folder),
    }
}

impl Servers {
    /// Starts a server for each variable, for as long as this value lives.
    pub(crate) fn for_tests(
        workspace: &Workspace,
        install: bool,
        variables: &[&'static str],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let folder = folder(workspace);
        sweep(&folder)?;
        Self::start(&folder, &format!("test-{}", std::process::id()), install, variables, interrupt)
    }

    /// The variables that point tests to these servers.
    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.record.variables
    }

    pub(crate) fn stop(mut self) -> Result<(), Error> {
        self.record.stop()
    }

    fn start(
        folder: &Path,
        name: &str,
        install: bool,
        variables: &[&'static str],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let programs = install::programs(variables, install)?;
        interrupt.check()?;
        let mut servers = Servers { record: Record::create(folder, name)? };
        for variable in variables {
            let address = match *variable {
                POSTGRES_VARIABLE => postgres::start(&mut servers.record, &programs, interrupt)?,
                MARIADB_VARIABLE => mariadb::start(&mut servers.record, &programs, interrupt)?,
                RABBITMQ_VARIABLE => rabbitmq::start(&mut servers.record, &programs, interrupt)?,
                REDIS_VARIABLE => redis::start(&mut servers.record, &programs, interrupt)?,
                _ => nats::start(&mut servers.record, &programs, interrupt)?,
            };
            servers.record.variables.push(((*variable).to_owned(), address));
        }
        servers.record.save()?;
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Err(error) = self.record.stop() {
            eprintln!("xtask: {error}");
        }
    }
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("services")
}

fn start_by_hand(folder: &Path, install: bool) -> Result<(), Error> {
    let interrupt = Interrupt::watch()?;
    sweep(folder)?;
    if let Some(mut record) = Record::load(folder, BY_HAND)? {
        if record.all_run() {
            eprintln!("xtask: already running");
            return show(folder);
        }
        record.stop()?;
    }
    let mut servers = Servers::start(folder, BY_HAND, install, &VARIABLES, &interrupt)?;
    write_environment(folder, servers.variables())?;
    interrupt.check()?;
    servers.record.keep();
    show(folder)
}

fn write_environment(folder: &Path, variables: &[(String, String)]) -> Result<(), Error> {
    let path = folder.join("env");
    let lines: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let write = || {
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        fs::write(&path, lines)
    };
    write().context(|| format!("write {}", path.display()))
}

fn stop_all(folder: &Path) -> Result<(), Error> {
    sweep(folder)?;
    let Some(mut record) = Record::load(folder, BY_HAND)? else {
        eprintln!("xtask: nothing is running");
        return Ok(());
    };
    record.stop()?;
    let _ = fs::remove_file(folder.join("env"));
    eprintln!("xtask: stopped");
    Ok(())
}

/// Stops the servers of test runs that were killed before they could.
fn sweep(folder: &Path) -> Result<(), Error> {
    for mut record in Record::load_all(folder)? {
        if record.name != BY_HAND && !record.owner.runs() {
            eprintln!("xtask: stopping what a killed run left behind ({})", record.name);
            record.stop()?;
        }
    }
    Ok(())
}

fn show(folder: &Path) -> Result<(), Error> {
    let records = Record::load_all(folder)?;
    if records.is_empty() {
        println!("nothing is running");
    }
    for record in records {
        for server in &record.servers {
            let state = if server.runs() { "runs" } else { "has ended" };
            println!("{}: {} {state} (process {})", record.name, server.name, server.pid);
        }
        for (name, value) in &record.variables {
            println!("  {name}={value}");
        }
    }
    Ok(())
}
