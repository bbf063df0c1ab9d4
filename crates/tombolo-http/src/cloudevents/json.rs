//! The JSON format: one event, or an array of them.
//!
//! Invariant: data that is JSON is kept byte for byte as it was written.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tombolo_event::envelope::Attribute;

use super::{Attributes, Incoming, invalid, is_json};
use crate::limits::BATCH_EVENTS_MAX;
use crate::problem::{Problem, Refusal};

/// One event.
pub(super) fn event(body: &[u8]) -> Result<Incoming, Problem> {
    let read: Members<'_> = serde_json::from_slice(body).map_err(|error| {
        malformed(&format!("{error}"), "one event in the CloudEvents JSON format, which is an object")
    })?;
    read.into_event()
}

/// A batch: nothing of it is taken if one event cannot be.
pub(super) fn batch(body: &[u8]) -> Result<Vec<Incoming>, Problem> {
    let each: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| {
        malformed(&format!("{error}"), "a batch in the CloudEvents JSON format, which is an array of events")
    })?;
    if each.len() > BATCH_EVENTS_MAX {
        let detail = format!(
            "the batch holds {} events; expected at most {BATCH_EVENTS_MAX}: send smaller ones",
            each.len()
        );
        return Err(Problem::new(Refusal::TooLarge, detail));
    }
    let events = each
        .into_iter()
        .enumerate()
        .map(|(index, raw)| event(raw.get().as_bytes()).map_err(|problem| problem.in_batch(index)));
    events.collect()
}

impl Problem {
    /// The same, of one event of a batch.
    fn in_batch(self, index: usize) -> Self {
        let detail = format!(
            "event {index} of the batch (from 0): {}; nothing of the batch was stored",
            self.detail()
        );
        self.saying(detail).with("index", index)
    }
}

fn malformed(found: &str, expected: &str) -> Problem {
    Problem::new(Refusal::Malformed, format!("the body cannot be read: {found}; expected {expected}"))
}

/// The members of an event, as they stand.
struct Members<'a> {
    attributes: Result<Attributes, Problem>,
    data: Option<&'a RawValue>,
    base64: Option<Cow<'a, str>>,
}

impl Members<'_> {
    fn into_event(self) -> Result<Incoming, Problem> {
        let attributes = self.attributes?;
        let data = match (self.data, self.base64) {
            (Some(_), Some(_)) => {
                return Err(invalid("data_base64", "stands beside data; expected one of the two"));
            }
            (None, None) => Bytes::new(),
            (None, Some(text)) => match BASE64.decode(text.as_bytes()) {
                Ok(bytes) => bytes.into(),
                Err(error) => return Err(invalid("data_base64", &format!("is not base64: {error}"))),
            },
            (Some(raw), None) => data(raw, attributes.content_type.as_deref())?,
        };
        attributes.with_data(data)
    }
}

/// Data beside a content type that is not JSON is text in a JSON string.
fn data(raw: &RawValue, content_type: Option<&str>) -> Result<Bytes, Problem> {
    if content_type.is_none_or(is_json) {
        return Ok(Bytes::copy_from_slice(raw.get().as_bytes()));
    }
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(invalid(
            "data",
            "is not a string, and its datacontenttype is not JSON; expected a string, or data_base64",
        )),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

/// Reads members one after the other, so that data is borrowed and no second look is needed.
struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event, which is an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members { attributes: Ok(Attributes::default()), data: None, base64: None };
        while let Some(Word(name)) = map.next_key()? {
            match &*name {
                "data" => members.data = map.next_value::<Option<&RawValue>>()?,
                "data_base64" => members.base64 = map.next_value::<Option<Word<'_>>>()?.map(|it| it.0),
                name => {
                    let raw: &RawValue = map.next_value()?;
                    members.put(name, raw).map_err(A::Error::custom)?;
                }
            }
        }
        Ok(members)
    }
}

