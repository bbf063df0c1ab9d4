//! Opens a log: reads what is there, cuts off an interrupted write, refuses damage.
//!
//! - takes: the files of a folder; writes: nothing but the cut, and the last group once more;
//! - if we crash here: it is done again, with the same result;
//! - if it repeats: the same.
//!
//! The last group may be whole in the page cache and yet not on disk: the process was killed before its sync, or the
//! sync failed and the system forgot. So it is written and synced again before anybody reads it.
//!
//! Invariant: what opening makes readable is whole, contiguous and on disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::format::{BlockReader, SEGMENT_HEADER_BYTES, SYSTEM_TOPIC, SegmentHeader, System};
use super::index::{Entry, Extent, HEADER_BYTES, Held, SegmentIndex};
use super::options::{Cut, Options, Recovered};
use super::published::Published;
use super::scan::{Ending, Scan, scan};
use super::source::{malformed, segment_name, sidecar_name};
use super::storage::{Blob, Storage, read_all};
use crate::{Error, Kind, Result};

/// What the file of the segment that comes next is called until it is used.
const NEXT_NAME: &str = "next.segment.new";
const ZEROS_BYTES: usize = 1 << 20;

/// The segment that is written.
pub(super) struct Active {
    pub(super) segment: u64,
    pub(super) blob: Arc<dyn Blob>,
    pub(super) end: u64,
    pub(super) capacity: u64,
    /// Its system records, for the sidecar.
    pub(super) system: Vec<System>,
}

/// An opened log.
pub(super) struct Opened {
    pub(super) published: Published,
    pub(super) active: Active,
    pub(super) lineage: u64,
    pub(super) next_group: u64,
    pub(super) is_witnessed: bool,
    pub(super) recovered: Recovered,
}

/// Opens the log in `storage`, or makes one.
pub(super) fn open(storage: &Arc<dyn Storage>, options: &Options) -> Result<Opened> {
    let mut recovered = Recovered::default();
    let mut headers = headers(&**storage, &mut recovered)?;
    let Some(last) = headers.pop() else {
        let header = SegmentHeader { lineage: new_lineage(), segment: 1, first_group: 1, previous_end: 0 };
        let bytes = options.first_segment_bytes.min(options.segment_bytes);
        let active = make(&**storage, header, bytes).map_err(|error| unusable(&**storage, &error))?;
        let recovered = Recovered { segments: 1, ..recovered };
        return Ok(Opened {
            published: Published::default(),
            active,
            lineage: header.lineage,
            next_group: 1,
            is_witnessed: true,
            recovered,
        });
    };
    let published = Published::default();
    for (at, header) in headers.iter().enumerate() {
        let next = headers.get(at + 1).unwrap_or(&last);
        restore(&published, &sealed_index(&**storage, header, next)?, &**storage)?;
    }
    recovered.segments = last.segment;
    open_last(storage, published, &last, recovered)
}

fn new_lineage() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}

/// The headers of all segments, which must be numbered from 1 without a hole and belong together.
fn headers(storage: &dyn Storage, recovered: &mut Recovered) -> Result<Vec<SegmentHeader>> {
    let numbers = segments(storage).map_err(|error| unusable(storage, &error))?;
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for (at, segment) in numbers.iter().enumerate() {
        let name = segment_name(*segment);
        if *segment != at as u64 + 1 {
            let missing = storage.path(&segment_name(at as u64 + 1));
            return Err(corrupt(format!("{missing} is missing and {name} is there; restore it from a copy")));
        }
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        let read = storage.open(&name).and_then(|blob| blob.read_at(&mut bytes, 0));
        bytes.truncate(read.map_err(|error| unusable(storage, &error))?);
        let is_last = at + 1 == numbers.len();
        if is_last && bytes.len() < SEGMENT_HEADER_BYTES {
            storage.remove(&name).map_err(|error| unusable(storage, &error))?;
            recovered.cut = Some(Cut { file: storage.path(&name), offset: 0, bytes: bytes.len() as u64 });
            break;
        }
        let header = SegmentHeader::decode(&bytes).map_err(|found| damaged(storage, *segment, 0, &found))?;
        let lineage = headers.first().map_or(header.lineage, |first| first.lineage);
        if header.segment != *segment || header.lineage != lineage {
            let found = format!("says that it is segment {} of log {:016x}", header.segment, header.lineage);
            return Err(damaged(storage, *segment, 0, &found));
        }
        headers.push(header);
    }
    Ok(headers)
}

