//! How fast a partition is read back: in process, and through the server.
//!
//! Invariant: the yardstick reads the very bytes that the log reads, its own files, from the same page cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::{Scratch, THIS, quiet};
use crate::server;
use crate::table::{Bar, Row, rate};
use crate::topic::{BATCH_EVENTS, OWNER, Target};
use crate::yardstick;

/// Batches in the partition: 140 MiB on disk, many times what the log keeps in memory.
const BATCHES: usize = 2_000;
const ROUNDS: usize = 9;

/// Both ways of reading back.
pub(crate) async fn back(scratch: &Scratch) -> Result<Vec<Row>> {
    let (local_folder, remote_folder) = (scratch.path("read-in-process"), scratch.path("read-server"));
    write(&local_folder).await?;
    copy(&local_folder, &remote_folder)?;
    let log = server::in_process(&local_folder).await?;
    let local = Target::new(log.clone(), 1).await?;
    let socket = scratch.path("read.sock");
    let process = server::start(&remote_folder, &socket, None).await?;
    let client = server::client(&socket, OWNER).await?;
    let remote = Target::new(client.clone(), 1).await?;
    let files = written_parts(&local_folder)?;
    let copies = written_parts(&remote_folder)?;
    quiet(THIS).await?;
    let warm = turns(&files, &copies, &local, &remote, false).await?;
    let cold = turns(&files, &copies, &local, &remote, true).await?;
    client.close().await;
    process.end().await?;
    log.close().await;
    Ok(vec![
        Row::of(&format!("{NEAR}, both from the page cache"), &warm.near, Bar::AtLeast(0.25), rate),
        Row::of(&format!("{FAR}, both from the page cache"), &warm.far, Bar::AtLeast(0.5), rate),
        Row::of(&format!("{NEAR}, both from the disk"), &cold.near, Bar::AtLeast(0.25), rate),
        Row::of(&format!("{FAR}, both from the disk"), &cold.far, Bar::AtLeast(0.5), rate),
    ])
}

const NEAR: &str = "reading a partition back, in process / bare sequential read of the same files";
const FAR: &str = "reading a partition back through the server (Unix socket) / in process";

#[derive(Default)]
struct Ways {
    near: Rounds,
    far: Rounds,
}

/// The yardstick, the log in process and the log behind the server by turns, each from the page cache or from the disk.
async fn turns(
    files: &[(PathBuf, u64)],
    copies: &[(PathBuf, u64)],
    local: &Target,
    remote: &Target,
    is_cold: bool,
) -> Result<Ways> {
    let mut ways = Ways::default();
    let mut turns = Turns::new(ROUNDS + 1);
    let prepare = async |files| if is_cold { yardstick::forget(files).await } else { Ok(()) };
    while turns.next() {
        prepare(files).await?;
        let ns = yardstick::scan_ns(files.to_vec()).await?;
        let bare = (BATCHES * BATCH_EVENTS) as f64 * 1e9 / ns as f64;
        prepare(files).await?;
        let near = rate_of(local).await?;
        prepare(copies).await?;
        let far = rate_of(remote).await?;
        ways.near.0.push(Round { yardstick: bare, subject: near });
        ways.far.0.push(Round { yardstick: near, subject: far });
    }
    // The first round only warms up.
    ways.near.0.remove(0);
    ways.far.0.remove(0);
    Ok(ways)
}

async fn rate_of(target: &Target) -> Result<f64> {
    let (events, ns) = target.read_back().await?;
    Ok(events as f64 * 1e9 / ns as f64)
}

async fn write(folder: &Path) -> Result<()> {
    let log = server::in_process(folder).await?;
    Target::new(log.clone(), 1).await?.one_by_one(BATCHES, BATCH_EVENTS, |_| {}).await?;
    log.close().await;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The log's segments, and how much of each is more than the zeros that it was filled with.
fn written_parts(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            let bytes = fs::read(&path)?;
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            parts.push((path, end));
        }
    }
    parts.retain(|(_, end)| *end > 0);
    parts.sort();
    Ok(parts)
}
