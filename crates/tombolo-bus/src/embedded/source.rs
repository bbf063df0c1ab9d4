//! Blocks, from the memory of the newest groups or from disk.
//!
//! Invariant: a block that comes from disk has passed its checksum and is the one that was looked for; otherwise the
//! answer is an error that names the file and the place.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use tombolo_event::EventId;

use super::format::{BlockHeader, BlockReader};
use super::index::{Entry, Extent, SegmentIndex};
use super::published::{TopicView, Where, read, write};
use super::recovery;
use super::storage::{Blob, Storage, read_all, read_fully};
use crate::{Error, Kind, Result};

/// The bytes of blocks that one step of a reader takes from disk.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// The bytes of blocks that one step of a reader takes from the page cache, on the caller's own thread.
const CACHED_CHUNK_BYTES: usize = 256 << 10;
/// Two blocks that lie no further apart than this are read as one.
const GAP_BYTES_MAX: u32 = 16 << 10;
/// The segment files that are kept open for readers.
const FILES_OPEN_MAX: usize = 64;
/// The indexes of sealed segments that are kept in memory.
const INDEXES_MAX: usize = 16;

/// The name of a segment's file.
pub(super) fn segment_name(segment: u64) -> String {
    format!("{segment:08}.segment")
}

/// The name of a segment's sidecar.
pub(super) fn sidecar_name(segment: u64) -> String {
    format!("{segment:08}.index")
}

/// Where blocks come from.
pub(super) struct Source {
    pub(super) storage: Arc<dyn Storage>,
    lineage: u64,
    recent: RwLock<Recent>,
    recent_bytes_max: usize,
    files: Mutex<VecDeque<(u64, Arc<dyn Blob>)>>,
    indexes: Mutex<VecDeque<(u64, Arc<SegmentIndex>)>>,
}

/// The buffer that a reader read into last. It is read into again once nobody holds a record of it: fresh memory costs
/// the kernel more than the copy.
#[derive(Default)]
pub(super) struct Spare(Option<Bytes>);

impl Spare {
    fn buffer(&mut self, bytes: usize) -> BytesMut {
        let mut buffer = self.0.take().and_then(|held| held.try_into_mut().ok()).unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer
    }
}

/// Fills a buffer from an offset, or has nothing to fill it with; tells how much it filled.
type Fill<'a> = dyn Fn(&mut [u8], u64) -> io::Result<Option<usize>> + 'a;

/// The newest groups, in the order of the log.
#[derive(Default)]
struct Recent {
    groups: VecDeque<(u64, u64, Bytes)>,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    pub(super) fn new(storage: Arc<dyn Storage>, lineage: u64, recent_bytes_max: usize) -> Self {
        Self {
            storage,
            lineage,
            recent: RwLock::default(),
            recent_bytes_max,
            files: Mutex::default(),
            indexes: Mutex::default(),
        }
    }

    /// Keeps a group in memory, and lets the oldest go.
    pub(super) fn remember(&self, segment: u64, offset: u64, group: Bytes) {
        let mut recent = write(&self.recent);
        recent.bytes += group.len();
        recent.groups.push_back((segment, offset, group));
        while recent.bytes > self.recent_bytes_max {
            let Some((_, _, oldest)) = recent.groups.pop_front() else { break };
            recent.bytes -= oldest.len();
        }
    }

    /// Keeps the index of a segment that has just been sealed.
    pub(super) fn remember_index(&self, index: Arc<SegmentIndex>) {
        let mut indexes = lock(&self.indexes);
        indexes.push_front((index.segment, index));
        indexes.truncate(INDEXES_MAX);
    }

    /// The blocks from the one with `sequence` on, if memory has them.
    pub(super) fn recent_blocks(
        &self,
        topic: &TopicView,
        partition: u32,
        sequence: u64,
    ) -> Option<Vec<BlockReader>> {
        let own = topic.partition(partition)?;
        let Where::Active(segment, entries) = own.find(sequence, CHUNK_BYTES) else { return None };
        let recent = read(&self.recent);
        let blocks = entries.iter().map_while(|entry| recent.block(segment, *entry));
        let readers: Vec<_> = blocks
            .filter_map(|block| Some(BlockReader::new(block.clone(), &BlockHeader::peek(&block)?)))
            .collect();
        (!readers.is_empty()).then_some(readers)
    }

