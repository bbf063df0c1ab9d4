//! The bytes on disk. All numbers are little-endian; golden bytes pin them.
//!
//! ```text
//! 00000001.segment
//! ┌ segment header, 64 ┐┌ group, 40 + body ───────────────────────────┐┌ group ┐┌ zeros …
//! │ magic, lineage,    ││ magic, number, length, checksums            ││       ││
//! │ number, where the  ││ ┌ block, 40 + payload ────┐┌ block ┐        ││       ││
//! │ one before it ends ││ │ topic, partition, epoch,││       │ zeros  ││       ││
//! │                    ││ │ first sequence, records ││       │ to 8   ││       ││
//! └────────────────────┘└ └─────────────────────────┘└───────┘────────┘└───────┘└
//! ```
//!
//! A group is what one sync made durable. Its header's checksum covers the place where it lies, so that a copy of
//! a header inside somebody's event is never taken for one. A block has a checksum of its own, so that it can be read alone.
//!
//! Invariant: bytes that were ever written stay readable; what does not pass its checksum is never interpreted.

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use serde::{Deserialize, Serialize};
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};
use uuid::Uuid;

use crate::{Record, Registration};

pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
pub(super) const GROUP_HEADER_BYTES: usize = 40;
pub(super) const BLOCK_HEADER_BYTES: usize = 40;
pub(super) const RECORD_HEADER_BYTES: usize = 24;
/// Groups begin at multiples of this.
pub(super) const GROUP_ALIGN_BYTES: usize = 8;
/// The topic number of the blocks that hold [`System`] records.
pub(super) const SYSTEM_TOPIC: u32 = 0;

const SEGMENT_MAGIC: &[u8; 8] = b"TOMBOLO\n";
const SEGMENT_VERSION: u32 = 1;
const GROUP_MAGIC: &[u8; 4] = b"TGRP";

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// A length in bytes that is known to fit, because every append is bounded far below.
pub(super) fn length32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("appends and segments are bounded below 4 GiB")
}

/// The first bytes of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Which log it belongs to: chosen at random when the log is made.
    pub(super) lineage: u64,
    /// Its number, from 1.
    pub(super) segment: u64,
    /// The number of its first group.
    pub(super) first_group: u64,
    /// Where the groups of the segment before it end.
    pub(super) previous_end: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        for (at, number) in
            [(16, self.lineage), (24, self.segment), (32, self.first_group), (40, self.previous_end)]
        {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_BYTES) else {
            return Err(format!("is {} bytes; expected at least {SEGMENT_HEADER_BYTES}", bytes.len()));
        };
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err("does not begin as a segment does".into());
        }
        if crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err("has a segment header that fails its checksum".into());
        }
        match u32_at(bytes, 8) {
            SEGMENT_VERSION => {}
            other => {
                return Err(format!(
                    "has format version {other}; this program reads version {SEGMENT_VERSION}"
                ));
            }
        }
        Ok(Self {
            lineage: u64_at(bytes, 16),
            segment: u64_at(bytes, 24),
            first_group: u64_at(bytes, 32),
            previous_end: u64_at(bytes, 40),
        })
    }
}

/// Where a group lies; part of its header's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl Place {
    fn seed(self) -> u32 {
        crc32c_append(crc32c(&self.segment.to_le_bytes()), &self.offset.to_le_bytes())
    }
}

/// The first bytes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub(super) lineage: u64,
    pub(super) number: u64,
    pub(super) blocks: u32,
    pub(super) body_bytes: u32,
    pub(super) body_checksum: u32,
}

impl GroupHeader {
    /// The header at the beginning of `bytes`, which lie at `place`, if its own checksum is right.
    pub(super) fn decode(bytes: &[u8], place: Place) -> Option<Self> {
        let bytes = bytes.get(..GROUP_HEADER_BYTES)?;
        if &bytes[..4] != GROUP_MAGIC || crc32c_append(place.seed(), &bytes[..36]) != u32_at(bytes, 36) {
            return None;
        }
        Some(Self {
            blocks: u32_at(bytes, 4),
            number: u64_at(bytes, 8),
            lineage: u64_at(bytes, 16),
            body_bytes: u32_at(bytes, 24),
            body_checksum: u32_at(bytes, 28),
        })
    }
}

