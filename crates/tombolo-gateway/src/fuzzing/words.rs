//! Paths, headers and configurations, each beside what a service or an operator would make of it.
//!
//! Invariant: what is expected here is said in other words than where it is done.

use std::convert::Infallible;
use std::path::Path;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use tower::{Layer, service_fn};

use crate::config::{Route, Settings, Source};
use crate::headers::{Client, clean_request, clean_trailers};
use crate::limits::Rates;
use crate::path::normalized;
use crate::routes::{Found, Routes, rewritten};
use crate::table;

/// Routes below each other, with prefixes that are kept, taken away and replaced.
static ROUTES: LazyLock<(Vec<Route>, Routes)> = LazyLock::new(|| {
    let text = "[gateway]\n[[gateway.route]]\nservice = \"all\"\n\
        [[gateway.route]]\nservice = \"a\"\npath = \"/a\"\nstrip = true\n\
        [[gateway.route]]\nservice = \"ab\"\npath = \"/a/b\"\nrewrite = \"/v2/ab\"\n\
        [[gateway.route]]\nservice = \"orders\"\npath = \"/orders\"\n";
    let routes = Settings::read(text, Path::new("/")).ok().flatten().map(|settings| settings.routes);
    let routes = routes.unwrap_or_default();
    (routes.clone(), Routes::new(&routes))
});

/// A path takes the route that guards what a service understands by it.
pub fn path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(normal) = normalized(text) else { return };
    assert_eq!(normalized(&normal).as_deref(), Ok(&*normal), "it is not normal after once");
    let understood = understood(text);
    assert_eq!(understood, self::understood(&normal), "it is understood in another way than before");
    for segment in &understood {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..", "it leads somewhere else");
        let bad = |byte: &u8| byte.is_ascii_control() || b"/\\".contains(byte);
        assert!(!segment.iter().any(bad), "a segment has {segment:?}");
    }
    let (routes, all) = &*ROUTES;
    let guards = |route: &Route| understood.starts_with(&self::understood(route.path.as_str()));
    let most = routes.iter().filter(|route| guards(route)).max_by_key(|route| route.path.as_str().len());
    let Found::Route(number) = all.find("h", &normal, &Method::GET) else { panic!("no route leads there") };
    let route = &routes[number];
    assert_eq!(most.map(|route| &route.path), Some(&route.path), "it leads past a route");
    if let Some(new) = rewritten(route, &normal) {
        assert_eq!(normalized(&new).as_deref(), Ok(&*new), "what it is rewritten to is not normal");
        let below = &understood[self::understood(route.path.as_str()).len()..];
        let to = self::understood(route.rewrite.as_deref().unwrap_or_default());
        assert_eq!(self::understood(&new), [&to, below].concat(), "it is rewritten to something else");
    }
}

/// The names on the way that a service sees.
fn understood(path: &str) -> Vec<Vec<u8>> {
    path.split('/').filter(|segment| !segment.is_empty()).map(decoded).collect()
}

fn decoded(segment: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.first_chunk::<2>().and_then(|two| std::str::from_utf8(two).ok());
        match digits.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &after[2..]).1,
            None => (bytes.push(*first), rest = after).1,
        }
    }
    bytes
}

/// Lines of headers: what is left is neither ours nor the connection's, and as it came.
pub fn headers(bytes: &[u8]) {
    let mut said = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(128) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok());
        if let (Some(name), Some(value)) = (name, value) {
            said.append(name, value);
        }
    }
    let mut cleaned = said.clone();
    clean_request(&mut cleaned, true);
    judge(&said, &cleaned);
    let mut again = cleaned.clone();
    clean_request(&mut again, true);
    assert_eq!(again, cleaned, "it is not clean after once");
    clean_request(&mut again, false);
    assert!(!again.contains_key("authorization"));
    let mut trailers = said.clone();
    clean_trailers(&mut trailers);
    judge(&said, &trailers);
    for name in ["host", "authorization", "content-length", "cookie", "x-forwarded-for"] {
        assert!(!trailers.contains_key(name), "a trailer says {name}");
    }
    forwarded(&said);
}

