//! What happens to one request, from its head to the head of its answer.
//!
//! Invariant: every step either passes the request on or answers it; whichever answers, the answer names the request, and the log
//! and the metrics hear of it.

use std::convert::Infallible;
use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CONNECTION, COOKIE, HOST, ORIGIN, RETRY_AFTER,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rand::Rng;
use tombolo::auth::User;
use tombolo_event::TraceContext;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;

use crate::asking::TOKEN;
use crate::body::{Download, Upload};
use crate::config::{AtTheDoor, Balance, HashBy};
use crate::core::Core;
use crate::forward::{DEADLINE, Errand};
use crate::guard::{REFUSED_PATH, Shared, fields};
use crate::headers::{self, Client};
use crate::log::{Entry, Said};
use crate::path::normalized;
use crate::problem::{REQUEST_ID, Refusal};
use crate::routes::rewritten;
use crate::table::{Lane, Table, allow};
use crate::tunnel;
use crate::upstream::Key;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// How many headers are added to a request on its way.
const OURS: usize = 8;
/// The longest id of a request that a client may give.
const ID_BYTES_MAX: usize = 64;

/// One client's connection.
pub(crate) struct Visit {
    pub(crate) core: Arc<Core>,
    pub(crate) connection: Arc<Shared>,
    pub(crate) peer: IpAddr,
    pub(crate) is_sealed: bool,
}

/// Why a request was not passed on, with what the answer says beside that.
pub(crate) enum Refused {
    Plainly(Refusal),
    Method(Vec<Method>),
    Rate(Duration),
    /// By who keeps the door.
    AtTheDoor(Box<Response<Download>>),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Plainly(refusal)
    }
}

impl Refused {
    /// The last word of its type.
    fn word(&self) -> &'static str {
        match self {
            Self::Plainly(refusal) => refusal.word(),
            Self::Method(_) => Refusal::Method.word(),
            Self::Rate(_) => Refusal::Rate.word(),
            Self::AtTheDoor(_) => "auth",
        }
    }

    fn response(self, id: &HeaderValue, version: Version) -> Response<Download> {
        let refusal = match &self {
            Self::Plainly(refusal) => *refusal,
            Self::Method(_) => Refusal::Method,
            Self::Rate(_) => Refusal::Rate,
            Self::AtTheDoor(_) => Refusal::NotFound,
        };
        let mut response = refusal.response(id);
        if refusal.ends_connection() && version < Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::AtTheDoor(answer) => return *answer,
            Self::Method(methods) => {
                response.headers_mut().insert(ALLOW, allow(&methods));
            }
            Self::Rate(wait) => {
                let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::Plainly(_) => {}
        }
        response
    }
}

impl Visit {
    /// The answer to a request. What it holds while it waits for a replica is small on purpose: it is made anew for each.
    pub(crate) fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Download>, Infallible>> {
        let table = self.core.table();
        let (mut parts, body) = request.into_parts();
        let id = request_id(&parts.headers);
        let trace = trace(&mut parts.headers);
        let mut entry = self.entry(&parts, &table, id, trace);
        async move {
            let answer = self.pass(&table, &mut parts, body, &mut entry).await;
            let id = entry.said().id.clone();
            let mut response = answer.unwrap_or_else(|refused| {
                entry.said().refusal = Some(refused.word());
                refused.response(&id, parts.version)
            });
            response.headers_mut().insert(REQUEST_ID, id);
            entry.answered(response.status());
            Ok(response.map(|body| body.recorded_by(entry)))
        }
    }

    fn entry(&self, parts: &Parts, table: &Table, id: HeaderValue, trace: TraceContext) -> Entry {
        let client = self.client(None, table);
        let said = Said {
            id,
            trace,
            method: parts.method.clone(),
            host: None,
            path: parts.uri.path_and_query().cloned(),
            version: parts.version,
            address: client.address(&parts.headers),
            user: None,
            route: None,
            counts: None,
            replica: None,
            tries: 0,
            status: StatusCode::OK,
            refusal: None,
        };
        Entry::begin(said, &self.core.observer, &self.connection)
    }

    fn client<'c>(&self, host: Option<&'c HeaderValue>, table: &'c Table) -> Client<'c> {
        Client { peer: self.peer, is_sealed: self.is_sealed, host, proxies: &table.settings.proxies }
    }