/// A group that is being put together.
#[derive(Debug)]
pub(super) struct Group {
    bytes: Vec<u8>,
    blocks: u32,
}

impl Group {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes + GROUP_HEADER_BYTES + GROUP_ALIGN_BYTES);
        buffer.resize(GROUP_HEADER_BYTES, 0);
        Self { bytes: buffer, blocks: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Adds a block; returns where it begins in the group and its length.
    pub(super) fn push<'a>(
        &mut self,
        (topic, partition, epoch): (u32, u32, u64),
        records: impl ExactSizeIterator<Item = &'a Record>,
        first: u64,
    ) -> (u32, u32) {
        let at = self.bytes.len();
        let count = length32(records.len());
        self.bytes.resize(at + BLOCK_HEADER_BYTES, 0);
        for record in records {
            self.push_record(record);
        }
        let payload_bytes = length32(self.bytes.len() - at - BLOCK_HEADER_BYTES);
        let head = &mut self.bytes[at..];
        head[4..8].copy_from_slice(&topic.to_le_bytes());
        head[8..12].copy_from_slice(&partition.to_le_bytes());
        head[12..20].copy_from_slice(&epoch.to_le_bytes());
        head[20..28].copy_from_slice(&first.to_le_bytes());
        head[28..32].copy_from_slice(&count.to_le_bytes());
        head[32..36].copy_from_slice(&payload_bytes.to_le_bytes());
        let checksum = crc32c(&head[4..]);
        head[..4].copy_from_slice(&checksum.to_le_bytes());
        self.blocks += 1;
        (length32(at), length32(self.bytes.len() - at))
    }

    fn push_record(&mut self, record: &Record) {
        self.bytes.extend_from_slice(record.id.0.as_bytes());
        self.bytes.extend_from_slice(&length32(record.event_type.len()).to_le_bytes());
        self.bytes.extend_from_slice(&length32(record.bytes.len()).to_le_bytes());
        self.bytes.extend_from_slice(&record.event_type);
        self.bytes.extend_from_slice(&record.bytes);
    }

    /// Pads the group, so that its length is known.
    pub(super) fn pad(&mut self) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(GROUP_ALIGN_BYTES), 0);
        self.bytes.len()
    }

    /// Writes the header; the group is whole then. It must have been padded.
    pub(super) fn seal(mut self, place: Place, lineage: u64, number: u64) -> Bytes {
        let body_bytes = length32(self.bytes.len() - GROUP_HEADER_BYTES);
        let body_checksum = crc32c(&self.bytes[GROUP_HEADER_BYTES..]);
        let head = &mut self.bytes[..GROUP_HEADER_BYTES];
        head[..4].copy_from_slice(GROUP_MAGIC);
        head[4..8].copy_from_slice(&self.blocks.to_le_bytes());
        head[8..16].copy_from_slice(&number.to_le_bytes());
        head[16..24].copy_from_slice(&lineage.to_le_bytes());
        head[24..28].copy_from_slice(&body_bytes.to_le_bytes());
        head[28..32].copy_from_slice(&body_checksum.to_le_bytes());
        let checksum = crc32c_append(place.seed(), &head[..36]);
        head[36..40].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.into()
    }
}

/// The first bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) topic: u32,
    pub(super) partition: u32,
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) count: u32,
    payload_bytes: u32,
}

impl BlockHeader {
    /// The header of the block at the beginning of `bytes`, if the whole block is there and passes its checksum.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let header = Self::peek(bytes)?;
        let block = bytes.get(..header.length())?;
        let counts = header.count > 0 && header.first.checked_add(u64::from(header.count)).is_some();
        (crc32c(&block[4..]) == u32_at(block, 0) && counts).then_some(header)
    }

    /// The header of a block that has passed its checksum before.
    pub(super) fn peek(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..BLOCK_HEADER_BYTES)?;
        Some(Self {
            topic: u32_at(head, 4),
            partition: u32_at(head, 8),
            epoch: u64_at(head, 12),
            first: u64_at(head, 20),
            count: u32_at(head, 28),
            payload_bytes: u32_at(head, 32),
        })
    }

    /// The length of the whole block.
    pub(super) fn length(&self) -> usize {
        BLOCK_HEADER_BYTES + self.payload_bytes as usize
    }

    /// The last sequence.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// A place in a block from which records are taken, one after the other.
