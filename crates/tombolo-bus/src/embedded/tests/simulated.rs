//! A disk that does what real ones do: forgets what was not synced, in any mixture of pages, when the power is cut;
//! fails the n-th write or sync; is full.
//!
//! Invariant: after a power cut every synced byte is there; of what was not, each page is kept or lost by chance.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::embedded::storage::{Blob, Storage};

/// What is torn as one.
const PAGE_BYTES: usize = 512;

/// What the disk does next to its work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// The power is cut at this operation (writes, syncs, names), which may be half done.
    pub(crate) cut_at: Option<u64>,
    /// This sync fails, counted from 1; those after it say that all is well.
    pub(crate) fail_sync: Option<u64>,
    /// This operation, a write, finds the disk full in the middle.
    pub(crate) full_at: Option<u64>,
    /// Writes beyond this many bytes of files find the disk full.
    pub(crate) capacity: Option<usize>,
}

/// The disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    files: BTreeMap<u64, File>,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    faults: Faults,
    operations: u64,
    syncs: u64,
    is_off: bool,
    random: StdRng,
}

#[derive(Default, Clone)]
struct File {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// The pages that the next sync writes. After a failed sync they count as clean, and are not on disk.
    dirty: BTreeSet<usize>,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            faults: Faults::default(),
            operations: 0,
            syncs: 0,
            is_off: false,
            random: StdRng::seed_from_u64(seed),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets every operation wait until the guard is dropped.
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.lock()
    }

    /// Sets the faults; operations and syncs are counted from here.
    pub(crate) fn set(&self, faults: Faults) {
        let mut state = self.lock();
        state.faults = faults;
        state.operations = 0;
        state.syncs = 0;
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    pub(crate) fn is_off(&self) -> bool {
        self.lock().is_off
    }

    /// Cuts the power now, if it is still on, and starts the machine again: what is there is what survived.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        let State { files, names, synced_names, random, .. } = &mut *state;
        for file in files.values_mut() {
            file.survive(random);
        }
        let mut surviving = synced_names.clone();
        for (name, file) in &*names {
            if random.random_bool(0.5) {
                surviving.retain(|_, other| other != file);
                surviving.insert(name.clone(), *file);
            }
        }
        *names = surviving.clone();
        *synced_names = surviving;
        state.is_off = false;
        state.faults = Faults::default();
    }
}

impl File {
    fn write(&mut self, bytes: &[u8], from: usize) {
        let end = from + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[from..end].copy_from_slice(bytes);
        self.dirty.extend(from / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
    }

    fn sync(&mut self) {
        self.synced.resize(self.now.len(), 0);
        for page in std::mem::take(&mut self.dirty) {
            self.keep(page);
        }
    }

    /// Puts a page on disk.
    fn keep(&mut self, page: usize) {
        let from = (page * PAGE_BYTES).min(self.now.len());
        let end = (from + PAGE_BYTES).min(self.now.len());
        if self.synced.len() < end {
            self.synced.resize(end, 0);
        }
        self.synced[from..end].copy_from_slice(&self.now[from..end]);
    }

    /// Keeps each page that no sync wrote, or loses it.
    fn survive(&mut self, random: &mut StdRng) {
        for page in std::mem::take(&mut self.dirty) {
            if random.random_bool(0.5) {
                self.keep(page);
            }
        }
        self.now = self.synced.clone();
    }
}

impl State {
    /// Counts an operation; an error if the power is off, and true if it is cut in the middle of this one.
    fn operate(&mut self) -> io::Result<bool> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        self.is_off = self.faults.cut_at == Some(self.operations);
        Ok(self.is_off)
    }

    fn full(&self, more: usize) -> bool {
        let used: usize =
            self.names.values().filter_map(|file| self.files.get(file)).map(|file| file.now.len()).sum();
        self.faults.capacity.is_some_and(|capacity| used + more > capacity)
    }
}

struct Handle(Disk, u64);

fn off<T>() -> io::Result<T> {
    Err(io::Error::other("the power was cut"))
}

impl Storage for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let mut state = self.lock();
        let is_cut = state.operate()?;
        let number = state.files.len() as u64;
        state.files.insert(number, File::default());
        state.names.insert(name.to_owned(), number);
        if is_cut { off() } else { Ok(Arc::new(Handle(self.clone(), number))) }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let number = self.lock().names.get(name).copied();
        let number = number.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))?;
        Ok(Arc::new(Handle(self.clone(), number)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        let is_cut = state.operate()?;
        let number = state.names.remove(from).ok_or_else(|| io::Error::other("no such file"))?;
        state.names.insert(to.to_owned(), number);
        if is_cut { off() } else { Ok(()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        let is_cut = state.operate()?;
        state.names.remove(name).ok_or_else(|| io::Error::other("no such file"))?;
        if is_cut { off() } else { Ok(()) }
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.operate()? {
            return off();
        }
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        format!("disk/{name}")
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl Blob for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().files[&self.1].now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.0.lock();
        let bytes = &state.files[&self.1].now;
        let from = usize::try_from(offset).unwrap().min(bytes.len());
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let is_cut = state.operate()?;
        let from = usize::try_from(offset).unwrap();
        let end = from + bytes.len();
        let more = end.saturating_sub(state.files[&self.1].now.len());
        // Half of a write arrives before the disk turns out to be full, as on real ones.
        let is_full = (more > 0 && state.full(more)) || state.faults.full_at == Some(state.operations);
        let end = if is_full { from + bytes.len() / 2 } else { end };
        state.files.get_mut(&self.1).unwrap().write(&bytes[..end - from], from);
        match (is_cut, is_full) {
            (true, _) => off(),
            (_, true) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => Ok(()),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let is_cut = state.operate()?;
        state.files.get_mut(&self.1).unwrap().now.resize(usize::try_from(length).unwrap(), 0);
        if is_cut { off() } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.operate()? {
            return off();
        }
        state.syncs += 1;
        let fails = state.faults.fail_sync == Some(state.syncs);
        let file = state.files.get_mut(&self.1).unwrap();
        if fails {
            file.dirty.clear();
            return Err(io::Error::other("the disk lost a write"));
        }
        file.sync();
        Ok(())
    }
}
