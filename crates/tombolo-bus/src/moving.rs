//! Moving a topic from one bus to another: the same incarnation, sequences and ids, so that subscriptions go on where they were.
//!
//! ```text
//!  source   1 ── 2 ── 3 ── 4 ── 5 ┆ sealed: the epoch is raised so high that no relay appends here again
//!  target   1 ── 2 ── 3 ────────┐ └ 4 and 5 follow, then both have the same ends
//!                               └ while it was copied, the owner went on publishing to the source
//! ```
//!
//! First what there is is copied, round after round, while the owner publishes. Then the source is sealed, which every relay
//! finds as an older epoch, and the rest is copied. What committed meanwhile waits in its outbox for the target.
//!
//! Invariant: nothing is appended to the source after its last tail was taken, and to the target only what the source has. So
//! whenever it breaks off it can be begun again.

use futures_util::StreamExt;
use tombolo_event::{Cursor, Generations, ServiceName};

use crate::port::{APPEND_BYTES_MAX, APPEND_RECORDS_MAX};
use crate::{Append, Bus, Error, Kind, Read, Record, Result, Tail, Topic, TopicSpec};

/// The epoch of a topic that was moved is what it was and this: higher than any relay's, for good.
pub const MOVED: u64 = 1 << 62;

/// So few events are left when the source is sealed that copying them takes a moment.
const REST_EVENTS: u64 = 2_000;
/// Rounds before the source is sealed, however many events are left: an owner that publishes faster than this copies.
const ROUNDS_MAX: usize = 20;

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The events that the topic has.
    pub events: u64,
    /// Those of them that this call copied.
    pub copied: u64,
}

/// Whether a topic was moved to another bus.
#[must_use]
pub fn is_moved(epoch: u64) -> bool {
    epoch >= MOVED
}

/// Moves `name` from one bus to another, and seals it where it was. `told` hears of each batch: events copied, and in all.
///
/// # Errors
/// `TopicDiffers` if the target has another topic of this name, or what it has is not what the source has; whatever either bus
/// answers. Nothing is lost by any of them: begin again.
pub async fn topic(
    from: &dyn Bus,
    to: &dyn Bus,
    name: &ServiceName,
    mut told: impl FnMut(u64, u64),
) -> Result<Moved> {
    let source = from.topic(name).await?;
    let mut copy = Copy { from, to, epoch: source.epoch % MOVED, source, copied: 0 };
    if !copy.begin().await? {
        return copy.verify().await;
    }
    for _ in 0..ROUNDS_MAX {
        let tails = from.tails(name).await?;
        if is_moved(copy.source.epoch) || copy.left(&tails).await? <= REST_EVENTS {
            break;
        }
        copy.up_to(&tails, &mut told).await?;
    }
    let tails = from.raise_epoch(name, copy.source.incarnation, MOVED + copy.epoch).await?;
    copy.up_to(&tails, &mut told).await?;
    copy.verify().await
}

/// One move.
struct Copy<'a> {
    from: &'a dyn Bus,
    to: &'a dyn Bus,
    /// The topic where it is, as it was looked at last.
    source: Topic,
    /// The epoch of the owner's relay; the target takes its next one.
    epoch: u64,
    copied: u64,
}

