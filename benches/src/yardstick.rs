//! The yardsticks: what the disk does by itself, with files that are prepared as the log prepares its own.
//!
//! Invariant: filled with zeros and synced before the clock starts, then written from front to back, each write
//! followed by `fdatasync`: the least that anybody who acknowledges only what is on disk can do.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::quantiles::Latencies;

/// The buffer of a sequential read, in bytes: as large as the batches that readers of the log ask for.
const SCAN_BYTES: usize = 256 << 10;
const ZEROS_BYTES: usize = 1 << 20;

/// A file of zeros that is on disk whole.
fn prepared(path: &Path, bytes: u64) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let zeros = vec![0; ZEROS_BYTES];
    let mut at = 0;
    while at < bytes {
        let next = zeros.len().min((bytes - at) as usize);
        file.write_all_at(&zeros[..next], at)?;
        at += next as u64;
    }
    file.sync_all()?;
    Ok(file)
}

/// Writes `count` times `bytes` one after the other, each synced and after a pause; hands the nanoseconds of each
/// to `seen`.
fn write_synced(
    path: &Path,
    (count, bytes): (usize, usize),
    mut pause: impl FnMut(),
    mut seen: impl FnMut(u64),
) -> Result<()> {
    let file = prepared(path, (count * bytes) as u64)?;
    // Not zeros, which a disk might not write at all.
    let block: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8 + 1).collect();
    for number in 0..count {
        pause();
        let began = Instant::now();
        file.write_all_at(&block, (number * bytes) as u64)?;
        file.sync_data()?;
        seen(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    drop(file);
    Ok(std::fs::remove_file(path)?)
}

/// The nanoseconds that `count` writes of `bytes` take, each synced.
pub(crate) async fn write_loop_ns(path: PathBuf, count: usize, bytes: usize) -> Result<u64> {
    blocking(move || {
        let mut total = 0;
        write_synced(&path, (count, bytes), || {}, |ns| total += ns)?;
        Ok(total)
    })
    .await
}

/// The latencies of `count` single writes of `bytes`, each synced.
pub(crate) async fn sync_latencies(path: PathBuf, count: usize, bytes: usize) -> Result<Latencies> {
    blocking(move || {
        let mut latencies = Latencies::new();
        write_synced(&path, (count, bytes), || {}, |ns| latencies.record(ns))?;
        Ok(latencies)
    })
    .await
}

/// The latencies of single writes of `bytes`, each synced, that begin at `arrivals` (in nanoseconds from the first).
pub(crate) async fn paced_latencies(path: PathBuf, arrivals: Vec<u64>, bytes: usize) -> Result<Latencies> {
    blocking(move || {
        let mut latencies = Latencies::new();
        let began = Instant::now();
        let mut next = arrivals.iter().map(|at| Duration::from_nanos(*at));
        let pause = || {
            let next = next.next().unwrap_or_default();
            std::thread::sleep(next.saturating_sub(began.elapsed()));
        };
        write_synced(&path, (arrivals.len(), bytes), pause, |ns| latencies.record(ns))?;
        Ok(latencies)
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
    async fn every_write_is_measured_and_the_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("yardstick");
        let latencies = sync_latencies(path.clone(), 7, 300).await.unwrap();
        assert_eq!(latencies.len(), 7);
        assert!(!path.exists());
    }
}