    /// The blocks from the one with `sequence` on, if the process or the page cache has them: never waits for the disk.
    pub(super) fn cached_blocks(
        &self,
        topic: &TopicView,
        partition: u32,
        sequence: u64,
        spare: &mut Spare,
    ) -> Result<Option<Vec<BlockReader>>> {
        if let Some(blocks) = self.recent_blocks(topic, partition, sequence) {
            return Ok(Some(blocks));
        }
        let (segment, entries) =
            match topic.partition(partition).map(|own| own.find(sequence, CACHED_CHUNK_BYTES)) {
                Some(Where::Active(segment, entries)) => (segment, entries),
                Some(Where::Sealed(segment)) => {
                    let Some(index) = self.known_index(segment) else { return Ok(None) };
                    (segment, index.entries((topic.number, partition), sequence, CACHED_CHUNK_BYTES))
                }
                Some(Where::Absent) | None => return Ok(None),
            };
        let Some(file) = self.open_file(segment).filter(|_| !entries.is_empty()) else { return Ok(None) };
        self.load(
            segment,
            &entries,
            (topic.number, partition),
            &|buffer, offset| file.read_cached(buffer, offset),
            spare,
        )
    }

    /// The blocks from the one with `sequence` on, at least one and about [`CHUNK_BYTES`]. Blocks the thread.
    pub(super) fn blocks(
        &self,
        topic: &TopicView,
        partition: u32,
        sequence: u64,
    ) -> Result<Vec<BlockReader>> {
        if let Some(blocks) = self.recent_blocks(topic, partition, sequence) {
            return Ok(blocks);
        }
        let found = topic.partition(partition).map_or(Where::Absent, |own| own.find(sequence, CHUNK_BYTES));
        let (segment, entries) = match found {
            Where::Active(segment, entries) => (segment, entries),
            Where::Sealed(segment) => {
                let index = self.index(segment)?;
                (segment, index.entries((topic.number, partition), sequence, CHUNK_BYTES))
            }
            Where::Absent => (0, Vec::new()),
        };
        if entries.is_empty() {
            let message = format!("{}/{partition} has no event {sequence} where its index says", topic.name);
            return Err(Error::new(Kind::Corrupt, message));
        }
        let file = self.file(segment)?;
        let blocks = self.load(
            segment,
            &entries,
            (topic.number, partition),
            &|buffer, offset| read_fully(&*file, buffer, offset).map(Some),
            &mut Spare::default(),
        )?;
        blocks.ok_or_else(malformed)
    }

    /// The ids of `first..=last`, which are stored. Blocks the thread.
    pub(super) fn ids(
        &self,
        topic: &TopicView,
        partition: u32,
        first: u64,
        last: u64,
    ) -> Result<Vec<EventId>> {
        let mut ids = Vec::new();
        let mut next = first;
        while next <= last {
            for mut block in self.blocks(topic, partition, next)? {
                while let Some(sequence) = block.next_sequence().filter(|sequence| *sequence <= last) {
                    if sequence == next {
                        ids.push(block.peek_id().ok_or_else(malformed)?);
                        next += 1;
                    }
                    block.skip().ok_or_else(malformed)?;
                }
            }
        }
        Ok(ids)
    }

