//! An event as an HTTP request: the binary mode of CloudEvents, with where it stands in its topic.
//!
//! Invariant: whatever an event holds, its headers are plain text, escaped as the specification says.
//! Source: <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/http-protocol-binding.md>.

use std::fmt::Write;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tombolo_bus::Record;
use tombolo_event::{Envelope, ServiceName};

use crate::error::{Context, Error, Result, with_causes};

/// The most bytes of the program's words that are said on.
const SAID_BYTES_MAX: usize = 300;

/// The program that takes events.
pub(super) struct Receiver {
    client: Client,
    url: Url,
}

/// What it answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// A status of success.
    Taken(u16),
    /// Anything else, in words.
    Refused(String),
}

impl Receiver {
    /// The program at `url`, which may take so long for one event.
    pub(super) fn new(url: &str, within: Duration) -> Result<Self> {
        let parsed = Url::parse(url).ok().filter(|parsed| parsed.scheme() == "http" && parsed.has_host());
        let url = parsed.ok_or_else(|| {
            Error::usage(format!(
                "found --to {url:?}; expected http://host:port/path, where the program listens"
            ))
        })?;
        let client = Client::builder().timeout(within).redirect(Policy::none()).build();
        Ok(Self { client: client.context(|| "cannot make HTTP requests".into())?, url })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Brings an event.
    pub(super) async fn post(
        &self,
        subscription: &str,
        topic: &ServiceName,
        partition: u32,
        record: &Record,
    ) -> Answer {
        let envelope = match Envelope::decode(record.bytes.clone()) {
            Ok(envelope) => envelope,
            Err(error) => return Answer::Refused(format!("was not asked: {error}, which belongs")),
        };
        let headers = headers(subscription, topic, partition, record.sequence, &envelope);
        let sent = self.client.post(self.url.clone()).headers(headers).body(envelope.data).send().await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Answer::Refused(format!("could not be asked ({})", with_causes(&error))),
        };
        let status = answer.status();
        if status.is_success() {
            return Answer::Taken(status.as_u16());
        }
        let mut said = answer.text().await.unwrap_or_default();
        said.truncate(said.floor_char_boundary(SAID_BYTES_MAX));
        Answer::Refused(format!("answered {} ({})", status.as_u16(), said.trim()))
    }
}

fn headers(
    subscription: &str,
    topic: &ServiceName,
    partition: u32,
    sequence: u64,
    envelope: &Envelope,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(&escaped(value)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    put("ce-specversion", "1.0");
    put("ce-id", &envelope.id.to_string());
    put("ce-source", &envelope.source);
    put("ce-type", &envelope.event_type);
    put("ce-subject", &envelope.key);
    put("ce-partitionkey", &envelope.key);
    put("ce-time", &envelope.time.to_string());
    put("ce-sequence", &sequence.to_string());
    if let Some(trace) = envelope.trace {
        put("ce-traceparent", &trace.to_string());
        put("traceparent", &trace.to_string());
    }
    if let Some(correlation) = &envelope.correlation {
        put("ce-correlationid", correlation);
    }
    if let Some(causation) = envelope.causation {
        put("ce-causationid", &causation.to_string());
    }
    put("tombolo-subscription", subscription);
    put("tombolo-topic", topic.as_str());
    put("tombolo-partition", &partition.to_string());
    put("tombolo-sequence", &sequence.to_string());
    if let Ok(content_type) = HeaderValue::from_str(&envelope.content_type) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers
}

/// Percent-encodes what is no visible letter of ASCII, and the space, the quote and the percent sign.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' | 0..=b' ' | 0x7f..=0xff => {
                // Writing to a text cannot fail.
                write!(escaped, "%{byte:02X}").ok();
            }
            plain => escaped.push(char::from(plain)),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_any_letters_becomes_a_plain_header() {
        assert_eq!(escaped("order-1/ä €\"%\n"), "order-1/%C3%A4%20%E2%82%AC%22%25%0A");
    }

    #[test]
    fn only_a_program_that_listens_on_http_is_taken() {
        let of = |url| Receiver::new(url, Duration::from_secs(1));
        assert!(of("http://127.0.0.1:9000/events").is_ok());
        for wrong in ["127.0.0.1:9000", "ftp://host/x", "https://host/x", "/events"] {
            let said = of(wrong).map(drop).unwrap_err().to_string();
            assert!(said.contains("http://host:port/path"), "{said}");
        }
    }
}