    async fn pass(
        &self,
        table: &Table,
        parts: &mut Parts,
        body: Incoming,
        entry: &mut Entry,
    ) -> Result<Response<Download>, Refused> {
        let (lane, host, path) = self.find(table, parts, entry)?;
        if is_preflight(lane, parts) {
            let method = Some(parts.method.clone());
            return Ok(Box::pin(dress(lane, &parts.headers, method, Response::default())).await);
        }
        let token = {
            let user = self.admit(lane, parts, &body, entry).await?;
            self.core.keeper.vouch(&lane.route, user.as_ref())
        };
        let (wishes, key) = (lane.wishes(&parts.headers), key(lane, &parts.headers, entry));
        let is_upgrade = parts.version == Version::HTTP_11 && headers::is_upgrade(&parts.headers);
        let client = parts.extensions.remove::<OnUpgrade>().filter(|_| is_upgrade);
        self.prepare(lane, table, &mut parts.headers, host, entry);
        if let Some(token) = token {
            parts.headers.insert(TOKEN, token);
        }
        let upload = Upload::new(body, lane.route.body_bytes_max, table.settings.limits.idle);
        let errand = Errand { lane, parts, path, upload, key, is_upgrade };
        let mut answer = errand.run(entry).await?;
        if is_upgrade {
            return Ok(tunnel::answer(client, answer, &self.connection, &self.core.ground));
        }
        headers::clean_response(answer.headers_mut());
        let answer = answer.map(Download::live);
        match wishes {
            Some(wishes) => Ok(Box::pin(dress(lane, &wishes, None, answer)).await),
            None => Ok(answer),
        }
    }

    /// The route of a request, the host that it asks for, and the path that its replica is asked for.
    fn find<'t>(
        &self,
        table: &'t Table,
        parts: &Parts,
        entry: &mut Entry,
    ) -> Result<(&'t Lane, HeaderValue, PathAndQuery), Refused> {
        if let Some(refusal) = self.connection.refused().filter(|_| parts.uri.path() == REFUSED_PATH) {
            return Err(refusal.into());
        }
        let (authority, host) = host(parts)?;
        entry.said().host = Some(authority.clone());
        let path = normalized(parts.uri.path()).map_err(|_| Refusal::Path)?;
        let lane = lane(table, authority.host(), &path, &parts.method)?;
        entry.said().route = Some(lane.name.clone());
        entry.said().counts = Some(lane.counts.clone());
        Ok((lane, host, target(lane, &path, &parts.uri)?))
    }

    /// Who asks, if the request may come in at all.
    async fn admit(
        &self,
        lane: &Lane,
        parts: &Parts,
        body: &Incoming,
        entry: &mut Entry,
    ) -> Result<Option<User>, Refused> {
        let user = self.core.keeper.check(&lane.route, &parts.headers).await;
        let user = user.map_err(|answer| Refused::AtTheDoor(Box::new(answer)))?;
        entry.said().user = user.as_ref().map(|user| user.id.as_str().into());
        let address = entry.said().address;
        lane.rates.count(address, entry.said().user.as_ref()).map_err(Refused::Rate)?;
        if body.size_hint().lower() > lane.route.body_bytes_max {
            return Err(Refusal::BodyTooLarge.into());
        }
        Ok(user)
    }

    /// Makes the headers what a service may see.
    fn prepare(
        &self,
        lane: &Lane,
        table: &Table,
        headers: &mut HeaderMap,
        host: HeaderValue,
        entry: &mut Entry,
    ) {
        headers.reserve(OURS);
        headers::clean_request(headers, lane.route.auth == AtTheDoor::Pass);
        self.client(Some(&host), table).forward(headers);
        headers.insert(HOST, host);
        headers.insert(REQUEST_ID, entry.said().id.clone());
        // Each try says its own; its place is made here, so that no try has to make room.
        headers.insert(DEADLINE, HeaderValue::from_static("0"));
        if let Ok(span) = HeaderValue::from_str(&entry.said().trace.to_string()) {
            headers.insert(TRACEPARENT, span);
        }
    }
}

fn lane<'t>(table: &'t Table, host: &str, path: &str, method: &Method) -> Result<&'t Arc<Lane>, Refused> {
    table.find(host, path, method).map_err(|methods| match methods.is_empty() {
        true => Refusal::NotFound.into(),
        false => Refused::Method(methods),
    })
}

/// The host as it was asked for, and the header that says so, if the head has one reading.
fn host(parts: &Parts) -> Result<(Authority, HeaderValue), Refusal> {
    if parts.version == Version::HTTP_2 {
        fields::judge(parts)?;
    }
    let shown =
        |authority: &Authority| HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Malformed);
    let (authority, value) = match (parts.uri.authority(), parts.headers.get(HOST)) {
        (Some(authority), _) => (authority.clone(), shown(authority)?),
        (None, Some(host)) => {
            (Authority::try_from(host.as_bytes()).map_err(|_| Refusal::Malformed)?, host.clone())
        }
        (None, None) if parts.version == Version::HTTP_10 => {
            (Authority::from_static("localhost"), HeaderValue::from_static("localhost"))
        }
        (None, None) => return Err(Refusal::Malformed),
    };
    if authority.as_str().contains('@') {
        return Err(Refusal::Malformed);
    }
    Ok((authority, value))
}

