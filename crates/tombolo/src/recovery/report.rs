//! What an operator is told before deciding, and what is decided: `GET` and `POST /tombolo/recovery`.
//!
//! Invariant: looking writes nothing, and a decision names the halt that was looked at, so that nobody decides about
//! something else than what was shown.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tombolo_bus::{Tail, Topic};
use tombolo_db::port::recovery::{Decision, Standing};
use tombolo_event::EventId;
use uuid::Uuid;

use super::{Finding, Look, Recovery, What, finding, finding_of};
use crate::Result;

/// How many earlier halts are shown.
const PAST_MAX: usize = 20;

/// How a service's database and the bus stand to each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// The service.
    pub service: String,
    /// Why nobody leads; none if somebody may.
    pub halt: Option<HaltReport>,
    /// What is found now: none if both sides agree, so that a halt can end without a change.
    pub now: Option<Finding>,
    /// What taking the bus's word would do, in each partition where it would do something.
    pub partitions: Vec<InPartition>,
    /// Earlier halts, the latest first.
    pub past: Vec<PastHalt>,
}

/// Why nobody leads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HaltReport {
    /// Its identity, which a decision names.
    pub id: Uuid,
    /// When it was found.
    pub found_at: Timestamp,
    /// What was found, in words.
    pub found: String,
}

/// What taking the bus's word would do in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPartition {
    /// The partition.
    pub partition: u32,
    /// The last sequence on the bus: what is published next comes after it.
    pub tail: u64,
    /// Events on the bus that the database does not know: its state is that of before them. `None` if nobody can tell, because
    /// the event that it published last is not there.
    pub unknown: Option<u64>,
    /// Events that the database published and the bus does not have: nobody can read them any more. `None` if nobody can
    /// tell how many.
    pub lost: Option<u64>,
    /// Events that wait in the outbox and are on the bus already: they are dropped.
    pub dropped: u64,
    /// Events that wait in the outbox and are not: they are published.
    pub kept: u64,
}

/// A halt that is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PastHalt {
    /// What it was.
    #[serde(flatten)]
    pub halt: HaltReport,
    /// What was decided.
    pub choice: String,
    /// Who decided.
    pub by: String,
    /// What came of it.
    pub outcome: Option<String>,
}

/// An operator's word.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decide {
    /// The halt that was looked at.
    pub halt: Uuid,
    /// What is to be done.
    pub choice: Choice,
    /// Who decides: `user@host`.
    pub by: String,
}

/// What can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// What is on the bus counts: the database goes on behind it.
    TakeBus,
    /// Both sides agree again: go on without a change.
    Resume,
}

impl Choice {
    /// Its word, as it is written down.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TakeBus => "take-bus",
            Self::Resume => "resume",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decided {
    /// In words.
    pub done: String,
}

impl Recovery {
    /// Looks at both sides, and at what would follow. Changes nothing.
    pub(crate) async fn report(&self) -> Result<RecoveryReport> {
        let Look { standing, topic, tails, finding: now } = self.look().await?;
        let partitions = match &now {
            Some(finding) => self.preview(finding, &standing, &topic, &tails).await?,
            None => Vec::new(),
        };
        let halt = standing.halt.as_ref().map(|halt| HaltReport {
            id: halt.id,
            found_at: halt.found_at,
            found: finding_of(halt),
        });
        let service = self.publisher.service.to_string();
        Ok(RecoveryReport { service, halt, now, partitions, past: self.past().await? })
    }

    /// Carries an operator's decision out.
    ///
    /// # Errors
    /// `Undecided` if nothing was changed, because things are not as they were shown.
    pub(crate) async fn decide(&self, decide: Decide) -> Result<Decided> {
        let Decide { halt, choice, by } = decide;
        let decision = Decision { halt, by, choice: choice.word().to_owned() };
        let done = match choice {
            Choice::TakeBus => self.take_bus(&decision).await?.to_string(),
            Choice::Resume => {
                self.resume(&decision).await?;
                "both sides agree; the relay goes on".to_owned()
            }
        };
        Ok(Decided { done })
    }

    async fn preview(
        &self,
        finding: &Finding,
        standing: &Standing,
        topic: &Topic,
        tails: &[Tail],
    ) -> Result<Vec<InPartition>> {
        let waiting = self.outbox.waiting().await?;
        let mut partitions = Vec::new();
        for tail in tails {
            let counted = finding::counted(standing, tail.partition);
            let on_bus = self.on_bus(standing, topic, tail).await?;
            let there: BTreeSet<EventId> = on_bus.ids.iter().copied().collect();
            let here: Vec<_> = waiting.iter().filter(|(partition, _)| *partition == tail.partition).collect();
            let dropped = here.iter().filter(|(_, id)| there.contains(id)).count() as u64;
            let missing = counted.removed.sequence.saturating_sub(tail.sequence);
            let is_same_topic = finding.what != What::OtherTopic;
            let seen = InPartition {
                partition: tail.partition,
                tail: tail.sequence,
                unknown: on_bus.is_proven.then(|| on_bus.ids.len() as u64 - dropped),
                lost: (on_bus.is_proven || is_same_topic && missing > 0).then_some(missing),
                dropped,
                kept: here.len() as u64 - dropped,
            };
            let nothing = InPartition { unknown: Some(0), lost: Some(0), dropped: 0, kept: 0, ..seen };
            partitions.extend((seen != nothing).then_some(seen));
        }
        Ok(partitions)
    }

    async fn past(&self) -> Result<Vec<PastHalt>> {
        let past = self.outbox.halts(PAST_MAX).await?.into_iter().filter_map(|past| {
            let decision = past.decision?;
            let found = finding_of(&past.halt);
            let halt = HaltReport { id: past.halt.id, found_at: past.halt.found_at, found };
            Some(PastHalt { halt, choice: decision.choice, by: decision.by, outcome: past.outcome })
        });
        Ok(past.collect())
    }
}
