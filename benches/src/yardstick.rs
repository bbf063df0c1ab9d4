//! The yardsticks: what the disk does by itself, with files that are prepared as the log prepares its own.
//!
//! Invariant: filled with zeros and synced before the clock starts, then written from front to back, each write
//! followed by `fdatasync`: the least that anybody who acknowledges only what is on disk can do.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::error::Result;
use crate::quantiles::Latencies;

/// The buffer of a sequential read, in bytes: as large as the batches that readers of the log ask for.
const SCAN_BYTES: usize = 256 << 10;
const ZEROS_BYTES: usize = 1 << 20;

/// A bare file, filled with zeros and synced, that is written from its beginning in each round.
///
/// It is kept until the end of the run: removing a file makes the disk busy with its freed blocks for seconds.
#[derive(Clone)]
pub(crate) struct BareFile(Arc<File>);

impl BareFile {
    /// Prepares a file of `bytes`.
    pub(crate) async fn prepare(path: PathBuf, bytes: usize) -> Result<Self> {
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
            let zeros = vec![0; ZEROS_BYTES];
            for at in (0..bytes).step_by(ZEROS_BYTES) {
                file.write_all_at(&zeros[..ZEROS_BYTES.min(bytes - at)], at as u64)?;
            }
            file.sync_all()?;
            Ok(Self(Arc::new(file)))
        })
        .await
    }

    /// Writes `count` times `bytes`, each after a pause and synced; hands the nanoseconds of each to `seen`.
    fn write_synced(
        &self,
        (count, bytes): (usize, usize),
        mut pause: impl FnMut(),
        mut seen: impl FnMut(u64),
    ) -> Result<()> {
        // Not zeros, which a disk might not write at all.
        let block: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8 + 1).collect();
        for number in 0..count {
            pause();
            let began = Instant::now();
            self.0.write_all_at(&block, (number * bytes) as u64)?;
            self.0.sync_data()?;
            seen(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// The nanoseconds that `count` writes of `bytes` take, each synced.
    pub(crate) async fn write_loop_ns(&self, count: usize, bytes: usize) -> Result<u64> {
        let file = self.clone();
        blocking(move || {
            let mut total = 0;
            file.write_synced((count, bytes), || {}, |ns| total += ns)?;
            Ok(total)
        })
        .await
    }

    /// The latencies of `count` single writes of `bytes`, each synced, one after the other.
    pub(crate) async fn latencies(&self, count: usize, bytes: usize) -> Result<Latencies> {
        let file = self.clone();
        blocking(move || {
            let mut latencies = Latencies::new();
            file.write_synced((count, bytes), || {}, |ns| latencies.record(ns))?;
            Ok(latencies)
        })
        .await
    }

    /// The latencies of single writes of `bytes`, each synced, that begin at `arrivals` (nanoseconds from now on).
    pub(crate) async fn paced_latencies(&self, arrivals: Vec<u64>, bytes: usize) -> Result<Latencies> {
        let file = self.clone();
        blocking(move || {
            let mut latencies = Latencies::new();
            let began = Instant::now();
            let mut next = arrivals.iter().map(|at| Duration::from_nanos(*at));
            let pause = || {
                let next = next.next().unwrap_or_default();
                std::thread::sleep(next.saturating_sub(began.elapsed()));
            };
            file.write_synced((arrivals.len(), bytes), pause, |ns| latencies.record(ns))?;
            Ok(latencies)
        })
        .await
    }
}

/// Makes the system forget what it holds of files, so that the next read comes from the disk.
pub(crate) async fn forget(files: &[(PathBuf, u64)]) -> Result<()> {
    let files = files.to_vec();
    blocking(move || {
        for (path, _) in &files {
            let file = File::open(path)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    })
    .await
}

/// The nanoseconds that reading the first `bytes` of each file takes, one after the other.
pub(crate) async fn scan_ns(files: Vec<(PathBuf, u64)>) -> Result<u64> {
    blocking(move || {
        let mut buffer = vec![0; SCAN_BYTES];
        let began = Instant::now();
        for (path, bytes) in &files {
            let mut left = File::open(path)?.take(*bytes);
            while left.read(&mut buffer)? > 0 {}
        }
        Ok(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    })
    .await
}

/// On a thread of its own, as the log's writer has one.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_write_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let file = BareFile::prepare(folder.path().join("bare"), 7 * 300).await.unwrap();
        assert_eq!(file.latencies(7, 300).await.unwrap().len(), 7);
        assert_eq!(file.paced_latencies(vec![0, 1_000], 300).await.unwrap().len(), 2);
        assert!(std::fs::read(folder.path().join("bare")).unwrap().iter().all(|byte| *byte != 0));
    }
}