impl Copy<'_> {
    /// Makes the topic on the target, with its first generation; false if its owner publishes there already.
    async fn begin(&self) -> Result<bool> {
        let Topic { name, generations, incarnation, .. } = &self.source;
        let first = generations.each().iter().take(1).copied().collect::<Vec<_>>();
        let first =
            Generations::try_from(first).map_err(|error| Error::new(Kind::Corrupt, error.to_string()))?;
        let spec = TopicSpec { incarnation: Some(*incarnation), ..TopicSpec::new(name.clone(), first) };
        let target = self.to.ensure_topic(&spec).await?;
        if target.epoch > self.epoch && is_moved(self.source.epoch) {
            return Ok(false);
        }
        if target.epoch > self.epoch {
            return Err(self.differs("is published to already, while the source is not sealed"));
        }
        self.to.raise_epoch(name, *incarnation, self.epoch).await?;
        Ok(true)
    }

    fn differs(&self, found: &str) -> Error {
        let name = &self.source.name;
        let message = format!(
            "topic {name} on the target {found}; expected one that this command made. Look at both with `tombolo topics list`, and copy to a bus, or a namespace, that has no topic {name}"
        );
        Error::new(Kind::TopicDiffers, message)
    }

    /// How many events the target lacks.
    async fn left(&self, tails: &[Tail]) -> Result<u64> {
        let reached = self.to.tails(&self.source.name).await?;
        let of = |partition| {
            reached.iter().find(|tail| tail.partition == partition).map_or(0, |tail| tail.sequence)
        };
        Ok(tails.iter().map(|tail| tail.sequence.saturating_sub(of(tail.partition))).sum())
    }

    /// Copies every partition up to its end, one generation after the other: the next one seals what was copied.
    async fn up_to(&mut self, tails: &[Tail], told: &mut impl FnMut(u64, u64)) -> Result<()> {
        let all = tails.iter().map(|tail| tail.sequence).sum();
        self.source = self.from.topic(&self.source.name).await?;
        loop {
            let target = self.to.topic(&self.source.name).await?;
            for reached in self.to.tails(&target.name).await? {
                if !target.generations.is_sealed(reached.partition) {
                    self.partition(&reached, all, told).await?;
                }
            }
            let Some(next) = self.source.generations.each().get(target.generations.each().len()) else {
                return Ok(());
            };
            let more = target.generations.and(*next).map_err(|error| self.differs(&error.to_string()))?;
            self.to.divide(&target.name, target.incarnation, self.epoch, &more).await?;
        }
    }

    /// Copies one partition, from where the target stands; the source proves that the target's last event is its own.
    async fn partition(&mut self, reached: &Tail, all: u64, told: &mut impl FnMut(u64, u64)) -> Result<()> {
        let read = Read::to_tail(&self.source.name, reached.partition, self.after(reached));
        let mut batches = self.from.read(read).await?;
        while let Some(batch) = batches.next().await {
            for records in appends(batch?.records) {
                self.copied += records.len() as u64;
                self.append(reached.partition, records).await?;
                told(self.copied, all);
            }
        }
        Ok(())
    }

    fn after(&self, tail: &Tail) -> Cursor {
        let incarnation = self.source.incarnation;
        tail.id.map_or(Cursor::start(incarnation), |id| Cursor::at(incarnation, tail.sequence, id))
    }

    async fn append(&self, partition: u32, records: Vec<Record>) -> Result<()> {
        let Topic { name, incarnation, .. } = &self.source;
        let append =
            Append { topic: name.clone(), incarnation: *incarnation, epoch: self.epoch, partition, records };
        self.to.append(append).await.map(drop)
    }

    /// Holds the ends against each other: the target has at least what the sealed source has.
    async fn verify(&self) -> Result<Moved> {
        let tails = self.from.tails(&self.source.name).await?;
        for tail in &tails {
            let read = Read::to_tail(&self.source.name, tail.partition, self.after(tail));
            // Opening proves the id at the place; what comes behind it is the owner's, who publishes there by now.
            self.to.read(read).await.map(drop).map_err(|error| {
                self.differs(&format!(
                    "does not have what the source ends with in partition {}",
                    tail.partition
                ))
                .because(error)
            })?;
        }
        Ok(Moved { events: tails.iter().map(|tail| tail.sequence).sum(), copied: self.copied })
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

#[cfg(test)]
#[cfg(feature = "embedded")]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::sync::Notify;
    use tombolo_event::EventId;

    use super::*;
    use crate::embedded::{Log, Options};

    const EVENTS: u64 = 5_000;

    fn orders() -> ServiceName {
        ServiceName::new("orders").unwrap()
    }

    fn log() -> Arc<Log> {
        Log::in_memory(Options::default()).unwrap()
    }

    async fn publish(
        bus: &Log,
        topic: &Topic,
        epoch: u64,
        partition: u32,
        from: u64,
        count: u64,
    ) -> Result<()> {
        let record = |sequence| Record {
            sequence,
            id: EventId::new(),
            event_type: Bytes::from_static(b"orders.placed.v1"),
            bytes: Bytes::from(vec![b'x'; 100]),
        };
        for first in (from..from + count).step_by(1_000) {
            let records = (first..(first + 1_000).min(from + count)).map(record).collect();
            let (topic, incarnation) = (topic.name.clone(), topic.incarnation);
            bus.append(Append { topic, incarnation, epoch, partition, records }).await?;
        }
        Ok(())
    }

    /// A topic in its second generation, with events in both.
    async fn source() -> (Arc<Log>, Topic) {
        let bus = log();
        let spec = TopicSpec::new(orders(), Generations::first(1).unwrap());
        let topic = bus.ensure_topic(&spec).await.unwrap();
        bus.raise_epoch(&topic.name, topic.incarnation, 3).await.unwrap();
        publish(&bus, &topic, 3, 0, 1, EVENTS).await.unwrap();
        let more = topic.generations.and(2).unwrap();
        let topic = bus.divide(&topic.name, topic.incarnation, 3, &more).await.unwrap();
        publish(&bus, &topic, 3, 2, 1, EVENTS).await.unwrap();
        (bus, topic)
    }

    async fn ids(bus: &Log, partition: u32) -> Vec<(u64, EventId)> {
        let topic = bus.topic(&orders()).await.unwrap();
        let read = Read::to_tail(&orders(), partition, Cursor::start(topic.incarnation));
        let mut batches = bus.read(read).await.unwrap();
        let mut ids = Vec::new();
        while let Some(batch) = batches.next().await {
            ids.extend(batch.unwrap().records.iter().map(|record| (record.sequence, record.id)));
        }
        ids
    }

    #[tokio::test]
    async fn a_moved_topic_has_the_same_incarnation_generations_sequences_and_ids() {
        let ((from, topic), to) = (source().await, log());
        let moved = super::topic(&*from, &*to, &orders(), |_, _| {}).await.unwrap();
        assert_eq!(moved, Moved { events: 2 * EVENTS, copied: 2 * EVENTS });
        assert_eq!(to.topic(&orders()).await.unwrap(), topic);
        for partition in 0..3 {
            assert_eq!(ids(&to, partition).await, ids(&from, partition).await);
        }
        let refused = publish(&from, &topic, 4, 2, EVENTS + 1, 1).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::OlderEpoch, "the source is sealed");
        to.raise_epoch(&orders(), topic.incarnation, 4).await.unwrap();
        publish(&to, &topic, 4, 2, EVENTS + 1, 1).await.unwrap();
        let again = super::topic(&*from, &*to, &orders(), |_, _| {}).await.unwrap();
        assert_eq!(again.copied, 0, "its owner publishes there by now");
    }

    #[tokio::test]
    async fn what_the_owner_publishes_meanwhile_is_there_or_was_refused() {
        let ((from, topic), to) = (source().await, log());
        let owner = async {
            for sequence in EVENTS + 1.. {
                if publish(&from, &topic, 3, 2, sequence, 1).await.is_err() {
                    return sequence - 1;
                }
            }
            unreachable!("it is refused in the end")
        };
        let name = orders();
        let (moved, acknowledged) = tokio::join!(super::topic(&*from, &*to, &name, |_, _| {}), owner);
        assert_eq!(moved.unwrap().events, EVENTS + acknowledged);
        assert_eq!(ids(&to, 2).await, ids(&from, 2).await);
    }

    #[tokio::test]
    async fn a_move_that_broke_off_goes_on_where_it_was() {
        let ((from, _), to) = (source().await, log());
        let far = Notify::new();
        let name = orders();
        tokio::select! {
            biased;
            () = far.notified() => {}
            moved = super::topic(&*from, &*to, &name, |copied, _| if copied > EVENTS { far.notify_one() }) => {
                panic!("it was to break off: {moved:?}")
            }
        }
        let moved = super::topic(&*from, &*to, &orders(), |_, _| {}).await.unwrap();
        assert!(moved.copied < EVENTS && moved.events == 2 * EVENTS, "{moved:?}");
        for partition in 0..3 {
            assert_eq!(ids(&to, partition).await, ids(&from, partition).await);
        }
    }

    #[tokio::test]
    async fn a_topic_of_somebody_else_on_the_target_is_refused_and_nothing_is_sealed() {
        let ((from, topic), to) = (source().await, log());
        to.ensure_topic(&TopicSpec::new(orders(), topic.generations.clone())).await.unwrap();
        let refused = super::topic(&*from, &*to, &orders(), |_, _| {}).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::TopicDiffers);
        assert_eq!(from.topic(&orders()).await.unwrap().epoch, 3);
    }
}
