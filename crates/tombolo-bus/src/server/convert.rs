//! The port's types on the wire, both ways. Pure.
//!
//! Invariant: what comes from the wire is checked here, once; an id or a name that is not one is refused with
//! what was found.

use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};
use uuid::Uuid;

use super::{generated as wire, records};
use crate::{
    Append, Batch, Error, Guarantee, Kind, Reach, Read, Registration, Result, Signal, Tail, Topic, TopicSpec,
};

/// The most bytes of a batch that a server reads for anybody, whatever is asked for.
const READ_BATCH_BYTES_MAX: u64 = 4 << 20;

pub(super) fn name(text: &str) -> Result<ServiceName> {
    ServiceName::new(text).map_err(|error| Error::new(Kind::InvalidName, error.to_string()))
}

pub(super) fn incarnation(bytes: &[u8]) -> Result<Incarnation> {
    id(bytes).map(Incarnation)
}

fn id(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| {
        let message = format!("an id came as {} bytes; expected the 16 bytes of a UUID", bytes.len());
        Error::new(Kind::Configuration, message)
    })
}

fn id_if_any(bytes: &[u8]) -> Result<Option<EventId>> {
    match bytes.is_empty() {
        true => Ok(None),
        false => id(bytes).map(|id| Some(EventId(id))),
    }
}

fn bytes_of(id: Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id.as_bytes())
}

fn bytes_if_any(id: Option<EventId>) -> bytes::Bytes {
    id.map(|id| bytes_of(id.0)).unwrap_or_default()
}

/// Generations on the wire, and the number of partitions for who does not know of them: 0, which means nothing to
/// anybody, where there are several.
fn generations_to_wire(generations: &Generations) -> (u32, Vec<u32>) {
    let partitions = if let [only] = generations.each() { *only } else { 0 };
    (partitions, generations.each().to_vec())
}

fn generations(partitions: u32, each: Vec<u32>) -> Result<Generations> {
    let each = if each.is_empty() { vec![partitions] } else { each };
    Generations::try_from(each).map_err(|error| Error::new(Kind::Configuration, error.to_string()))
}

impl From<&TopicSpec> for wire::EnsureTopicRequest {
    fn from(spec: &TopicSpec) -> Self {
        let (partitions, generations) = generations_to_wire(&spec.generations);
        let incarnation = spec.incarnation.map(|of| bytes_of(of.0)).unwrap_or_default();
        Self { name: spec.name.to_string(), partitions, generations, incarnation }
    }
}

impl TryFrom<wire::EnsureTopicRequest> for TopicSpec {
    type Error = Error;
    fn try_from(request: wire::EnsureTopicRequest) -> Result<Self> {
        let generations = generations(request.partitions, request.generations)?;
        let given = (!request.incarnation.is_empty()).then(|| incarnation(&request.incarnation));
        Ok(Self { name: name(&request.name)?, generations, incarnation: given.transpose()? })
    }
}

/// A topic for somebody who may not know of generations.
pub(super) fn topic_for(topic: Topic, knows_generations: bool) -> Result<wire::Topic> {
    if !knows_generations && topic.generations.each().len() > 1 {
        let message = format!(
            "topic {} was divided anew ({} partitions), which this version of the caller does not know of; run a newer one",
            topic.name, topic.generations
        );
        return Err(Error::new(Kind::TopicDiffers, message));
    }
    Ok(topic.into())
}

impl From<Topic> for wire::Topic {
    fn from(topic: Topic) -> Self {
        let (partitions, generations) = generations_to_wire(&topic.generations);
        Self {
            name: topic.name.into(),
            partitions,
            incarnation: bytes_of(topic.incarnation.0),
            epoch: topic.epoch,
            generations,
        }
    }
}

impl TryFrom<wire::Topic> for Topic {
    type Error = Error;
    fn try_from(topic: wire::Topic) -> Result<Self> {
        Ok(Self {
            name: name(&topic.name)?,
            generations: generations(topic.partitions, topic.generations)?,
            incarnation: incarnation(&topic.incarnation)?,
            epoch: topic.epoch,
        })
    }
}

