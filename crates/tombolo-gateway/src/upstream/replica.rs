//! One replica: its connections, its load, and what is known of its health.
//!
//! Invariant: what it did to requests is all that takes it out, and a look at it all that brings it back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error, ResponseFuture};
use hyper_util::rt::TokioTimer;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use tombolo_bus::server::system_authorities;
use tower::Service;
use tower::load::peak_ewma::Cost;
use tower::load::{CompleteOnResponse, Load, PeakEwma};
use xxhash_rust::xxh64::xxh64;

use super::Ground;
use crate::body::Upload;
use crate::config::Target;
use crate::error::{self, Kind};
use crate::workers;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a connection is kept that nobody uses: shorter than services keep theirs.
const KEPT: Duration = Duration::from_secs(30);
/// How many such connections are kept.
const KEPT_MAX: usize = 512;
/// What the latency of a replica is taken for that was never asked.
const LATENCY_FIRST: Duration = Duration::from_millis(5);
/// After how long a peak of latency has faded by a factor of e.
const LATENCY_DECAY_NS: f64 = 2e9;
/// After how many failures in a row a replica is away.
const FAILURES_MAX: u32 = 5;
/// For how long at least, the first time; doubled each time.
const AWAY: Duration = Duration::from_millis(500);
/// And at the most.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// What became of a request at a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered.
    Answered,
    /// It answered that it cannot, or not in time, or broke off.
    Failed,
    /// Nobody listens there.
    Refused,
}

type Pool = Client<HttpsConnector<HttpConnector>, Upload>;

/// The connections to a replica: each thread has its own.
#[derive(Clone)]
struct Connections(Arc<[Pool]>);

impl Connections {
    fn send(&self, request: Request<Upload>) -> ResponseFuture {
        self.0[workers::here()].request(request)
    }
}

impl Service<Request<Upload>> for Connections {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Upload>) -> ResponseFuture {
        self.send(request)
    }
}

/// A replica.
pub(crate) struct Replica {
    pub(crate) target: Target,
    /// The same for the same address, in every gateway.
    pub(crate) identity: u64,
    /// Requests that it was given.
    pub(crate) requests: AtomicU64,
    scheme: Scheme,
    authority: Authority,
    version: Version,
    connections: Connections,
    measured: Mutex<PeakEwma<Connections>>,
    is_well: AtomicBool,
    state: Mutex<State>,
    went_away: Notify,
    removed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// How often it was taken out without having answered since.
    times_away: u32,
    away_until: Option<Instant>,
}

impl Replica {
    pub(crate) fn new(target: Target, http2: bool, removed: CancellationToken, ground: &Ground) -> Self {
        let connections = connections(&target, http2, ground);
        let measured = PeakEwma::new(
            connections.clone(),
            LATENCY_FIRST,
            LATENCY_DECAY_NS,
            CompleteOnResponse::default(),
        );
        Self {
            identity: xxh64(target.url.to_string().as_bytes(), 0),
            requests: AtomicU64::new(0),
            scheme: target.url.scheme().cloned().unwrap_or(Scheme::HTTP),
            authority: target.url.authority().cloned().unwrap_or(Authority::from_static("localhost")),
            version: if http2 { Version::HTTP_2 } else { Version::HTTP_11 },
            target,
            connections,
            measured: Mutex::new(measured),
            is_well: AtomicBool::new(true),
            state: Mutex::default(),
            went_away: Notify::new(),
            removed,
        }
    }

    /// What a request to it goes to.
    pub(crate) fn uri(&self, path: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// The protocol that it is spoken to in.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Its host and port.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Sends a request, measured.
    pub(crate) fn send(
        &self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, Error>> + use<> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        lock(&self.measured).call(request)
    }

    /// Sends a request that does not count.
    pub(super) fn look(
        &self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, Error>> + use<> {
        self.connections.send(request)
    }

    /// How loaded it is.
    pub(super) fn load(&self) -> Cost {
        lock(&self.measured).load()
    }

    /// Whether requests are given to it.
    pub(crate) fn is_well(&self) -> bool {
        self.is_well.load(Ordering::Acquire)
    }

    /// Takes note of what became of a request.
    pub(crate) fn finished(&self, outcome: Outcome) {
        if outcome == Outcome::Answered {
            if self.is_well() && lock(&self.state).failures > 0 {
                *lock(&self.state) = State::default();
            }
            return;
        }
        let mut state = lock(&self.state);
        state.failures = state.failures.saturating_add(1);
        let is_enough = outcome == Outcome::Refused || state.failures >= FAILURES_MAX;
        if !is_enough || !self.is_well() {
            return;
        }
        if crate::mutant::is_on(crate::mutant::Mutant::KeepsTheDead) {
            return;
        }
        let away = AWAY.saturating_mul(1 << state.times_away.min(10)).min(AWAY_MAX);
        // Where nobody listens, the first look that finds somebody counts.
        state.away_until = (outcome == Outcome::Failed).then(|| Instant::now() + away);
        state.times_away += u32::from(outcome == Outcome::Failed);
        self.leave(&state);
    }

    fn leave(&self, _state: &MutexGuard<'_, State>) {
        self.is_well.store(false, Ordering::Release);
        self.went_away.notify_one();
        tracing::warn!(replica = %self.authority, "taken out");
    }

    /// Takes note of a look at it that found it well, or not.
    pub(super) fn looked_at(&self, well: bool) {
        let mut state = lock(&self.state);
        match (well, self.is_well()) {
            (true, false) if state.away_until.is_none_or(|until| until <= Instant::now()) => {
                (state.failures, state.away_until) = (0, None);
                self.is_well.store(true, Ordering::Release);
                tracing::info!(replica = %self.authority, "brought back");
            }
            (false, true) => {
                state.away_until = None;
                self.leave(&state);
            }
            _ => {}
        }
    }

    /// Until it is away.
    pub(super) async fn away(&self) {
        while self.is_well() {
            self.went_away.notified().await;
        }
    }

    /// Where to knock when nothing else is known.
    pub(super) fn address(&self) -> (String, u16) {
        let host = self.authority.host().trim_matches(['[', ']']);
        let port = self.authority.port_u16().unwrap_or(if self.scheme == Scheme::HTTPS { 443 } else { 80 });
        (host.to_owned(), port)
    }

    /// It is no replica any more; requests under way go on.
    pub(super) fn remove(&self) {
        self.removed.cancel();
    }

    /// Whether it was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.is_cancelled()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connections(target: &Target, http2: bool, ground: &Ground) -> Connections {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_MAX));
    let mut sealed = HttpsConnectorBuilder::new().with_tls_config(ground.trust.clone()).https_or_http();
    let name = target.name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
    if let Some(name) = name {
        sealed = sealed.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = match http2 {
        true => sealed.enable_http2().wrap_connector(http),
        false => sealed.enable_http1().wrap_connector(http),
    };
    let mut builder = Client::builder(ground.spawner());
    builder
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .pool_max_idle_per_host(KEPT_MAX)
        .http2_only(http2);
    Connections((0..workers::numbers()).map(|_| builder.build(connector.clone())).collect())
}

/// Whom a connection over TLS trusts: whom this machine trusts.
pub(crate) fn trust() -> error::Result<ClientConfig> {
    let roots = system_authorities();
    if roots.is_empty() {
        tracing::warn!("this machine trusts no certificate, so no service is reached over TLS");
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error::Error::new(Kind::Machine, "there is no TLS").because(error))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}