    /// Reads blocks, those that lie near each other at once; none if `fill` has not got them.
    fn load(
        &self,
        segment: u64,
        entries: &[Entry],
        key: (u32, u32),
        fill: &Fill<'_>,
        spare: &mut Spare,
    ) -> Result<Option<Vec<BlockReader>>> {
        let mut blocks = Vec::with_capacity(entries.len());
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let near =
                rest.windows(2).take_while(|pair| pair[1].offset - end(pair[0]) <= GAP_BYTES_MAX).count();
            let (run, after) = rest.split_at(near + 1);
            let mut buffer = spare.buffer((end(run[near]) - first.offset) as usize);
            let read = fill(&mut buffer, u64::from(first.offset));
            match read.map_err(|error| self.unreadable(segment, error))? {
                None => return Ok(None),
                Some(read) if read < buffer.len() => return Err(self.damaged(segment, first.offset)),
                Some(_) => {}
            }
            let buffer = buffer.freeze();
            spare.0 = Some(buffer.clone());
            for entry in run {
                let from = (entry.offset - first.offset) as usize;
                let block = buffer.slice(from..from + entry.length as usize);
                let found = checked(&block, entry, key).ok_or_else(|| self.damaged(segment, entry.offset))?;
                blocks.push(BlockReader::new(block, &found));
            }
            rest = after;
        }
        Ok(Some(blocks))
    }

    fn file(&self, segment: u64) -> Result<Arc<dyn Blob>> {
        if let Some(file) = self.open_file(segment) {
            return Ok(file);
        }
        let mut files = lock(&self.files);
        let file =
            self.storage.open(&segment_name(segment)).map_err(|error| self.unreadable(segment, error))?;
        files.push_front((segment, file.clone()));
        files.truncate(FILES_OPEN_MAX);
        Ok(file)
    }

    fn open_file(&self, segment: u64) -> Option<Arc<dyn Blob>> {
        lock(&self.files).iter().find(|(number, _)| *number == segment).map(|(_, file)| file.clone())
    }

    fn known_index(&self, segment: u64) -> Option<Arc<SegmentIndex>> {
        lock(&self.indexes).iter().find(|(number, _)| *number == segment).map(|(_, index)| index.clone())
    }

    fn index(&self, segment: u64) -> Result<Arc<SegmentIndex>> {
        if let Some(index) = self.known_index(segment) {
            return Ok(index);
        }
        let sidecar = self.storage.open(&sidecar_name(segment)).and_then(|blob| read_all(&*blob)).ok();
        let whole = sidecar.and_then(|bytes| SegmentIndex::decode(&bytes, Extent::Whole));
        let index = match whole.filter(|index| (index.lineage, index.segment) == (self.lineage, segment)) {
            Some(index) => index,
            None => recovery::index_of(&*self.storage, segment)?,
        };
        let index = Arc::new(index);
        self.remember_index(index.clone());
        Ok(index)
    }

    fn damaged(&self, segment: u64, offset: u32) -> Error {
        let path = self.storage.path(&segment_name(segment));
        Error::new(
            Kind::Corrupt,
            format!(
                "{path} is damaged at offset {offset}: the block there fails its checksum; restore the file from a copy"
            ),
        )
    }

    fn unreadable(&self, segment: u64, error: io::Error) -> Error {
        let path = self.storage.path(&segment_name(segment));
        Error::new(Kind::Unavailable, format!("{path} cannot be read: {error}")).because(error)
    }
}

/// A block that passed its checksum and does not consist of its records.
pub(super) fn malformed() -> Error {
    Error::new(
        Kind::Corrupt,
        "a block passes its checksum and does not consist of its records; report this as a bug",
    )
}

/// The header of a block that passes its checksum and is the one that was looked for.
fn checked(block: &[u8], entry: &Entry, key: (u32, u32)) -> Option<BlockHeader> {
    let found = BlockHeader::decode(block)?;
    let is_it = (found.topic, found.partition) == key && found.first == entry.first;
    (is_it && found.length() == block.len()).then_some(found)
}

fn end(entry: Entry) -> u32 {
    entry.offset + entry.length
}

impl Recent {
    fn block(&self, segment: u64, entry: Entry) -> Option<Bytes> {
        let offset = u64::from(entry.offset);
        let after = self.groups.partition_point(|(s, o, _)| (*s, *o) <= (segment, offset));
        let (found, start, group) = self.groups.get(after.checked_sub(1)?)?;
        let from = usize::try_from(offset - if *found == segment { *start } else { return None }).ok()?;
        let to = from + entry.length as usize;
        (to <= group.len()).then(|| group.slice(from..to))
    }
}
