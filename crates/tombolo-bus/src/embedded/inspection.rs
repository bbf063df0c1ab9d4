//! Looks at a log without changing it: what it holds, and every place that is damaged.
//!
//! Invariant: nothing is written, and damage in one place does not hide what comes after it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use tombolo_event::{Generations, Incarnation, ServiceName};

use super::format::{BlockHeader, BlockReader, SYSTEM_TOPIC, SegmentHeader, System};
use super::index::{Extent, SegmentIndex};
use super::lock::holder;
use super::options::Cut;
use super::recovery::{numbers, system_records};
use super::scan::{Ending, Found, next_group_after, scan, scan_from};
use super::source::{segment_name, sidecar_name};
use super::storage::{Folder, Storage, read_all};
use crate::{Error, Kind, Result};

/// What a log holds, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// The process that has the log open; while it writes, the end may look like an interrupted write.
    pub in_use_by: Option<String>,
    /// How many segments there are.
    pub segments: u64,
    /// What each topic holds, by name.
    pub topics: Vec<InspectedTopic>,
    /// Every damaged place, in the order of the log. Empty if the log is whole.
    pub damage: Vec<Damage>,
    /// An interrupted write at the end, which the next opening cuts off. No event is lost with it.
    pub cut: Option<Cut>,
    /// Sidecars that are missing or damaged, which the next opening builds again. Harmless.
    pub stale_indexes: Vec<String>,
}

/// What a topic holds.
#[derive(Debug, Clone)]
pub struct InspectedTopic {
    /// Its name.
    pub name: ServiceName,
    /// The identity of this life of it.
    pub incarnation: Incarnation,
    /// The epoch of the relay that may append.
    pub epoch: u64,
    /// How it is divided into partitions, now and before.
    pub generations: Generations,
    /// Its partitions, of every generation, in order.
    pub partitions: Vec<InspectedPartition>,
}

/// What a partition holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InspectedPartition {
    /// How many events can be read.
    pub events: u64,
    /// The last sequence.
    pub last: u64,
}

/// A damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What was found there.
    pub found: String,
}

/// Reads the whole log in the folder `path`.
///
/// # Errors
/// `Configuration` if there is no log, `Unavailable` if it cannot be read. Damage is not an error but a finding.
pub fn verify(path: &Path) -> Result<Inspection> {
    let folder = Folder::read_only(path);
    let mut inspection = inspect(&folder).map_err(|error| {
        let message = format!("the log in {} cannot be read: {error}", path.display());
        Error::new(Kind::Unavailable, message).because(error)
    })?;
    if inspection.segments == 0 {
        let message = format!("{} holds no log; expected a folder with 00000001.segment", path.display());
        return Err(Error::new(Kind::Configuration, message));
    }
    inspection.in_use_by = holder(path);
    Ok(inspection)
}

/// Reads the whole log in `storage`.
pub(super) fn inspect(storage: &dyn Storage) -> io::Result<Inspection> {
    let segments = numbers(&storage.names()?);
    let mut walk =
        Walk { storage, inspection: Inspection::default(), topics: BTreeMap::new(), previous: None };
    for (at, segment) in segments.iter().enumerate() {
        walk.segment(*segment, at as u64 + 1, at + 1 == segments.len())?;
    }
    let mut inspection = walk.inspection;
    inspection.segments = segments.len() as u64;
    inspection.topics = walk.topics.into_values().collect();
    inspection.topics.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(inspection)
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    inspection: Inspection,
    topics: BTreeMap<u32, InspectedTopic>,
    /// Where the segment before ends, and the group that comes next; none if that is not known.
    previous: Option<(u64, u64)>,
}

