//! A disk in memory that forgets what was not synced, in any mixture, and that fails when told to.

use std::io;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_db::documents::redb::{Database, StorageBackend};

/// What a disk has, and what would be left of it.
#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    now: Vec<u8>,
    /// What was done since the last sync, in order.
    unsynced: Vec<Change>,
    fails: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn apply(change: &Change, to: &mut Vec<u8>) {
    match change {
        Change::Length(length) => to.resize(*length, 0),
        Change::Write(at, bytes) => {
            let end = at + bytes.len();
            if to.len() < end {
                to.resize(end, 0);
            }
            to[*at..end].copy_from_slice(bytes);
        }
    }
}

/// A disk, seen by a database and by a test. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// The database on it.
    pub(crate) fn open(&self) -> Arc<Database> {
        Arc::new(Database::builder().create_with_backend(self.clone()).unwrap())
    }

    /// What a power cut leaves: all that was synced, and of the rest whatever the seed says.
    pub(crate) fn cut(&self, seed: u64) -> Self {
        let state = self.0.lock().unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let mut left = state.synced.clone();
        for change in state.unsynced.iter().filter(|_| random.random_bool(0.5)) {
            apply(change, &mut left);
        }
        Self(Arc::new(Mutex::new(State { synced: left.clone(), now: left, ..State::default() })))
    }

    pub(crate) fn fail(&self) {
        self.0.lock().unwrap().fails = true;
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.fails {
            return Err(io::Error::other("the disk is gone"));
        }
        apply(&change, &mut state.now);
        state.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let found = state.now.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.fails {
            return Err(io::Error::other("the disk is gone"));
        }
        state.synced = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}
