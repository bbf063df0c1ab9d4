//! Where each event is that came with an id of its publisher's: how a retry is told from a second event.
//!
//! A folder of fjall, written behind the log: what it does not have yet is in memory. The log is the truth; the folder says how far of
//! each partition it has, in the same batch as the ids up to there, and what is behind that is read from the log when it is opened. So it
//! needs no sync of its own in the way of a publisher, and may be removed.
//!
//! Invariant: an id that is in a topic is found, whatever crashed meanwhile, with memory that does not grow with their number.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fjall::config::PinningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::Notify;
use tokio::time::timeout;
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};
use uuid::Uuid;

use crate::problem::{Problem, Refusal};

/// Where an event is: partition and sequence.
pub(crate) type Place = (u32, u64);

/// How much of what is on disk is kept in memory, in bytes.
const CACHE_BYTES: u64 = 32 << 20;
/// How much is gathered in memory before it goes to a table on disk, in bytes.
const TABLE_BYTES: u64 = 4 << 20;
/// Threads that write tables and merge them: one alone would let what is gathered grow while it merges.
const WORKERS: usize = 2;
/// The most ids that wait for the writer; then publishers wait too.
const RECENT_MAX: usize = 200_000;
/// How long a publisher waits for the writer, before it is asked to come again.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long the writer lets groups gather, so that a busy publisher does not wake it for each.
const GATHER: Duration = Duration::from_millis(3);
/// The most events that the writer puts into one commit.
const COMMIT_EVENTS_MAX: usize = 50_000;
/// How often what was written is synced.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Events of one partition, one after the other, that are on disk in the log.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) topic: ServiceName,
    pub(crate) incarnation: Incarnation,
    pub(crate) partition: u32,
    /// The sequence of the first.
    pub(crate) first: u64,
    pub(crate) ids: Vec<EventId>,
}

/// The ids of all topics.
pub(crate) struct Index {
    file: Arc<File>,
    runs: Mutex<Option<Sender<Vec<Run>>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct File {
    database: Database,
    places: Keyspace,
    /// How far there is what: by topic and partition.
    reached: Keyspace,
    /// What is not there yet.
    recent: Mutex<HashMap<EventId, Place>>,
    /// Told after each commit.
    written: Notify,
}

impl Index {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let database =
            Database::builder(path).cache_size(CACHE_BYTES).worker_threads(WORKERS).open().map_err(broken)?;
        let keyspace = |name: &str| {
            let options = || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(TABLE_BYTES)
                    .filter_block_pinning_policy(PinningPolicy::all(false))
                    .index_block_pinning_policy(PinningPolicy::all(false))
            };
            database.keyspace(name, options).map_err(broken)
        };
        let (places, reached) = (keyspace("places")?, keyspace("reached")?);
        let file =
            Arc::new(File { database, places, reached, recent: Mutex::default(), written: Notify::new() });
        let (runs, waiting) = channel();
        let written = file.clone();
        let writer = std::thread::Builder::new().name("ids".into()).spawn(move || written.write_on(&waiting));
        let writer = writer.map_err(broken)?;
        Ok(Self { file, runs: Mutex::new(Some(runs)), writer: Mutex::new(Some(writer)) })
    }

    /// Where each of these events is, if it is anywhere. One that is nowhere is known as such from memory, but for one in many; one that is
    /// somewhere may have to be read from the disk.
    pub(crate) fn find(&self, ids: &[EventId]) -> Result<Vec<Option<Place>>, Problem> {
        let mut found: Vec<Option<Place>> = {
            let recent = self.file.recent.lock().unwrap_or_else(PoisonError::into_inner);
            ids.iter().map(|id| recent.get(id).copied()).collect()
        };
        let mut unknown: Vec<_> = found.iter_mut().zip(ids).filter(|(place, _)| place.is_none()).collect();
        // In their order, because neighbours of a key lie on the same way to it.
        unknown.sort_unstable_by_key(|(_, id)| **id);
        for (place, id) in unknown {
            let value = self.file.places.get(id.0.as_bytes()).map_err(broken)?;
            *place = value.map(|bytes| read_place(&bytes)).transpose()?;
        }
        Ok(found)
    }

    /// Takes what was appended.
    pub(crate) fn note(&self, group: Vec<Run>) -> Result<(), Problem> {
        {
            let mut recent = self.file.recent.lock().unwrap_or_else(PoisonError::into_inner);
            for run in &group {
                let places = (run.first..).map(|sequence| (run.partition, sequence));
                recent.extend(run.ids.iter().copied().zip(places));
            }
        }
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = || Problem::new(Refusal::Unavailable, "the bus is closing");
        runs.ok_or_else(closed)?.send(group).map_err(|_| closed())
    }

    /// Waits until the writer is not far behind. Asked before anything is appended, because what is appended must be noted.
    pub(crate) async fn room(&self) -> Result<(), Problem> {
        let waiting = async {
            loop {
                let written = self.file.written.notified();
                if self.file.recent.lock().unwrap_or_else(PoisonError::into_inner).len() < RECENT_MAX {
                    return;
                }
                written.await;
            }
        };
        timeout(ROOM_WAIT_MAX, waiting).await.map_err(|_| {
            Problem::new(
                Refusal::Unavailable,
                "the ids of events are written too slowly, or cannot be; try again with the same ids",
            )
        })
    }

    /// How far a partition is there; the start, if there is nothing of this life of the topic.
    pub(crate) fn reached(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        partition: u32,
    ) -> Result<Cursor, Problem> {
        let value = self.file.reached.get(reached_key(topic, partition)).map_err(broken)?;
        Ok(match value.and_then(|bytes| read_reached(&bytes)) {
            Some(cursor) if cursor.incarnation == incarnation => cursor,
            _ => Cursor::start(incarnation),
        })
    }

    /// Writes what waits, and ends. Nothing is lost where it is not called.
    pub(crate) fn close(&self) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|it| it.join().is_err()) {
            tracing::error!("the writer of the ids has panicked");
        }
    }
}

