//! `tombolo topics`: what is in the logs, as anybody may read them.
//!
//! Invariant: an event is shown as it is stored, with its sequence and partition; one that cannot be read is shown
//! too, with the reason, and does not hide those behind it.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use serde_json::{Value, json};
use tombolo_bus::{Batch, Bus, Record, Tail, Topic};
use tombolo_event::{Cursor, Envelope, ServiceName};

use crate::arguments::{OfBus, Read};
use crate::commands::{reach, say, show};
use crate::error::{Error, Result};

/// How often `tombolo topics tail` looks whether the topic was divided anew.
const LOOK_FOR_GENERATIONS_EVERY: Duration = Duration::from_secs(2);

/// `tombolo topics list`.
pub(crate) async fn list(arguments: OfBus) -> Result<()> {
    let bus = reach(&arguments.reached).await?;
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    for topic in bus.topics().await? {
        let tails = bus.tails(&topic.name).await?;
        let events: u64 = tails.iter().map(|tail| tail.sequence).sum();
        rows.push([
            topic.name.to_string(),
            events.to_string(),
            topic.generations.to_string(),
            topic.epoch.to_string(),
            topic.incarnation.to_string(),
        ]);
        list.push(json!({
            "name": topic.name, "partitions": topic.partitions(), "generations": topic.generations,
            "epoch": topic.epoch, "incarnation": topic.incarnation, "events": events, "tails": tails,
        }));
    }
    bus.close().await;
    show(
        arguments.format,
        ["TOPIC", "EVENTS", "PARTITIONS", "EPOCH", "INCARNATION"],
        rows,
        &Value::Array(list),
    )
}

/// `tombolo topics read`, one partition after the other, those of earlier generations first.
pub(crate) async fn read(arguments: Read) -> Result<()> {
    let bus = reach(&arguments.reached).await?;
    let topic = topic(&*bus, &arguments.topic).await?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    for tail in chosen(&*bus, &topic, arguments.partition).await? {
        let mut batches = bus.read(wanted(&topic, tail.partition, None, &arguments)).await?;
        while let Some(batch) = batches.next().await {
            if left == 0 {
                break;
            }
            print(&batch?, &topic, tail.partition, &arguments, &mut left)?;
        }
    }
    bus.close().await;
    Ok(())
}

/// `tombolo topics tail`, all partitions as events come, and those of a new generation once there is one.
pub(crate) async fn tail(arguments: Read) -> Result<()> {
    let bus = reach(&arguments.reached).await?;
    let mut topic = topic(&*bus, &arguments.topic).await?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut live = SelectAll::new();
    for tail in chosen(&*bus, &topic, arguments.partition).await? {
        live.push(follow(&*bus, &topic, tail.partition, Some(&tail), &arguments).await?);
    }
    let mut look = tokio::time::interval(LOOK_FOR_GENERATIONS_EVERY);
    while left > 0 {
        tokio::select! {
            next = live.next() => {
                let Some((partition, batch)) = next else { break };
                print(&batch?, &topic, partition, &arguments, &mut left)?;
            }
            _ = look.tick(), if arguments.partition.is_none() => {
                let first_new = topic.partitions();
                topic = self::topic(&*bus, &arguments.topic).await?;
                for partition in first_new..topic.partitions() {
                    live.push(follow(&*bus, &topic, partition, None, &arguments).await?);
                }
            }
        }
    }
    bus.close().await;
    Ok(())
}

/// The batches of one partition as they come.
async fn follow(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    tail: Option<&Tail>,
    arguments: &Read,
) -> Result<BoxStream<'static, (u32, tombolo_bus::Result<Batch>)>> {
    let read = tombolo_bus::Read { follow: true, ..wanted(topic, partition, tail, arguments) };
    Ok(bus.read(read).await?.map(move |batch| (partition, batch)).boxed())
}