/// The numbers of the segments in a folder, in order. What was prepared and never used is removed.
fn segments(storage: &dyn Storage) -> io::Result<Vec<u64>> {
    let names = storage.names()?;
    if names.iter().any(|name| name == NEXT_NAME) {
        storage.remove(NEXT_NAME)?;
    }
    storage.sync_folder()?;
    Ok(numbers(&names))
}

/// The segments among file names, in order.
pub(super) fn numbers(names: &[String]) -> Vec<u64> {
    let number = |name: &String| name.strip_suffix(".segment")?.parse().ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// What a sealed segment holds: from its sidecar, or else from itself, and then the sidecar is written again.
fn sealed_index(storage: &dyn Storage, header: &SegmentHeader, next: &SegmentHeader) -> Result<SegmentIndex> {
    let matches = |index: &SegmentIndex| {
        (index.lineage, index.segment) == (header.lineage, header.segment)
            && (index.end, index.next_group) == (next.previous_end, next.first_group)
    };
    if let Some(index) = summary(storage, header.segment).filter(matches) {
        return Ok(index);
    }
    let index = index_of(storage, header.segment)?;
    if !matches(&index) {
        let found = format!(
            "ends at group {}; the next segment follows group {}",
            index.next_group, next.first_group
        );
        return Err(damaged(storage, header.segment, index.end, &found));
    }
    write_sidecar(storage, &index);
    Ok(index)
}

fn summary(storage: &dyn Storage, segment: u64) -> Option<SegmentIndex> {
    let blob = storage.open(&sidecar_name(segment)).ok()?;
    let mut bytes = vec![0; HEADER_BYTES];
    blob.read_at(&mut bytes, 0).ok()?;
    let (summary_bytes, _) = SegmentIndex::lengths(&bytes)?;
    let length = usize::try_from(blob.len().ok()?).ok()?.min(HEADER_BYTES + summary_bytes);
    bytes.resize(length.max(HEADER_BYTES), 0);
    blob.read_at(&mut bytes[HEADER_BYTES..], HEADER_BYTES as u64).ok()?;
    SegmentIndex::decode(&bytes, Extent::Summary)
}

/// Writes a sidecar. It is a copy with a checksum, so it is not synced, and a failure only costs time later.
pub(super) fn write_sidecar(storage: &dyn Storage, index: &SegmentIndex) {
    let name = sidecar_name(index.segment);
    if let Err(error) = storage.create(&name).and_then(|blob| blob.write_at(&index.encode(), 0)) {
        let path = storage.path(&name);
        tracing::warn!(%error, path, "the index beside a sealed segment was not written; opening will read the segment instead");
    }
}

/// What a segment holds, found by reading all of it.
pub(super) fn index_of(storage: &dyn Storage, segment: u64) -> Result<SegmentIndex> {
    let blob = storage.open(&segment_name(segment)).map_err(|error| unusable(storage, &error))?;
    let bytes = Bytes::from(read_all(&*blob).map_err(|error| unusable(storage, &error))?);
    let header = SegmentHeader::decode(&bytes).map_err(|found| damaged(storage, segment, 0, &found))?;
    let scan = scan(&bytes, &header);
    match &scan.ending {
        Ending::Clean => index(storage, &header, &bytes, &scan),
        Ending::Damaged(offset, found) => Err(damaged(storage, segment, *offset as u64, found)),
        Ending::Torn(_) => {
            let found = "fails its checksum, and a later segment follows";
            Err(damaged(storage, segment, scan.end as u64, found))
        }
    }
}

fn index(storage: &dyn Storage, header: &SegmentHeader, bytes: &Bytes, scan: &Scan) -> Result<SegmentIndex> {
    let mut system = Vec::new();
    let mut partitions: BTreeMap<(u32, u32), (Held, usize)> = BTreeMap::new();
    for (at, block) in scan.blocks.iter().enumerate() {
        let wrong = |found: &str| damaged(storage, header.segment, block.offset as u64, found);
        if block.header.topic == SYSTEM_TOPIC {
            system.extend(
                system_records(reader(bytes, scan, at))
                    .ok_or_else(|| wrong("holds an unreadable system record"))?,
            );
            continue;
        }
        let entry = Entry {
            first: block.header.first,
            offset: u32::try_from(block.offset).map_err(|_| wrong("lies too far into its segment"))?,
            length: u32::try_from(block.header.length()).map_err(|_| wrong("is too long"))?,
        };
        let key = (block.header.topic, block.header.partition);
        let (held, latest) = partitions.entry(key).or_insert_with(|| (nothing_before(&entry), at));
        hold(held, entry, block.header.last()).map_err(|found| wrong(&found))?;
        *latest = at;
    }
    let with_ids = partitions.into_iter().map(|(key, (mut held, latest))| {
        held.last_id = last_id(reader(bytes, scan, latest)).ok_or_else(malformed)?;
        Ok((key, held))
    });
    Ok(SegmentIndex {
        lineage: header.lineage,
        segment: header.segment,
        end: scan.end as u64,
        next_group: scan.next_group,
        system,
        partitions: with_ids.collect::<Result<_>>()?,
    })
}

/// A partition of which this entry is the first in the segment.
fn nothing_before(entry: &Entry) -> Held {
    let last_id = tombolo_event::EventId(Uuid::nil());
    Held { first: entry.first, last: entry.first.saturating_sub(1), last_id, entries: Vec::new() }
}

/// Adds a block to its partition, which it must continue.
fn hold(held: &mut Held, entry: Entry, last: u64) -> std::result::Result<(), String> {
    if entry.first == 0 {
        return Err("holds sequence 0".into());
    }
    if entry.first != held.last + 1 {
        return Err(format!("begins at sequence {}; expected {}", entry.first, held.last + 1));
    }
    held.last = last;
    held.entries.push(entry);
    Ok(())
}

fn reader(bytes: &Bytes, scan: &Scan, at: usize) -> BlockReader {
    let block = &scan.blocks[at];
    BlockReader::new(bytes.slice(block.offset..block.offset + block.header.length()), &block.header)
}

/// The system records of a block.
pub(super) fn system_records(mut block: BlockReader) -> Option<Vec<System>> {
    let mut records = Vec::new();
    while block.next_sequence().is_some() {
        records.push(serde_json::from_slice(&block.take()?.bytes).ok()?);
    }
    Some(records)
}

fn last_id(mut block: BlockReader) -> Option<tombolo_event::EventId> {
    let mut last = None;
    while block.next_sequence().is_some() {
        last = block.peek_id();
        block.skip()?;
    }
    last
}

/// Makes what a sealed segment holds readable.
fn restore(published: &Published, index: &SegmentIndex, storage: &dyn Storage) -> Result<()> {
    apply_system(published, index, storage)?;
    for ((topic, partition), held) in &index.partitions {
        let view = published.numbered(*topic);
        let follows = view
            .as_ref()
            .and_then(|view| view.partition(*partition))
            .map(|own| own.restore(index.segment, held));
        if follows != Some(true) {
            return Err(does_not_follow(storage, index.segment, (*topic, *partition), held.first));
        }
    }
    Ok(())
}

fn apply_system(published: &Published, index: &SegmentIndex, storage: &dyn Storage) -> Result<()> {
    for system in &index.system {
        published.apply(system.clone()).map_err(|found| damaged(storage, index.segment, 0, &found))?;
    }
    Ok(())
}

fn open_last(
    storage: &Arc<dyn Storage>,
    published: Published,
    header: &SegmentHeader,
    mut recovered: Recovered,
) -> Result<Opened> {
    let storage = &**storage;
    let failed = |error: io::Error| unusable(storage, &error);
    let blob = storage.open(&segment_name(header.segment)).map_err(failed)?;
    let bytes = Bytes::from(read_all(&*blob).map_err(failed)?);
    let scan = scan(&bytes, header);
    recovered.cut = cut(storage, header, &scan)?;
    let index = index(storage, header, &bytes, &scan)?;
    settle(&*blob, &bytes, &scan).map_err(failed)?;
    apply_system(&published, &index, storage)?;
    adopt(&published, header.segment, index.partitions, storage)?;
    recovered.events =
        published.topics().iter().flat_map(|topic| topic.tails()).map(|tail| tail.sequence).sum();
    let active = Active {
        segment: header.segment,
        blob,
        end: scan.end as u64,
        capacity: bytes.len() as u64,
        system: index.system,
    };
    Ok(Opened {
        published,
        active,
        lineage: header.lineage,
        next_group: scan.next_group,
        is_witnessed: scan.is_witnessed || scan.last_group.is_none(),
        recovered,
    })
}

/// What an interrupted write left at the end, if one did.
fn cut(storage: &dyn Storage, header: &SegmentHeader, scan: &Scan) -> Result<Option<Cut>> {
    match &scan.ending {
        Ending::Clean => Ok(None),
        Ending::Torn(bytes) => {
            let file = storage.path(&segment_name(header.segment));
            Ok(Some(Cut { file, offset: scan.end as u64, bytes: *bytes }))
        }
        Ending::Damaged(offset, found) => Err(damaged(storage, header.segment, *offset as u64, found)),
    }
}

/// Gives each partition what the last segment holds of it.
fn adopt(
    published: &Published,
    segment: u64,
    partitions: BTreeMap<(u32, u32), Held>,
    storage: &dyn Storage,
) -> Result<()> {
    for ((topic, partition), held) in partitions {
        let view = published.numbered(topic);
        let first = held.first;
        let own = view.as_ref().and_then(|view| view.partition(partition));
        if own.map(|own| own.adopt(segment, held)) != Some(true) {
            return Err(does_not_follow(storage, segment, (topic, partition), first));
        }
    }
    Ok(())
}

/// Erases an interrupted write, and writes and syncs the last group once more.
fn settle(blob: &dyn Blob, bytes: &Bytes, scan: &Scan) -> io::Result<()> {
    if let Ending::Torn(cut) = scan.ending {
        zero(blob, scan.end as u64, scan.end as u64 + cut, |_| Ok(()))?;
    }
    if let Some(last) = scan.last_group {
        blob.write_at(&bytes[last..scan.end], last as u64)?;
    }
    blob.sync()
}

/// Writes zeros, calling `each` after every part.
fn zero(blob: &dyn Blob, from: u64, to: u64, each: impl Fn(u64) -> io::Result<()>) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(to - from).unwrap_or(ZEROS_BYTES))];
    let mut at = from;
    while at < to {
        let part = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
        blob.write_at(&zeros[..part], at)?;
        at += part as u64;
        each(at)?;
    }
    Ok(())
}

