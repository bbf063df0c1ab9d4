//! Killing or stopping the process at a named barrier, for fault runs: `TOMBOLO_KILL_AT=relay.after-append:3` kills it the
//! third time that it is there, `TOMBOLO_STOP_AT` stops it (SIGSTOP) until somebody lets it go on. Only with the feature
//! `barriers`, which no shipped binary has.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_event::barrier;

use crate::{Error, Kind, Result};

static TARGET: OnceLock<Target> = OnceLock::new();

/// What happens, where, and after how many passes.
struct Target {
    signal: Signal,
    barrier: String,
    left: AtomicU64,
}

/// Installs the barrier that the environment names, if it names one.
///
/// # Errors
/// `Settings` for a barrier that does not exist.
pub fn install_from_env() -> Result<()> {
    for (variable, signal) in [("TOMBOLO_KILL_AT", Signal::SIGKILL), ("TOMBOLO_STOP_AT", Signal::SIGSTOP)] {
        if let Ok(wanted) = std::env::var(variable) {
            let target = Target::parse(variable, signal, &wanted)?;
            TARGET.get_or_init(|| target);
            barrier::install(reached);
        }
    }
    Ok(())
}

impl Target {
    fn parse(variable: &str, signal: Signal, wanted: &str) -> Result<Self> {
        let (name, count) = wanted.split_once(':').unwrap_or((wanted, "1"));
        let (true, Ok(count)) = (barrier::ALL.contains(&name), count.parse()) else {
            let all = barrier::ALL.join(", ");
            return Err(Error::new(
                Kind::Settings,
                format!("{variable} is {wanted:?}; expected NAME:COUNT with one of {all}"),
            ));
        };
        Ok(Self { signal, barrier: name.to_owned(), left: AtomicU64::new(count) })
    }
}

fn reached(name: &'static str) {
    let Some(target) = TARGET.get() else { return };
    if target.barrier == name && target.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        eprintln!("{} at barrier {name}", target.signal);
        // Killed, it is as in a crash: no destructor runs, nothing is flushed.
        kill(Pid::this(), target.signal).ok();
    }
}
