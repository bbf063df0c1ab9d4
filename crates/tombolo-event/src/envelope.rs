//! The envelope: a CloudEvents 1.0 event, and the bytes that it is stored as.
//!
//! Stored bytes are the CloudEvents protobuf format (`io.cloudevents.v1.CloudEvent`), written once, in the
//! outbox, and the same on every hop and every backend. The sequence is not among them: it belongs to the
//! record that the bus keeps, because some databases number only after the commit.
//!
//! Invariant: encoding is deterministic, golden bytes pin it, and bytes that were ever written stay readable.
//! Source: <https://github.com/cloudevents/spec/blob/main/cloudevents/formats/protobuf-format.md>.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{Error, Kind, Result, TraceContext};

/// The largest event, in bytes as stored.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// The content type of an event that does not choose another.
pub const JSON: &str = "application/json";

/// The identity of an event: a UUIDv7, or a UUIDv5 for a consequence of another event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of what a handler publishes, derived from what it was handling: a redo after any crash or restore
    /// gives the same one, so it is recognised and not doubled.
    #[must_use]
    pub fn of_consequence(of: &Consequence<'_>) -> Self {
        let name = format!("{}/{}/{}", of.service, of.subscription, of.ordinal);
        Self(Uuid::new_v5(&of.cause.0, name.as_bytes()))
    }
}

impl Default for EventId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> std::result::Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Where a published consequence comes from.
#[derive(Debug, Clone, Copy)]
pub struct Consequence<'a> {
    /// The service whose handler publishes.
    pub service: &'a str,
    /// The subscription that the handler belongs to.
    pub subscription: &'a str,
    /// The event that is being handled.
    pub cause: EventId,
    /// The how-manieth event of this handler's run, from 0.
    pub ordinal: u32,
}

/// An event as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Its identity.
    pub id: EventId,
    /// The service in which it happened.
    pub source: String,
    /// The durable name of its type.
    pub event_type: String,
    /// The entity that it is about (`subject` and `partitionkey`).
    pub key: String,
    /// When it was published, by the producer's clock.
    pub time: Timestamp,
    /// The media type of the data.
    pub content_type: String,
    /// The span in which it was published.
    pub trace: Option<TraceContext>,
    /// What everything that follows from one first cause shares.
    pub correlation: Option<String>,
    /// The event that this one follows from.
    pub causation: Option<EventId>,
    /// Attributes that Tombolo has no use for and passes on. A `subject` among them is in place of the key; an empty
    /// one says that the event has none.
    pub extensions: Extensions,
    /// The data, which the bus never looks into.
    pub data: Bytes,
}

/// CloudEvents attributes by name.
pub type Extensions = BTreeMap<String, Attribute>;

/// The value of a CloudEvents attribute: the types of its type system, those that are written as text in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    /// True or false.
    Boolean(bool),
    /// A whole number of 32 bits.
    Integer(i32),
    /// Text, a URI, a time, or bytes in base64.
    Text(String),
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(it) => it.fmt(f),
            Self::Integer(it) => it.fmt(f),
            Self::Text(it) => it.fmt(f),
        }
    }
}

/// The attributes that are not extensions, and so are none of [`Envelope::extensions`].
const OWN: [&str; 7] =
    ["subject", "partitionkey", "datacontenttype", "traceparent", "correlationid", "causationid", "time"];

impl Envelope {
    /// The bytes that are stored.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut attributes = BTreeMap::new();
        let mut text = |name: &str, value: String| {
            attributes.insert(name.to_owned(), wire::Value { attr: Some(wire::Attr::Text(value)) });
        };
        text("subject", self.key.clone());
        text("partitionkey", self.key.clone());
        text("datacontenttype", self.content_type.clone());
        if let Some(trace) = self.trace {
            text("traceparent", trace.to_string());
        }
        if let Some(correlation) = &self.correlation {
            text("correlationid", correlation.clone());
        }
        if let Some(causation) = self.causation {
            text("causationid", causation.to_string());
        }
        let time = wire::Timestamp { seconds: self.time.as_second(), nanos: self.time.subsec_nanosecond() };
        attributes.insert("time".into(), wire::Value { attr: Some(wire::Attr::Timestamp(time)) });
        for (name, value) in &self.extensions {
            attributes.insert(name.clone(), value.into());
        }
        if self.has_no_subject() {
            attributes.remove("subject");
        }
        let event = wire::CloudEvent {
            id: self.id.to_string(),
            source: self.source.clone(),
            spec_version: "1.0".into(),
            r#type: self.event_type.clone(),
            attributes,
            data: Some(wire::Data::BinaryData(self.data.clone())),
        };
        event.encode_to_vec().into()
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if they are not a CloudEvent 1.0 with the attributes that Tombolo needs.
    pub fn decode(bytes: impl Into<Bytes>) -> Result<Self> {
        let event = wire::CloudEvent::decode(bytes.into())
            .map_err(|error| malformed("the bytes are not a CloudEvent in protobuf format").because(error))?;
        if event.spec_version != "1.0" {
            return Err(malformed(&format!("specversion is {:?}, expected \"1.0\"", event.spec_version)));
        }
        let id = event.id.parse().map_err(|_| malformed(&format!("id {:?} is not a UUID", event.id)))?;
        let text = |name: &str| event.attributes.get(name).and_then(wire::Value::as_text);
        let key =
            text("partitionkey").or(text("subject")).ok_or_else(|| malformed("there is no partitionkey"))?;
        let time = event.attributes.get("time").and_then(wire::Value::as_time);
        let data = match event.data.clone() {
            Some(wire::Data::BinaryData(data)) => data,
            Some(wire::Data::TextData(data)) => data.into(),
            None => Bytes::new(),
        };
        Ok(Self {
            id,
            key: key.to_owned(),
            time: time.ok_or_else(|| malformed("there is no time"))?,
            content_type: text("datacontenttype").unwrap_or(JSON).to_owned(),
            trace: text("traceparent").and_then(|header| header.parse().ok()),
            correlation: text("correlationid").map(str::to_owned),
            causation: text("causationid").and_then(|id| id.parse().ok()),
            extensions: extensions(&event.attributes, key),
            data,
            source: event.source,
            event_type: event.r#type,
        })
    }

