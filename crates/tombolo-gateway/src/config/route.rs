//! One `[[gateway.route]]`: what it matches, where it leads, and how requests are treated on the way.
//!
//! Invariant: a route leads to exactly one source of replicas.

use std::fmt;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Uri};

use super::reader::{Mistake, Section, Value, did_you_mean, found};
use crate::path::normalized;

const TIMEOUT_MS: u64 = 30_000;
const BODY_BYTES: u64 = 10 << 20;
const HEALTH_MS: u64 = 500;
const AT_THE_DOOR: [(&str, AtTheDoor); 4] = [
    ("pass", AtTheDoor::Pass),
    ("none", AtTheDoor::None),
    ("optional", AtTheDoor::Optional),
    ("required", AtTheDoor::Required),
];
const WAYS: [(&str, Way); 2] = [("local", Way::Local), ("central", Way::Central)];

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name in logs and metrics.
    pub name: String,
    /// The host that it is for: exact, or `*.` and a suffix.
    pub host: Option<String>,
    /// The path that it is for, with everything below it.
    pub path: PathPrefix,
    /// The methods that it is for; all if empty.
    pub methods: Vec<Method>,
    /// What takes the place of the prefix, if anything.
    pub rewrite: Option<String>,
    /// Where its replicas are found.
    pub source: Source,
    /// How one of them is chosen.
    pub balance: Balance,
    /// Whether they are spoken to in HTTP/2.
    pub http2: bool,
    /// Whether the client's `Host` is kept.
    pub keep_host: bool,
    /// How they are asked whether they are well.
    pub health: Option<Health>,
    /// How often a safe request is tried again on another replica.
    pub retries: u32,
    /// How long until the answer must begin.
    pub timeout: Duration,
    /// The most bytes of a body.
    pub body_bytes_max: u64,
    /// How many requests are let in.
    pub rates: Vec<Rate>,
    /// Who may ask from a browser page of another origin.
    pub cors: Option<Cors>,
    /// Whether answers are compressed.
    pub compress: bool,
    /// Who is asked for a token.
    pub auth: AtTheDoor,
    /// How a token is checked.
    pub check: Way,
    /// The service that the gateway vouches to, where it is not that of the route's source.
    pub callee: Option<String>,
}

/// A path with everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// The path, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }

    /// What of `path` is below it, if `path` is it or below it.
    pub(crate) fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(&*self.0).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// How specific it is.
    pub(crate) fn length(&self) -> usize {
        self.0.len()
    }

    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let text = section.text("path").unwrap_or_else(|| "/".into());
        let at = section.place("path");
        if !text.starts_with('/') {
            let advice = format!("write path = \"/{text}\"");
            section.wrong(at, format!("path is {text:?}; expected one that begins with '/'"), advice);
            return None;
        }
        match normalized(&text) {
            Ok(normal) if normal == text.as_str() => Some(Self(text.trim_end_matches('/').to_owned())),
            _ => {
                section.wrong(
                    at,
                    format!("path is {text:?}; expected one without empty or dot segments"),
                    "write it as services see it",
                );
                None
            }
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where replicas are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A service of the manifest, whose replicas somebody else knows.
    Service(String),
    /// A list.
    Fixed(Vec<Target>),
    /// A name, asked again when its answer has lived.
    Dns(Uri),
}

/// One address of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Scheme, host and port.
    pub url: Uri,
    /// Its share beside the others.
    pub weight: u32,
    /// The name in its certificate, where it is reached by an address.
    pub name: Option<String>,
}

/// How a replica is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// The less loaded of two, by the peak of latency and what is under way.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
    /// The same for the same key, as far as it is well.
    Hash(HashBy),
}

/// What a replica is chosen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// A header's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// The user, or the address of who is not known.
    User,
}

/// How replicas are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked for; anything but success means no.
    pub path: String,
    /// How often.
    pub every: Duration,
}

/// So many requests are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// For each of what.
    pub by: RateBy,
    /// How many a second.
    pub per_s: u32,
    /// How many at once.
    pub burst: u32,
}

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateBy {
    /// Users; who is not known counts by address.
    User,
    /// Addresses.
    Address,
    /// Nothing: the whole route.
    Route,
}