/// Asks to divide a topic.
pub(super) fn divide_request(
    topic: &ServiceName,
    incarnation: Incarnation,
    epoch: u64,
    generations: &Generations,
) -> wire::DivideRequest {
    wire::DivideRequest {
        topic: topic.to_string(),
        incarnation: bytes_of(incarnation.0),
        epoch,
        generations: generations.each().to_vec(),
    }
}

/// The generations that a topic is to be divided into.
pub(super) fn divided(request: &wire::DivideRequest) -> Result<Generations> {
    generations(0, request.generations.clone())
}

/// Asks to raise an epoch.
pub(super) fn raise_request(
    topic: &ServiceName,
    incarnation: Incarnation,
    epoch: u64,
) -> wire::RaiseEpochRequest {
    wire::RaiseEpochRequest { topic: topic.to_string(), incarnation: bytes_of(incarnation.0), epoch }
}

pub(super) fn tails_reply(tails: Vec<Tail>) -> wire::TailsReply {
    let tail = |tail: Tail| wire::Tail {
        partition: tail.partition,
        sequence: tail.sequence,
        id: bytes_if_any(tail.id),
    };
    wire::TailsReply { tails: tails.into_iter().map(tail).collect() }
}

pub(super) fn tails(reply: wire::TailsReply) -> Result<Vec<Tail>> {
    let tail = |tail: wire::Tail| {
        Ok(Tail { partition: tail.partition, sequence: tail.sequence, id: id_if_any(&tail.id)? })
    };
    reply.tails.into_iter().map(tail).collect()
}

/// An append under the number by which its answer is known.
pub(super) fn append_request(number: u64, append: &Append) -> wire::AppendRequest {
    wire::AppendRequest {
        number,
        topic: append.topic.to_string(),
        incarnation: bytes_of(append.incarnation.0),
        epoch: append.epoch,
        partition: append.partition,
        records: records::pack(&append.records),
    }
}

impl TryFrom<wire::AppendRequest> for Append {
    type Error = Error;
    fn try_from(request: wire::AppendRequest) -> Result<Self> {
        Ok(Self {
            topic: name(&request.topic)?,
            incarnation: incarnation(&request.incarnation)?,
            epoch: request.epoch,
            partition: request.partition,
            records: records::unpack(request.records)?,
        })
    }
}

impl From<Read> for wire::ReadRequest {
    fn from(read: Read) -> Self {
        Self {
            topic: read.topic.into(),
            partition: read.partition,
            incarnation: bytes_of(read.after.incarnation.0),
            sequence: read.after.sequence,
            id: bytes_if_any(read.after.id),
            some_types: read.types.is_some(),
            types: read.types.unwrap_or_default(),
            follow: read.follow,
            batch_bytes_max: read.batch_bytes_max as u64,
        }
    }
}

impl TryFrom<wire::ReadRequest> for Read {
    type Error = Error;
    fn try_from(request: wire::ReadRequest) -> Result<Self> {
        let incarnation = incarnation(&request.incarnation)?;
        Ok(Self {
            topic: name(&request.topic)?,
            partition: request.partition,
            after: Cursor { incarnation, sequence: request.sequence, id: id_if_any(&request.id)? },
            types: request.some_types.then_some(request.types),
            follow: request.follow,
            batch_bytes_max: request.batch_bytes_max.min(READ_BATCH_BYTES_MAX) as usize,
        })
    }
}

impl From<Batch> for wire::Batch {
    fn from(batch: Batch) -> Self {
        Self {
            first: batch.first,
            last: batch.last,
            last_id: bytes_of(batch.last_id.0),
            records: records::pack(&batch.records),
            tail: batch.tail,
        }
    }
}

impl TryFrom<wire::Batch> for Batch {
    type Error = Error;
    fn try_from(batch: wire::Batch) -> Result<Self> {
        Ok(Self {
            first: batch.first,
            last: batch.last,
            last_id: EventId(id(&batch.last_id)?),
            records: records::unpack(batch.records)?,
            tail: batch.tail,
        })
    }
}

