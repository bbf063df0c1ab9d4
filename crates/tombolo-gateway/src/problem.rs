//! Refusals: problem documents (RFC 9457) that say what to do, and nothing about what is behind the door.
//!
//! Invariant: the `type` of a refusal is stable, and every refusal names the request by its id.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9457>.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::body::Download;

const PREFIX: &str = "urn:tombolo:gateway:";
/// The header that names a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request was not answered by a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// It is not HTTP as this door takes it.
    Malformed = 1,
    /// Its end cannot be told for certain.
    Framing,
    /// Something came behind a request to change the protocol, before the answer.
    EarlyUpgrade,
    /// Its head is too long.
    HeadTooLarge,
    /// It took too long to arrive.
    Slow,
    /// Its path can be read in more than one way.
    Path,
    /// No route leads anywhere.
    NotFound,
    /// A route does, but not by this method.
    Method,
    /// Its body is too long.
    BodyTooLarge,
    /// There were too many.
    Rate,
    /// The service has no replica.
    Unavailable,
    /// The service cannot be reached, or broke off.
    Unreachable,
    /// The service did not answer in time.
    Timeout,
}

impl Refusal {
    /// All of them.
    const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Framing,
        Self::EarlyUpgrade,
        Self::HeadTooLarge,
        Self::Slow,
        Self::Path,
        Self::NotFound,
        Self::Method,
        Self::BodyTooLarge,
        Self::Rate,
        Self::Unavailable,
        Self::Unreachable,
        Self::Timeout,
    ];

    /// The refusal of a number, for where only a number can be kept.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u8 == number)
    }

    /// The last word of its type.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Framing => "framing",
            Self::EarlyUpgrade => "early-upgrade",
            Self::HeadTooLarge => "head-too-large",
            Self::Slow => "slow",
            Self::Path => "path",
            Self::NotFound => "not-found",
            Self::Method => "method",
            Self::BodyTooLarge => "body-too-large",
            Self::Rate => "rate",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Framing | Self::EarlyUpgrade | Self::Path => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Rate => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The request is not HTTP as it is taken here",
            Self::Framing => "The end of the request is uncertain",
            Self::EarlyUpgrade => "Sent before the protocol was changed",
            Self::HeadTooLarge => "The headers are too long",
            Self::Slow => "The request took too long to arrive",
            Self::Path => "The path is ambiguous",
            Self::NotFound => "There is nothing here",
            Self::Method => "Not by this method",
            Self::BodyTooLarge => "The body is too long",
            Self::Rate => "Too many requests",
            Self::Unavailable => "Not available now",
            Self::Unreachable => "The service did not answer",
            Self::Timeout => "The service took too long",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Malformed => {
                "send a request line, one Host and headers as RFC 9112 says, with CR LF at each line's end"
            }
            Self::Framing => {
                "send either one Content-Length, a plain number, or Transfer-Encoding: chunked, and no second of either"
            }
            Self::EarlyUpgrade => {
                "wait for 101 Switching Protocols before sending anything else, and send no body"
            }
            Self::HeadTooLarge => "send fewer or shorter headers, cookies included",
            Self::Slow => "send the request without pauses, or begin again",
            Self::Path => "send a path without dot segments, encoded slashes or control characters",
            Self::NotFound => "check the host and the path",
            Self::Method => "use one of the methods in the header Allow",
            Self::BodyTooLarge => "send less at once",
            Self::Rate => "wait as long as the header Retry-After says",
            Self::Unavailable | Self::Timeout => "try again a little later",
            Self::Unreachable => {
                "try again if the request may be carried out twice: it is not known whether it was carried out"
            }
        }
    }

    /// Whether nothing more can be read from the connection.
    pub(crate) fn ends_connection(self) -> bool {
        matches!(
            self,
            Self::Malformed
                | Self::Framing
                | Self::EarlyUpgrade
                | Self::HeadTooLarge
                | Self::Slow
                | Self::BodyTooLarge
        )
    }

    /// The answer.
    pub(crate) fn response(self, request_id: &HeaderValue) -> Response<Download> {
        let document = json!({
            "type": format!("{PREFIX}{}", self.word()),
            "title": self.title(),
            "status": self.status().as_u16(),
            "detail": self.advice(),
            "request_id": request_id.to_str().unwrap_or_default(),
        });
        let mut response = Response::new(Download::full(Bytes::from(document.to_string())));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REQUEST_ID, request_id.clone());
        if self == Self::Unavailable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_refusal_and_zero_none() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::numbered(refusal as u8), Some(refusal));
        }
        assert_eq!(Refusal::numbered(0), None);
    }

    #[test]
    fn no_two_refusals_share_a_type() {
        let words: std::collections::BTreeSet<_> =
            Refusal::ALL.iter().map(|refusal| refusal.word()).collect();
        assert_eq!(words.len(), Refusal::ALL.len());
    }
}
