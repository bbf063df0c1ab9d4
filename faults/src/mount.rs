//! A file system of our own whose power can be cut: ext4 in a file, on a loop device.
//!
//! Invariant: nothing is cut, mounted or unmounted but what was made here. Before a cut it is asserted on the open folder that
//! it is on a loop device, and on another device than the root, the folder above it and every other place that matters.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::process::Outcome;

/// The size of a file system; its file takes only what is written.
pub(crate) const BYTES: u64 = 1 << 30;
/// The device major of loop devices in Linux.
const LOOP_MAJOR: u64 = 7;
/// "Do not flush the log nor data" (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
const WITHOUT_FLUSH: u32 = 2;
/// How long killed processes may keep a file system busy.
const BUSY_BOUND: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

nix::ioctl_read! {
    /// `FS_IOC_SHUTDOWN`: from here on nothing reaches the device, and every write fails.
    shutdown, b'X', 125, u32
}

/// A mounted file system of our own.
pub(crate) struct Mount {
    image: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// Makes one of so many bytes and mounts it.
    pub(crate) fn make(at: &Path, bytes: u64) -> Outcome<Self> {
        fs::create_dir_all(at)?;
        let image = at.with_extension("image");
        File::create_new(&image)?.set_len(bytes)?;
        let mount = Self { image, at: at.to_owned() };
        // No blocks are kept back for root, so that full is full.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&mount.image))?;
        mount.mount()?;
        Ok(mount)
    }

    /// Why none can be made here, if so.
    pub(crate) fn hindrance() -> Option<String> {
        let folder = tempfile::tempdir().ok()?;
        let made = Self::make(&folder.path().join("probe"), 8 << 20);
        made.err().map(|error| format!("no ext4 on a loop device can be mounted here: {error}"))
    }

    fn mount(&self) -> Outcome<()> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    /// Cuts the power: what is not on the device is gone, and nothing more comes to it.
    pub(crate) fn cut(&self) -> Outcome<()> {
        let folder = File::open(&self.at)?;
        self.guard(&folder)?;
        let mut flag = WITHOUT_FLUSH;
        // SAFETY: the descriptor is open for the whole call, and the kernel only reads one u32 at the pointer, which is
        // valid and aligned. What it does to the file system is what the guard has just allowed.
        unsafe { shutdown(folder.as_raw_fd(), &raw mut flag) }?;
        Ok(())
    }

    /// Refuses anything but a file system of our own.
    fn guard(&self, folder: &File) -> Outcome<()> {
        let device = folder.metadata()?.dev();
        let above = self.at.parent().ok_or("a mount point has a folder above it")?;
        let others =
            [Path::new("/").to_owned(), above.to_owned(), std::env::temp_dir(), std::env::current_dir()?];
        for other in others {
            if fs::metadata(&other)?.dev() == device {
                return Err(format!(
                    "refused to cut the power of {}: it is on the same device as {}",
                    self.at.display(),
                    other.display()
                )
                .into());
            }
        }
        if nix::sys::stat::major(device) != LOOP_MAJOR {
            return Err(
                format!("refused to cut the power of {}: it is no loop device", self.at.display()).into()
            );
        }
        Ok(())
    }

    /// Power again: the journal is replayed. Whoever had files open must be dead by now, or soon.
    pub(crate) fn restore(&self) -> Outcome<()> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&self) -> Outcome<()> {
        let began = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.at)) {
                Err(error) if began.elapsed() > BUSY_BOUND => return Err(error),
                Err(_) => sleep(LOOK_EVERY),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn is_mounted(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        self.at.parent().is_some_and(|above| device(above) != device(&self.at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted()
            && let Err(error) = self.unmount()
        {
            eprintln!("{} is left mounted: {error}", self.at.display());
        }
        fs::remove_file(&self.image).ok();
    }
}

/// Runs a command to its end, which must be good.
fn run(command: &mut Command) -> Outcome<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
