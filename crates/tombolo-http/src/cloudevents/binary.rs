//! The binary mode: attributes in `ce-` headers, data as the body.
//!
//! Invariant: a header is taken by the rules of the binding, percent-encoded where it has to be, or refused by name.

use bytes::Bytes;
use http::HeaderMap;
use percent_encoding::percent_decode;
use tombolo_event::envelope::Attribute;

use super::{Attributes, Incoming, invalid};
use crate::problem::Problem;

/// The event that the headers and the body are.
pub(super) fn event(
    headers: &HeaderMap,
    content_type: Option<&str>,
    body: &Bytes,
) -> Result<Incoming, Problem> {
    let mut attributes = Attributes::default();
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix("ce-") {
            attributes.put(name, Attribute::Text(decoded(name, value.as_bytes())?))?;
        }
    }
    if attributes.trace.is_none() {
        // The request's own context, where the event brings none.
        attributes.trace = headers.get("traceparent").and_then(|it| it.to_str().ok()?.parse().ok());
    }
    if let Some(content_type) = content_type {
        attributes.put("datacontenttype", Attribute::Text(content_type.to_owned()))?;
    }
    attributes.with_data(body.clone())
}

/// The text of a header: percent-encoded UTF-8, or UTF-8 as it is. Some clients send letters beyond ASCII in the older coding of
/// headers, ISO 8859-1, which is known by being no UTF-8.
fn decoded(name: &str, value: &[u8]) -> Result<String, Problem> {
    let text = match percent_decode(value).decode_utf8() {
        Ok(text) => text.into_owned(),
        Err(_) if !value.is_ascii() && std::str::from_utf8(value).is_err() => {
            value.iter().copied().map(char::from).collect()
        }
        Err(_) => return Err(invalid(name, "is not UTF-8 after percent-decoding")),
    };
    Ok(text.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::Body;
    use crate::problem::Refusal;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    const WHOLE: [(&str, &str); 6] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a-1"),
        ("ce-source", "/posts"),
        ("ce-type", "PostCreated"),
        ("ce-subject", "gr%C3%BC%C3%9Fe"),
        ("content-type", "application/json; charset=utf-8"),
    ];

    #[test]
    fn attributes_are_headers_and_the_body_is_data() {
        let Body::One(event) = Body::read(&headers(&WHOLE), &Bytes::from_static(b"{ }")).unwrap() else {
            panic!("expected one event");
        };
        assert_eq!((event.subject.as_deref(), &event.data[..]), (Some("grüße"), &b"{ }"[..]));
        assert_eq!(event.content_type, "application/json; charset=utf-8");
    }

    #[test]
    fn a_missing_or_odd_header_is_named() {
        let without =
            |left_out: &str| headers(&WHOLE.into_iter().filter(|it| it.0 != left_out).collect::<Vec<_>>());
        let problem = Body::read(&without("ce-id"), &Bytes::new()).unwrap_err();
        assert_eq!(
            (problem.refusal(), &problem.document()["attribute"]),
            (Refusal::MissingAttribute, &"id".into())
        );
        let problem = Body::read(&without("ce-specversion"), &Bytes::new()).unwrap_err();
        assert_eq!(problem.refusal(), Refusal::ContentType);
        let mut odd = headers(&WHOLE);
        odd.insert("ce-subject", http::HeaderValue::from_bytes(b"gr\xfcn").unwrap());
        let Body::One(event) = Body::read(&odd, &Bytes::new()).unwrap() else { panic!("expected one event") };
        assert_eq!(event.subject.as_deref(), Some("grün"));
        odd.insert("ce-subject", "%ff".parse().unwrap());
        assert_eq!(Body::read(&odd, &Bytes::new()).unwrap_err().refusal(), Refusal::InvalidAttribute);
    }
}
