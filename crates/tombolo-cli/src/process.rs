//! Processes as /proc shows them: who is who, who belongs to a run, who holds a port.
//!
//! Invariant: a process is only ever signalled as an [`Identity`], a number together with the time at which the
//! process began, so that a number which the kernel gave to somebody else meanwhile is left alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The variable by which every process of a run, and what it started in turn, is known to belong to it.
pub(crate) const RUN_VARIABLE: &str = "TOMBOLO_RUN";
/// How long between two looks at whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One process, not mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its number.
    pub(crate) pid: i32,
    /// When it began, in clock ticks since the machine started.
    pub(crate) started: u64,
}

impl Identity {
    /// Who has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, started: stat.started })
    }

    /// Ourselves.
    pub(crate) fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs. A zombie has ended; its number waits for a parent to ask.
    pub(crate) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !stat.ended)
    }

    /// Sends it a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // The one failure left is that it ended just now, which is what a signal is for.
            kill(Pid::from_raw(self.pid), signal).ok();
        }
    }
}

/// Ends processes: SIGTERM to all, SIGKILL to those that are there after `patience`. Returns when none is left,
/// or those that the kernel would not end.
pub(crate) async fn end_all(processes: &[Identity], patience: Duration) -> Vec<Identity> {
    for (signal, wait) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, patience)] {
        processes.iter().for_each(|process| process.signal(signal));
        let deadline = Instant::now() + wait;
        while processes.iter().any(Identity::is_alive) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    processes.iter().copied().filter(Identity::is_alive).collect()
}

/// Waits until a process has ended, up to `bound`; says whether it has.
pub(crate) async fn ended_within(process: Identity, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    while process.is_alive() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

/// All processes whose environment says that they belong to the run.
pub(crate) fn members_of_run(run: &str) -> Vec<Identity> {
    let mark = format!("{RUN_VARIABLE}={run}");
    let marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    all_pids().filter(marked).filter_map(Identity::of).filter(Identity::is_alive).collect()
}

/// The processes of a run that are in the process group `group`.
pub(crate) fn members_of_group(run: &str, group: i32) -> Vec<Identity> {
    let in_group = |pid: i32| stat(pid).is_some_and(|stat| stat.group == group);
    if !all_pids().any(in_group) {
        return Vec::new();
    }
    members_of_run(run).into_iter().filter(|process| in_group(process.pid)).collect()
}

/// Who listens on a TCP port of this machine: number and name, as far as /proc lets us see.
pub(crate) fn listener_on(port: u16) -> Option<(i32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().find_map(|line| listening_inode(line, port).map(str::to_owned))
    })?;
    let socket = format!("socket:[{inode}]");
    let holds = |pid: &i32| {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&socket)))
    };
    let pid = all_pids().find(holds)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

/// The socket's inode, if a line of /proc/net/tcp is a listener on `port`.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let fields: Vec<_> = line.split_whitespace().collect();
    let local = fields.get(1)?.rsplit_once(':')?.1;
    let matches = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
    matches.then(|| fields.get(9).copied()).flatten()
}

/// The identity of this start of the machine; times of processes mean nothing in another.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct Stat {
    ended: bool,
    group: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads a line of /proc/PID/stat, whose second field, the name, may itself hold spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<_> = line.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) Z (b) S 1 40 40 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 8192 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.ended, stat.group, stat.started), (false, 40, 777));
        assert!(parse_stat("42 (a) Z 1 40 40 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 777 8 1").unwrap().ended);
    }

    #[test]
    fn another_process_of_the_same_number_is_not_taken_for_it() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        assert!(!Identity { started: own.started - 1, ..own }.is_alive());
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (pid, name) = listener_on(listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(u32::try_from(pid), Ok(std::process::id()));
        assert!(!name.is_empty());
    }

    #[test]
    fn a_line_of_another_port_or_state_is_not_the_listener() {
        let line = "0: 0100007F:1BBD 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 31337 1";
        assert_eq!(listening_inode(line, 0x1BBD), Some("31337"));
        assert_eq!(listening_inode(line, 80), None);
        assert_eq!(listening_inode(&line.replace(" 0A ", " 01 "), 0x1BBD), None);
    }
}
