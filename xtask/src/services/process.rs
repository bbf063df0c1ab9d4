//! One server's process: started in a group of its own, so that Ctrl-C reaches xtask alone, recognised
//! later by its start time, and stopped. Invariant: a process whose number was given to somebody else
//! in the meantime is never signalled.

use crate::chore;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tombolo_servers::{Context, Ends, Error, Server};

/// How long a server may take to end by itself, and then to be killed.
const STOP_BOUND: Duration = Duration::from_secs(20);
const KILL_BOUND: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A process and what tells it from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) pid: i32,
    /// When it started, as the system says it.
    pub(super) started: String,
    /// Whether it hears SIGTERM and not SIGINT.
    pub(super) deaf: bool,
}

impl Process {
    pub(super) fn myself() -> Self {
        Self::found("xtask", std::process::id()).unwrap_or_else(|| Process {
            name: "xtask".into(),
            pid: 0,
            started: String::new(),
            deaf: false,
        })
    }

    pub(super) fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self, Error> {
        let doing = format!("start {name} (`{}`)", chore::shown(command));
        let file = File::create(log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = file.context(|| format!("create {}", log.display()))?;
        let spawned = command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).spawn();
        let child = spawned.context(|| doing)?;
        Self::found(name, child.id()).ok_or_else(|| ended(name, log))
    }

    /// The same, asked to end as this server is.
    pub(super) fn of(self, server: &Server) -> Self {
        Self { deaf: server.ends == Ends::Terminated, ..self }
    }

    fn found(name: &str, pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Process { name: name.to_owned(), pid, started: started(pid)?, deaf: false })
    }

    /// Whether it is still there, and still the same one.
    pub(super) fn runs(&self) -> bool {
        // Ours may be a zombie until it is waited for; somebody else's child is not ours to wait for.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        self.pid > 0 && started(self.pid).as_ref() == Some(&self.started)
    }

    /// Asks it to end (SIGINT, unless it is deaf to that), then kills it.
    pub(super) fn stop(&self) -> Result<(), Error> {
        let ask = if self.deaf { Signal::SIGTERM } else { Signal::SIGINT };
        if self.signal_and_wait(ask, STOP_BOUND)? || self.signal_and_wait(Signal::SIGKILL, KILL_BOUND)? {
            return Ok(());
        }
        Err(Error::new(format!("{} (process {}) does not end; end it by hand", self.name, self.pid)))
    }

    fn signal_and_wait(&self, signal: Signal, bound: Duration) -> Result<bool, Error> {
        if !self.runs() {
            return Ok(true);
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(wait_until(bound, || !self.runs())),
            Err(error) => Err(error).context(|| format!("stop {} (process {})", self.name, self.pid)),
        }
    }
}

/// Waits for a state, up to a bound; whether it came.
pub(super) fn wait_until(bound: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if reached() {
            return true;
        }
        if begun.elapsed() > bound {
            return false;
        }
        sleep(LOOK_EVERY);
    }
}

/// The error of a server that did not come up, with the end of its log.
pub(super) fn ended(name: &str, log: &Path) -> Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n  ");
    Error::new(format!("{name} did not come up; its last lines were:\n  {tail}"))
}

/// When a living process started; nothing if it has ended.
fn started(pid: i32) -> Option<String> {
    if Path::new("/proc/self/stat").exists() {
        return started_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    }
    let printed = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let printed = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    (!printed.is_empty() && !printed.starts_with('Z'))
        .then(|| printed.split_once(' ').map(|it| it.1.to_owned()))?
}

/// The start time out of Linux's `/proc/N/stat`, whose second field may hold anything in parentheses.
fn started_in(stat: &str) -> Option<String> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start_time = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| start_time.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let fields = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(started_in(&format!("42 (a) b) S {fields}")), Some("777".into()));
        assert_eq!(started_in(&format!("42 (a) Z {fields}")), None);
    }

    #[test]
    fn a_process_is_stopped_and_another_of_its_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let process =
            Process::spawn("cat", Command::new("tail").args(["-f", "/dev/null"]), &folder.path().join("log"));
        let process = process.unwrap();
        let other = Process { started: "another time".into(), ..process.clone() };
        other.stop().unwrap();
        assert!(process.runs());
        process.stop().unwrap();
        assert!(!process.runs());
    }
}
