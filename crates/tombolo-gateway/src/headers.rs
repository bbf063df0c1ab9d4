//! What may pass the door as a header, in either direction.
//!
//! Invariant: nothing that a service could take for a word of the gateway or of another service comes from a client: no
//! identity, no internal token, no address, in whatever spelling, and whatever `Connection` says of it.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

/// Headers of one connection, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
    TRAILER,
];
/// What names of headers begin with that say who somebody is, in common use.
const IDENTITY: [&str; 7] = [
    "x-user",
    "x-auth-",
    "x-authenticated-",
    "x-remote-",
    "remote-",
    "x-forwarded-user",
    "x-forwarded-email",
];
/// The rest of them.
const IDENTITY_WHOLE: [&str; 5] = [
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-access-token",
    "x-client-cert",
    "x-ssl-client-cert",
];
/// What of ours a client may say: the position that it read or wrote, and how it may wait for it.
const CLIENTS_WORDS: [&str; 2] = ["tombolo-position", "tombolo-freshness"];
const OUR_PREFIX: &str = "tombolo-";

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whether only the gateway, or a service behind it, may say this.
fn is_ours(name: &str) -> bool {
    // A service that reads headers through CGI's variables takes `_` for `-`. Nobody needs such a name, so, as at
    // most doors, none gets through.
    name.contains('_')
        || name.starts_with(OUR_PREFIX) && !CLIENTS_WORDS.contains(&name)
        || matches!(name.as_bytes().first(), Some(b'x' | b'r'))
            && (IDENTITY.iter().any(|prefix| name.starts_with(prefix)) || IDENTITY_WHOLE.contains(&name))
}

/// Takes everything out of a request's headers that must not pass.
pub(crate) fn clean_request(headers: &mut HeaderMap, keeps_authorization: bool) {
    let wants_trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(TE);
    join_cookies(headers);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if !keeps_authorization {
        headers.remove(AUTHORIZATION);
    }
    remove_ours(headers);
}

/// HTTP/2 lets cookies come in several lines, of which some services read the first only, and others the last.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

fn remove_ours(headers: &mut HeaderMap) {
    if crate::mutant::is_on(crate::mutant::Mutant::PassesIdentities) {
        return;
    }
    while let Some(name) = headers.keys().find(|name| is_ours(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Takes everything out of trailers that would not pass as a header, and what must be known before a body.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    for name in [HOST, AUTHORIZATION, CONTENT_LENGTH, COOKIE, FORWARDED_FOR] {
        trailers.remove(name);
    }
    remove_ours(trailers);
}

/// Takes out what belongs to the connection to a replica, and any length beside which there is another.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    let length = Some(&*headers).filter(|_| !is_chunked).and_then(only_length);
    remove_hop_by_hop(headers);
    match length {
        Some(length) => drop(headers.insert(CONTENT_LENGTH, length)),
        None => drop(headers.remove(CONTENT_LENGTH)),
    }
}

/// The length that all say.
fn only_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let mut lengths = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let first = lengths.next().filter(|first| !first.is_empty() && first.iter().all(u8::is_ascii_digit))?;
    HeaderValue::from_bytes(first).ok().filter(|_| lengths.all(|other| other == first))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        for name in named_by_connection(headers) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What `Connection` names, but for what is not its to take away.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    let names = values.flat_map(|value| value.split(|byte| *byte == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    names.filter(|name| *name != HOST).collect()
}

/// Whether `Connection` names `upgrade` and `Upgrade` is `websocket`, the one protocol that passes.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let websocket = headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    websocket && named_by_connection(headers).contains(&UPGRADE)
}

/// How the client reached the door.
pub(crate) struct Client<'c> {
    /// Who is at the other end of the connection.
    pub(crate) peer: IpAddr,
    /// Whether the connection is sealed.
    pub(crate) is_sealed: bool,
    /// The host that was asked for.
    pub(crate) host: Option<&'c HeaderValue>,
    /// Whose word about addresses is believed.
    pub(crate) proxies: &'c [IpNet],
}

