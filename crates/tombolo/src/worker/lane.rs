//! A lane: one partition that the worker holds, where it stands, what is parked of it, and how it is.
//!
//! Invariant: batches join without a hole. Each begins where the one before ended, or the lane stops by name.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;
use tombolo_bus::{Batch, Record, Topic};
use tombolo_db::{Claim, ParkedHead};
use tombolo_event::operator::PartitionOf;
use tombolo_event::{Backoff, Cursor, EventId, KeyHash};

use super::LOOK_AGAIN;
use super::apply::Delivery;
use super::parking::{Failing, Parked};
use super::turn::Wait;
use crate::progress::{Progress, Telling};
use crate::status::{PartitionStatus, State};
use crate::{Error, Kind, Result};

/// The pauses between tries of a lane that is stuck.
const STUCK_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How often a lane that stopped by name looks whether its log is as it should be again.
const STOPPED_RETRY: Duration = Duration::from_secs(30);

/// One partition.
pub(super) struct Lane {
    pub(super) claim: Claim,
    pub(super) parked: Parked,
    /// Where reading stands: at or before the claim's cursor lies what is committed.
    read_to: u64,
    tail: u64,
    behind: Duration,
    telling: Telling,
    halted: Option<Halted>,
    /// Up to here events are tried alone, because the holder before may have died of one of them.
    careful_to: u64,
    /// How often in a row it was stuck at the event after the cursor.
    stuck: u32,
    /// The partitions of earlier generations: what has to be handled before anything here is. None if the topic on the bus
    /// has no such partition.
    earlier: Option<Range<u32>>,
    /// Whether nothing more comes, because its generation is not the present one.
    is_sealed: bool,
    /// Whether all of it was handled just now, so that others may have their turn.
    has_ended: bool,
    /// How often it was looked whether it is its turn.
    looks: u32,
}

/// Why nothing of a lane is handled for now.
struct Halted {
    state: State,
    /// When to look again; none: when it is told.
    until: Option<Instant>,
    why: String,
}

/// One thing to do in a transaction: an event that is handled here, or only something to pass over.
pub(super) struct Step {
    pub(super) lane: usize,
    pub(super) delivery: Option<Delivery>,
    /// Where the cursor is after it.
    pub(super) to: Cursor,
}

impl Lane {
    pub(super) fn new(
        claim: Claim,
        topic: Option<&Topic>,
        heads: &[ParkedHead],
        careful_to: u64,
        progress: &Progress,
    ) -> Self {
        let (sequence, partition) = (claim.cursor.sequence, claim.partition);
        let telling = progress.tell(&claim);
        let mut lane = Self {
            claim,
            parked: Parked::default(),
            read_to: sequence,
            tail: sequence,
            behind: Duration::ZERO,
            telling,
            halted: None,
            careful_to,
            stuck: 0,
            earlier: topic.map(|topic| topic.generations.before(partition)),
            is_sealed: topic.is_some_and(|topic| topic.generations.is_sealed(partition)),
            has_ended: false,
            looks: 0,
        };
        lane.load_parked(heads);
        if let Some(by) = lane.claim.paused_by.clone() {
            lane.pause(&by);
        }
        lane
    }

    /// Reading begins anew, after the cursor.
    pub(super) fn resume(&mut self) {
        self.read_to = self.claim.cursor.sequence;
        self.halted = None;
        self.looks = 0;
    }

    /// Nothing is handled before what is in the partitions of earlier generations.
    pub(super) fn wait_for_turn(&mut self, wait: &Wait) {
        let until = Some(Instant::now() + LOOK_AGAIN.delay(self.looks, 1.0));
        self.looks += 1;
        self.tail = wait.tail.max(self.claim.cursor.sequence);
        let why = wait.to_string();
        self.halted = Some(Halted { state: State::Waiting, until, why });
    }

    /// It may be its turn by now.
    pub(super) fn look_at_once(&mut self) {
        if self.is_waiting()
            && let Some(halted) = &mut self.halted
        {
            halted.until = Some(Instant::now());
            self.looks = 0;
        }
    }

    /// Turns a batch into steps; `deliver` picks the records that are handled here.
    pub(super) fn steps(
        &mut self,
        lane: usize,
        batch: Batch,
        deliver: impl Fn(Record) -> Option<Delivery>,
        steps: &mut Vec<Step>,
    ) -> Result<()> {
        if batch.first != self.read_to + 1 {
            return Err(Error::new(
                Kind::Bus,
                format!(
                    "the bus gave {}/{} from {} on where {} was expected; nothing is passed over: look at the topic with `tombolo topics verify`",
                    self.claim.topic,
                    self.claim.partition,
                    batch.first,
                    self.read_to + 1
                ),
            ));
        }
        let incarnation = self.claim.cursor.incarnation;
        let last_record = batch.records.last().map_or(0, |record| record.sequence);
        steps.extend(batch.records.into_iter().map(|record| {
            let to = Cursor::at(incarnation, record.sequence, record.id);
            Step { lane, delivery: deliver(record), to }
        }));
        if batch.last > last_record {
            steps.push(Step { lane, delivery: None, to: Cursor::at(incarnation, batch.last, batch.last_id) });
        }
        self.read_to = batch.last;
        self.tail = batch.tail.max(batch.last);
        Ok(())
    }