fn judge(said: &HeaderMap, left: &HeaderMap) {
    let named: Vec<Vec<u8>> = said
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect();
    for name in left.keys() {
        let text = name.as_str();
        assert!(!is_reserved(&text.replace('_', "-")) && !text.contains('_'), "{text} is left");
        assert!(!is_of_connection(text), "{text} is left");
        let is_named = named.iter().any(|it| it == text.as_bytes());
        assert!(!is_named || matches!(text, "host" | "te"), "{text} is left though Connection names it");
        let is_same = said.get_all(name).iter().eq(left.get_all(name));
        let is_known = text == "cookie" || text == "te" && left[name] == "trailers";
        assert!(is_same || is_known, "{text} was changed");
    }
    for name in said.keys().filter(|name| matches!(name.as_str(), "accept" | "x" | "tombolo-position")) {
        let is_named = named.iter().any(|it| it == name.as_str().as_bytes());
        assert_eq!(left.contains_key(name), !is_named, "{name} was taken for no reason");
    }
}

fn is_reserved(name: &str) -> bool {
    let words = ["tombolo-position", "tombolo-freshness"];
    let prefixes = ["tombolo-", "x-user", "x-auth-", "x-authenticated-", "x-remote-", "remote-"];
    let prefix = prefixes.iter().any(|prefix| name.starts_with(prefix)) && !words.contains(&name);
    prefix || name.starts_with("x-forwarded-user") || name.starts_with("x-forwarded-email")
}

fn is_of_connection(name: &str) -> bool {
    let names =
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "trailer", "expect"];
    names.contains(&name)
}

fn forwarded(said: &HeaderMap) {
    let nobody = [192, 0, 2, 7].into();
    let client = Client { peer: nobody, is_sealed: false, host: None, proxies: &[] };
    let mut headers = said.clone();
    client.forward(&mut headers);
    assert_eq!(client.address(said), nobody);
    let said_once = |name: &str, value: &str| headers.get_all(name).iter().eq([value]);
    assert!(said_once("x-forwarded-for", "192.0.2.7") && said_once("x-forwarded-proto", "http"));
    for name in ["forwarded", "x-real-ip", "x-forwarded-host"] {
        assert!(!headers.contains_key(name), "{name} is a client's");
    }
    let proxies = ["192.0.2.0/24".parse().ok(), "10.0.0.0/8".parse().ok()].map(Option::unwrap_or_default);
    let behind = Client { proxies: &proxies, ..client };
    let address = behind.address(said);
    let is_known = said.contains_key("x-forwarded-for") || address == nobody;
    assert!(is_known, "{address} comes from nowhere");
}

/// A manifest is refused with places that it has, or what is read of it can be used.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Settings::read(text, Path::new("/")) {
        Ok(None) => {}
        Ok(Some(settings)) => usable(&settings),
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                assert!(text.get(mistake.at.clone()).is_some(), "{:?} is nowhere", mistake.at);
                assert!(!mistake.message.is_empty());
            }
        }
    }
}

fn usable(settings: &Settings) {
    let (limits, all) = (&settings.limits, Routes::new(&settings.routes));
    assert!(!settings.routes.is_empty() && limits.connections_max > 0 && limits.head_bytes_max >= 1024);
    for route in &settings.routes {
        assert!(!route.name.is_empty() && !route.timeout.is_zero());
        let path = route.path.as_str();
        assert_eq!(normalized(path).as_deref(), Ok(path));
        if let Some(new) = rewritten(route, path) {
            assert_eq!(normalized(&new).as_deref(), Ok(&*new), "it rewrites to {new:?}");
            assert!(new.parse::<http::uri::PathAndQuery>().is_ok(), "it rewrites to {new:?}");
        }
        match &route.source {
            Source::Service(name) => assert!(!name.is_empty()),
            Source::Fixed(targets) => {
                assert!(!targets.is_empty());
                for target in targets {
                    let is_whole = target.url.scheme().is_some() && target.url.authority().is_some();
                    assert!(is_whole && target.weight > 0, "{target:?}");
                }
            }
            Source::Dns(name) => assert!(name.host().is_some()),
        }
        drop(Rates::new(&route.rates));
        if let Some(cors) = &route.cors {
            let answer = async |_: Request<()>| Ok::<_, Infallible>(Response::new(()));
            drop(table::layer(cors, route).layer(service_fn(answer)));
        }
        let host = route.host.as_deref().map_or_else(|| "h".to_owned(), |host| host.replacen('*', "h", 1));
        let method = route.methods.first().cloned().unwrap_or(Method::GET);
        assert!(matches!(all.find(&host, path, &method), Found::Route(_)), "{host}{path} leads nowhere");
    }
}