impl File {
    /// Writes runs as they come, many in a commit, until nobody sends any more.
    fn write_on(&self, waiting: &Receiver<Vec<Run>>) {
        let (mut synced, mut is_dirty) = (Instant::now(), false);
        let mut runs: Vec<Run> = Vec::new();
        loop {
            match waiting.recv_timeout(SYNC_EVERY) {
                Ok(group) => runs.extend(group),
                Err(RecvTimeoutError::Timeout) if !is_dirty && runs.is_empty() => continue,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            std::thread::sleep(GATHER);
            gather(&mut runs, waiting);
            let is_due = synced.elapsed() >= SYNC_EVERY;
            match self.write(&runs, is_due) {
                Ok(()) => {
                    runs.clear();
                    is_dirty = !is_due;
                    synced = if is_due { Instant::now() } else { synced };
                }
                // Tried again with what comes, so that nothing later is written without it. What is in memory is found meanwhile.
                Err(problem) => {
                    tracing::error!(problem = problem.detail(), "the ids of events cannot be written now")
                }
            }
        }
        if let Err(problem) = self.write(&[], true) {
            tracing::warn!(
                problem = problem.detail(),
                "the ids of events were not synced; they are read from the log again"
            );
        }
    }

    fn write(&self, runs: &[Run], is_synced: bool) -> Result<(), Problem> {
        let mut batch = self.database.batch();
        let places = runs.iter().flat_map(|run| {
            run.ids.iter().zip(run.first..).map(|(id, sequence)| (id, (run.partition, sequence)))
        });
        let mut places: Vec<_> = places.collect();
        places.sort_unstable_by_key(|(id, _)| **id);
        for (id, place) in places {
            batch.insert(&self.places, id.0.as_bytes().as_slice(), written_place(place));
        }
        for run in runs {
            if let Some(last) = run.ids.last() {
                let end = Cursor::at(run.incarnation, run.first + run.ids.len() as u64 - 1, *last);
                batch.insert(&self.reached, reached_key(&run.topic, run.partition), written_reached(&end));
            }
        }
        batch.commit().map_err(broken)?;
        if is_synced {
            self.database.persist(PersistMode::SyncAll).map_err(broken)?;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for id in runs.iter().flat_map(|run| &run.ids) {
            recent.remove(id);
        }
        drop(recent);
        self.written.notify_waiters();
        Ok(())
    }
}

fn written_place((partition, sequence): Place) -> Vec<u8> {
    [&partition.to_be_bytes()[..], &sequence.to_be_bytes()].concat()
}

fn read_place(bytes: &[u8]) -> Result<Place, Problem> {
    let parts = bytes.split_first_chunk::<4>().and_then(|(partition, rest)| {
        Some((u32::from_be_bytes(*partition), u64::from_be_bytes(rest.try_into().ok()?)))
    });
    parts.ok_or_else(|| broken("a place in it is damaged"))
}

fn reached_key(topic: &ServiceName, partition: u32) -> Vec<u8> {
    [topic.as_str().as_bytes(), b"/", &partition.to_be_bytes()].concat()
}

fn written_reached(cursor: &Cursor) -> Vec<u8> {
    let id = cursor.id.map_or(Uuid::nil(), |id| id.0);
    [&cursor.incarnation.0.as_bytes()[..], &cursor.sequence.to_be_bytes(), id.as_bytes()].concat()
}

fn read_reached(bytes: &[u8]) -> Option<Cursor> {
    let (incarnation, rest) = bytes.split_first_chunk::<16>()?;
    let (sequence, id) = rest.split_first_chunk::<8>()?;
    let id = EventId(Uuid::from_slice(id).ok()?);
    Some(Cursor::at(Incarnation(Uuid::from_bytes(*incarnation)), u64::from_be_bytes(*sequence), id))
}

/// Adds what waits, up to the bound of a commit.
fn gather(runs: &mut Vec<Run>, waiting: &Receiver<Vec<Run>>) {
    let mut count: usize = runs.iter().map(|run| run.ids.len()).sum();
    while count < COMMIT_EVENTS_MAX {
        let Ok(group) = waiting.try_recv() else { break };
        count += group.iter().map(|run| run.ids.len()).sum::<usize>();
        runs.extend(group);
    }
}

fn broken(error: impl std::fmt::Display) -> Problem {
    Problem::new(
        Refusal::Internal,
        format!(
            "the folder of ids cannot be used: {error}; it may be removed while the bus is stopped, and is made again from the log"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, ids: &[EventId]) -> Run {
        let topic = ServiceName::new("posts").unwrap();
        Run {
            topic,
            incarnation: Incarnation(uuid::Uuid::from_u128(7)),
            partition: 3,
            first,
            ids: ids.to_vec(),
        }
    }

    #[test]
    fn an_id_is_found_before_and_after_it_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids");
        let ids: Vec<EventId> = (0..1000).map(|_| EventId::new()).collect();
        let index = Index::open(&path).unwrap();
        index.note(vec![run(1, &ids[..600])]).unwrap();
        index.note(vec![run(601, &ids[600..])]).unwrap();
        let places: Vec<_> = (1..=1000).map(|at| Some((3, at))).collect();
        assert_eq!(index.find(&ids).unwrap(), places);
        index.close();
        drop(index);
        let index = Index::open(&path).unwrap();
        assert_eq!(index.find(&ids).unwrap(), places);
        assert!(index.file.recent.lock().unwrap().is_empty());
        assert_eq!(index.find(&[EventId::new()]).unwrap(), [None]);
        let topic = ServiceName::new("posts").unwrap();
        let of =
            |incarnation| index.reached(&topic, Incarnation(uuid::Uuid::from_u128(incarnation)), 3).unwrap();
        assert_eq!((of(7).sequence, of(7).id, of(8).sequence), (1000, ids.last().copied(), 0));
    }

    /// What this process holds of the machine's memory, in bytes.
    fn memory() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Ids as they come: of SHA-1, in no order.
    fn ids(from: u64, count: u64) -> Vec<EventId> {
        let id = |n: u64| EventId(Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes()));
        (from..from + count).map(id).collect()
    }

    /// `TOMBOLO_TEST_IDS=10000000 cargo test --release -p tombolo-http --lib memory_does_not` is the whole of it.
    #[tokio::test]
    async fn memory_does_not_grow_with_the_number_of_ids() {
        const RUN: u64 = 1_000;
        let asked = std::env::var("TOMBOLO_TEST_IDS").ok().and_then(|count| count.parse().ok());
        let count: u64 = asked.unwrap_or(200_000);
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("ids")).unwrap();
        let (mut half, started) = (0, std::time::Instant::now());
        for first in (0..count).step_by(RUN as usize) {
            index.room().await.unwrap();
            index.note(vec![run(first + 1, &ids(first, RUN))]).unwrap();
            if first == count / 2 {
                half = memory();
            }
        }
        let whole = memory();
        let each = started.elapsed().as_nanos() / u128::from(count);
        for first in (0..count).step_by(count as usize / 20) {
            let places: Vec<_> = (first + 1..=first + 10).map(|at| Some((3, at))).collect();
            assert_eq!(index.find(&ids(first, 10)).unwrap(), places);
        }
        assert!(index.find(&ids(count, 1_000)).unwrap().iter().all(Option::is_none));
        index.close();
        eprintln!(
            "{count} ids, {each} ns each: {} MiB after half of them, {} MiB after all",
            half >> 20,
            whole >> 20
        );
        assert!(whole < half + (32 << 20), "{half} bytes after half of them, {whole} after all");
    }
}