impl Members<'_> {
    /// Takes an attribute; the first that is wrong is remembered, and the rest read on.
    fn put(&mut self, name: &str, raw: &RawValue) -> Result<(), serde_json::Error> {
        let Ok(attributes) = &mut self.attributes else { return Ok(()) };
        if raw.get() == "null" {
            return Ok(());
        }
        let put = match attribute(raw.get()) {
            Some(value) => attributes.put(name, value),
            None => Err(invalid(name, "is not text, true, false, or a whole number of 32 bits")),
        };
        if let Err(problem) = put {
            self.attributes = Err(problem);
        }
        Ok(())
    }
}

/// The value of an attribute, whose kind its first letter says.
fn attribute(json: &str) -> Option<Attribute> {
    match json {
        "true" => Some(Attribute::Boolean(true)),
        "false" => Some(Attribute::Boolean(false)),
        text if text.starts_with('"') => serde_json::from_str(text).ok().map(Attribute::Text),
        number => number.parse().ok().map(Attribute::Integer),
    }
}

/// Text that is borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"specversion":"1.0","id":"a-1","source":"/posts","type":"PostCreated","subject":"p1",
        "time":"2026-11-29T12:00:00Z","flag":true,"count":3,"schema":null,"data":{"b": 2,  "a": 1}}"#;

    #[test]
    fn an_event_keeps_its_data_byte_for_byte() {
        let event = event(WHOLE.as_bytes()).unwrap();
        assert_eq!(&event.data[..], br#"{"b": 2,  "a": 1}"#);
        assert_eq!((event.id.as_str(), event.key()), ("a-1", "p1"));
        assert_eq!(event.extensions.get("flag"), Some(&Attribute::Boolean(true)));
        assert_eq!(event.extensions.get("count"), Some(&Attribute::Integer(3)));
        assert_eq!(event.extensions.get("schema"), None);
    }

    #[test]
    fn a_missing_attribute_is_named() {
        for name in ["specversion", "id", "source", "type"] {
            let mut json: serde_json::Value = serde_json::from_str(WHOLE).unwrap();
            json.as_object_mut().unwrap().remove(name);
            let problem = event(json.to_string().as_bytes()).unwrap_err();
            assert_eq!(problem.refusal(), Refusal::MissingAttribute);
            assert_eq!(problem.document()["attribute"], name);
        }
    }

    #[test]
    fn one_bad_event_of_a_batch_is_named_by_its_index() {
        let batch_of = |second: &str| format!("[{WHOLE},{second},{WHOLE}]");
        let problem = batch(batch_of(r#"{"specversion":"2.0"}"#).as_bytes()).unwrap_err();
        assert_eq!((problem.refusal(), &problem.document()["index"]), (Refusal::SpecVersion, &1.into()));
        let problem = batch(batch_of("7").as_bytes()).unwrap_err();
        assert_eq!((problem.refusal(), &problem.document()["index"]), (Refusal::Malformed, &1.into()));
        assert_eq!(batch(batch_of(WHOLE).as_bytes()).unwrap().len(), 3);
    }

    #[test]
    fn what_is_not_an_event_is_refused() {
        for body in ["", "{", "[]", "7", "\"x\"", r#"{"id":{}}"#, r#"{"id":"a","id":"#] {
            assert!(event(body.as_bytes()).is_err(), "{body}");
        }
        let both = WHOLE.replace("\"data\"", "\"data_base64\":\"Zg==\",\"data\"");
        assert_eq!(event(both.as_bytes()).unwrap_err().refusal(), Refusal::InvalidAttribute);
    }

    #[test]
    fn data_of_another_kind_is_text_or_base64() {
        let of = |rest: &str| {
            event(format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t",{rest}}}"#).as_bytes())
        };
        assert_eq!(&of(r#""datacontenttype":"text/plain","data":"a\"b""#).unwrap().data[..], b"a\"b");
        assert_eq!(&of(r#""data_base64":"Zm9v""#).unwrap().data[..], b"foo");
        assert!(of(r#""datacontenttype":"text/plain","data":{}"#).is_err());
        assert!(of(r#""data_base64":"?""#).is_err());
        assert_eq!(&of(r#""datacontenttype":"application/vnd.x+json","data":[1]"#).unwrap().data[..], b"[1]");
    }
}
