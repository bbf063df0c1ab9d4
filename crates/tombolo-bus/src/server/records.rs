//! A block of records: how an append or a batch crosses the wire, as one run of bytes.
//!
//! The layout is written down in `bus.proto`. Invariant: a block is exactly as long as its records count
//! ([`Record::size`]), and unpacking copies no event: each record is a slice of the block.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tombolo_event::EventId;
use uuid::Uuid;

use crate::record::RECORD_OVERHEAD_BYTES as HEAD_BYTES;
use crate::{Error, Kind, Record, Result};

/// What a block is thought to hold per record, to reserve room once.
const RECORD_BYTES_TYPICAL: usize = 256;

/// The block of `records`.
pub(super) fn pack(records: &[Record]) -> Bytes {
    let mut block = BytesMut::with_capacity(records.iter().map(Record::size).sum());
    for record in records {
        block.put_u64_le(record.sequence);
        block.put_slice(record.id.0.as_bytes());
        block.put_u32_le(record.event_type.len() as u32);
        block.put_u32_le(record.bytes.len() as u32);
        block.put_slice(&record.event_type);
        block.put_slice(&record.bytes);
    }
    block.freeze()
}

/// The records of `block`.
///
/// # Errors
/// `Configuration` if it is not a block.
pub(super) fn unpack(block: Bytes) -> Result<Vec<Record>> {
    let mut records = Vec::with_capacity(block.len() / RECORD_BYTES_TYPICAL + 1);
    let mut at = 0;
    while at < block.len() {
        let left = block.len() - at;
        let mut head = block.get(at..at + HEAD_BYTES).ok_or_else(|| broken(HEAD_BYTES, left))?;
        let sequence = head.get_u64_le();
        let mut id = [0; 16];
        head.copy_to_slice(&mut id);
        let (type_bytes, event_bytes) = (head.get_u32_le() as usize, head.get_u32_le() as usize);
        let record_bytes = HEAD_BYTES.saturating_add(type_bytes).saturating_add(event_bytes);
        if left < record_bytes {
            return Err(broken(record_bytes, left));
        }
        // Slices are the whole cost of unpacking, one counted reference each; the head needs none.
        let (type_at, end) = (at + HEAD_BYTES, at + record_bytes);
        records.push(Record {
            sequence,
            id: EventId(Uuid::from_bytes(id)),
            event_type: block.slice(type_at..type_at + type_bytes),
            bytes: block.slice(type_at + type_bytes..end),
        });
        at = end;
    }
    Ok(records)
}

fn broken(expected: usize, found: usize) -> Error {
    let message = format!(
        "a block of records ends too early: expected {expected} bytes more, found {found}; is the other side the same version?"
    );
    Error::new(Kind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(sequence: u64, event_type: &str, bytes: &[u8]) -> Record {
        Record {
            sequence,
            id: EventId(Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10)),
            event_type: Bytes::copy_from_slice(event_type.as_bytes()),
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let block = pack(&[record(0x0203, "a.v1", b"xyz"), record(0x0204, "", b"")]);
        let golden: &[u8] = &[
            3, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 4, 0, 0, 0, 3, 0,
            0, 0, b'a', b'.', b'v', b'1', b'x', b'y', b'z', //
            4, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0, 0, 0, 0, 0,
            0, 0,
        ];
        assert_eq!(block, golden);
    }

    #[test]
    fn a_block_cut_anywhere_but_between_records_is_refused() {
        let records = [record(1, "a.v1", b"xyz"), record(2, "b.v1", b"0123456789")];
        let block = pack(&records);
        for end in 0..=block.len() {
            let whole = [0, records[0].size(), block.len()].contains(&end);
            assert_eq!(unpack(block.slice(..end)).is_ok(), whole, "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn records_survive_the_block(
            items in proptest::collection::vec((any::<u64>(), "[a-z.]{0,20}", any::<Vec<u8>>()), 0..20)
        ) {
            let records: Vec<Record> = items.iter().map(|(n, t, b)| record(*n, t, b)).collect();
            let block = pack(&records);
            prop_assert_eq!(block.len(), records.iter().map(Record::size).sum::<usize>());
            prop_assert_eq!(unpack(block).unwrap(), records);
        }

        #[test]
        fn any_bytes_are_records_or_refused(bytes in any::<Vec<u8>>()) {
            if let Ok(records) = unpack(bytes.clone().into()) {
                prop_assert_eq!(pack(&records), bytes);
            }
        }
    }
}
