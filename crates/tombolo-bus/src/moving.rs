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

use tombolo_event::ServiceName;

use crate::copying::{Copying, cursor};
use crate::{Bus, Read, Result, Tail, Topic};

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
    let epoch = owners(source.epoch);
    let mut copy = Copying::new(from, to, source, epoch);
    if !begin(&copy).await? {
        return verify(&copy, 0).await;
    }
    let mut copied = 0;
    for _ in 0..ROUNDS_MAX {
        let tails = from.tails(name).await?;
        if is_moved(copy.source.epoch) || left(&copy, &tails).await? <= REST_EVENTS {
            break;
        }
        let all = tails.iter().map(|tail| tail.sequence).sum();
        copy.all(&mut |_, events| {
            copied += events;
            told(copied, all);
        })
        .await?;
    }
    let tails = from.raise_epoch(name, copy.source.incarnation, MOVED + copy.epoch).await?;
    let all = tails.iter().map(|tail| tail.sequence).sum();
    copy.all(&mut |_, events| {
        copied += events;
        told(copied, all);
    })
    .await?;
    verify(&copy, copied).await
}

/// The epoch of a topic's last relay, whatever was done to the topic since.
fn owners(epoch: u64) -> u64 {
    epoch % crate::archiving::ARCHIVED
}

/// Makes the topic on the target; false if its owner publishes there already.
async fn begin(copy: &Copying<'_>) -> Result<bool> {
    let Topic { name, incarnation, epoch, .. } = &copy.source;
    let target = copy.make().await?;
    if target.epoch > copy.epoch && is_moved(*epoch) {
        return Ok(false);
    }
    if target.epoch > copy.epoch {
        return Err(copy.differs("is published to already, while the source is not sealed"));
    }
    copy.to.raise_epoch(name, *incarnation, copy.epoch).await?;
    Ok(true)
}

/// How many events the target lacks.
async fn left(copy: &Copying<'_>, tails: &[Tail]) -> Result<u64> {
    let reached = copy.to.tails(&copy.source.name).await?;
    let of =
        |partition| reached.iter().find(|tail| tail.partition == partition).map_or(0, |tail| tail.sequence);
    Ok(tails.iter().map(|tail| tail.sequence.saturating_sub(of(tail.partition))).sum())
}

/// Holds the ends against each other: the target has at least what the sealed source has.
async fn verify(copy: &Copying<'_>, copied: u64) -> Result<Moved> {
    let Topic { name, incarnation, .. } = &copy.source;
    let tails = copy.from.tails(name).await?;
    for tail in &tails {
        let read = Read::to_tail(name, tail.partition, cursor(*incarnation, tail));
        // Opening proves the id at the place; what comes behind it is the owner's, who publishes there by now.
        copy.to.read(read).await.map(drop).map_err(|error| {
            let partition = tail.partition;
            copy.differs(&format!("does not have what the source ends with in partition {partition}"))
                .because(error)
        })?;
    }
    Ok(Moved { events: tails.iter().map(|tail| tail.sequence).sum(), copied })
}

#[cfg(test)]
#[cfg(feature = "embedded")]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::StreamExt;
    use tokio::sync::Notify;
    use tombolo_event::{Cursor, EventId, Generations};

    use super::*;
    use crate::embedded::{Log, Options};
    use crate::{Append, Kind, Record, TopicSpec};

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