#[derive(Debug, Clone)]
pub(super) struct BlockReader {
    block: Bytes,
    at: usize,
    next: u64,
    end: u64,
}

impl BlockReader {
    /// Reads a block that has passed its checksum.
    pub(super) fn new(block: Bytes, header: &BlockHeader) -> Self {
        let end = header.first + u64::from(header.count);
        Self { block, at: BLOCK_HEADER_BYTES, next: header.first, end }
    }

    /// The sequence of the next record; none at the end.
    pub(super) fn next_sequence(&self) -> Option<u64> {
        (self.next < self.end).then_some(self.next)
    }

    /// How many records are left.
    pub(super) fn remaining(&self) -> usize {
        usize::try_from(self.end - self.next).unwrap_or(usize::MAX)
    }

    fn lengths(&self) -> Option<(usize, usize)> {
        self.next_sequence()?;
        let head = self.block.get(self.at..self.at + RECORD_HEADER_BYTES)?;
        let (event_type, bytes) = (u32_at(head, 16) as usize, u32_at(head, 20) as usize);
        let end = self.at + RECORD_HEADER_BYTES + event_type + bytes;
        (end <= self.block.len()).then_some((event_type, bytes))
    }

    /// The id of the next record.
    pub(super) fn peek_id(&self) -> Option<EventId> {
        self.lengths()?;
        let mut id = [0; 16];
        id.copy_from_slice(&self.block[self.at..self.at + 16]);
        Some(EventId(Uuid::from_bytes(id)))
    }

    /// The type of the next record.
    pub(super) fn peek_type(&self) -> Option<&[u8]> {
        let (event_type, _) = self.lengths()?;
        let from = self.at + RECORD_HEADER_BYTES;
        Some(&self.block[from..from + event_type])
    }

    /// The bytes that the next record counts as.
    pub(super) fn peek_size(&self) -> Option<usize> {
        let (event_type, bytes) = self.lengths()?;
        Some(event_type + bytes + crate::record::RECORD_OVERHEAD_BYTES)
    }

    /// Passes the next record over.
    pub(super) fn skip(&mut self) -> Option<()> {
        let (event_type, bytes) = self.lengths()?;
        self.at += RECORD_HEADER_BYTES + event_type + bytes;
        self.next += 1;
        Some(())
    }

    /// Takes the next record, as slices of the block.
    pub(super) fn take(&mut self) -> Option<Record> {
        let (event_type, bytes) = self.lengths()?;
        let from = self.at + RECORD_HEADER_BYTES;
        let mut id = [0; 16];
        id.copy_from_slice(&self.block[self.at..self.at + 16]);
        let record = Record {
            sequence: self.next,
            id: EventId(Uuid::from_bytes(id)),
            event_type: self.block.slice(from..from + event_type),
            bytes: self.block.slice(from + event_type..from + event_type + bytes),
        };
        self.at = from + event_type + bytes;
        self.next += 1;
        Some(record)
    }
}

/// What the log says of itself, in the same order and under the same syncs as the events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum System {
    /// A topic was made.
    TopicCreated {
        /// Its number in blocks, from 1.
        number: u32,
        /// Its name.
        name: ServiceName,
        /// The number of partitions of its first generation.
        partitions: u32,
        /// The identity of this life of it.
        incarnation: Incarnation,
    },
    /// The partitions of a topic were sealed, and others begun.
    TopicDivided {
        /// The topic's number.
        topic: u32,
        /// All its generations, of which the last is new.
        generations: Generations,
    },
    /// Older writers of a topic were fenced.
    EpochRaised {
        /// The topic's number.
        topic: u32,
        /// The new epoch.
        epoch: u64,
    },
    /// A replica of a service said what it is.
    Registered(Registration),
}

impl System {
    /// The record that holds it.
    pub(super) fn to_record(&self) -> Record {
        let bytes = serde_json::to_vec(self).expect("names, numbers and text are always JSON");
        Record { sequence: 1, id: EventId(Uuid::nil()), event_type: Bytes::new(), bytes: bytes.into() }
    }
}
