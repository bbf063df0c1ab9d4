//! Where the files of a run lie: a folder on a real disk, removed afterwards.
//!
//! Invariant: never in memory. A sync of tmpfs costs nothing, so every ratio to it would be a lie.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::yardstick::blocking;

/// How long the log may go on preparing files before the next measurement begins all the same.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(5);
const QUIET_LOOK: Duration = Duration::from_millis(25);

/// The folder of one run.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    /// A new folder inside `parent`, or beside this program.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = match parent {
            Some(parent) => parent.to_path_buf(),
            None => beside_program()?,
        };
        if statfs(&parent)?.filesystem_type() == TMPFS_MAGIC {
            return Err(Error::new(format!(
                "{} is in memory (tmpfs), where a sync costs nothing; name a folder on a disk with --folder",
                parent.display()
            )));
        }
        Ok(Self(TempDir::with_prefix_in("tombolo-bench-", parent)?))
    }

    /// A path inside it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn beside_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.parent().map(Path::to_path_buf).ok_or_else(|| Error::new("this program has no folder"))
}

/// The number of this process in `/proc`.
pub(crate) const THIS: &str = "self";

/// Waits until a process writes nothing any more and the disk has everything: until its log has prepared its next
/// segment, whose zeros would otherwise be written during somebody else's turn.
pub(crate) async fn quiet(process: &str) -> Result<()> {
    let mut before = written_bytes(process)?;
    let mut still = 0;
    let give_up = tokio::time::Instant::now() + QUIET_WAIT_MAX;
    while still < 3 && tokio::time::Instant::now() < give_up {
        tokio::time::sleep(QUIET_LOOK).await;
        let now = written_bytes(process)?;
        // Waking a thread counts as eight bytes written.
        still = if now - before < 1_000 { still + 1 } else { 0 };
        before = now;
    }
    blocking(|| {
        // What was written may still be on its way to the disk.
        nix::unistd::sync();
        Ok(())
    })
    .await
}

/// The bytes that a process has given to write calls so far.
pub(crate) fn written_bytes(process: &str) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{process}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|number| number.parse().ok())
        .ok_or_else(|| Error::new(format!("/proc/{process}/io has no wchar")))
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    average.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(f64::NAN)
}