async fn topic(bus: &dyn Bus, name: &ServiceName) -> Result<Topic> {
    match bus.topic(name).await {
        Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => {
            let names: Vec<_> = bus.topics().await?.into_iter().map(|topic| topic.name.to_string()).collect();
            let there_are = if names.is_empty() { "there are none".into() } else { names.join(", ") };
            Err(Error::not_found(format!("there is no topic {name}; there are: {there_are}")))
        }
        found => Ok(found?),
    }
}

async fn chosen(bus: &dyn Bus, topic: &Topic, partition: Option<u32>) -> Result<Vec<Tail>> {
    let mut tails = bus.tails(&topic.name).await?;
    if let Some(wanted) = partition {
        tails.retain(|tail| tail.partition == wanted);
    }
    if tails.is_empty() {
        let (name, last) = (&topic.name, topic.partitions().saturating_sub(1));
        let divided = match topic.generations.each() {
            [_] => String::new(),
            _ => format!(", in generations of {}", topic.generations),
        };
        return Err(Error::not_found(format!("{name} has no such partition; it has 0 to {last}{divided}")));
    }
    Ok(tails)
}

fn wanted(topic: &Topic, partition: u32, tail: Option<&Tail>, arguments: &Read) -> tombolo_bus::Read {
    // A place in the middle cannot be asked for: a cursor proves itself by the id of its event, which only a
    // reader knows. What lies before --from is read and passed over.
    let end = tail.filter(|_| arguments.from.is_none());
    let after = match end.and_then(|tail| Some((tail.sequence, tail.id?))) {
        Some((sequence, id)) => Cursor::at(topic.incarnation, sequence, id),
        None => Cursor::start(topic.incarnation),
    };
    let types = (!arguments.types.is_empty()).then(|| arguments.types.clone());
    tombolo_bus::Read { types, ..tombolo_bus::Read::to_tail(&topic.name, partition, after) }
}

fn print(batch: &Batch, topic: &Topic, partition: u32, arguments: &Read, left: &mut u64) -> Result<()> {
    let from = arguments.from.unwrap_or_default();
    // An engine that cannot read some types only sends all.
    let asked = |record: &&Record| {
        record.sequence >= from
            && (arguments.types.is_empty()
                || arguments.types.iter().any(|wanted| wanted == record.type_name()))
    };
    for record in batch.records.iter().filter(asked) {
        if *left == 0 {
            return Ok(());
        }
        say(&line(record, topic, partition).to_string())?;
        *left -= 1;
    }
    Ok(())
}

/// A record as a CloudEvent, with the partition that it is in and, where there are several, its generation.
fn line(record: &Record, topic: &Topic, partition: u32) -> Value {
    let mut event = match Envelope::decode(record.bytes.clone()) {
        Ok(envelope) => envelope.to_json(Some(record.sequence)),
        Err(error) => json!({
            "id": record.id, "type": record.type_name(), "sequence": record.sequence.to_string(),
            "error": error.to_string(), "bytes": record.bytes.len(),
        }),
    };
    event["partition"] = json!(partition);
    if topic.generations.each().len() > 1 {
        event["generation"] = json!(topic.generations.number_of(partition));
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_event::{EventId, Generations, Incarnation};

    #[test]
    fn a_record_that_cannot_be_read_is_shown_with_the_reason() {
        let record = Record {
            sequence: 7,
            id: EventId::new(),
            event_type: "orders.placed.v1".into(),
            bytes: "not an envelope".into(),
        };
        let mut topic = Topic {
            name: "orders".parse().unwrap(),
            generations: Generations::first(4).unwrap(),
            incarnation: Incarnation::new(),
            epoch: 1,
        };
        let shown = line(&record, &topic, 3);
        assert_eq!((&shown["sequence"], &shown["partition"]), (&json!("7"), &json!(3)));
        assert_eq!(shown["generation"], Value::Null, "there is only one");
        topic.generations = topic.generations.and(2).unwrap();
        assert_eq!(line(&record, &topic, 4)["generation"], json!(2));
        assert!(shown["error"].as_str().unwrap().contains("cannot be read"), "{shown}");
    }
}
