//! Shuffling: of the batches that wait for one worker, the seed says which comes next, and where each ends.
//!
//! All reads of one task sit at one table. Each takes what its partition has, cut into pieces; of the pieces that lie
//! on the table the one with the lowest rank is served, and a rank is a function of the seed and the piece. One that
//! lies there alone is held back for a moment, so that something may overtake it.
//!
//! Invariant: a partition's own pieces are served in order and without a hole.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use tokio::task;
use tokio::time::{Instant, Sleep, sleep_until};
use tombolo_bus::{Batch, Record, RecordStream, Result};
use tombolo_event::ServiceName;

use super::dice::{Dice, lock};
use super::weather::{BATCH_ENDS, HELD_MAX};

/// The tables of a world.
pub(super) struct Tables {
    dice: Dice,
    tables: Mutex<BTreeMap<(String, String), Weak<Table>>>,
}

/// What one task reads.
struct Table {
    seats: Mutex<BTreeMap<u64, Seat>>,
}

/// One of its reads, as the others see it.
#[derive(Default)]
struct Seat {
    /// The rank of the piece that it has; none while it has none.
    rank: Option<u64>,
    /// Whether it was asked for one yet.
    was_asked: bool,
    waker: Option<Waker>,
}

/// One read at its table.
struct Seated {
    table: Arc<Table>,
    number: u64,
    of: String,
    topic: ServiceName,
    partition: u32,
    dice: Dice,
    stream: RecordStream,
    pieces: VecDeque<Batch>,
    /// What the stream said when it ended.
    end: Option<Option<Result<Batch>>>,
    /// Until when the first piece is held back.
    held: Pin<Box<Sleep>>,
    /// From when on nobody at the table is waited for any more.
    patience: Instant,
}

impl Tables {
    pub(super) fn new(dice: Dice) -> Self {
        Self { dice, tables: Mutex::default() }
    }

    /// Puts a read at the table of the present task.
    pub(super) fn seat(
        &self,
        of: &str,
        topic: &ServiceName,
        partition: u32,
        stream: RecordStream,
    ) -> RecordStream {
        let task = task::try_id().map_or_else(String::new, |id| id.to_string());
        let mut tables = lock(&self.tables);
        tables.retain(|_, table| table.strong_count() > 0);
        let place = (of.to_owned(), task);
        let table = tables.get(&place).and_then(Weak::upgrade).unwrap_or_else(|| {
            let table = Arc::new(Table { seats: Mutex::default() });
            tables.insert(place, Arc::downgrade(&table));
            table
        });
        let number = table.join();
        Box::pin(Seated {
            table,
            number,
            of: of.to_owned(),
            topic: topic.clone(),
            partition,
            dice: self.dice,
            stream,
            pieces: VecDeque::new(),
            end: None,
            held: Box::pin(sleep_until(Instant::now())),
            patience: Instant::now() + HELD_MAX,
        })
    }
}

/// Who is served next.
#[derive(Debug, PartialEq)]
enum Next {
    Seat(u64),
    /// This one, but it is the only piece on the table.
    Alone(u64),
    /// Nothing lies on the table.
    Nobody,
    /// Not known: somebody has not been asked yet.
    Unknown,
}

impl Table {
    fn join(&self) -> u64 {
        let mut seats = lock(&self.seats);
        let number = seats.keys().last().map_or(0, |last| last + 1);
        seats.insert(number, Seat::default());
        number
    }

    /// Lays the rank of what a seat has on the table, and says who is next.
    fn lay(&self, number: u64, rank: Option<u64>, waker: &Waker) -> Next {
        let mut seats = lock(&self.seats);
        seats.insert(number, Seat { rank, was_asked: true, waker: Some(waker.clone()) });
        if seats.values().any(|seat| !seat.was_asked) {
            return Next::Unknown;
        }
        let mut laid: Vec<(u64, u64)> =
            seats.iter().filter_map(|(number, seat)| Some((seat.rank?, *number))).collect();
        laid.sort_unstable();
        match laid[..] {
            [] => Next::Nobody,
            [(_, only)] if seats.len() > 1 => Next::Alone(only),
            [(_, first), ..] => Next::Seat(first),
        }
    }

    fn wake(&self, number: u64) {
        if let Some(waker) = lock(&self.seats).get(&number).and_then(|seat| seat.waker.clone()) {
            waker.wake();
        }
    }
}

