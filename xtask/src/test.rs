//! `cargo xtask test`: the tests, with servers of their own, and one honest line at the end. Invariant:
//! what was not tested is counted, and a full run that lacked a server fails.

mod tally;

use crate::chore;
use crate::interrupt::Interrupt;
use crate::packages;
use crate::services::Servers;
use crate::workspace::Workspace;
use clap::Args;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tally::Tally;
use tombolo_servers::{Context, Engine, Error, programs};

/// How often Ctrl-C is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long Cargo may take to end after Ctrl-C, and its output to end after Cargo.
const END_BOUND: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct Options {
    /// Install missing servers (Debian and its kin, as root; also done when CI=true).
    #[arg(long, conflicts_with = "quick")]
    install: bool,
    /// Only what needs nothing but Cargo and is not slow.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let begun = Instant::now();
    let interrupt = Interrupt::watch()?;
    programs::build_tools(options.install)?;
    let servers = if options.quick { None } else { Some(servers(workspace, options, &interrupt)?) };
    let packages = if options.quick { None } else { Some(packages::folder(workspace, options.install)?) };
    let mut tally = Tally::default();
    for mut command in commands(workspace, options.quick) {
        // Shown before the servers' passwords are added.
        let shown = chore::shown(&command);
        command.envs(servers.iter().flat_map(Servers::variables).map(|(name, value)| (name, value)));
        command.envs(packages.iter().map(|folder| (packages::VARIABLE, folder)));
        let status = follow(&mut command, &shown, &mut tally, &interrupt)?;
        tally.ended(status.success());
    }
    if let Some(servers) = servers {
        servers.stop()?;
    }
    eprintln!("xtask: the tests took {} s", begun.elapsed().as_secs());
    println!("{tally}");
    tally.verdict(options.quick)
}

/// Servers of the engines that the person at the terminal names none of.
fn servers(workspace: &Workspace, options: &Options, interrupt: &Interrupt) -> Result<Servers, Error> {
    let is_given = |engine: &Engine| std::env::var_os(engine.variable()).is_some_and(|url| !url.is_empty());
    let (given, wanted): (Vec<Engine>, Vec<Engine>) = Engine::here().into_iter().partition(is_given);
    let is_unlisted = is_given(&Engine::MongoDb) && !given.contains(&Engine::MongoDb);
    for engine in given.into_iter().chain(is_unlisted.then_some(Engine::MongoDb)) {
        eprintln!("xtask: using the server that {} names", engine.variable());
    }
    Servers::for_tests(workspace, options.install, &wanted, interrupt)
}

/// Examples are built first, as the programs that some tests start; named as targets of a test run they would be built as
/// tests. The doc tests are a run of their own: `ignore` means something else to them.
fn commands(workspace: &Workspace, quick: bool) -> [Command; 3] {
    let mut examples = workspace.cargo();
    examples.args(["build", "--workspace", "--all-features", "--examples"]);
    let test = |targets: &[&str]| {
        let mut command = workspace.cargo();
        command.args(["test", "--workspace", "--all-features", "--no-fail-fast"]).args(targets);
        if quick {
            for engine in Engine::ALL.into_iter().chain([Engine::MongoDb]) {
                command.env_remove(engine.variable());
            }
        }
        command
    };
    let mut tests = test(&["--lib", "--bins", "--tests"]);
    tests.args(["--", "--show-output"]).args((!quick).then_some("--include-ignored"));
    let mut doc_tests = test(&["--doc"]);
    doc_tests.args(["--", "--show-output"]);
    [examples, tests, doc_tests]
}

enum Line {
    Out(String),
    Err(String),
}

/// Runs a command to its end, passing on and counting what it prints.
fn follow(
    command: &mut Command,
    shown: &str,
    tally: &mut Tally,
    interrupt: &Interrupt,
) -> Result<ExitStatus, Error> {
    eprintln!("xtask: {shown}");
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that Ctrl-C comes here first and everything in it can be ended.
    let mut child = piped.process_group(0).spawn().context(|| format!("run `{shown}`"))?;
    let (sender, lines) = channel();
    let _out = child.stdout.take().map(|out| read(out, Line::Out, sender.clone()));
    let _err = child.stderr.take().map(|err| read(err, Line::Err, sender));
    let mut ended = None;
    while pump(&lines, tally) {
        if interrupt.check().is_err() {
            end(&mut child)?;
        }
        interrupt.check()?;
        if ended.is_none() && child.try_wait().context(|| format!("wait for `{shown}`"))?.is_some() {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|at| at.elapsed() > END_BOUND) {
            signal(&child, Signal::SIGKILL);
            return Err(Error::new(format!(
                "`{shown}` has ended, but a process that a test started still holds its output; \
                 tests must end what they start"
            )));
        }
    }
    child.wait().context(|| format!("wait for `{shown}`"))
}

/// Takes what has been printed; false once there can be no more.
fn pump(lines: &Receiver<Line>, tally: &mut Tally) -> bool {
    let mut next = lines.recv_timeout(LOOK_EVERY);
    loop {
        match next {
            Ok(Line::Out(line)) => {
                if tally.out(&line) {
                    println!("{line}");
                }
            }
            Ok(Line::Err(line)) => {
                tally.err(&line);
                eprintln!("{line}");
            }
            Err(error) => return error == RecvTimeoutError::Timeout,
        }
        next = lines.try_recv().map_err(|error| match error {
            std::sync::mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
            std::sync::mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        });
    }
}

/// Reads lines until the pipe closes. Its thread ends with the pipe, or with xtask.
fn read(
    pipe: impl Read + Send + 'static,
    kind: fn(String) -> Line,
    sender: Sender<Line>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(kind(line)).is_err() {
                return;
            }
        }
    })
}

/// Asks the command and all that it started to end, then kills them.
fn end(child: &mut Child) -> Result<(), Error> {
    signal(child, Signal::SIGINT);
    let begun = Instant::now();
    while begun.elapsed() < END_BOUND {
        if child.try_wait().context(|| "wait for the tests to end".into())?.is_some() {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    signal(child, Signal::SIGKILL);
    child.wait().context(|| "wait for the tests to end".into())?;
    Ok(())
}

/// Signals the command's whole group, which may be empty by now.
fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}
