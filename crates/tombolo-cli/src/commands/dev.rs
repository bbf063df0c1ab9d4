//! `tombolo dev`: from a manifest to a running system, here or detached.
//!
//! A detached runner is this same program, started again in a session of its own, which reports once through a
//! pipe. Invariant: `--detach` returns success only if everything is ready, and failure only if nothing is left.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::arguments::Dev;
use crate::commands::say;
use crate::elsewhere;
use crate::error::{Context, Error, Result};
use crate::folder::{DataFolder, FOLDER_NAME};
use crate::manifest::{BUS, GATEWAY, Manifest};
use crate::plan::plan;
use crate::runner::control::{Answer, Status};
use crate::runner::log::Terminal;
use crate::runner::{self, Setting};

/// The size at which a detached runner's log is put aside as `runner.log.1`.
const RUNNER_LOG_BYTES_MAX: u64 = 1 << 20;

/// Starts what the manifest says.
pub(crate) async fn dev(arguments: Dev) -> Result<()> {
    if arguments.report {
        return report(arguments).await;
    }
    if arguments.detach {
        return detach(&arguments).await;
    }
    let (manifest, folder) = open(&arguments)?;
    let terminal = Terminal::standard(names(&manifest));
    run(manifest, folder, terminal, None, |_| ()).await
}

fn open(arguments: &Dev) -> Result<(Manifest, DataFolder)> {
    let manifest = Manifest::read(&arguments.place)?.with(&arguments.elsewhere)?;
    let beside = manifest.folder().join(FOLDER_NAME);
    let folder = DataFolder::make(arguments.data.as_deref().unwrap_or(&beside))?;
    Ok((manifest, folder))
}

async fn run(
    manifest: Manifest,
    folder: DataFolder,
    terminal: Terminal,
    ready_within: Option<Duration>,
    report: impl FnOnce(&Answer),
) -> Result<()> {
    let began = Instant::now();
    let lock = folder.lock()?;
    runner::end_orphans(&folder, &terminal).await?;
    let plan = plan(&manifest, &folder)?;
    elsewhere::reach(&plan).await?;
    let setting = Setting { terminal: Arc::new(terminal), ready_within, began };
    runner::run(plan, &folder, lock, setting, report).await
}

fn names(manifest: &Manifest) -> Vec<String> {
    let services = manifest.services.iter().flat_map(|service| match service.replicas {
        1 => vec![service.name.to_string()],
        count => (1..=count).map(|replica| format!("{}.{replica}", service.name)).collect(),
    });
    let gateway = manifest.gateway.iter().map(|_| GATEWAY.to_owned());
    std::iter::once(BUS.to_owned()).chain(services).chain(gateway).collect()
}

/// The detached runner: its standard output is a pipe to the command that started it, its standard error its log.
async fn report(arguments: Dev) -> Result<()> {
    nix::unistd::setsid().context(|| "cannot leave the terminal's session".into())?;
    let within = Duration::from_secs(arguments.ready_within);
    let mut reported = false;
    let outcome = async {
        let (manifest, folder) = open(&arguments)?;
        let note = |answer: &Answer| {
            reported = true;
            send(answer);
        };
        run(manifest, folder, Terminal::detached(), Some(within), note).await
    };
    let outcome = outcome.await;
    if let (false, Err(error)) = (reported, &outcome) {
        send(&Err(error.clone()));
    }
    outcome
}

fn send(answer: &Answer) {
    let text = serde_json::to_string(answer).unwrap_or_default();
    // Whoever started us may have been interrupted; the runner then goes on, as `tombolo status` will show.
    writeln!(std::io::stdout(), "{text}").ok();
}

/// Starts a detached runner and waits for its report.
async fn detach(arguments: &Dev) -> Result<()> {
    let (_, folder) = open(arguments)?;
    let own = std::env::current_exe().context(|| "cannot find the program tombolo itself".into())?;
    let mut command = Command::new(own);
    command.arg("dev").arg(&arguments.place).arg("--report").arg("--data").arg(folder.path());
    command.arg("--ready-within").arg(arguments.ready_within.to_string());
    if let Some(bus) = &arguments.elsewhere.bus {
        command.arg("--bus").arg(bus);
    }
    for (name, database) in &arguments.elsewhere.databases {
        command.arg("--database").arg(format!("{name}={database}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(runner_log(&folder.runner_log())?);
    let mut child = command.spawn().context(|| "cannot start the runner".into())?;
    match first_line(&mut child).await.and_then(|line| serde_json::from_str::<Answer>(&line).ok()) {
        Some(Ok(status)) => detached(&status, &folder),
        other => {
            let ended = child.wait().await.context(|| "cannot wait for the runner".into())?;
            let unknown = || {
                let log = folder.runner_log();
                Error::failed(format!("the runner ended without a word ({ended}); see {}", log.display()))
            };
            Err(other.and_then(Answer::err).unwrap_or_else(unknown))
        }
    }
}

/// The report of a runner, or nothing if it ends without one. Ctrl-C meanwhile ends the runner.
async fn first_line(child: &mut Child) -> Option<String> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    tokio::select! {
        line = lines.next_line() => line.ok().flatten(),
        _ = tokio::signal::ctrl_c() => {
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok())?;
            // It has not been waited for, so the number is still its own; if it has ended, so much the better.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
            None
        }
    }
}

fn detached(status: &Status, folder: &DataFolder) -> Result<()> {
    let text = format!(
        "{}\nready; it goes on without this terminal. End it with `tombolo down --data {}`",
        status.table(),
        folder.path().display()
    );
    say(&text)
}

fn runner_log(path: &Path) -> Result<File> {
    let doing = || format!("cannot open {}", path.display());
    if path.metadata().is_ok_and(|found| found.len() > RUNNER_LOG_BYTES_MAX) {
        let aside: PathBuf = path.with_extension("log.1");
        fs::rename(path, aside).context(doing)?;
    }
    OpenOptions::new().create(true).append(true).open(path).context(doing)
}
