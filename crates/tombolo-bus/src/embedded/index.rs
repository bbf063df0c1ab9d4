//! Where the blocks of each partition lie, segment by segment, and the sidecar that keeps it beside a sealed segment.
//!
//! In memory there is one entry per block of the segment that is written, and one per (partition, segment) of the
//! sealed ones, whose entries are read back when somebody needs them: memory grows with segments, not events.
//!
//! Invariant: a sidecar is a copy. A missing or damaged one is built again from its segment, and nothing depends on it.

use std::collections::BTreeMap;

use crc32c::{crc32c, crc32c_append};
use tombolo_event::EventId;
use uuid::Uuid;

use super::format::{System, length32, u32_at, u64_at};
use super::published::from;

/// Which partition of which topic, by the topic's number.
pub(super) type PartitionKey = (u32, u32);

/// A block of one partition in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its first sequence.
    pub(super) first: u64,
    /// Where it lies in the segment.
    pub(super) offset: u32,
    /// Its length in bytes.
    pub(super) length: u32,
}

/// What one segment holds of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// The last sequence.
    pub(super) last: u64,
    /// The id of the event there.
    pub(super) last_id: EventId,
    /// The blocks, in order; empty if only the summary was read.
    pub(super) entries: Vec<Entry>,
    /// The first sequence.
    pub(super) first: u64,
}

/// What one sealed segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentIndex {
    /// The log.
    pub(super) lineage: u64,
    /// The segment.
    pub(super) segment: u64,
    /// Where its groups end.
    pub(super) end: u64,
    /// The number of the first group of the segment after it.
    pub(super) next_group: u64,
    /// Its system records, in order.
    pub(super) system: Vec<System>,
    /// Its partitions.
    pub(super) partitions: BTreeMap<PartitionKey, Held>,
}

/// How much of a sidecar is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What opening needs.
    Summary,
    /// Every block too.
    Whole,
}

const MAGIC: &[u8; 8] = b"TOMBOSID";
const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 64;
const SUMMARY_BYTES: usize = 44;
const ENTRY_BYTES: usize = 16;

impl SegmentIndex {
    /// The blocks of a partition from the one that holds `sequence` on, up to `bytes_max`.
    pub(super) fn entries(&self, key: PartitionKey, sequence: u64, bytes_max: usize) -> Vec<Entry> {
        self.partitions.get(&key).map_or(Vec::new(), |held| from(&held.entries, sequence, bytes_max))
    }

    /// The sidecar's bytes: a header, the summary, and the blocks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let summary = self.encode_summary();
        let mut entries = Vec::new();
        for entry in self.partitions.values().flat_map(|held| &held.entries) {
            entries.extend_from_slice(&entry.first.to_le_bytes());
            entries.extend_from_slice(&entry.offset.to_le_bytes());
            entries.extend_from_slice(&entry.length.to_le_bytes());
        }
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        let words = [VERSION, length32(summary.len()), length32(entries.len()), crc32c(&entries)];
        for (at, word) in (8..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (at, number) in (24..).step_by(8).zip([self.lineage, self.segment, self.end, self.next_group]) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c_append(crc32c(&bytes[..60]), &summary);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&summary);
        bytes.extend_from_slice(&entries);
        bytes
    }

    fn encode_summary(&self) -> Vec<u8> {
        let mut bytes = length32(self.system.len()).to_le_bytes().to_vec();
        for record in self.system.iter().map(System::to_record) {
            bytes.extend_from_slice(&length32(record.bytes.len()).to_le_bytes());
            bytes.extend_from_slice(&record.bytes);
        }
        bytes.extend_from_slice(&length32(self.partitions.len()).to_le_bytes());
        for ((topic, partition), held) in &self.partitions {
            bytes.extend_from_slice(&topic.to_le_bytes());
            bytes.extend_from_slice(&partition.to_le_bytes());
            bytes.extend_from_slice(&held.first.to_le_bytes());
            bytes.extend_from_slice(&held.last.to_le_bytes());
            bytes.extend_from_slice(held.last_id.0.as_bytes());
            bytes.extend_from_slice(&length32(held.entries.len()).to_le_bytes());
        }
        bytes
    }

    /// The lengths of the summary and of the entries that a header promises.
    pub(super) fn lengths(header: &[u8]) -> Option<(usize, usize)> {
        let header = header.get(..HEADER_BYTES)?;
        if &header[..8] != MAGIC || u32_at(header, 8) != VERSION {
            return None;
        }
        Some((u32_at(header, 12) as usize, u32_at(header, 16) as usize))
    }

    /// Reads a sidecar's bytes; none if anything is wrong with them.
    pub(super) fn decode(bytes: &[u8], extent: Extent) -> Option<Self> {
        let (summary_bytes, entries_bytes) = Self::lengths(bytes)?;
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        let summary = rest.get(..summary_bytes)?;
        if crc32c_append(crc32c(&header[..60]), summary) != u32_at(header, 60) {
            return None;
        }
        let mut entries = match extent {
            Extent::Summary => None,
            Extent::Whole => Some(rest.get(summary_bytes..summary_bytes + entries_bytes)?),
        };
        if entries.is_some_and(|bytes| crc32c(bytes) != u32_at(header, 20)) {
            return None;
        }
        let mut rest = Take(summary);
        let system = (0..rest.u32()?).map(|_| rest.system()).collect::<Option<_>>()?;
        let partitions = (0..rest.u32()?).map(|_| rest.held(&mut entries)).collect::<Option<_>>()?;
        Some(Self {
            lineage: u64_at(header, 24),
            segment: u64_at(header, 32),
            end: u64_at(header, 40),
            next_group: u64_at(header, 48),
            system,
            partitions,
        })
    }
}

/// Bytes from which values are taken one after the other.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|bytes| u32_at(bytes, 0))
    }

    fn system(&mut self) -> Option<System> {
        let length = self.u32()? as usize;
        serde_json::from_slice(self.bytes(length)?).ok()
    }

    fn held(&mut self, entries: &mut Option<&[u8]>) -> Option<(PartitionKey, Held)> {
        let summary = self.bytes(SUMMARY_BYTES)?;
        let mut id = [0; 16];
        id.copy_from_slice(&summary[24..40]);
        let mut held = Held {
            first: u64_at(summary, 8),
            last: u64_at(summary, 16),
            last_id: EventId(Uuid::from_bytes(id)),
            entries: Vec::new(),
        };
        if let Some(rest) = entries {
            let mut from = Take(rest);
            let own = from.bytes(u32_at(summary, 40) as usize * ENTRY_BYTES)?;
            *rest = from.0;
            held.entries = own.chunks_exact(ENTRY_BYTES).map(entry).collect();
        }
        Some(((u32_at(summary, 0), u32_at(summary, 4)), held))
    }
}

fn entry(bytes: &[u8]) -> Entry {
    Entry { first: u64_at(bytes, 0), offset: u32_at(bytes, 8), length: u32_at(bytes, 12) }
}
