//! The relay's lanes: one append at a time for each partition, all partitions at once.
//!
//! Invariant: a partition's rows are sent in the order of their sequences, a mark is done only when the bus
//! has acknowledged everything up to it, and rows of a generation that the bus does not have yet wait.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Future, StreamExt};
use tokio::time::Instant;
use tombolo_bus::{Append, Bus, Record, Topic, port};
use tombolo_db::{Mark, OutboxRow};
use tracing::Instrument;

use crate::{Error, Kind, Result};

/// While more is on its way, so many rows are removed in one go.
const REMOVE_ROWS_MIN: usize = 500;
/// How long fewer rows stay once they are acknowledged: what arrives meanwhile is sent before they are removed, and
/// they are removed together.
const REMOVE_AFTER: Duration = Duration::from_millis(20);

type Sent = Pin<Box<dyn Future<Output = Result<Acknowledged>> + Send>>;

struct Acknowledged {
    mark: Mark,
    events: usize,
    took: Duration,
}

/// Rows on their way to the bus.
pub(super) struct Lanes {
    bus: Arc<dyn Bus>,
    topic: Topic,
    epoch: u64,
    waiting: Vec<VecDeque<Record>>,
    busy: Vec<bool>,
    sent: FuturesUnordered<Sent>,
    done: Vec<Mark>,
    done_rows: usize,
    /// When the first of them was acknowledged.
    done_since: Option<Instant>,
    rows: usize,
}

impl Lanes {
    pub(super) fn new(bus: Arc<dyn Bus>, topic: Topic, epoch: u64) -> Self {
        let partitions = topic.partitions() as usize;
        Self {
            bus,
            topic,
            epoch,
            waiting: vec![VecDeque::new(); partitions],
            busy: vec![false; partitions],
            sent: FuturesUnordered::new(),
            done: Vec::new(),
            done_rows: 0,
            done_since: None,
            rows: 0,
        }
    }

    /// Rows that are not acknowledged yet.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether any row is on its way. What waits for a partition that the bus has is.
    pub(super) fn is_sending(&self) -> bool {
        !self.sent.is_empty()
    }

    /// The topic as it is on the bus.
    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The bus has another generation now: its rows are sent.
    pub(super) fn follow(&mut self, topic: Topic) {
        self.topic = topic;
        self.make(self.topic.partitions() as usize);
        (0..self.busy.len()).for_each(|lane| self.start(lane));
    }

    fn make(&mut self, lanes: usize) {
        if lanes > self.busy.len() {
            self.waiting.resize_with(lanes, VecDeque::new);
            self.busy.resize(lanes, false);
        }
    }

    /// What was acknowledged and is not removed yet.
    pub(super) fn done(&self) -> &[Mark] {
        &self.done
    }

    /// When it is worth a write to remove what was acknowledged.
    pub(super) fn removal_at(&self) -> Option<Instant> {
        let since = self.done_since?;
        Some(if self.done_rows >= REMOVE_ROWS_MIN { since } else { since + REMOVE_AFTER })
    }

    /// Whether it is by now.
    pub(super) fn is_removal_due(&self) -> bool {
        self.removal_at().is_some_and(|at| at <= Instant::now())
    }

    /// What was acknowledged, if removing it now is worth a write.
    pub(super) fn take_done_if_worth(&mut self) -> Vec<Mark> {
        if self.is_removal_due() { self.take_done() } else { Vec::new() }
    }

    /// What was acknowledged since the last time, for the outbox to remove.
    pub(super) fn take_done(&mut self) -> Vec<Mark> {
        self.done_rows = 0;
        self.done_since = None;
        std::mem::take(&mut self.done)
    }

    /// Puts rows on their lanes and sends what can go.
    pub(super) fn send(&mut self, rows: Vec<OutboxRow>) {
        self.rows += rows.len();
        for row in rows {
            let record = Record {
                sequence: row.sequence,
                id: row.id,
                event_type: Bytes::from(row.event_type),
                bytes: row.bytes,
            };
            self.make(row.partition as usize + 1);
            self.waiting[row.partition as usize].push_back(record);
        }
        (0..self.busy.len()).for_each(|lane| self.start(lane));
    }

    fn start(&mut self, lane: usize) {
        let is_there = lane < self.topic.partitions() as usize;
        if !is_there || self.busy[lane] || self.waiting[lane].is_empty() {
            return;
        }
        let records = self.next_batch(lane);
        let Some(last) = records.last() else { return };
        let mark = Mark { partition: lane as u32, sequence: last.sequence, id: Some(last.id) };
        let events = records.len();
        let append = Append {
            topic: self.topic.name.clone(),
            incarnation: self.topic.incarnation,
            epoch: self.epoch,
            partition: mark.partition,
            records,
        };
        let bus = Arc::clone(&self.bus);
        self.busy[lane] = true;
        let span = tracing::debug_span!("append", topic = %append.topic, partition = lane, events, last = mark.sequence);
        let sent = async move {
            let began = Instant::now();
            bus.append(append).await?;
            Ok(Acknowledged { mark, events, took: began.elapsed() })
        };
        self.sent.push(Box::pin(sent.instrument(span)));
    }

    fn next_batch(&mut self, lane: usize) -> Vec<Record> {
        let mut bytes = 0;
        let mut count = 0;
        for record in self.waiting[lane].iter().take(port::APPEND_RECORDS_MAX) {
            bytes += record.size();
            if count > 0 && bytes > port::APPEND_BYTES_MAX {
                break;
            }
            count += 1;
        }
        self.waiting[lane].drain(..count).collect()
    }

    /// Waits for the next acknowledgement: how many events, and how long it took.
    pub(super) async fn next(&mut self) -> Result<(usize, Duration)> {
        let Some(acknowledged) = self.sent.next().await else {
            return Err(Error::new(
                Kind::Bus,
                "rows wait for the bus, but none was sent; this is a fault of Tombolo: please report it",
            ));
        };
        let Acknowledged { mark, events, took } = acknowledged?;
        let lane = mark.partition as usize;
        self.rows -= events;
        self.done_rows += events;
        self.busy[lane] = false;
        self.done.retain(|earlier| earlier.partition != mark.partition);
        self.done.push(mark);
        self.done_since.get_or_insert_with(Instant::now);
        self.start(lane);
        Ok((events, took))
    }
}