impl From<Signal> for wire::Signal {
    fn from(signal: Signal) -> Self {
        Self { reply_to: signal.reply_to, payload: signal.payload }
    }
}

impl From<wire::Signal> for Signal {
    fn from(signal: wire::Signal) -> Self {
        Self { reply_to: signal.reply_to, payload: signal.payload }
    }
}

impl From<Reach> for wire::Reach {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Nobody => Self::Nobody,
            Reach::Somebody => Self::Somebody,
            Reach::Unknown => Self::Unknown,
        }
    }
}

impl From<wire::Reach> for Reach {
    fn from(reach: wire::Reach) -> Self {
        match reach {
            wire::Reach::Nobody => Self::Nobody,
            wire::Reach::Somebody => Self::Somebody,
            wire::Reach::Unknown => Self::Unknown,
        }
    }
}

impl From<Registration> for wire::Registration {
    fn from(registration: Registration) -> Self {
        Self {
            service: registration.service.into(),
            replica: registration.replica,
            url: registration.url,
            descriptor_json: registration.descriptor,
        }
    }
}

impl TryFrom<wire::Registration> for Registration {
    type Error = Error;
    fn try_from(registration: wire::Registration) -> Result<Self> {
        Ok(Self {
            service: name(&registration.service)?,
            replica: registration.replica,
            url: registration.url,
            descriptor: registration.descriptor_json,
        })
    }
}

impl From<Guarantee> for wire::GuaranteeReply {
    fn from(guarantee: Guarantee) -> Self {
        let Guarantee { engine, survives_power_cut, detail } = guarantee;
        Self { engine, survives_power_cut, detail }
    }
}

impl From<wire::GuaranteeReply> for Guarantee {
    fn from(reply: wire::GuaranteeReply) -> Self {
        let wire::GuaranteeReply { engine, survives_power_cut, detail } = reply;
        Self { engine, survives_power_cut, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(each: &[u32]) -> Topic {
        let generations = Generations::try_from(each.to_vec()).unwrap();
        Topic { name: name("orders").unwrap(), generations, incarnation: Incarnation::new(), epoch: 3 }
    }

    #[test]
    fn one_generation_is_what_the_version_before_sends_and_understands() {
        let topic = topic(&[8]);
        let sent = topic_for(topic.clone(), false).unwrap();
        assert_eq!(sent.partitions, 8);
        let before = wire::Topic { generations: vec![], ..sent };
        assert_eq!(Topic::try_from(before).unwrap(), topic);
        let spec = TopicSpec::new(topic.name, topic.generations);
        let asked = wire::EnsureTopicRequest::from(&spec);
        assert_eq!(asked.partitions, 8);
        let before = wire::EnsureTopicRequest { generations: vec![], ..asked };
        assert_eq!(TopicSpec::try_from(before).unwrap(), spec);
    }

    #[test]
    fn several_generations_are_refused_to_the_version_before_by_name() {
        let refused = topic_for(topic(&[8, 16]), false).unwrap_err();
        assert_eq!(refused.kind(), Kind::TopicDiffers);
        assert!(refused.to_string().contains("orders") && refused.to_string().contains("8 → 16"));
        let sent = topic_for(topic(&[8, 16]), true).unwrap();
        assert_eq!((sent.partitions, &sent.generations[..]), (0, &[8, 16][..]));
    }

    #[test]
    fn partitions_that_no_topic_can_have_are_refused() {
        for (partitions, generations) in [(0, vec![]), (u32::MAX, vec![]), (0, vec![8, 0]), (8, vec![1; 99])]
        {
            let request = wire::EnsureTopicRequest {
                name: "orders".into(),
                partitions,
                generations,
                incarnation: bytes::Bytes::new(),
            };
            assert_eq!(TopicSpec::try_from(request).unwrap_err().kind(), Kind::Configuration);
        }
    }
}
