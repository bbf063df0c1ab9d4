//! Walks the groups of one segment and decides how it ends: cleanly, in a torn write, or in damage.
//!
//! The next group is only written after the one before it is synced. So a group that is not whole and has a
//! group after it was whole once: that is damage. One with nothing after it is a write that a crash interrupted.
//!
//! Invariant: what is not proven whole is never handed on, and a torn tail is never called so while a later group exists.

use super::format::{
    BlockHeader, GROUP_ALIGN_BYTES, GROUP_HEADER_BYTES, GroupHeader, Place, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};

/// A block that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) header: BlockHeader,
    /// Where it lies in the segment.
    pub(super) offset: usize,
}

/// What one segment holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// The blocks of the whole groups, in order.
    pub(super) blocks: Vec<Found>,
    /// Where the whole groups end.
    pub(super) end: usize,
    /// The number of the group that comes next.
    pub(super) next_group: u64,
    /// Where the last whole group begins, if there is one.
    pub(super) last_group: Option<usize>,
    /// Whether the last whole group is empty: nothing before it can be a torn tail.
    pub(super) is_witnessed: bool,
    /// What comes after the whole groups.
    pub(super) ending: Ending,
}

/// What comes after the whole groups of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing but zeros.
    Clean,
    /// An interrupted write, of which this many bytes arrived.
    Torn(u64),
    /// Damage at this offset.
    Damaged(usize, String),
}

/// Walks a segment whose header has been read.
pub(super) fn scan(bytes: &[u8], header: &SegmentHeader) -> Scan {
    scan_from(bytes, header, SEGMENT_HEADER_BYTES, header.first_group)
}

/// Walks a segment from the group `next_group`, which is to lie at `at`.
pub(super) fn scan_from(bytes: &[u8], header: &SegmentHeader, at: usize, next_group: u64) -> Scan {
    let mut scan = Scan {
        blocks: Vec::new(),
        end: at,
        next_group,
        last_group: None,
        is_witnessed: false,
        ending: Ending::Clean,
    };
    loop {
        match group_at(bytes, header, scan.end, scan.next_group) {
            Step::Whole(blocks, length) => {
                scan.is_witnessed = blocks.is_empty();
                scan.blocks.extend(blocks);
                scan.last_group = Some(scan.end);
                scan.end += length;
                scan.next_group += 1;
            }
            Step::Broken => {
                scan.ending = ending(bytes, header, scan.end);
                return scan;
            }
            Step::Damaged(what) => {
                scan.ending = Ending::Damaged(scan.end, what);
                return scan;
            }
        }
    }
}

enum Step {
    Whole(Vec<Found>, usize),
    /// Not whole: torn or damaged, which only what follows can tell.
    Broken,
    /// Whole, but not what belongs here.
    Damaged(String),
}

fn group_at(bytes: &[u8], segment: &SegmentHeader, at: usize, expected: u64) -> Step {
    let place = Place { segment: segment.segment, offset: at as u64 };
    let Some(header) = bytes.get(at..).and_then(|rest| GroupHeader::decode(rest, place)) else {
        return Step::Broken;
    };
    if header.lineage != segment.lineage {
        return Step::Damaged("holds a group of another log".into());
    }
    if header.number != expected {
        return Step::Damaged(format!("holds group {}; expected group {expected}", header.number));
    }
    let from = at + GROUP_HEADER_BYTES;
    let Some(body) = bytes.get(from..from + header.body_bytes as usize) else { return Step::Broken };
    if crc32c::crc32c(body) != header.body_checksum {
        return Step::Broken;
    }
    match blocks_of(body, header.blocks, from) {
        Some(blocks) => Step::Whole(blocks, GROUP_HEADER_BYTES + body.len()),
        None => {
            Step::Damaged("holds a group that passes its checksum and does not consist of its blocks".into())
        }
    }
}

fn blocks_of(body: &[u8], count: u32, from: usize) -> Option<Vec<Found>> {
    let mut at = 0;
    let mut blocks = Vec::new();
    for _ in 0..count {
        let header = BlockHeader::decode(body.get(at..)?)?;
        blocks.push(Found { header, offset: from + at });
        at += header.length();
    }
    let padding = &body[at..];
    (padding.len() < GROUP_ALIGN_BYTES && padding.iter().all(|byte| *byte == 0)).then_some(blocks)
}

/// Decides between a torn write and damage: looks for any group after `end`.
fn ending(bytes: &[u8], segment: &SegmentHeader, end: usize) -> Ending {
    if let Some((later, number)) = next_group_after(bytes, segment, end) {
        let what = format!("fails its checksum, and group {number} follows at offset {later}");
        return Ending::Damaged(end, what);
    }
    let rest = bytes.get(end..).unwrap_or_default();
    match rest.iter().rposition(|byte| *byte != 0) {
        Some(last) => Ending::Torn(last as u64 + 1),
        None => Ending::Clean,
    }
}

/// The first group header after `at`, and its number.
pub(super) fn next_group_after(bytes: &[u8], segment: &SegmentHeader, at: usize) -> Option<(usize, u64)> {
    let mut offset = at + GROUP_ALIGN_BYTES;
    while offset + GROUP_HEADER_BYTES <= bytes.len() {
        let place = Place { segment: segment.segment, offset: offset as u64 };
        match GroupHeader::decode(&bytes[offset..], place) {
            Some(header) if header.lineage == segment.lineage => return Some((offset, header.number)),
            _ => offset += GROUP_ALIGN_BYTES,
        }
    }
    None
}