/// Who may ask from a browser page of another origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Their origins; any, if it is `*`.
    pub origins: Vec<HeaderValue>,
    /// Whether with cookies and tokens.
    pub credentials: bool,
    /// Headers that pages may send.
    pub headers: Vec<HeaderName>,
    /// Headers that pages may read.
    pub expose: Vec<HeaderName>,
    /// For how long the browser remembers.
    pub max_age: Duration,
}

/// Who is asked for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtTheDoor {
    /// Nobody; the service checks by itself what came.
    Pass,
    /// Nobody, and no token gets through.
    None,
    /// Who shows one; others are nobody.
    Optional,
    /// Everybody.
    Required,
}

/// How a token is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its signature, and the blocks that were heard.
    Local,
    /// By asking the issuer.
    Central,
}

impl Route {
    pub(super) fn read(mistakes: &mut Vec<Mistake>, value: &Value<'_>) -> Option<Self> {
        let mut section = Section::open(mistakes, value, "[[gateway.route]]")?;
        let path = PathPrefix::read(&mut section);
        let host = host(&mut section);
        let methods = methods(&mut section);
        let source = source(&mut section, value);
        let health = health(&mut section, source.as_ref());
        let name = section.text("name");
        let rewrite = rewrite(&mut section);
        let route = Self {
            name: name.unwrap_or_else(|| named(host.as_deref(), path.as_ref())),
            host,
            methods,
            rewrite,
            balance: balance(&mut section),
            http2: section.flag("http2").unwrap_or(false),
            keep_host: section.flag("keep_host").unwrap_or(true),
            health,
            retries: section.number("retries", 0..=5).map_or(1, |retries| retries as u32),
            timeout: Duration::from_millis(section.number("timeout_ms", 1..=3_600_000).unwrap_or(TIMEOUT_MS)),
            body_bytes_max: section.bytes("body_max").unwrap_or(BODY_BYTES),
            rates: rates(&mut section),
            cors: cors(&mut section),
            compress: section.flag("compress").unwrap_or(false),
            auth: section.word("auth", &AT_THE_DOOR).unwrap_or(AtTheDoor::Pass),
            check: section.word("check", &WAYS).unwrap_or(Way::Local),
            callee: section.text("callee"),
            path: path.unwrap_or(PathPrefix(String::new())),
            source: source.unwrap_or(Source::Fixed(Vec::new())),
        };
        section.finish();
        Some(route)
    }

    /// Whether a request could be meant for both, and neither is more specific.
    pub(super) fn is_ambiguous_with(&self, other: &Self) -> bool {
        let shares = |method: &Method| other.methods.contains(method);
        let methods = self.methods.is_empty() && other.methods.is_empty() || self.methods.iter().any(shares);
        self.host == other.host && self.path == other.path && methods
    }
}

fn named(host: Option<&str>, path: Option<&PathPrefix>) -> String {
    format!("{}{}", host.unwrap_or_default(), path.map_or("/", PathPrefix::as_str))
}

fn host(section: &mut Section<'_, '_>) -> Option<String> {
    let host = section.text("host")?.to_ascii_lowercase();
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let is_plain = !name.contains(['*', '@']);
    // Whatever else stands there is never what a request names, so the route would be passed by.
    if !is_plain || !name.parse::<Authority>().is_ok_and(|it| it.host() == name) {
        let message = format!("host is {host:?}; expected a name without a port, or \"*.\" and one");
        section.wrong(section.place("host"), message, "such as \"shop.example\" or \"*.shop.example\"");
    }
    Some(host)
}

fn methods(section: &mut Section<'_, '_>) -> Vec<Method> {
    let texts = section.texts("methods").unwrap_or_default();
    let at = section.place("methods");
    let mut methods = Vec::new();
    for text in texts {
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) if text == text.to_ascii_uppercase() && method != Method::CONNECT => {
                methods.push(method)
            }
            _ => section.wrong(
                at.clone(),
                format!("methods has {text:?}; expected a method"),
                "such as \"GET\"",
            ),
        }
    }
    methods
}