impl Seated {
    /// Takes what the partition has now.
    fn refill(&mut self, context: &mut Context<'_>) {
        if !self.pieces.is_empty() || self.end.is_some() {
            return;
        }
        match self.stream.as_mut().poll_next(context) {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(batch))) => {
                self.pieces = self.cut(batch).into();
                self.hold();
            }
            Poll::Ready(end) => self.end = Some(end),
        }
    }

    /// Half of all pieces are held, should they lie alone.
    fn hold(&mut self) {
        let most = HELD_MAX.as_millis() as u64;
        let first = self.pieces.front().map_or(0, |piece| piece.first);
        let held = (self.roll("held", first) % (2 * most)).saturating_sub(most);
        self.held.as_mut().reset(Instant::now() + Duration::from_millis(held));
    }

    fn rank(&self) -> Option<u64> {
        self.pieces.front().map(|piece| self.roll("rank", piece.first))
    }

    fn roll(&self, what: &str, sequence: u64) -> u64 {
        self.dice.roll(format_args!("{what}/{}/{}/{}/{sequence}", self.of, self.topic, self.partition))
    }

    /// Cuts a batch where the seed says; what is passed over stays with the last piece.
    fn cut(&self, batch: Batch) -> Vec<Batch> {
        let (mut pieces, mut records, mut first) = (Vec::new(), Vec::<Record>::new(), batch.first);
        let last_record = batch.records.last().map_or(0, |record| record.sequence);
        for record in batch.records {
            let (sequence, id) = (record.sequence, record.id);
            records.push(record);
            if sequence < last_record && self.roll("end", sequence).is_multiple_of(BATCH_ENDS) {
                let records = std::mem::take(&mut records);
                pieces.push(Batch { first, last: sequence, last_id: id, records, tail: batch.tail });
                first = sequence + 1;
            }
        }
        pieces.push(Batch { first, records, ..batch });
        pieces
    }
}

impl Stream for Seated {
    type Item = Result<Batch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.refill(context);
        if self.pieces.is_empty()
            && let Some(end) = self.end.take()
        {
            return Poll::Ready(end);
        }
        let rank = self.rank();
        let is_next = match self.table.lay(self.number, rank, context.waker()) {
            Next::Seat(number) if number != self.number => {
                self.table.wake(number);
                false
            }
            Next::Seat(_) => true,
            Next::Alone(number) => number == self.number && self.held.as_mut().poll(context).is_ready(),
            Next::Nobody => false,
            // Whoever is asked last says who is next. Should somebody never be asked, the time does.
            Next::Unknown => {
                let patience = self.patience;
                self.held.as_mut().reset(patience);
                rank.is_some() && self.held.as_mut().poll(context).is_ready()
            }
        };
        if !is_next {
            return Poll::Pending;
        }
        let piece = self.pieces.pop_front();
        self.refill(context);
        self.table.lay(self.number, self.rank(), context.waker());
        Poll::Ready(piece.map(Ok))
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        lock(&self.table.seats).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};
    use tokio_stream::StreamMap;
    use tombolo_event::EventId;

    use super::*;

    /// A partition that holds `count` records, in batches of ten, and then ends.
    fn partition(count: u64) -> RecordStream {
        let record = |sequence| Record {
            sequence,
            id: EventId::new(),
            event_type: Bytes::from_static(b"a.b.v1"),
            bytes: Bytes::new(),
        };
        let batches: Vec<_> = (0..count / 10)
            .map(|batch| {
                let records: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(record).collect();
                let (first, last) = (records[0].sequence, records[9].sequence);
                Ok(Batch { first, last, last_id: records[9].id, records, tail: count })
            })
            .collect();
        Box::pin(stream::iter(batches))
    }

    /// What one reader of three partitions is served: partition, first, last.
    async fn served(seed: u64) -> Vec<(u32, u64, u64)> {
        let tables = Tables::new(Dice { seed });
        let topic = ServiceName::new("orders").unwrap();
        let seats = (0..3).map(|number| (number, tables.seat("history", &topic, number, partition(50))));
        let reader: StreamMap<u32, RecordStream> = seats.collect();
        let served = reader.map(|(partition, batch)| {
            let batch = batch.unwrap();
            assert_eq!(batch.records.first().unwrap().sequence, batch.first);
            assert_eq!(batch.records.last().unwrap().id, batch.last_id);
            (partition, batch.first, batch.last)
        });
        served.collect().await
    }

    #[tokio::test]
    async fn a_partitions_pieces_are_served_in_order_and_without_a_hole() {
        let served = served(5).await;
        for partition in 0..3 {
            let mut next = 1;
            for &(_, first, last) in served.iter().filter(|piece| piece.0 == partition) {
                assert_eq!(first, next, "{served:?}");
                next = last + 1;
            }
            assert_eq!(next, 51);
        }
        assert!(served.len() > 3 * 5, "batches are cut: {served:?}");
    }

    #[tokio::test]
    async fn partitions_are_served_in_an_order_that_the_seed_gives() {
        let first = served(5).await;
        assert_eq!(first, served(5).await);
        assert_ne!(first, served(6).await);
        assert!(!first.is_sorted_by_key(|piece| piece.0), "one after the other is no shuffle: {first:?}");
    }
}
