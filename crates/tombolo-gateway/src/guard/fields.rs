//! What of a request of HTTP/2 a service could read in two ways once it is one of HTTP/1.1. Pure.
//!
//! Frames tell where a body ends, and h2 refuses what no field may hold; what it lets through beside that is judged here.
//! Invariant: what passes says at most once how long its body is, and one host.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9113>, section 8.

use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderValue, Method};

use super::head::is_length;
use crate::mutant::{self, Mutant};
use crate::problem::Refusal;

/// Whether the head of a request of HTTP/2 has one reading.
pub(crate) fn judge(parts: &Parts) -> Result<(), Refusal> {
    if mutant::is_on(Mutant::PassesFields) {
        return Ok(());
    }
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    if lengths.next().is_some_and(|length| !is_length(length)) || lengths.next().is_some() {
        return Err(Refusal::Framing);
    }
    let is_known = parts.uri.scheme().is_some_and(|it| *it == Scheme::HTTP || *it == Scheme::HTTPS);
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    let differs = match (parts.uri.authority(), host) {
        (Some(authority), Some(host)) => !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()),
        _ => false,
    };
    let is_tunnel = parts.method == Method::CONNECT;
    if !is_known || differs || is_tunnel || hosts.next().is_some() { Err(Refusal::Malformed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn judged(uri: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        judge(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn one_length_and_one_host_pass() {
        let all = [("content-length", "5"), ("host", "A")];
        assert_eq!(judged("http://a/x", &all), Ok(()));
        assert_eq!(judged("https://a/x", &[]), Ok(()));
    }

    #[test]
    fn two_lengths_and_what_is_none_are_refused() {
        for lengths in [&["5", "5"][..], &["5", "6"], &[""], &["+5"], &["5, 5"], &["0x5"]] {
            let headers: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(judged("http://a/", &headers), Err(Refusal::Framing), "{lengths:?}");
        }
    }

    #[test]
    fn two_hosts_and_other_schemes_are_refused() {
        assert_eq!(judged("http://a/", &[("host", "b")]), Err(Refusal::Malformed));
        assert_eq!(judged("http://a/", &[("host", "a"), ("host", "a")]), Err(Refusal::Malformed));
        assert_eq!(judged("ftp://a/", &[]), Err(Refusal::Malformed));
        assert_eq!(judged("/", &[("host", "a")]), Err(Refusal::Malformed));
    }
}