fn rewrite(section: &mut Section<'_, '_>) -> Option<String> {
    let (strip, text) = (section.flag("strip").unwrap_or(false), section.text("rewrite"));
    let at = section.place("rewrite");
    match text {
        None => strip.then(String::new),
        Some(_) if strip => {
            section.wrong(at, "the route has strip and rewrite", "remove one: rewrite = \"/\" strips");
            None
        }
        Some(text) => match normalized(&text) {
            Ok(normal) if normal == text.as_str() => Some(text.trim_end_matches('/').to_owned()),
            _ => {
                let message = format!("rewrite is {text:?}; expected a path that begins with '/'");
                section.wrong(at, message, "such as \"/v2/orders\"");
                None
            }
        },
    }
}

fn source(section: &mut Section<'_, '_>, whole: &Value<'_>) -> Option<Source> {
    let service = section.text("service").map(Source::Service);
    let fixed = section.value("upstreams").and_then(|list| targets(section, list)).map(Source::Fixed);
    let dns = section.text("dns").and_then(|text| {
        let place = section.place("dns");
        url(section, &text, place, &["http", "https", "srv+http", "srv+https"]).map(Source::Dns)
    });
    let mut given = [service, fixed, dns].into_iter().flatten();
    let first = given.next();
    if given.next().is_some() {
        let message = "the route leads to more than one place: service, upstreams and dns exclude each other";
        section.wrong(whole.span(), message, "keep one of them");
    }
    let is_meant = ["upstreams", "dns"].iter().any(|key| section.place(key) != (0..0));
    if first.is_none() && !is_meant {
        section.wrong(
            whole.span(),
            "the route has no place to send requests to",
            "add service = \"NAME\", upstreams = [\"http://HOST:PORT\"] or dns = \"http://NAME:PORT\"",
        );
    }
    first
}

fn targets(section: &mut Section<'_, '_>, list: &Value<'_>) -> Option<Vec<Target>> {
    let Some(values) = list.get_ref().as_array().filter(|values| !values.is_empty()) else {
        let message = format!("upstreams is {}; expected a list of addresses", found(list));
        section.wrong(list.span(), message, "write upstreams = [\"http://HOST:PORT\"]");
        return None;
    };
    values.iter().map(|value| target(section, value)).collect()
}

fn target(section: &mut Section<'_, '_>, value: &Value<'_>) -> Option<Target> {
    let schemes = ["http", "https"];
    if let Some(text) = value.get_ref().as_str() {
        return url(section, text, value.span(), &schemes).map(|url| Target { url, weight: 1, name: None });
    }
    let mut table = Section::open(section.mistakes, value, "an address of upstreams")?;
    let text = table.text("url");
    let weight = table.number("weight", 1..=1_000).unwrap_or(1) as u32;
    if text.is_none() {
        table.wrong(value.span(), "an address of upstreams has no url", "add url = \"http://HOST:PORT\"");
    }
    table.finish();
    url(section, &text?, value.span(), &schemes).map(|url| Target { url, weight, name: None })
}

fn url(
    section: &mut Section<'_, '_>,
    text: &str,
    at: std::ops::Range<usize>,
    schemes: &[&str],
) -> Option<Uri> {
    let parsed = text.parse::<Uri>().ok().filter(|uri| {
        uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.path() == "/"
            && uri.query().is_none()
    });
    if parsed.is_none() {
        let message = format!("{text:?} is no address; expected {}://HOST:PORT", schemes.join(":// or "));
        section.wrong(at, message, "without a path: `rewrite` of the route adds one");
    }
    parsed
}

