//! Archiving a topic: copying it to a bus that keeps for ever, as it grows; and removing from where it was what the archive has.
//!
//! ```text
//!  bus        ┆ removed ┆ 4 ── 5 ── 6 ── 7 ── 8       appended to by its owner
//!  archive    1 ── 2 ── 3 ── 4 ── 5 ── 6 ── 7         appended to by the archiver, behind the bus
//!                            └ trimmed up to here: an event that was read from the archive, and that the bus proves to have too
//! ```
//!
//! An archive is a bus like any other: PostgreSQL, or the log of a `tombolo bus`. It goes on where it stands, so an archiver may be
//! killed at any moment, or run twice. Its topics have the epoch [`ARCHIVED`], above every relay's, so that nobody publishes there by
//! mistake.
//!
//! Takes events of the bus; appends them to the archive; done when the archive has acknowledged. If we crash before, it goes on from
//! the archive's end; if it repeats, the archive compares the ids.
//!
//! Invariant: nothing is removed that the archive has not acknowledged, and what stays of a partition begins with an event of the archive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use tombolo_event::{Cursor, ServiceName};

use crate::copying::Copying;
use crate::{Bus, Error, Kind, Read, Record, Result, Tail, Topic};

/// The epoch of a topic in an archive.
pub const ARCHIVED: u64 = 1 << 52;
/// How many events of a partition always stay on the bus: more than a relay has on its way, so that a repeat can be recognised.
pub const EVENTS_KEPT_MIN: u64 = 20_000;
/// How often an archiver looks whether a topic was divided anew.
const LOOK_FOR_GENERATIONS_EVERY: Duration = Duration::from_secs(5);

/// Copies one topic to an archive.
pub struct Archiver {
    bus: Arc<dyn Bus>,
    archive: Arc<dyn Bus>,
    topic: ServiceName,
    /// Where the partitions of the bus begin, as far as it was found out.
    begins: Mutex<HashMap<u32, Cursor>>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// A deliberate fault, for the test that asserts that it is caught.
#[cfg(feature = "mutants")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Begins the next generation before the earlier one is copied.
    BeginGenerationsEarly,
    /// Removes what the bus has, whether the archive has it or not.
    TrimWithoutAsking,
}

/// What stays on the bus although the archive has it.
pub struct Keep<'a> {
    /// The last so many events of each partition, at least one; [`EVENTS_KEPT_MIN`] where relays are at work.
    pub events: u64,
    /// Whether an event may go; those behind one that may not stay.
    pub is_old: &'a (dyn Fn(&Record) -> bool + Sync),
}

/// How far an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The events that the archive has.
    pub archived: u64,
    /// Those that it lacks.
    pub behind: u64,
}