    /// The event in the CloudEvents JSON format, with its number where it has one.
    #[must_use]
    pub fn to_json(&self, sequence: Option<u64>) -> Value {
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        put("specversion", json!("1.0"));
        put("id", json!(self.id));
        put("source", json!(self.source));
        put("type", json!(self.event_type));
        if !self.has_no_subject() {
            put("subject", json!(self.key));
        }
        put("partitionkey", json!(self.key));
        put("time", json!(self.time));
        put("datacontenttype", json!(self.content_type));
        if let Some(sequence) = sequence {
            put("sequence", json!(sequence.to_string()));
        }
        if let Some(trace) = self.trace {
            put("traceparent", json!(trace.to_string()));
        }
        if let Some(correlation) = &self.correlation {
            put("correlationid", json!(correlation));
        }
        if let Some(causation) = self.causation {
            put("causationid", json!(causation));
        }
        for (name, value) in &self.extensions {
            if name != "subject" || !self.has_no_subject() {
                put(name, json!(value));
            }
        }
        match serde_json::from_slice::<Value>(&self.data) {
            Ok(data) if self.content_type == JSON => put("data", data),
            _ => put("data_base64", json!(BASE64.encode(&self.data))),
        };
        Value::Object(json)
    }

    fn has_no_subject(&self) -> bool {
        self.extensions.get("subject") == Some(&Attribute::Text(String::new()))
    }

    /// Checks key, type and size before anything is stored.
    ///
    /// # Errors
    /// [`Kind::InvalidKey`], [`Kind::InvalidName`] or [`Kind::TooLarge`].
    pub fn check(&self, encoded: &Bytes) -> Result<()> {
        crate::key::check(&self.key)?;
        crate::TypeName::new(&self.event_type)?;
        if encoded.len() > EVENT_BYTES_MAX {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "event of type {} is {} bytes as stored; expected at most {EVENT_BYTES_MAX}: publish a reference to large data instead",
                    self.event_type,
                    encoded.len()
                ),
            ));
        }
        Ok(())
    }
}

/// The stored attributes that are extensions, of an event with this key.
fn extensions(attributes: &BTreeMap<String, wire::Value>, key: &str) -> Extensions {
    let others = attributes.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
    let mut extensions: Extensions =
        others.filter_map(|(name, value)| Some((name.clone(), Attribute::try_from(value).ok()?))).collect();
    let subject = attributes.get("subject").and_then(wire::Value::as_text).unwrap_or_default();
    if subject != key {
        extensions.insert("subject".into(), Attribute::Text(subject.to_owned()));
    }
    extensions
}

fn malformed(found: &str) -> Error {
    Error::new(Kind::Malformed, format!("stored event cannot be read: {found}"))
}