fn balance(section: &mut Section<'_, '_>) -> Balance {
    let Some(text) = section.text("balance") else { return Balance::LeastLoaded };
    let hash = text.strip_prefix("hash:").map(|by| by.split_once(':').unwrap_or((by, "")));
    match (text.as_str(), hash) {
        ("least-loaded", _) => return Balance::LeastLoaded,
        ("round-robin", _) => return Balance::RoundRobin,
        (_, Some(("user", ""))) => return Balance::Hash(HashBy::User),
        (_, Some(("cookie", name))) if !name.is_empty() => {
            return Balance::Hash(HashBy::Cookie(name.to_owned()));
        }
        (_, Some(("header", name))) => {
            if let Ok(name) = name.parse() {
                return Balance::Hash(HashBy::Header(name));
            }
        }
        _ => {}
    }
    let known = ["least-loaded", "round-robin", "hash:user", "hash:header:NAME", "hash:cookie:NAME"];
    let message = format!("balance is {text:?}; expected one of {}", known.join(", "));
    section.wrong(section.place("balance"), message, did_you_mean(&text, known));
    Balance::LeastLoaded
}

/// Services of the manifest are asked on `/ready`; others only if somebody says what to ask for.
fn health(section: &mut Section<'_, '_>, source: Option<&Source>) -> Option<Health> {
    let path = match section.text("health") {
        Some(none) if none == "none" => return None,
        Some(path) => path,
        None if matches!(source, Some(Source::Service(_))) => "/ready".into(),
        None => {
            section.value("health_ms");
            return None;
        }
    };
    if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
        let message = format!("health is {path:?}; expected a path, or \"none\"");
        section.wrong(section.place("health"), message, "such as \"/ready\"");
    }
    let every = section.number("health_ms", 10..=3_600_000).unwrap_or(HEALTH_MS);
    Some(Health { path, every: Duration::from_millis(every) })
}

fn rates(section: &mut Section<'_, '_>) -> Vec<Rate> {
    let Some(value) = section.value("rate") else { return Vec::new() };
    let list: Vec<_> = match value.get_ref().as_array() {
        Some(list) => list.iter().collect(),
        None => vec![value],
    };
    list.into_iter().filter_map(|value| rate(section, value)).collect()
}

fn rate(section: &mut Section<'_, '_>, value: &Value<'_>) -> Option<Rate> {
    let mut table = Section::open(section.mistakes, value, "rate")?;
    let words = [("user", RateBy::User), ("address", RateBy::Address), ("route", RateBy::Route)];
    let by = table.word("by", &words).unwrap_or(RateBy::Route);
    let per_s = table.number("per_s", 1..=1_000_000).map(|number| number as u32);
    let burst = table.number("burst", 1..=1_000_000).map(|number| number as u32);
    if per_s.is_none() {
        table.wrong(
            value.span(),
            "rate has no per_s",
            "write rate = { by = \"address\", per_s = 10, burst = 20 }",
        );
    }
    table.finish();
    Some(Rate { by, per_s: per_s?, burst: burst.unwrap_or(per_s?) })
}

fn cors(section: &mut Section<'_, '_>) -> Option<Cors> {
    let value = section.value("cors")?;
    let mut table = Section::open(section.mistakes, value, "cors")?;
    let origins = parsed(&mut table, "origins", |text| HeaderValue::from_str(text).ok());
    let credentials = table.flag("credentials").unwrap_or(false);
    let headers = parsed(&mut table, "headers", |text| text.parse().ok());
    let expose = parsed(&mut table, "expose", |text| text.parse().ok());
    let max_age = table.number("max_age_s", 0..=86_400).unwrap_or(600);
    if origins.is_empty() {
        table.wrong(value.span(), "cors has no origins", "name them: origins = [\"https://shop.example\"]");
    }
    if credentials && origins.iter().any(|origin| origin == "*") {
        table.wrong(
            value.span(),
            "cors lets every origin in, with credentials",
            "name the origins, or remove credentials",
        );
    }
    table.finish();
    Some(Cors { origins, credentials, headers, expose, max_age: Duration::from_secs(max_age) })
}

fn parsed<T>(section: &mut Section<'_, '_>, key: &'static str, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let texts = section.texts(key).unwrap_or_default();
    let at = section.place(key);
    let mut all = Vec::new();
    for text in texts {
        match read(&text) {
            Some(it) => all.push(it),
            None => section.wrong(at.clone(), format!("{key} has {text:?}, which cannot be one"), ""),
        }
    }
    all
}