impl Archiver {
    /// An archiver of `topic`.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, archive: Arc<dyn Bus>, topic: ServiceName) -> Self {
        let begins = Mutex::default();
        Self {
            bus,
            archive,
            topic,
            begins,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Breaks it on purpose.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn broken(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    /// Copies what the topic has now. `told` hears where the archive stands after each append, and how many events that brought.
    ///
    /// # Errors
    /// `TopicDiffers` if the archive has another topic of this name; `Trimmed` if the bus does not have any more what the archive lacks;
    /// `OtherId`, `BeyondTail` if what the archive has is not what the bus has; whatever either bus answers.
    pub async fn to_present(&self, told: &mut impl FnMut(&Tail, u64)) -> Result<()> {
        loop {
            let before = self.archived().await?;
            let copied = async { self.begin().await?.all(told).await };
            let copied = copied.await;
            if !self.was_overtaken(&copied, &before).await? {
                return copied.map_err(|error| self.explained(error));
            }
        }
    }

    /// Copies the topic as it grows, until it fails.
    ///
    /// # Errors
    /// As [`Archiver::to_present`].
    pub async fn follow(&self, told: &(impl Fn(&Tail, u64) + Sync)) -> Result<()> {
        loop {
            let before = self.archived().await?;
            let ended = self.follow_each_generation(told).await;
            if !self.was_overtaken(&ended, &before).await? {
                return ended.map_err(|error| self.explained(error));
            }
        }
    }

    /// Whether the bus was trimmed behind this one by another archiver of the same archive, which has what is missing by now.
    async fn was_overtaken(&self, ended: &Result<()>, before: &[Tail]) -> Result<bool> {
        let is_trimmed = ended.as_ref().is_err_and(|error| error.kind() == Kind::Trimmed);
        Ok(is_trimmed && self.archived().await? != before)
    }

    /// The ends of the archive; none before it was begun.
    async fn archived(&self) -> Result<Vec<Tail>> {
        match self.archive.tails(&self.topic).await {
            Err(error) if error.kind() == Kind::UnknownTopic => Ok(Vec::new()),
            tails => tails,
        }
    }

    async fn follow_each_generation(&self, told: &(impl Fn(&Tail, u64) + Sync)) -> Result<()> {
        loop {
            let mut copy = self.begin().await?;
            copy.all(&mut |end, events| told(end, events)).await?;
            tokio::select! {
                ended = self.live(&copy, told) => ended?,
                divided = self.is_divided(&copy.source) => divided?,
            }
        }
    }

    /// How far the archive is.
    ///
    /// # Errors
    /// Whatever either bus answers.
    pub async fn standing(&self) -> Result<Standing> {
        let archived = self.archived().await?;
        let of = |partition| archived.iter().find(|tail| tail.partition == partition);
        let behind =
            |tail: &Tail| tail.sequence.saturating_sub(of(tail.partition).map_or(0, |end| end.sequence));
        let behind = self.bus.tails(&self.topic).await?.iter().map(behind).sum();
        Ok(Standing { archived: archived.iter().map(|tail| tail.sequence).sum(), behind })
    }

    /// Takes the topic of the archive for its own, and holds what is final there against the bus.
    async fn begin(&self) -> Result<Copying<'_>> {
        let source = self.bus.topic(&self.topic).await?;
        let copy = Copying::new(&*self.bus, &*self.archive, source, ARCHIVED);
        #[cfg(feature = "mutants")]
        let copy = Copying { mutant: self.mutant, ..copy };
        let target = copy.make().await?;
        if target.epoch != 0 && target.epoch != ARCHIVED {
            return Err(copy.differs("is published to by its owner, or was moved from there"));
        }
        self.archive.raise_epoch(&self.topic, target.incarnation, ARCHIVED).await?;
        let ends = self.bus.tails(&self.topic).await?;
        for sealed in self.archive.tails(&self.topic).await? {
            let is_final = target.generations.is_sealed(sealed.partition);
            if is_final && !ends.contains(&sealed) {
                let (partition, at) = (sealed.partition, sealed.sequence);
                return Err(copy.differs(&format!(
                    "ends partition {partition} at {at}, which is not where the bus does"
                )));
            }
        }
        Ok(copy)
    }

    /// Copies what comes into the present generation.
    async fn live(&self, copy: &Copying<'_>, told: &(impl Fn(&Tail, u64) + Sync)) -> Result<()> {
        let open = |tail: &Tail| !copy.source.generations.is_sealed(tail.partition);
        let tails: Vec<Tail> = self.archive.tails(&self.topic).await?.into_iter().filter(open).collect();
        let partitions = tails.iter().map(|reached| async move {
            copy.partition(reached, true, &mut |end, events| told(end, events)).await
        });
        try_join_all(partitions).await.map(drop)
    }

    /// Returns when the topic has another generation.
    async fn is_divided(&self, source: &Topic) -> Result<()> {
        let mut look = tokio::time::interval(LOOK_FOR_GENERATIONS_EVERY);
        look.tick().await;
        loop {
            look.tick().await;
            if self.bus.topic(&self.topic).await?.generations != source.generations {
                return Ok(());
            }
        }
    }

    fn explained(&self, error: Error) -> Error {
        if error.kind() != Kind::Trimmed {
            return error;
        }
        let message = format!(
            "the archive lacks events of topic {} that the bus does not have any more: copy them from another archive, or begin a new one \
             knowing that they are lost",
            self.topic
        );
        Error::new(Kind::Trimmed, message).because(error)
    }

    /// Whether the engine of the bus can remove anything.
    ///
    /// # Errors
    /// `Configuration` if it cannot; whatever the bus answers.
    pub async fn can_trim(&self) -> Result<()> {
        let incarnation = self.bus.topic(&self.topic).await?.incarnation;
        self.bus.trim(&self.topic, 0, Cursor::start(incarnation)).await
    }

    /// Removes from the bus what the archive has, but for what is to be kept; returns how many events went.
    ///
    /// # Errors
    /// `Configuration` if the engine cannot; `OtherId`, `BeyondTail` if archive and bus differ where the rest would begin.
    pub async fn trim(&self, keep: &Keep<'_>) -> Result<u64> {
        let topic = self.bus.topic(&self.topic).await?;
        let mut removed = 0;
        for tail in self.bus.tails(&self.topic).await? {
            let limit = (tail.sequence + 1).saturating_sub(keep.events.max(1));
            let begins = match limit {
                0 | 1 => None,
                _ => self.begins(&topic, tail.partition).await?,
            };
            let Some(begins) = begins.filter(|begins| begins.sequence < limit) else { continue };
            let Some(first) = self.first_to_stay(tail.partition, begins, limit, keep).await? else {
                continue;
            };
            self.bus.trim(&self.topic, tail.partition, first).await?;
            self.places().insert(tail.partition, first);
            removed += first.sequence - begins.sequence.max(1);
        }
        Ok(removed)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Cursor>> {
        self.begins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a partition begins on the bus; none if its engine does not say.
    async fn begins(&self, topic: &Topic, partition: u32) -> Result<Option<Cursor>> {
        let known = self.places().get(&partition).copied().filter(|at| at.incarnation == topic.incarnation);
        if known.is_some() {
            return Ok(known);
        }
        let start = Cursor::start(topic.incarnation);
        match self.bus.read(Read::to_tail(&self.topic, partition, start)).await {
            Ok(_) => Ok(Some(start)),
            Err(error) if error.kind() == Kind::Trimmed => Ok(error.begins()),
            Err(error) => Err(error),
        }
    }

    /// The event with which the bus may begin, read from the archive: at most the one at `limit`.
    async fn first_to_stay(
        &self,
        partition: u32,
        begins: Cursor,
        limit: u64,
        keep: &Keep<'_>,
    ) -> Result<Option<Cursor>> {
        let mut batches = self.kept_by().read(Read::to_tail(&self.topic, partition, begins)).await?;
        let mut first = None;
        while let Some(batch) = batches.next().await {
            for record in batch?.records {
                if record.sequence > limit {
                    return Ok(first);
                }
                first = Some(Cursor::at(begins.incarnation, record.sequence, record.id));
                if !(keep.is_old)(&record) {
                    return Ok(first);
                }
            }
        }
        Ok(first)
    }

    #[cfg(feature = "mutants")]
    fn kept_by(&self) -> &dyn Bus {
        if self.mutant == Some(Mutant::TrimWithoutAsking) { &*self.bus } else { &*self.archive }
    }

    #[cfg(not(feature = "mutants"))]
    fn kept_by(&self) -> &dyn Bus {
        &*self.archive
    }
}