/// The client's own id if it is one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_sound = |id: &&HeaderValue| {
        (1..=ID_BYTES_MAX).contains(&id.len())
            && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
    };
    headers.get(REQUEST_ID).filter(is_sound).cloned().unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let millis = now.map_or(0, |now| now.as_millis() as u64);
        let random: [u8; 10] = rand::rng().random();
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        HeaderValue::from_str(id.hyphenated().encode_lower(&mut text))
            .unwrap_or(HeaderValue::from_static("-"))
    })
}

/// The span of this hop, in the client's trace if it has one.
fn trace(headers: &mut HeaderMap) -> TraceContext {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let only = given.next().filter(|_| given.next().is_none());
    let parsed = only.and_then(|text| text.to_str().ok()).and_then(|text| text.parse::<TraceContext>().ok());
    match parsed {
        Some(parent) => parent.child(),
        None => {
            headers.remove(TRACESTATE);
            TraceContext::begin()
        }
    }
}

/// What the request is tied to a replica by, if its route says so.
fn key(lane: &Lane, headers: &HeaderMap, entry: &mut Entry) -> Option<Key> {
    let Balance::Hash(by) = &lane.route.balance else { return None };
    match by {
        HashBy::Header(name) => headers.get(name).map(|value| Key::of(value.as_bytes())),
        HashBy::Cookie(name) => {
            let values = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let mut pairs =
                values.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(key, _)| key == name).map(|(_, value)| Key::of(value.as_bytes()))
        }
        HashBy::User => match &entry.said().user {
            Some(user) => Some(Key::of(user.as_bytes())),
            None => Some(Key::of(entry.said().address.to_string().as_bytes())),
        },
    }
}

/// The path and the query that the replica is asked for.
fn target(lane: &Lane, path: &str, asked: &Uri) -> Result<PathAndQuery, Refusal> {
    let rewritten = rewritten(&lane.route, path);
    let whole = match (&rewritten, asked.path_and_query()) {
        (None, Some(whole)) if whole.path() == path => return Ok(whole.clone()),
        _ => rewritten.as_deref().unwrap_or(path),
    };
    let whole = match asked.query() {
        Some(query) => format!("{whole}?{query}"),
        None => whole.to_owned(),
    };
    PathAndQuery::try_from(whole).map_err(|_| Refusal::Path)
}

fn is_preflight(lane: &Lane, parts: &Parts) -> bool {
    let asks =
        parts.headers.contains_key(ORIGIN) && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    lane.cors.is_some() && parts.method == Method::OPTIONS && asks
}

impl Lane {
    /// What of a request's headers decides how the answer is dressed; nothing if it passes as it is.
    fn wishes(&self, headers: &HeaderMap) -> Option<Box<HeaderMap>> {
        let mut wishes = HeaderMap::new();
        for (name, wanted) in [(ORIGIN, self.cors.is_some()), (ACCEPT_ENCODING, self.route.compress)] {
            if let Some(value) = headers.get(&name).filter(|_| wanted) {
                wishes.insert(name, value.clone());
            }
        }
        let is_plain = self.cors.is_none() && !self.route.compress;
        (!is_plain).then(|| Box::new(wishes))
    }
}

/// The answer with what the route adds to it: compression, and who may read it.
async fn dress(
    lane: &Lane,
    wishes: &HeaderMap,
    preflight: Option<Method>,
    mut answer: Response<Download>,
) -> Response<Download> {
    let request = |method: Method| {
        let mut request = Request::new(());
        (*request.method_mut(), *request.headers_mut()) = (method, wishes.clone());
        request
    };
    if lane.route.compress && preflight.is_none() {
        let mut once = Some(answer);
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(once.take().unwrap_or_default())));
        let layer = CompressionLayer::new().gzip(true).br(true);
        let Ok(compressed) = layer.layer(inner).oneshot(request(Method::GET)).await;
        answer = compressed.map(Download::boxed);
    }
    if let Some(layer) = &lane.cors {
        if preflight.is_none() {
            remove_cors(answer.headers_mut());
        }
        let mut once = Some(answer);
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(once.take().unwrap_or_default())));
        let Ok(allowed) = layer.layer(inner).oneshot(request(preflight.unwrap_or(Method::GET))).await;
        answer = allowed;
    }
    answer
}

/// What the service itself says of other origins would stand beside what the route says.
fn remove_cors(headers: &mut HeaderMap) {
    let names: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
