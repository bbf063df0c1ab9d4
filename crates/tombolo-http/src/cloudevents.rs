//! CloudEvents 1.0 over HTTP: what comes in, structured, batched or binary, and what goes out. Pure.
//!
//! Invariant: an event that is published and read again has every attribute and every byte of data that it came with; what
//! cannot be taken whole is refused with the attribute's name, and in a batch with its index.
//!
//! Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>,
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.

mod binary;
mod json;
mod outgoing;

use bytes::Bytes;
use http::{HeaderMap, header};
use jiff::Timestamp;
use tombolo_event::envelope::{Attribute, Extensions, JSON};
use tombolo_event::{Envelope, EventId, TraceContext};
use uuid::Uuid;

pub use outgoing::{binary_headers, to_json};

use crate::limits::{EXTENSIONS_MAX, ORIGIN_BYTES_MAX, TYPE_BYTES_MAX};
use crate::problem::{Problem, Refusal};

/// The media type of one event in the JSON format.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// The media type of a batch in the JSON format.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// The extension that keeps the id which the publisher gave.
const ORIGIN_ID: &str = "originid";
/// The extension that keeps the source which the publisher gave, where it proved to be somebody else.
const ORIGIN_SOURCE: &str = "originsource";
/// Under which the ids of events are derived from their topic, source and id.
const IDS: Uuid = Uuid::from_u128(0x6f2d_7f86_8c5e_4f0e_9d0a_54b1_c6a1_77e3);

/// An event as somebody published it.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// The id that it was given: with `source`, the idempotency key.
    pub id: String,
    /// Where its publisher says that it comes from.
    pub source: String,
    /// Its type.
    pub event_type: String,
    /// What it is about.
    pub subject: Option<String>,
    /// What keeps its order; by default the subject, and without one the source.
    pub partition_key: Option<String>,
    /// When it happened; when it came, where that is not said.
    pub time: Option<Timestamp>,
    /// The media type of its data.
    pub content_type: String,
    /// The span in which it was published.
    pub trace: Option<TraceContext>,
    /// All other attributes.
    pub extensions: Extensions,
    /// Its data.
    pub data: Bytes,
}

/// What a request brought.
#[derive(Debug, PartialEq)]
pub enum Body {
    /// One event.
    One(Box<Incoming>),
    /// A batch of them.
    Batch(Vec<Incoming>),
}

impl Body {
    /// Reads a request's body in the mode that its headers say.
    ///
    /// # Errors
    /// What is wrong, with the attribute and the index in the batch where there is one.
    pub fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, Problem> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
        let media = content_type.map(media_type).unwrap_or_default();
        match media.as_str() {
            STRUCTURED => Ok(Self::One(Box::new(json::event(body)?))),
            BATCH => json::batch(body).map(Self::Batch),
            other if other.starts_with("application/cloudevents") => Err(wrong_content_type(other)),
            _ if headers.contains_key("ce-specversion") => {
                binary::event(headers, content_type, body).map(|it| Self::One(Box::new(it)))
            }
            other => Err(wrong_content_type(other)),
        }
    }
}

/// A media type without its parameters, in lower case.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn wrong_content_type(found: &str) -> Problem {
    let found =
        if found.is_empty() { "no content type".to_owned() } else { format!("the content type {found:?}") };
    let detail = format!(
        "the request has {found}; expected {STRUCTURED}, {BATCH}, or the event's attributes in `ce-` headers beside any content type"
    );
    Problem::new(Refusal::ContentType, detail)
}

/// Whether data of this media type is JSON.
fn is_json(content_type: &str) -> bool {
    let media = media_type(content_type);
    media == JSON || media == "text/json" || media.ends_with("+json")
}

impl Incoming {
    /// The identity that it has in `topic`: the same for the same source and id, so that a retry is found.
    #[must_use]
    pub fn event_id(&self, topic: &str) -> EventId {
        let mut name = Vec::with_capacity(topic.len() + self.source.len() + self.id.len() + 2);
        for part in [topic, &self.source, &self.id] {
            name.extend_from_slice(part.as_bytes());
            name.push(0);
        }
        EventId(Uuid::new_v5(&IDS, &name))
    }

    /// The event as it is stored in `topic`; `source` is who proved to have sent it, where somebody did.
    #[must_use]
    pub fn into_envelope(mut self, topic: &str, source: Option<&str>) -> Envelope {
        let id = self.event_id(topic);
        let key = self.key().to_owned();
        if self.subject.as_ref() != Some(&key) {
            self.extensions
                .insert("subject".into(), Attribute::Text(self.subject.take().unwrap_or_default()));
        }
        self.extensions.insert(ORIGIN_ID.into(), Attribute::Text(self.id));
        let source = match source {
            Some(proved) if proved != self.source => {
                self.extensions.insert(ORIGIN_SOURCE.into(), Attribute::Text(self.source));
                proved.to_owned()
            }
            _ => self.source,
        };
        let causation = match self.extensions.get("causationid") {
            Some(Attribute::Text(text)) => text.parse().ok(),
            _ => None,
        };
        let correlation = match self.extensions.remove("correlationid") {
            Some(Attribute::Text(text)) => Some(text),
            _ => None,
        };
        Envelope {
            id,
            source,
            event_type: self.event_type,
            key,
            time: self.time.unwrap_or_else(Timestamp::now),
            content_type: self.content_type,
            trace: self.trace,
            correlation,
            causation,
            extensions: self.extensions,
            data: self.data,
        }
    }

