//! Answers of the server, taken apart. Invariant: an answer of another shape than expected is named, never guessed at.

use std::collections::HashMap;

use bytes::Bytes;
use redis::Value;
use tombolo_event::{Cursor, EventId, Incarnation};

use crate::{Error, Kind, Result};

pub(super) fn odd(what: &str) -> Error {
    let message = format!(
        "{what} cannot be read as Tombolo wrote it; expected only its own keys: find out who else writes"
    );
    Error::new(Kind::Corrupt, message)
}

pub(super) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into()),
        Value::Int(number) => Some(number.to_string().into()),
        Value::VerbatimString { text, .. } => Some(text.into()),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        _ => Vec::new(),
    }
}

/// The names and values of a hash.
pub(super) fn pairs(value: Value) -> HashMap<String, String> {
    let values = list(value);
    let pairs = values.chunks(2).filter_map(|pair| Some((text(pair.first()?)?, text(pair.get(1)?)?)));
    pairs.collect()
}

pub(super) fn number(value: Option<&Value>) -> Option<u64> {
    text(value?)?.parse().ok()
}

pub(super) fn id(text: &str) -> Option<EventId> {
    text.parse().ok()
}

pub(super) fn incarnation(text: &str) -> Option<Incarnation> {
    text.parse().ok().map(Incarnation)
}

/// Where a partition that was trimmed begins, as its field says: the first sequence, its id.
pub(super) fn beginning(incarnation: Incarnation, field: &str) -> Result<Cursor> {
    let place = field.split_once(' ').and_then(|(first, event)| Some((first.parse().ok()?, id(event)?)));
    let (first, event) = place.ok_or_else(|| odd("the beginning of a partition"))?;
    Ok(Cursor::at(incarnation, first, event))
}

/// The end of a partition, as its field says: the last sequence, the largest record so far, the last id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct End {
    pub(super) last: u64,
    pub(super) largest: u64,
    pub(super) id: Option<EventId>,
}

impl End {
    /// A field that is not there is the end of an empty partition.
    pub(super) fn read(field: Option<&str>) -> Result<Self> {
        let Some(field) = field else { return Ok(Self::default()) };
        let mut words = field.split(' ');
        let mut next = || words.next().and_then(|word| word.parse().ok());
        let (last, largest) = (next(), next());
        match (last, largest, words.next().and_then(id)) {
            (Some(last), Some(largest), Some(id)) => Ok(Self { last, largest, id: Some(id) }),
            _ => Err(odd("the end of a partition")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_and_anything_else_is_named() {
        let event = EventId::new();
        let end = End::read(Some(&format!("17 300 {event}"))).unwrap();
        assert_eq!(end, End { last: 17, largest: 300, id: Some(event) });
        assert_eq!(End::read(None).unwrap(), End::default());
        assert_eq!(End::read(Some("17 300")).unwrap_err().kind(), Kind::Corrupt);
    }
}