impl Client<'_> {
    fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|network| network.contains(&address))
    }

    /// The nearest address that is no proxy's.
    pub(crate) fn address(&self, headers: &HeaderMap) -> IpAddr {
        let mut nearest = self.peer.to_canonical();
        if self.proxies.is_empty() || !self.is_proxy(nearest) {
            return nearest;
        }
        let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().filter_map(|it| it.to_str().ok()).collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
            nearest = address.to_canonical();
            if !self.is_proxy(nearest) {
                break;
            }
        }
        nearest
    }

    /// Says to the service how the client came.
    pub(crate) fn forward(&self, headers: &mut HeaderMap) {
        headers.remove(FORWARDED);
        headers.remove(REAL_IP);
        let trusted = !self.proxies.is_empty() && self.is_proxy(self.peer);
        let before = headers.get(FORWARDED_FOR).filter(|_| trusted).and_then(|it| it.to_str().ok());
        let peer = self.peer.to_canonical();
        let chain = match before {
            Some(before) => format!("{before}, {peer}"),
            None => peer.to_string(),
        };
        if let Ok(chain) = HeaderValue::from_str(&chain) {
            headers.insert(FORWARDED_FOR, chain);
        }
        if !trusted || !headers.contains_key(FORWARDED_PROTO) {
            let scheme = if self.is_sealed { "https" } else { "http" };
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
        }
        if !trusted || !headers.contains_key(FORWARDED_HOST) {
            match self.host {
                Some(host) => headers.insert(FORWARDED_HOST, host.clone()),
                None => headers.remove(FORWARDED_HOST),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn no_spelling_of_an_identity_passes() {
        for name in [
            "X-User-Id",
            "x-user",
            "X_User_Id",
            "X-USER_ID",
            "x-user-roles",
            "Tombolo-Internal-Token",
            "tombolo_internal_token",
            "TOMBOLO-DEADLINE-MS",
            "tombolo-asked",
            "Remote-User",
            "X-Remote-User",
            "X-Forwarded-User",
            "X-Auth-Request-User",
            "REMOTE_USER",
            "x-authenticated-userid",
        ] {
            let mut headers = map(&[(name, "admin"), ("accept", "*/*"), (name, "again")]);
            clean_request(&mut headers, true);
            assert_eq!(headers.len(), 1, "{name}");
        }
    }

    #[test]
    fn what_a_client_may_say_passes() {
        let pairs =
            [("tombolo-position", "1"), ("authorization", "Bearer x"), ("x-usage", "1"), ("te", "trailers")];
        let mut headers = map(&pairs);
        clean_request(&mut headers, true);
        assert_eq!(headers.len(), 4);
        clean_request(&mut headers, false);
        assert!(!headers.contains_key(AUTHORIZATION));
    }

    #[test]
    fn what_connection_names_does_not_pass_and_host_stays() {
        let mut headers =
            map(&[("connection", "close, x-secret, host"), ("x-secret", "1"), ("host", "a"), ("te", "gzip")]);
        clean_request(&mut headers, true);
        assert_eq!(headers, map(&[("host", "a")]));
    }

    #[test]
    fn connection_may_name_many_beside_what_is_no_name() {
        let names: Vec<_> = (0..40).map(|number| format!("x-{number}")).collect();
        let mut headers: HeaderMap =
            names.iter().map(|name| (name.parse().unwrap(), HeaderValue::from_static("1"))).collect();
        let value = [b"\xff, ".to_vec(), names.join(",").into_bytes()].concat();
        headers.insert(CONNECTION, HeaderValue::from_bytes(&value).unwrap());
        clean_request(&mut headers, true);
        assert_eq!(headers, HeaderMap::new());
    }

    #[test]
    fn cookies_of_several_lines_are_one() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
        clean_request(&mut headers, true);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3; d=4")]));
    }

    #[test]
    fn an_answer_says_one_length_or_none() {
        let cleaned = |pairs: &[(&str, &str)]| {
            let mut headers = map(pairs);
            clean_response(&mut headers);
            headers
        };
        assert_eq!(cleaned(&[("content-length", "5"), ("transfer-encoding", "chunked")]), map(&[]));
        assert_eq!(
            cleaned(&[("content-length", "5, 5"), ("content-length", "5")]),
            map(&[("content-length", "5")])
        );
        for length in ["5, 6", "+5", "", "5,"] {
            assert_eq!(cleaned(&[("content-length", length)]), map(&[]), "{length:?}");
        }
    }

    #[test]
    fn only_a_proxy_is_believed() {
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        let client = |peer: &str| Client {
            peer: peer.parse().unwrap(),
            is_sealed: false,
            host: None,
            proxies: &proxies,
        };
        let headers = map(&[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.9")]);
        assert_eq!(client("10.0.0.1").address(&headers).to_string(), "1.2.3.4");
        assert_eq!(client("9.9.9.9").address(&headers).to_string(), "9.9.9.9");
        assert_eq!(client("::ffff:10.0.0.1").address(&headers).to_string(), "1.2.3.4");
        let mut forged = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "bank"),
        ]);
        client("9.9.9.9").forward(&mut forged);
        assert_eq!(forged, map(&[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "http")]));
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        assert!(is_upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!is_upgrade(&map(&[("connection", "Upgrade"), ("upgrade", "h2c")])));
        assert!(!is_upgrade(&map(&[("upgrade", "websocket")])));
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_of_ours_is_left(names in prop::collection::vec("[xXrRtT][-_a-zA-Z]{1,24}", 0..40)) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1"));
            }
            headers.append(CONNECTION, HeaderValue::from_str(&names.join(",")).unwrap());
            clean_request(&mut headers, true);
            for name in headers.keys() {
                prop_assert!(!is_ours(name.as_str()));
            }
        }
    }
}
