//! Messages of a topic's stream: records and control records, as bytes and headers.
//!
//! Invariant: the payload of a record is the stored event and nothing else; number, id, type and epoch are
//! headers, so that any NATS tool shows them.

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tombolo_event::envelope::EVENT_BYTES_MAX;
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

use crate::{Append, Error, Kind, Record, Result, Topic};

const SEQUENCE: &str = "Tombolo-Sequence";
const ID: &str = "Tombolo-Id";
const TYPE: &str = "Tombolo-Type";
const EPOCH: &str = "Tombolo-Epoch";
/// What the headers of a record take at most, with those that NATS needs, in bytes.
const HEADER_BYTES_MAX: usize = 1024;

/// The topic as a control record of its stream says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(super) struct Control {
    pub(super) incarnation: Incarnation,
    pub(super) generations: Generations,
    pub(super) epoch: u64,
}

/// A control record as it is written. A topic of several generations has no `partitions`, so that a version that does
/// not know of generations refuses it instead of appending to a sealed partition.
#[derive(Serialize, Deserialize)]
struct Written {
    incarnation: Incarnation,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generations: Option<Generations>,
    epoch: u64,
}

impl From<Control> for Written {
    fn from(control: Control) -> Self {
        let Control { incarnation, generations, epoch } = control;
        match generations.each() {
            [partitions] => Self { incarnation, partitions: Some(*partitions), generations: None, epoch },
            _ => Self { incarnation, partitions: None, generations: Some(generations), epoch },
        }
    }
}

impl TryFrom<Written> for Control {
    type Error = tombolo_event::Error;

    fn try_from(written: Written) -> std::result::Result<Self, Self::Error> {
        let Written { incarnation, partitions, generations, epoch } = written;
        let generations = generations.map_or_else(|| Generations::first(partitions.unwrap_or(0)), Ok)?;
        Ok(Self { incarnation, generations, epoch })
    }
}

impl Control {
    pub(super) fn topic(&self, name: &ServiceName) -> Topic {
        let Self { incarnation, generations, epoch } = self.clone();
        Topic { name: name.clone(), generations, incarnation, epoch }
    }
}

/// A record and where in the stream it is.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) at: u64,
    pub(super) record: Record,
}

/// The largest record that fits, with its headers, into a message of `max_payload` bytes.
pub(super) fn record_bytes_max(max_payload: usize) -> usize {
    max_payload.saturating_sub(HEADER_BYTES_MAX).min(EVENT_BYTES_MAX)
}

/// Refuses what no message can carry.
pub(super) fn check(append: &Append, max_payload: usize) -> Result<()> {
    let bound = record_bytes_max(max_payload);
    for record in &append.records {
        let found = record.bytes.len();
        if found > bound {
            let message = format!(
                "event {} is {found} bytes; expected at most {bound}: raise `max_payload` of the NATS server, which is {max_payload}",
                record.id
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        let name = record.type_name();
        if name.len() != record.event_type.len() || name.len() > 256 || name.chars().any(char::is_control) {
            let message =
                format!("event {} has the type {name:?}; expected text that fits into a header", record.id);
            return Err(Error::new(Kind::InvalidName, message));
        }
    }
    Ok(())
}

pub(super) fn headers(record: &Record, epoch: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(SEQUENCE, record.sequence.to_string());
    headers.insert(ID, record.id.to_string());
    headers.insert(EPOCH, epoch.to_string());
    if !record.event_type.is_empty() {
        headers.insert(TYPE, record.type_name());
    }
    headers
}

pub(super) fn record(headers: &HeaderMap, bytes: Bytes, at: u64) -> Result<Stored> {
    let wrong = |name: &str| {
        let message = format!(
            "message {at} of the stream has no readable header {name}; expected only records that Tombolo wrote"
        );
        Error::new(Kind::Corrupt, message)
    };
    let text = |name: &str| headers.get(name).map(|value| value.as_str());
    let sequence = text(SEQUENCE).and_then(|text| text.parse().ok()).ok_or_else(|| wrong(SEQUENCE))?;
    let id: EventId = text(ID).and_then(|text| text.parse().ok()).ok_or_else(|| wrong(ID))?;
    let event_type = Bytes::copy_from_slice(text(TYPE).unwrap_or_default().as_bytes());
    Ok(Stored { at, record: Record { sequence, id, event_type, bytes } })
}

pub(super) fn stored(message: StreamMessage) -> Result<Stored> {
    record(&message.headers, message.payload, message.sequence)
}

pub(super) fn control(message: &StreamMessage) -> Result<Control> {
    serde_json::from_slice(&message.payload).map_err(|error| {
        let at = message.sequence;
        Error::new(Kind::Corrupt, format!("control record {at} of the stream cannot be read")).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INCARNATION: &str = "01910000-0000-7000-8000-000000000001";

    #[test]
    fn a_control_record_of_one_generation_is_that_of_the_version_before() {
        let written = format!(r#"{{"incarnation":"{INCARNATION}","partitions":8,"epoch":3}}"#);
        let control: Control = serde_json::from_str(&written).unwrap();
        assert_eq!((control.generations.each(), control.epoch), (&[8][..], 3));
        assert_eq!(serde_json::to_string(&control).unwrap(), written);
    }

    #[test]
    fn a_control_record_of_several_generations_is_none_to_the_version_before() {
        let written = format!(r#"{{"incarnation":"{INCARNATION}","generations":[8,16],"epoch":3}}"#);
        let control: Control = serde_json::from_str(&written).unwrap();
        assert_eq!(control.generations.each(), [8, 16]);
        assert_eq!(serde_json::to_string(&control).unwrap(), written);
        let nothing = format!(r#"{{"incarnation":"{INCARNATION}","epoch":3}}"#);
        assert!(serde_json::from_str::<Control>(&nothing).is_err());
    }
}
