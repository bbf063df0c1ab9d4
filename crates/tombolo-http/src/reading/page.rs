//! Some events, and the place after them.
//!
//! Invariant: a later generation of partitions is read only once those before it are read to their ends, so that of each key the order stays.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use serde_json::Value;
use tokio::time::timeout;
use tombolo_bus::{Batch, Bus, Read, RecordStream, Topic};
use tombolo_event::Cursor;

use super::place::Places;
use super::{Asked, shown};
use crate::problem::Problem;

/// Of one partition.
pub(super) async fn of_partition(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    mut cursor: Cursor,
    asked: &Asked,
) -> Result<(Vec<Value>, Cursor), Problem> {
    let mut events = Vec::new();
    let read = |after, follow| Read {
        types: asked.types.clone(),
        follow,
        ..Read::to_tail(&topic.name, partition, after)
    };
    let mut batches = bus.read(read(cursor, false)).await?;
    while events.len() < asked.limit
        && let Some(batch) = batches.next().await
    {
        take(batch?, asked.limit, &mut events, &mut cursor)?;
    }
    if events.is_empty() && !asked.wait.is_zero() {
        let mut batches = bus.read(read(cursor, true)).await?;
        let first = timeout(asked.wait, first_with_events(&mut batches, &mut cursor)).await;
        if let Ok(Some(batch)) = first {
            take(batch?, asked.limit, &mut events, &mut cursor)?;
        }
    }
    Ok((events, cursor))
}

/// The first batch that is not only passed over.
async fn first_with_events(
    batches: &mut RecordStream,
    cursor: &mut Cursor,
) -> Option<tombolo_bus::Result<Batch>> {
    loop {
        match batches.next().await? {
            Ok(batch) if batch.records.is_empty() => {
                *cursor = Cursor::at(cursor.incarnation, batch.last, batch.last_id)
            }
            other => return Some(other),
        }
    }
}

/// Of all partitions, one generation after the other.
pub(super) async fn of_topic(
    bus: &Arc<dyn Bus>,
    topic: &Topic,
    mut places: Places,
    asked: &Asked,
) -> Result<(Vec<Value>, Places), Problem> {
    let mut events = Vec::new();
    for partition in 0..topic.partitions() {
        if events.len() == asked.limit {
            break;
        }
        let rest = asked.without_waiting(asked.limit - events.len());
        let from = places.cursor(&**bus, topic, partition).await?;
        let (more, cursor) = of_partition(&**bus, topic, partition, from, &rest).await?;
        if let (true, Some(id)) = (cursor.sequence > from.sequence, cursor.id) {
            places.moved(partition, cursor.sequence, id);
        }
        events.extend(more);
    }
    if events.is_empty() && !asked.wait.is_zero() {
        let mut live = following(&**bus, topic, &places, asked.types.as_ref()).await?;
        let first = async {
            loop {
                match live.next().await? {
                    (partition, Ok(batch)) if batch.records.is_empty() => {
                        places.moved(partition, batch.last, batch.last_id)
                    }
                    other => return Some(other),
                }
            }
        };
        if let Ok(Some((partition, batch))) = timeout(asked.wait, first).await {
            let batch = batch?;
            let mut cursor = Cursor::at(topic.incarnation, batch.last, batch.last_id);
            take(batch, asked.limit, &mut events, &mut cursor)?;
            if let Some(id) = cursor.id {
                places.moved(partition, cursor.sequence, id);
            }
        }
    }
    Ok((events, places))
}

/// The batches of every partition of the present generation, live, each with its partition.
pub(super) async fn following(
    bus: &dyn Bus,
    topic: &Topic,
    places: &Places,
    types: Option<&Vec<String>>,
) -> Result<
    SelectAll<impl futures_util::Stream<Item = (u32, tombolo_bus::Result<Batch>)> + Send + Unpin + use<>>,
    Problem,
> {
    let mut streams = Vec::new();
    for partition in (0..topic.partitions()).filter(|it| !topic.generations.is_sealed(*it)) {
        let after = places.cursor(bus, topic, partition).await?;
        let read = Read { types: types.cloned(), ..Read::following(&topic.name, partition, after) };
        streams.push(bus.read(read).await?.map(move |batch| (partition, batch)));
    }
    Ok(select_all(streams))
}

/// Takes of a batch what there is room for, and moves the place after it.
fn take(batch: Batch, limit: usize, events: &mut Vec<Value>, cursor: &mut Cursor) -> Result<(), Problem> {
    let end = Cursor::at(cursor.incarnation, batch.last, batch.last_id);
    for record in batch.records {
        if events.len() == limit {
            return Ok(());
        }
        (cursor.sequence, cursor.id) = (record.sequence, Some(record.id));
        events.push(shown(record)?);
    }
    *cursor = end;
    Ok(())
}
