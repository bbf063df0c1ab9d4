//! The newest records of a topic, in memory, for everybody who reads near its end.
//!
//! Invariant: what is held of a partition is contiguous and ends at the partition's end; it is at most
//! [`WINDOW_BYTES_MAX`], or one append.

use std::collections::{HashMap, VecDeque};

use tombolo_event::EventId;

use crate::Record;

/// The most bytes that are held of one topic.
pub(super) const WINDOW_BYTES_MAX: usize = 8 << 20;

/// The newest records.
#[derive(Default)]
pub(super) struct Window {
    partitions: HashMap<u32, VecDeque<Record>>,
    /// The partition and number of records of each append, oldest first.
    appends: VecDeque<(u32, usize)>,
    bytes: usize,
}

impl Window {
    /// Takes an append that counts, and gives up the oldest ones for it.
    pub(super) fn push(&mut self, partition: u32, records: Vec<Record>) {
        self.bytes += records.iter().map(Record::size).sum::<usize>();
        self.appends.push_back((partition, records.len()));
        self.partitions.entry(partition).or_default().extend(records);
        while self.bytes > WINDOW_BYTES_MAX && self.appends.len() > 1 {
            self.give_up_the_oldest();
        }
    }

    fn give_up_the_oldest(&mut self) {
        let Some((partition, count)) = self.appends.pop_front() else { return };
        let Some(held) = self.partitions.get_mut(&partition) else { return };
        self.bytes -= held.drain(..count).map(|record| record.size()).sum::<usize>();
        if held.is_empty() {
            self.partitions.remove(&partition);
        }
    }

    /// The records of a partition after a sequence, up to so many bytes but at least one; none if they are not held.
    pub(super) fn after(&self, partition: u32, sequence: u64, bytes_max: usize) -> Option<Vec<Record>> {
        let held = self.partitions.get(&partition)?;
        let skip = (sequence + 1).checked_sub(held.front()?.sequence)?;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes += record.size();
            first || bytes <= bytes_max
        };
        let found: Vec<Record> =
            held.iter().skip(usize::try_from(skip).ok()?).take_while(fits).cloned().collect();
        (!found.is_empty()).then_some(found)
    }

    /// The id under a sequence, if it is held.
    pub(super) fn id(&self, partition: u32, sequence: u64) -> Option<EventId> {
        let held = self.partitions.get(&partition)?;
        let at = sequence.checked_sub(held.front()?.sequence)?;
        held.get(usize::try_from(at).ok()?).map(|record| record.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(first: u64, count: u64, bytes: usize) -> Vec<Record> {
        let record = |sequence| Record {
            sequence,
            id: EventId::new(),
            event_type: bytes::Bytes::new(),
            bytes: vec![0; bytes].into(),
        };
        (first..first + count).map(record).collect()
    }

    fn sequences(found: Option<Vec<Record>>) -> Option<Vec<u64>> {
        found.map(|found| found.iter().map(|record| record.sequence).collect())
    }

    #[test]
    fn what_is_held_is_contiguous_and_ends_at_the_end() {
        let mut window = Window::default();
        let half = WINDOW_BYTES_MAX / 2;
        window.push(0, records(1, 2, 10));
        window.push(1, records(1, 1, 10));
        window.push(0, records(3, 1, half));
        assert_eq!(sequences(window.after(0, 1, usize::MAX)), Some(vec![2, 3]));
        window.push(0, records(4, 1, half));
        assert_eq!(sequences(window.after(0, 2, usize::MAX)), None);
        assert_eq!(sequences(window.after(0, 3, usize::MAX)), Some(vec![4]));
        assert_eq!((window.after(1, 0, 1), window.id(0, 3)), (None, None));
        assert!(window.id(0, 4).is_some() && window.after(0, 4, 1).is_none());
    }

    #[test]
    fn a_batch_is_bounded_but_never_empty() {
        let mut window = Window::default();
        window.push(0, records(1, 9, 100));
        assert_eq!(sequences(window.after(0, 0, 1)), Some(vec![1]));
        assert_eq!(sequences(window.after(0, 4, 2 * 132)), Some(vec![5, 6]));
    }
}