    /// What keeps its order.
    #[must_use]
    pub fn key(&self) -> &str {
        self.partition_key.as_deref().or(self.subject.as_deref()).unwrap_or(&self.source)
    }
}

/// The attributes of an event while they are read, in whichever mode.
#[derive(Debug, Default)]
struct Attributes {
    id: Option<String>,
    source: Option<String>,
    event_type: Option<String>,
    spec_version: Option<String>,
    subject: Option<String>,
    partition_key: Option<String>,
    time: Option<Timestamp>,
    content_type: Option<String>,
    trace: Option<TraceContext>,
    extensions: Extensions,
}

impl Attributes {
    /// Takes one attribute by its name in lower case.
    fn put(&mut self, name: &str, value: Attribute) -> Result<(), Problem> {
        if self.spec_version.is_none() && name == "specversion" {
            self.spec_version = Some(text(name, value)?);
            return Ok(());
        }
        match name {
            "id" => self.id = Some(bounded(name, text(name, value)?, ORIGIN_BYTES_MAX)?),
            "source" => self.source = Some(bounded(name, text(name, value)?, ORIGIN_BYTES_MAX)?),
            "type" => self.event_type = Some(bounded(name, text(name, value)?, TYPE_BYTES_MAX)?),
            "subject" => self.subject = Some(text(name, value)?),
            "partitionkey" => self.partition_key = Some(text(name, value)?),
            "datacontenttype" => self.content_type = Some(text(name, value)?),
            "time" => self.time = Some(time(&text(name, value)?)?),
            "traceparent" => match text(name, value)?.parse() {
                Ok(trace) => self.trace = Some(trace),
                Err(_) => return Err(invalid(name, "is not a W3C traceparent")),
            },
            // Given by the log; what a publisher says of it means nothing here.
            "sequence" => {}
            other => self.extension(other, value)?,
        }
        Ok(())
    }

    fn extension(&mut self, name: &str, value: Attribute) -> Result<(), Problem> {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !is_name || name.len() > 64 {
            return Err(invalid(
                name,
                "cannot be the name of an attribute; expected lowercase letters and digits",
            ));
        }
        if self.extensions.len() >= EXTENSIONS_MAX {
            let detail = format!("the event has more than {EXTENSIONS_MAX} extension attributes");
            return Err(Problem::new(Refusal::TooLarge, detail));
        }
        self.extensions.insert(name.to_owned(), value);
        Ok(())
    }

    /// The event, if every attribute is there that an event must have.
    fn with_data(self, data: Bytes) -> Result<Incoming, Problem> {
        match self.spec_version.as_deref() {
            Some("1.0") => {}
            None => return Err(missing("specversion")),
            Some(other) => {
                let detail = format!("specversion is {other:?}; expected \"1.0\"");
                return Err(Problem::new(Refusal::SpecVersion, detail).with("attribute", "specversion"));
            }
        }
        let event = Incoming {
            id: self.id.ok_or_else(|| missing("id"))?,
            source: self.source.ok_or_else(|| missing("source"))?,
            event_type: self.event_type.ok_or_else(|| missing("type"))?,
            subject: self.subject,
            partition_key: self.partition_key,
            time: self.time,
            content_type: self.content_type.unwrap_or_else(|| JSON.to_owned()),
            trace: self.trace,
            extensions: self.extensions,
            data,
        };
        tombolo_event::key::check(event.key())
            .map_err(|error| Problem::from(error).with("attribute", "subject"))?;
        Ok(event)
    }
}

fn missing(name: &str) -> Problem {
    let detail = format!("the event has no {name}; every CloudEvent has specversion, id, source and type");
    Problem::new(Refusal::MissingAttribute, detail).with("attribute", name)
}

fn invalid(name: &str, found: &str) -> Problem {
    Problem::new(Refusal::InvalidAttribute, format!("the attribute {name:?} {found}")).with("attribute", name)
}

/// The value of an attribute that is text, and not empty.
fn text(name: &str, value: Attribute) -> Result<String, Problem> {
    match value {
        Attribute::Text(text) if !text.is_empty() => Ok(text),
        Attribute::Text(_) => Err(invalid(name, "is empty")),
        other => Err(invalid(name, &format!("is {other}; expected text"))),
    }
}

fn bounded(name: &str, text: String, bytes_max: usize) -> Result<String, Problem> {
    match text.len() <= bytes_max {
        true => Ok(text),
        false => Err(invalid(name, &format!("is {} bytes long; expected at most {bytes_max}", text.len()))),
    }
}

fn time(text: &str) -> Result<Timestamp, Problem> {
    text.parse().map_err(|_| invalid("time", &format!("is {text:?}; expected a time by RFC 3339")))
}