impl Walk<'_> {
    fn damage(&mut self, segment: u64, offset: usize, found: impl Into<String>) {
        let file = self.storage.path(&segment_name(segment));
        self.inspection.damage.push(Damage { file, offset: offset as u64, found: found.into() });
    }

    fn segment(&mut self, segment: u64, expected: u64, is_last: bool) -> io::Result<()> {
        let bytes = Bytes::from(read_all(&*self.storage.open(&segment_name(segment))?)?);
        if segment != expected && self.previous.is_some() {
            self.damage(segment, 0, "comes after a segment that is missing");
            self.previous = None;
        }
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) => header,
            Err(found) => {
                self.previous = None;
                self.damage(segment, 0, found);
                return Ok(());
            }
        };
        if self.previous.is_some_and(|previous| previous != (header.previous_end, header.first_group)) {
            self.damage(segment, 0, "does not begin where the segment before it ends");
        }
        let end = self.groups(segment, &header, &bytes, is_last);
        self.previous = Some(end);
        if !is_last {
            self.sidecar(segment, end);
        }
        Ok(())
    }

    /// Walks the groups of a segment, going on after damage; returns where they end and the group that comes next.
    fn groups(&mut self, segment: u64, header: &SegmentHeader, bytes: &Bytes, is_last: bool) -> (u64, u64) {
        let mut found = scan(bytes, header);
        loop {
            for block in &found.blocks {
                self.block(segment, bytes, block);
            }
            match &found.ending {
                Ending::Clean => break,
                Ending::Torn(cut) if is_last => {
                    let file = self.storage.path(&segment_name(segment));
                    self.inspection.cut = Some(Cut { file, offset: found.end as u64, bytes: *cut });
                    break;
                }
                Ending::Torn(_) => {
                    self.damage(segment, found.end, "holds a group that fails its checksum");
                    break;
                }
                Ending::Damaged(at, what) => {
                    self.damage(segment, *at, what.clone());
                    let Some((later, number)) = next_group_after(bytes, header, *at) else { break };
                    found = scan_from(bytes, header, later, number);
                }
            }
        }
        (found.end as u64, found.next_group)
    }

    fn block(&mut self, segment: u64, bytes: &Bytes, found: &Found) {
        let (header, at) = (found.header, found.offset);
        let mut reader = BlockReader::new(bytes.slice(at..at + header.length()), &header);
        if header.topic == SYSTEM_TOPIC {
            match system_records(reader) {
                Some(records) => {
                    let wrong = records.into_iter().filter_map(|record| self.system(record).err());
                    for what in wrong.collect::<Vec<_>>() {
                        self.damage(segment, at, what);
                    }
                }
                None => self.damage(segment, at, "holds an unreadable system record"),
            }
            return;
        }
        while reader.next_sequence().is_some() {
            if reader.skip().is_none() {
                return self.damage(segment, at, "holds a block that does not consist of its records");
            }
        }
        if let Some(what) = self.count(&header) {
            self.damage(segment, at, what);
        }
    }

    /// Counts the events of a block; says what is wrong if they do not follow from what went before.
    fn count(&mut self, header: &BlockHeader) -> Option<String> {
        let unknown = || Some(format!("holds events of unknown topic {}", header.topic));
        let Some(topic) = self.topics.get_mut(&header.topic) else { return unknown() };
        let (partition, first) = (header.partition, header.first);
        let Some(own) = topic.partitions.get_mut(partition as usize) else { return unknown() };
        let expected = own.last + 1;
        own.events += u64::from(header.count);
        own.last = header.last();
        let name = &topic.name;
        if topic.generations.is_sealed(partition) {
            return Some(format!("holds sequence {first} of {name}/{partition}, which was sealed before"));
        }
        (first != expected)
            .then(|| format!("goes on with sequence {first} of {name}/{partition}; expected {expected}"))
    }

    fn system(&mut self, record: System) -> std::result::Result<(), String> {
        match record {
            System::TopicCreated { number, name, partitions, incarnation } => {
                let generations = Generations::first(partitions).map_err(|error| error.to_string())?;
                let partitions = vec![InspectedPartition::default(); partitions as usize];
                let topic = InspectedTopic { name, incarnation, epoch: 0, generations, partitions };
                self.topics.insert(number, topic);
            }
            System::TopicDivided { topic, generations } => {
                let topic = self.topics.get_mut(&topic).ok_or("divides an unknown topic")?;
                topic.partitions.resize(generations.partitions() as usize, InspectedPartition::default());
                topic.generations = generations;
            }
            System::EpochRaised { topic, epoch } => {
                if let Some(topic) = self.topics.get_mut(&topic) {
                    topic.epoch = epoch;
                }
            }
            System::Registered(_) => {}
        }
        Ok(())
    }

    fn sidecar(&mut self, segment: u64, end: (u64, u64)) {
        let bytes = self.storage.open(&sidecar_name(segment)).and_then(|blob| read_all(&*blob));
        let index = bytes.ok().and_then(|bytes| SegmentIndex::decode(&bytes, Extent::Whole));
        if index.is_none_or(|index| index.segment != segment || (index.end, index.next_group) != end) {
            self.inspection.stale_indexes.push(self.storage.path(&sidecar_name(segment)));
        }
    }
}
