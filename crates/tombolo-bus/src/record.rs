//! What the log holds: records, and the batches in which they are read.

use bytes::Bytes;
use tombolo_event::EventId;

/// One event as the bus keeps it. The bus never looks into `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in its partition, from 1, as its producer counted it.
    pub sequence: u64,
    /// Its identity.
    pub id: EventId,
    /// The durable name of its type, UTF-8; only for reading some types.
    pub event_type: Bytes,
    /// The stored event ([`tombolo_event::Envelope::encode`]).
    pub bytes: Bytes,
}

impl Record {
    /// What the record counts against a bound in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.event_type.len() + self.bytes.len() + RECORD_OVERHEAD_BYTES
    }

    /// The type's name as text; empty if it is not UTF-8.
    #[must_use]
    pub fn type_name(&self) -> &str {
        std::str::from_utf8(&self.event_type).unwrap_or_default()
    }
}

/// What a record counts beside its type and its bytes.
pub const RECORD_OVERHEAD_BYTES: usize = 32;

/// A run of one partition, `first..=last`, of which `records` holds those that were asked for.
///
/// What a reader of some types passes over is covered by the range, so its sequences still prove that nothing
/// is missing: the next batch's `first` is this one's `last + 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The first sequence covered.
    pub first: u64,
    /// The last sequence covered.
    pub last: u64,
    /// The id of the event at `last`, whether it is in `records` or was passed over.
    pub last_id: EventId,
    /// The records, in order.
    pub records: Vec<Record>,
    /// The last sequence that the partition held when this batch was read, for lag.
    pub tail: u64,
}
