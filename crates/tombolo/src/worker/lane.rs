//! A lane: one partition that the worker holds, where it stands, and how it is.
//!
//! Invariant: batches join without a hole. Each begins where the one before ended, or the lane stops by name.

use std::time::Duration;

use tokio::time::Instant;
use tombolo_bus::{Batch, Record};
use tombolo_db::Claim;
use tombolo_event::{Backoff, Cursor};

use crate::progress::{Progress, Telling};
use crate::status::{PartitionStatus, State};
use crate::{Error, Kind, Result};

/// The pauses between tries of a failing event.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
/// From so many attempts on, a failing event counts as stuck.
const STUCK_ATTEMPTS: u32 = 5;
/// How often a lane that stopped by name looks whether its log is as it should be again.
const STOPPED_RETRY: Duration = Duration::from_secs(30);

/// One partition.
pub(super) struct Lane {
    pub(super) claim: Claim,
    /// Where reading stands: at or before the claim's cursor lies what is committed.
    read_to: u64,
    tail: u64,
    behind: Duration,
    telling: Telling,
    waiting: Option<Waiting>,
}

struct Waiting {
    until: Instant,
    state: State,
    error: String,
}

/// One thing to do in a transaction: handle a record, or only pass over what is not asked for.
pub(super) struct Step {
    pub(super) lane: usize,
    pub(super) record: Option<Record>,
    /// Where the cursor is after it.
    pub(super) to: Cursor,
}

impl Lane {
    pub(super) fn new(claim: Claim, progress: &Progress) -> Self {
        let sequence = claim.cursor.sequence;
        let telling = progress.tell(&claim);
        Self { claim, read_to: sequence, tail: sequence, behind: Duration::ZERO, telling, waiting: None }
    }

    /// Reading begins anew, after the cursor.
    pub(super) fn resume(&mut self) {
        self.read_to = self.claim.cursor.sequence;
        self.waiting = None;
    }

    /// Turns a batch into steps.
    pub(super) fn steps(&mut self, lane: usize, batch: Batch, steps: &mut Vec<Step>) -> Result<()> {
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
            Step { lane, record: Some(record), to }
        }));
        if batch.last > last_record {
            steps.push(Step { lane, record: None, to: Cursor::at(incarnation, batch.last, batch.last_id) });
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
        self.behind = if cursor.sequence < self.tail { age } else { Duration::ZERO };
    }

    /// The event after the cursor failed; it is tried again later, and what is behind it waits.
    pub(super) fn failed(&mut self, attempts: u32, error: String) {
        self.claim.attempts = attempts;
        let state = if attempts >= STUCK_ATTEMPTS { State::Stuck } else { State::Waiting };
        let until = Instant::now() + RETRY.jittered(attempts.saturating_sub(1));
        self.waiting = Some(Waiting { until, state, error });
    }

    /// Going on would step over something that was lost or changed.
    pub(super) fn stop(&mut self, error: String) {
        self.waiting = Some(Waiting { until: Instant::now() + STOPPED_RETRY, state: State::Stopped, error });
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.until)
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
            error: self.waiting.as_ref().map(|waiting| waiting.error.clone()),
            state: self.waiting.as_ref().map_or(behind, |waiting| waiting.state),
        }
    }
}
