//! Killing the process at a named barrier, for fault runs: `TOMBOLO_KILL_AT=relay.after-append:3` kills it the third
//! time that it is there. Only with the feature `barriers`, which no shipped binary has.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_event::barrier;

use crate::{Error, Kind, Result};

static TARGET: OnceLock<(String, AtomicU64)> = OnceLock::new();

/// Installs the barrier that the environment names, if it names one.
///
/// # Errors
/// `Settings` for a barrier that does not exist.
pub fn install_from_env() -> Result<()> {
    let Ok(wanted) = std::env::var("TOMBOLO_KILL_AT") else { return Ok(()) };
    let (name, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let known = barrier::ALL.contains(&name);
    let (true, Ok(count)) = (known, count.parse::<u64>()) else {
        let all = barrier::ALL.join(", ");
        return Err(Error::new(
            Kind::Settings,
            format!("TOMBOLO_KILL_AT is {wanted:?}; expected NAME:COUNT with one of {all}"),
        ));
    };
    TARGET.get_or_init(|| (name.to_owned(), AtomicU64::new(count)));
    barrier::install(reached);
    Ok(())
}

fn reached(name: &'static str) {
    let Some((target, left)) = TARGET.get() else { return };
    if target == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
        eprintln!("killed at barrier {name}");
        // Like a crash: no destructor runs, nothing is flushed.
        kill(Pid::this(), Signal::SIGKILL).ok();
    }
}
