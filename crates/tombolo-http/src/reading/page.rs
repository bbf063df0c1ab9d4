//! Some events, and the place after them.
//!
//! Invariant: a later generation of partitions is read only once those before it are read to their ends, so that of each key the order stays.

use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::time::timeout;
use tombolo_bus::{Batch, Bus, Read, Topic};
use tombolo_event::Cursor;

use super::place::Places;
use super::{Asked, shown};
use crate::limits::READ_BYTES_MAX;
use crate::problem::Problem;

/// The batches of several partitions, each with its partition.
type Batches = SelectAll<std::pin::Pin<Box<dyn Stream<Item = (u32, tombolo_bus::Result<Batch>)> + Send>>>;

/// Of one partition.
pub(super) async fn of_partition(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    mut cursor: Cursor,
    asked: &Asked,
) -> Result<(Vec<Value>, Cursor), Problem> {
    let mut page = Page::new(asked.limit);
    page.read(bus, topic, partition, &mut cursor, asked).await?;
    if page.events.is_empty() && !asked.wait.is_zero() {
        let read = Read { types: asked.types.clone(), ..Read::following(&topic.name, partition, cursor) };
        let mut batches = bus.read(read).await?;
        let waiting = async {
            while page.events.is_empty()
                && let Some(batch) = batches.next().await
            {
                page.take(batch?, &mut cursor)?;
            }
            Ok::<_, Problem>(())
        };
        timeout(asked.wait, waiting).await.unwrap_or(Ok(()))?;
    }
    Ok((page.events, cursor))
}

/// Of all partitions, one generation after the other.
pub(super) async fn of_topic(
    bus: &dyn Bus,
    topic: &Topic,
    mut places: Places,
    asked: &Asked,
) -> Result<(Vec<Value>, Places), Problem> {
    let mut page = Page::new(asked.limit);
    for partition in 0..topic.partitions() {
        if page.is_full() {
            break;
        }
        let mut cursor = places.cursor(bus, topic, partition).await?;
        page.read(bus, topic, partition, &mut cursor, asked).await?;
        places.moved_to(partition, cursor);
    }
    if page.events.is_empty() && !asked.wait.is_zero() {
        let mut batches = following(bus, topic, &places, asked.types.as_ref()).await?;
        let waiting = async {
            while page.events.is_empty()
                && let Some((partition, batch)) = batches.next().await
            {
                let mut cursor =
                    Cursor { sequence: places.sequence(partition), ..Cursor::start(topic.incarnation) };
                page.take(batch?, &mut cursor)?;
                places.moved_to(partition, cursor);
            }
            Ok::<_, Problem>(())
        };
        timeout(asked.wait, waiting).await.unwrap_or(Ok(()))?;
    }
    Ok((page.events, places))
}

/// The batches of every partition of the present generation, live.
pub(super) async fn following(
    bus: &dyn Bus,
    topic: &Topic,
    places: &Places,
    types: Option<&Vec<String>>,
) -> Result<Batches, Problem> {
    let mut streams = Vec::new();
    for partition in (0..topic.partitions()).filter(|it| !topic.generations.is_sealed(*it)) {
        let after = places.cursor(bus, topic, partition).await?;
        let read = Read { types: types.cloned(), ..Read::following(&topic.name, partition, after) };
        streams.push(bus.read(read).await?.map(move |batch| (partition, batch)).boxed());
    }
    Ok(select_all(streams))
}

/// Events up to the bounds of one answer.
struct Page {
    events: Vec<Value>,
    bytes: usize,
    limit: usize,
}

impl Page {
    fn new(limit: usize) -> Self {
        Self { events: Vec::new(), bytes: 0, limit }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.limit || self.bytes >= READ_BYTES_MAX
    }

    /// Reads what there is of a partition.
    async fn read(
        &mut self,
        bus: &dyn Bus,
        topic: &Topic,
        partition: u32,
        cursor: &mut Cursor,
        asked: &Asked,
    ) -> Result<(), Problem> {
        let read = Read { types: asked.types.clone(), ..Read::to_tail(&topic.name, partition, *cursor) };
        let mut batches = bus.read(read).await?;
        while !self.is_full()
            && let Some(batch) = batches.next().await
        {
            self.take(batch?, cursor)?;
        }
        Ok(())
    }

    /// Takes of a batch what there is room for, and moves the place after it.
    fn take(&mut self, batch: Batch, cursor: &mut Cursor) -> Result<(), Problem> {
        let end = Cursor::at(cursor.incarnation, batch.last, batch.last_id);
        for record in batch.records {
            if self.is_full() {
                return Ok(());
            }
            (cursor.sequence, cursor.id) = (record.sequence, Some(record.id));
            self.bytes += record.size();
            self.events.push(shown(record)?);
        }
        *cursor = end;
        Ok(())
    }
}
