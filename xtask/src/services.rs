//! `cargo xtask services`, and the servers of `cargo xtask test`: private PostgreSQL, MariaDB, NATS, RabbitMQ,
//! Redis, and MongoDB where it is, on free loopback ports, with their files in a scratch folder. Invariant: only a process that a record
//! proves to be ours is ever stopped, and what is started is recorded before anybody waits for it.

mod process;
mod record;

use crate::interrupt::Interrupt;
use crate::workspace::Workspace;
use clap::{Args, ValueEnum};
use process::{Process, ended, wait_until};
use record::Record;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tombolo_servers::{Context, Engine, Error, Programs, Server, programs};

/// Somebody may take a free port before our server does; then it is made again.
const START_TRIES: u32 = 3;
/// RabbitMQ takes five seconds on a machine that does nothing else.
const READY_BOUND: Duration = Duration::from_secs(90);

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
    /// Starts a server of each engine, for as long as this value lives.
    pub(crate) fn for_tests(
        workspace: &Workspace,
        install: bool,
        engines: &[Engine],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let folder = folder(workspace);
        sweep(&folder)?;
        Self::start(&folder, &format!("test-{}", std::process::id()), install, engines, interrupt)
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
        engines: &[Engine],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let programs = programs::find(engines, install)?;
        let mut servers = Servers { record: Record::create(folder, name)? };
        for &engine in engines {
            let address = start(&mut servers.record, engine, &programs, interrupt)?;
            servers.record.variables.push((engine.variable().to_owned(), address));
        }
        servers.record.save()?;
        Ok(servers)
    }
}

/// Starts a server and gives its URL.
fn start(
    record: &mut Record,
    engine: Engine,
    programs: &Programs,
    interrupt: &Interrupt,
) -> Result<String, Error> {
    let mut tries = 1;
    loop {
        interrupt.check()?;
        let folder = record.scratch.join(format!("{engine}-{tries}"));
        let servers = engine.make(&folder, programs)?;
        let started = servers.iter().try_for_each(|server| start_once(record, server, interrupt));
        match started {
            Ok(()) => return Ok(servers.into_iter().last().map(|server| server.url).unwrap_or_default()),
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

fn start_once(record: &mut Record, server: &Server, interrupt: &Interrupt) -> Result<(), Error> {
    let log = record.scratch.join(format!("{}.log", server.name));
    let process = Process::spawn(server.name, &mut server.command(), &log)?.of(server);
    record.add(process.clone())?;
    wait_until(READY_BOUND, || !process.runs() || interrupt.check().is_err() || server.is_ready());
    if process.runs() && server.is_ready() { Ok(()) } else { Err(ended(server.name, &log)) }
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
    let mut servers = Servers::start(folder, BY_HAND, install, &Engine::here(), &interrupt)?;
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
