//! What moving and archiving share: a topic copied from one bus to another with its incarnation, generations, sequences and ids.
//!
//! ```text
//!  source   generation 1  1 ── 2 ── 3 ┆ sealed      generation 2  1 ── 2 ── …
//!  target   generation 1  1 ── 2 ── 3 ┆             begun when the source has sealed what is before it, and it is copied whole
//! ```
//!
//! Where it goes on is where the target ends, and the source proves that the target's last event is its own; the target compares what
//! it gets with what it has. So whoever copies may be killed at any moment, or be two at once.
//!
//! Invariant: to the target goes only what the source has, in its order.

use futures_util::StreamExt;
use tombolo_event::{Cursor, Generations, Incarnation};

use crate::port::{APPEND_BYTES_MAX, APPEND_RECORDS_MAX};
use crate::{Append, Bus, Error, Kind, Read, Record, Result, Tail, Topic, TopicSpec};

/// The most bytes that are read at once: a large batch is one append, one sync.
const BATCH_BYTES: usize = 1 << 20;

/// A topic on its way from one bus to another.
pub(crate) struct Copying<'a> {
    pub(crate) from: &'a dyn Bus,
    pub(crate) to: &'a dyn Bus,
    /// The topic where it is, as it was looked at last.
    pub(crate) source: Topic,
    /// The epoch under which the target takes appends.
    pub(crate) epoch: u64,
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<crate::archiving::Mutant>,
}

/// The place after a partition's last event.
pub(crate) fn cursor(incarnation: Incarnation, tail: &Tail) -> Cursor {
    tail.id.map_or(Cursor::start(incarnation), |id| Cursor::at(incarnation, tail.sequence, id))
}

impl<'a> Copying<'a> {
    pub(crate) fn new(from: &'a dyn Bus, to: &'a dyn Bus, source: Topic, epoch: u64) -> Self {
        Self {
            from,
            to,
            source,
            epoch,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Makes the topic on the target, with its first generation, or finds it there.
    ///
    /// # Errors
    /// `TopicDiffers` if the target has another topic of this name.
    pub(crate) async fn make(&self) -> Result<Topic> {
        let Topic { name, generations, incarnation, .. } = &self.source;
        let first = generations.each().iter().take(1).copied().collect::<Vec<_>>();
        let first =
            Generations::try_from(first).map_err(|error| Error::new(Kind::Corrupt, error.to_string()))?;
        let spec = TopicSpec { incarnation: Some(*incarnation), ..TopicSpec::new(name.clone(), first) };
        self.to.ensure_topic(&spec).await
    }

    pub(crate) fn differs(&self, found: &str) -> Error {
        let name = &self.source.name;
        let message = format!(
            "topic {name} on the target {found}; expected one that this command made. Look at both with `tombolo topics list`, and copy to a bus, or a namespace, that has no topic {name}"
        );
        Error::new(Kind::TopicDiffers, message)
    }

    /// Copies every partition up to its present end, one generation after the other. `told` hears where the target stands after each
    /// append, and how many events it brought.
    pub(crate) async fn all(&mut self, told: &mut impl FnMut(&Tail, u64)) -> Result<()> {
        // Before any end is asked for: what this says is sealed has its last end by then.
        self.source = self.from.topic(&self.source.name).await?;
        loop {
            let target = self.to.topic(&self.source.name).await?;
            for reached in self.to.tails(&target.name).await? {
                if !target.generations.is_sealed(reached.partition) && !self.begins_early(&target) {
                    self.partition(&reached, false, told).await?;
                }
            }
            let Some(next) = self.source.generations.each().get(target.generations.each().len()) else {
                return Ok(());
            };
            let more = target.generations.and(*next).map_err(|error| self.differs(&error.to_string()))?;
            self.to.divide(&target.name, target.incarnation, self.epoch, &more).await?;
        }
    }

    /// Copies one partition from where the target stands: to its present end, or for as long as the source sends.
    pub(crate) async fn partition(
        &self,
        reached: &Tail,
        follow: bool,
        told: &mut impl FnMut(&Tail, u64),
    ) -> Result<()> {
        let Topic { name, incarnation, .. } = &self.source;
        let after = cursor(*incarnation, reached);
        let read =
            Read { follow, batch_bytes_max: BATCH_BYTES, ..Read::to_tail(name, reached.partition, after) };
        let mut batches = self.from.read(read).await?;
        while let Some(batch) = batches.next().await {
            for records in appends(batch?.records) {
                let events = records.len() as u64;
                let end = self.append(reached.partition, records).await?;
                told(&end, events);
            }
        }
        Ok(())
    }

    #[cfg(feature = "mutants")]
    fn begins_early(&self, target: &Topic) -> bool {
        self.mutant == Some(crate::archiving::Mutant::BeginGenerationsEarly)
            && self.source.generations != target.generations
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "a switch of the test build asks the copy")]
    fn begins_early(&self, _target: &Topic) -> bool {
        false
    }

    async fn append(&self, partition: u32, records: Vec<Record>) -> Result<Tail> {
        let Topic { name, incarnation, .. } = &self.source;
        let last = records.last();
        let (sequence, id) = (last.map_or(0, |last| last.sequence), last.map(|last| last.id));
        let append =
            Append { topic: name.clone(), incarnation: *incarnation, epoch: self.epoch, partition, records };
        self.to.append(append).await?;
        Ok(Tail { partition, sequence, id })
    }
}

/// Records in appends that a bus takes.
fn appends(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut appends: Vec<Vec<Record>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = record.size();
        match appends.last_mut() {
            Some(last) if last.len() < APPEND_RECORDS_MAX && bytes + size <= APPEND_BYTES_MAX => {
                bytes += size;
                last.push(record);
            }
            _ => {
                bytes = size;
                appends.push(vec![record]);
            }
        }
    }
    appends
}
