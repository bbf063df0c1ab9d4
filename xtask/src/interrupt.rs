//! Ctrl-C, SIGTERM and SIGHUP as a flag that a command looks at while it waits, so that it can stop
//! what it started. Invariant: once watched, such a signal never ends xtask before its cleaning up.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tombolo_servers::{Context, Error};

/// Whether somebody asked xtask to end.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn watch() -> Result<Self, Error> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .context(|| format!("watch for signal {signal}"))?;
        }
        Ok(Interrupt(flag))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
    }
}