/// The CloudEvents protobuf messages, as the specification numbers them.
mod wire {
    use super::{Attribute, BASE64, BTreeMap, Bytes, Engine};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CloudEvent {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(string, tag = "2")]
        pub(super) source: String,
        #[prost(string, tag = "3")]
        pub(super) spec_version: String,
        #[prost(string, tag = "4")]
        pub(super) r#type: String,
        #[prost(btree_map = "string, message", tag = "5")]
        pub(super) attributes: BTreeMap<String, Value>,
        #[prost(oneof = "Data", tags = "6, 7")]
        pub(super) data: Option<Data>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Data {
        #[prost(bytes = "bytes", tag = "6")]
        BinaryData(Bytes),
        #[prost(string, tag = "7")]
        TextData(String),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Value {
        #[prost(oneof = "Attr", tags = "1, 2, 3, 4, 5, 6, 7")]
        pub(super) attr: Option<Attr>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Attr {
        #[prost(bool, tag = "1")]
        Boolean(bool),
        #[prost(int32, tag = "2")]
        Integer(i32),
        #[prost(string, tag = "3")]
        Text(String),
        #[prost(bytes = "bytes", tag = "4")]
        Bytes(Bytes),
        #[prost(string, tag = "5")]
        Uri(String),
        #[prost(string, tag = "6")]
        UriRef(String),
        #[prost(message, tag = "7")]
        Timestamp(Timestamp),
    }

    /// `google.protobuf.Timestamp`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    impl From<&Attribute> for Value {
        fn from(attribute: &Attribute) -> Self {
            let attr = match attribute {
                Attribute::Boolean(it) => Attr::Boolean(*it),
                Attribute::Integer(it) => Attr::Integer(*it),
                Attribute::Text(it) => Attr::Text(it.clone()),
            };
            Self { attr: Some(attr) }
        }
    }

    impl TryFrom<&Value> for Attribute {
        type Error = ();
        fn try_from(value: &Value) -> Result<Self, ()> {
            Ok(match value.attr.as_ref().ok_or(())? {
                Attr::Boolean(it) => Self::Boolean(*it),
                Attr::Integer(it) => Self::Integer(*it),
                Attr::Text(it) | Attr::Uri(it) | Attr::UriRef(it) => Self::Text(it.clone()),
                Attr::Bytes(it) => Self::Text(BASE64.encode(it)),
                Attr::Timestamp(_) => Self::Text(value.as_time().ok_or(())?.to_string()),
            })
        }
    }

    impl Value {
        pub(super) fn as_text(&self) -> Option<&str> {
            match &self.attr {
                Some(Attr::Text(text) | Attr::Uri(text) | Attr::UriRef(text)) => Some(text),
                _ => None,
            }
        }

        pub(super) fn as_time(&self) -> Option<jiff::Timestamp> {
            match &self.attr {
                Some(Attr::Timestamp(time)) => jiff::Timestamp::new(time.seconds, time.nanos).ok(),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Envelope {
        Envelope {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
            source: "orders".into(),
            event_type: "orders.placed.v1".into(),
            key: "order-1".into(),
            time: "2026-11-20T12:00:00.123456Z".parse().unwrap(),
            content_type: JSON.into(),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()),
            correlation: Some("checkout-7".into()),
            causation: Some("01890a5d-ac96-774b-bcce-b302099a8056".parse().unwrap()),
            extensions: Extensions::new(),
            data: Bytes::from_static(br#"{"order":"order-1","cents":1250}"#),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_stored_bytes_are_golden() {
        let golden = include_str!("../golden/envelope-1.hex").trim();
        assert_eq!(hex(&sample().encode()), golden);
    }

    #[test]
    fn golden_bytes_stay_readable() {
        let golden = include_str!("../golden/envelope-1.hex").trim();
        let bytes: Vec<u8> = (0..golden.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&golden[i..i + 2], 16).unwrap())
            .collect();
        assert_eq!(Envelope::decode(bytes).unwrap(), sample());
    }

    #[test]
    fn the_json_form_is_golden() {
        let golden: Value = serde_json::from_str(include_str!("../golden/envelope-1.json")).unwrap();
        assert_eq!(sample().to_json(Some(42)), golden);
    }

    #[test]
    fn data_that_is_not_json_is_carried_as_base64() {
        for (data, text) in
            [(&b"f"[..], "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob\xff", "Zm9vYv8=")]
        {
            let envelope = Envelope {
                content_type: "application/octet-stream".into(),
                data: Bytes::copy_from_slice(data),
                ..sample()
            };
            assert_eq!(envelope.to_json(None)["data_base64"], json!(text));
        }
    }

    #[test]
    fn consequences_have_stable_distinct_ids() {
        let cause = sample().id;
        let of = |subscription, ordinal| {
            EventId::of_consequence(&Consequence { service: "mail", subscription, cause, ordinal })
        };
        assert_eq!(of("confirm", 0), of("confirm", 0));
        assert_eq!(of("confirm", 0).to_string(), include_str!("../golden/consequence.txt").trim());
        assert_ne!(of("confirm", 0), of("confirm", 1));
        assert_ne!(of("confirm", 0), of("other", 0));
    }

    proptest! {
        #[test]
        fn any_envelope_survives_its_bytes(key in ".{1,40}", data in proptest::collection::vec(any::<u8>(), 0..300),
                                           seconds in 0_i64..4_000_000_000, nanos in 0_i32..1_000_000_000, plain in any::<bool>()) {
            let mut envelope = sample();
            envelope.key = key;
            envelope.data = data.into();
            envelope.time = Timestamp::new(seconds, nanos).unwrap();
            if plain {
                envelope.trace = None;
                envelope.correlation = None;
                envelope.causation = None;
                envelope.extensions.insert("dataschema".into(), Attribute::Text("https://example.org/it".into()));
                envelope.extensions.insert("myflag".into(), Attribute::Boolean(true));
                envelope.extensions.insert("mynumber".into(), Attribute::Integer(-7));
                envelope.extensions.insert("subject".into(), Attribute::Text(if seconds % 2 == 0 { "" } else { "other" }.into()));
            }
            prop_assert_eq!(Envelope::decode(envelope.encode()).unwrap(), envelope);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Envelope::decode(bytes));
        }
    }
}
