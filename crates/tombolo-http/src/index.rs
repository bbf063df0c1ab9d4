//! Where each event is that came with an id of its publisher's: how a retry is told from a second event.
//!
//! A file of redb, written behind the log: what it does not have yet is in memory. The log is the truth; the file says how far of each
//! partition it has, and what is behind that is read from the log when it is opened. So it needs no sync of its own in the way of
//! a publisher, and may be removed.
//!
//! Invariant: an id that is in a topic is found, whatever crashed meanwhile, with memory that does not grow with their number.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};

use crate::problem::{Problem, Refusal};

/// Where an event is: partition and sequence.
pub(crate) type Place = (u32, u64);

const PLACES: TableDefinition<'_, u128, Place> = TableDefinition::new("places");
/// Of each topic and partition: incarnation, last sequence, its id.
const REACHED: TableDefinition<'_, (&str, u32), (u128, u64, u128)> = TableDefinition::new("reached");

/// How much of the file is kept in memory, in bytes.
const CACHE_BYTES: usize = 64 << 20;
/// The most runs of events that wait for the writer; then publishers wait too.
const RUNS_WAITING_MAX: usize = 256;
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
#[derive(Debug)]
pub(crate) struct Index {
    file: Arc<File>,
    runs: Mutex<Option<SyncSender<Run>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct File {
    database: Database,
    /// What the file does not have yet.
    recent: Mutex<HashMap<EventId, Place>>,
}

impl Index {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(broken)?;
        let transaction = database.begin_write().map_err(broken)?;
        transaction.open_table(PLACES).map_err(broken)?;
        transaction.open_table(REACHED).map_err(broken)?;
        transaction.commit().map_err(broken)?;
        let file = Arc::new(File { database, recent: Mutex::default() });
        let (runs, waiting) = sync_channel(RUNS_WAITING_MAX);
        let written = file.clone();
        let writer = std::thread::Builder::new().name("ids".into()).spawn(move || written.write_on(&waiting));
        let writer = writer.map_err(broken)?;
        Ok(Self { file, runs: Mutex::new(Some(runs)), writer: Mutex::new(Some(writer)) })
    }

    /// Where each of these events is, if it is anywhere. May wait for the disk.
    pub(crate) fn find(&self, ids: &[EventId]) -> Result<Vec<Option<Place>>, Problem> {
        let mut found: Vec<Option<Place>> = {
            let recent = self.file.recent.lock().unwrap_or_else(PoisonError::into_inner);
            ids.iter().map(|id| recent.get(id).copied()).collect()
        };
        let transaction = self.file.database.begin_read().map_err(broken)?;
        let places = transaction.open_table(PLACES).map_err(broken)?;
        for (place, id) in found.iter_mut().zip(ids).filter(|(place, _)| place.is_none()) {
            *place = places.get(id.0.as_u128()).map_err(broken)?.map(|it| it.value());
        }
        Ok(found)
    }

    /// Takes what was appended. Waits while the writer is far behind.
    pub(crate) fn note(&self, run: Run) -> Result<(), Problem> {
        {
            let mut recent = self.file.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.extend(
                run.ids.iter().zip(run.first..).map(|(id, sequence)| (*id, (run.partition, sequence))),
            );
        }
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = || Problem::new(Refusal::Unavailable, "the bus is closing");
        runs.ok_or_else(closed)?.send(run).map_err(|_| closed())
    }

    /// How far the file has a partition; the start, if it has nothing of this life of the topic.
    pub(crate) fn reached(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        partition: u32,
    ) -> Result<Cursor, Problem> {
        let transaction = self.file.database.begin_read().map_err(broken)?;
        let reached = transaction.open_table(REACHED).map_err(broken)?;
        let found = reached.get((topic.as_str(), partition)).map_err(broken)?.map(|it| it.value());
        Ok(match found {
            Some((of, sequence, id)) if of == incarnation.0.as_u128() => {
                Cursor::at(incarnation, sequence, EventId(uuid::Uuid::from_u128(id)))
            }
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
    fn write_on(&self, waiting: &Receiver<Run>) {
        let mut synced = Instant::now();
        let mut is_dirty = false;
        loop {
            let first = match waiting.recv_timeout(SYNC_EVERY) {
                Ok(run) => Some(run),
                Err(RecvTimeoutError::Timeout) if !is_dirty => continue,
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let runs = together(first, waiting);
            let is_due = synced.elapsed() >= SYNC_EVERY;
            if let Err(problem) = self.write(&runs, is_due) {
                // What is in memory is still found; opened again, the rest is read from the log.
                tracing::error!(
                    problem = problem.detail(),
                    "the ids of events cannot be written; they are kept in memory"
                );
                continue;
            }
            is_dirty = !is_due;
            if is_due {
                synced = Instant::now();
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
        let mut transaction = self.database.begin_write().map_err(broken)?;
        let durability = if is_synced { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability).map_err(broken)?;
        let mut all: Vec<(u128, Place)> = Vec::new();
        for run in runs {
            all.extend(run.ids.iter().zip(run.first..).map(|(id, at)| (id.0.as_u128(), (run.partition, at))));
        }
        // In the order of the tree, so that neighbours share their pages.
        all.sort_unstable_by_key(|it| it.0);
        {
            let mut places = transaction.open_table(PLACES).map_err(broken)?;
            let mut reached = transaction.open_table(REACHED).map_err(broken)?;
            for (id, place) in &all {
                places.insert(id, place).map_err(broken)?;
            }
            for run in runs {
                let Some(last) = run.ids.last() else { continue };
                let at =
                    (run.incarnation.0.as_u128(), run.first + run.ids.len() as u64 - 1, last.0.as_u128());
                reached.insert((run.topic.as_str(), run.partition), at).map_err(broken)?;
            }
        }
        transaction.commit().map_err(broken)?;
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, _) in &all {
            recent.remove(&EventId(uuid::Uuid::from_u128(*id)));
        }
        Ok(())
    }
}

/// What waits, up to the bound of a commit.
fn together(first: Option<Run>, waiting: &Receiver<Run>) -> Vec<Run> {
    let mut count = first.as_ref().map_or(0, |run| run.ids.len());
    let mut runs: Vec<Run> = first.into_iter().collect();
    while count < COMMIT_EVENTS_MAX {
        let Ok(run) = waiting.try_recv() else { break };
        count += run.ids.len();
        runs.push(run);
    }
    runs
}

fn broken(error: impl std::fmt::Display) -> Problem {
    Problem::new(
        Refusal::Internal,
        format!(
            "the file of ids cannot be used: {error}; it may be removed while the bus is stopped, and is made again from the log"
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
        index.note(run(1, &ids[..600])).unwrap();
        index.note(run(601, &ids[600..])).unwrap();
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
}