    /// The transaction with everything up to `cursor` has committed: the events at `applied`.
    pub(super) fn moved(&mut self, cursor: Cursor, age: Duration, applied: impl Iterator<Item = Cursor>) {
        self.telling.applied(applied);
        self.claim.cursor = cursor;
        self.claim.attempts = 0;
        self.claim.attempted = None;
        self.stuck = 0;
        self.behind = if cursor.sequence < self.tail { age } else { Duration::ZERO };
        self.has_ended = self.is_sealed && cursor.sequence >= self.tail;
    }

    /// A try of an event after the cursor was recorded.
    pub(super) fn attempted(&mut self, event: EventId, attempts: u32) {
        self.claim.attempts = attempts;
        self.claim.attempted = Some(event);
    }

    /// What is known of an event before it is tried.
    pub(super) fn failing(&self, event: EventId) -> Failing {
        let is_its = self.claim.attempted == Some(event);
        Failing::unknown(if is_its { self.claim.attempts } else { 0 })
    }

    /// Whether the step's event has to be tried alone, with the try recorded before.
    pub(super) fn is_careful(&self, step: &Step) -> bool {
        step.delivery.as_ref().is_some_and(|delivery| {
            let Record { sequence, id, .. } = delivery.record;
            let is_suspect = sequence <= self.careful_to || self.claim.attempted == Some(id);
            is_suspect && !self.parked.contains(delivery.key_hash)
        })
    }

    /// Whether the event after the cursor is tried again although it had its tries, because the lane was stuck at it.
    pub(super) fn was_stuck(&self) -> bool {
        self.stuck > 0
    }

    /// Nothing more may be parked: what is behind waits, and the event is tried again later.
    pub(super) fn stick(&mut self, why: String) {
        let until = Instant::now() + STUCK_RETRY.jittered(self.stuck);
        self.stuck += 1;
        self.halted = Some(Halted { state: State::Stuck, until: Some(until), why });
    }

    /// Going on would step over something that was lost or changed.
    pub(super) fn stop(&mut self, why: String) {
        let until = Some(Instant::now() + STOPPED_RETRY);
        self.halted = Some(Halted { state: State::Stopped, until, why });
    }

    /// An operator wants nothing more to be handled.
    pub(super) fn pause(&mut self, by: &str) {
        self.claim.paused_by = Some(by.to_owned());
        let why = format!("paused by {by}; `tombolo subscriptions resume` goes on");
        self.halted = Some(Halted { state: State::Paused, until: None, why });
    }

    /// What is parked here, and ahead, as the database says.
    pub(super) fn load_parked(&mut self, heads: &[ParkedHead]) {
        let ahead = self.ahead(heads);
        self.parked = Parked::load(self.own(heads), ahead);
    }

    /// What was parked ahead may have left.
    pub(super) fn follow_on(&mut self, heads: &[ParkedHead]) {
        let ahead = self.ahead(heads);
        let own = self.own(heads);
        self.parked.follow_on(own, &ahead);
    }

    /// The heads of this partition.
    fn own<'h>(&self, heads: &'h [ParkedHead]) -> impl Iterator<Item = &'h ParkedHead> + use<'h> {
        let (topic, partition) = (self.claim.topic.clone(), self.claim.partition);
        heads.iter().filter(move |head| head.topic == topic && head.partition == partition)
    }

    /// The keys of which something is parked in earlier generations.
    fn ahead(&self, heads: &[ParkedHead]) -> BTreeSet<KeyHash> {
        let is_ahead = |head: &&ParkedHead| head.topic == self.claim.topic && self.is_earlier(head.partition);
        heads.iter().filter(is_ahead).map(|head| head.key_hash).collect()
    }

    /// The partitions of earlier generations; none if the topic on the bus has no such partition as this one.
    pub(super) fn earlier(&self) -> Option<Range<u32>> {
        self.earlier.clone()
    }

    /// Whether a partition of the topic comes before this one.
    pub(super) fn is_earlier(&self, partition: u32) -> bool {
        self.earlier.as_ref().is_some_and(|earlier| earlier.contains(&partition))
    }

    /// How many keys are parked here of which something may wait in later generations.
    pub(super) fn keys_ahead(&self) -> usize {
        if self.is_sealed { self.parked.keys() } else { 0 }
    }

    /// Whether all of it was handled just now; told once.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    /// The partition's name.
    pub(super) fn of(&self) -> PartitionOf {
        PartitionOf { topic: self.claim.topic.clone(), partition: self.claim.partition }
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.claim.paused_by.is_some()
    }

    /// Whether it is not its turn, as far as is known.
    pub(super) fn is_waiting(&self) -> bool {
        self.halted.as_ref().is_some_and(|halted| halted.state == State::Waiting)
    }

    /// Whether not even what is parked is tried.
    pub(super) fn rests(&self) -> bool {
        self.is_paused() || self.is_waiting() || self.earlier.is_none()
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.halted.as_ref().and_then(|halted| halted.until)
    }

    pub(super) fn lag_seconds(&self) -> f64 {
        self.behind.as_secs_f64()
    }

    pub(super) fn status(&self) -> PartitionStatus {
        let sequence = self.claim.cursor.sequence;
        let behind = if sequence < self.tail { State::Behind } else { State::Live };
        PartitionStatus {
            topic: self.claim.topic.to_string(),
            partition: self.claim.partition,
            sequence,
            tail: self.tail,
            lag_events: self.tail.saturating_sub(sequence),
            held: true,
            attempts: self.claim.attempts,
            error: self.halted.as_ref().map(|halted| halted.why.clone()),
            parked_keys: self.parked.keys() as u64,
            parked_events: self.parked.events(),
            oldest_parked: self.parked.oldest(),
            state: self.halted.as_ref().map_or(behind, |halted| halted.state),
        }
    }
}
