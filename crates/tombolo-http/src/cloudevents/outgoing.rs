//! What goes out: the stored event as its publisher gave it, with its place in the log.
//!
//! Invariant: source and id are unique together. The publisher's own id is shown where the source is the publisher's too; where
//! it proved to be somebody else, the id is that of the log and the given ones stand beside it.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};
use tombolo_event::Envelope;
use tombolo_event::envelope::{Attribute, JSON};

use super::{ORIGIN_ID, ORIGIN_SOURCE, is_json};

/// What the binding asks to be percent-encoded, in printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The event in the JSON format.
#[must_use]
pub fn to_json(mut envelope: Envelope, sequence: Option<u64>) -> Value {
    let id = given_id(&mut envelope);
    // Any kind of JSON is shown as such; what is not stays in base64.
    let own_type = envelope.content_type.clone();
    if is_json(&own_type) {
        envelope.content_type = JSON.to_owned();
    }
    let mut json = envelope.to_json(sequence);
    json["datacontenttype"] = json!(own_type);
    if let Some(id) = id {
        json["id"] = json!(id);
    }
    json
}

/// The event's attributes as headers of the binary mode, the content type among them; the body is its data.
#[must_use]
pub fn binary_headers(mut envelope: Envelope, sequence: Option<u64>) -> HeaderMap {
    let id = given_id(&mut envelope);
    envelope.data = bytes::Bytes::new();
    let content_type = std::mem::replace(&mut envelope.content_type, JSON.to_owned());
    let mut json = envelope.to_json(sequence);
    if let Some(id) = id {
        json["id"] = json!(id);
    }
    let mut headers = HeaderMap::new();
    for (name, value) in json.as_object().into_iter().flatten() {
        if matches!(name.as_str(), "data" | "data_base64" | "datacontenttype") {
            continue;
        }
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let encoded = utf8_percent_encode(&text, ENCODED).to_string();
        if let (Ok(name), Ok(value)) = (format!("ce-{name}").parse::<HeaderName>(), encoded.parse()) {
            headers.insert(name, value);
        }
    }
    if let Ok(value) = content_type.parse::<HeaderValue>() {
        headers.insert(http::header::CONTENT_TYPE, value);
    }
    headers
}

/// The id that the publisher gave, taken out of the extensions, where it is unique with the source that is shown.
fn given_id(envelope: &mut Envelope) -> Option<String> {
    if envelope.extensions.contains_key(ORIGIN_SOURCE) {
        return None;
    }
    match envelope.extensions.remove(ORIGIN_ID) {
        Some(Attribute::Text(id)) => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::{Body, STRUCTURED};
    use bytes::Bytes;

    fn published(json: &Value) -> crate::cloudevents::Incoming {
        let headers =
            [(http::header::CONTENT_TYPE, HeaderValue::from_static(STRUCTURED))].into_iter().collect();
        match Body::read(&headers, &json.to_string().into()).unwrap() {
            Body::One(event) => *event,
            Body::Batch(_) => panic!("expected one event"),
        }
    }

    #[test]
    fn what_is_published_is_read_back_with_every_attribute() {
        let json = json!({"specversion": "1.0", "id": "a", "source": "/p", "type": "T", "datacontenttype": "application/json",
            "time": "2026-11-29T12:00:00Z", "partitionkey": "k", "subject": "s", "one": 1, "yes": true, "data": {"x": 1}});
        let stored = published(&json).into_envelope("posts", None);
        let read = Envelope::decode(stored.encode()).unwrap();
        assert_eq!(to_json(read, None), json);
    }

    #[test]
    fn without_a_subject_there_is_none_when_it_is_read() {
        let json = json!({"specversion": "1.0", "id": "a", "source": "/p", "type": "T"});
        let stored = published(&json).into_envelope("posts", None);
        let read = to_json(Envelope::decode(stored.encode()).unwrap(), Some(7));
        assert_eq!(
            (read.get("subject"), &read["partitionkey"], &read["sequence"]),
            (None, &json!("/p"), &json!("7"))
        );
    }

    #[test]
    fn a_source_that_was_not_proved_stands_beside_the_one_that_was() {
        let json = json!({"specversion": "1.0", "id": "a", "source": "/p", "type": "T"});
        let read = to_json(published(&json).into_envelope("posts", Some("posts")), None);
        assert_eq!(
            (&read["source"], &read["originsource"], &read["originid"]),
            (&json!("posts"), &json!("/p"), &json!("a"))
        );
        assert_ne!(read["id"], json!("a"));
    }

    #[test]
    fn binary_headers_are_read_as_they_are_written() {
        let json = json!({"specversion": "1.0", "id": "a b%", "source": "/ü", "type": "T", "subject": "s",
            "datacontenttype": "text/plain", "time": "2026-11-29T12:00:00Z", "partitionkey": "s", "data": "hi"});
        let stored = published(&json).into_envelope("posts", None);
        let headers = binary_headers(stored.clone(), None);
        let Body::One(again) = Body::read(&headers, &Bytes::from_static(b"hi")).unwrap() else { panic!() };
        assert_eq!(again.into_envelope("posts", None), stored);
    }
}