/// Makes the file of the segment that comes next, full of zeros, so that neither room nor metadata is wanting later.
pub(super) fn prepare(storage: &dyn Storage, bytes: u64) -> io::Result<Arc<dyn Blob>> {
    let blob = storage.create(NEXT_NAME)?;
    if storage.is_durable() {
        zero(&*blob, 0, bytes, |at| if at.is_multiple_of(4 << 20) { blob.sync() } else { Ok(()) })?;
        blob.sync()?;
    }
    Ok(blob)
}

/// Forgets what was prepared.
pub(super) fn discard(storage: &dyn Storage) {
    if let Err(error) = storage.remove(NEXT_NAME) {
        tracing::debug!(%error, "nothing prepared to remove");
    }
}

/// Makes a prepared file the segment that is written. Its header is on disk before it has its name.
pub(super) fn activate(
    storage: &dyn Storage,
    blob: Arc<dyn Blob>,
    header: SegmentHeader,
    bytes: u64,
) -> io::Result<Active> {
    blob.write_at(&header.encode(), 0)?;
    blob.sync()?;
    storage.rename(NEXT_NAME, &segment_name(header.segment))?;
    storage.sync_folder()?;
    let end = SEGMENT_HEADER_BYTES as u64;
    Ok(Active { segment: header.segment, blob, end, capacity: bytes, system: Vec::new() })
}

fn make(storage: &dyn Storage, header: SegmentHeader, bytes: u64) -> io::Result<Active> {
    let blob = prepare(storage, bytes)?;
    activate(storage, blob, header, bytes)
}

fn corrupt(message: String) -> Error {
    Error::new(Kind::Corrupt, message)
}

/// Damage at a place.
pub(super) fn damaged(storage: &dyn Storage, segment: u64, offset: u64, found: &str) -> Error {
    let path = storage.path(&segment_name(segment));
    corrupt(format!("{path} is damaged at offset {offset}: it {found}; restore the file from a copy"))
}

fn does_not_follow(storage: &dyn Storage, segment: u64, (topic, partition): (u32, u32), first: u64) -> Error {
    let found = format!(
        "holds sequence {first} of partition {partition} of topic {topic}, which does not follow from the segments before"
    );
    damaged(storage, segment, 0, &found)
}

fn unusable(storage: &dyn Storage, error: &io::Error) -> Error {
    let path = storage.path("");
    Error::new(Kind::Unavailable, format!("the log in {path} cannot be read or written: {error}"))
}
