//! The stage of these tests: services that say what they saw, a gateway in front of them, and clients that speak byte by byte.
//!
//! Invariant: a service that is killed answers nobody any more, and its port is free.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_gateway::{Gateway, Outside, Settings, Sink};

/// How long anything here may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// What a service saw of a request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: http::Version,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: usize,
}

/// What of a service its handlers share with the test.
#[derive(Clone)]
pub(crate) struct Told {
    name: Arc<str>,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) requests: Arc<AtomicUsize>,
    /// One permit lets one request to `/held` go on.
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) is_ready: Arc<AtomicBool>,
}

/// A service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) told: Told,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start(name: &str) -> Self {
        Self::at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn at(name: &str, address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let told = Told {
            name: name.into(),
            seen: Arc::default(),
            requests: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            is_ready: Arc::new(AtomicBool::new(true)),
        };
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(serve(listener, told.clone(), stop.clone()));
        Self { address, told, stop, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) async fn kill(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    pub(crate) fn requests(&self) -> usize {
        self.told.requests.load(Ordering::SeqCst)
    }

    /// The last request that it saw.
    pub(crate) fn last(&self) -> Seen {
        self.told.seen.lock().unwrap().last().cloned().unwrap()
    }
}

async fn serve(listener: TcpListener, told: Told, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = stop.cancelled() => return,
        };
        let service = axum::Router::new().fallback(answer).with_state(told.clone());
        connections.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(State(told): State<Told>, mut request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/ready" {
        let is_ready = told.is_ready.load(Ordering::SeqCst);
        return if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }.into_response();
    }
    told.requests.fetch_add(1, Ordering::SeqCst);
    if path.ends_with("/held") {
        told.gate.acquire().await.unwrap().forget();
    }
    if request.headers().contains_key(header::UPGRADE) {
        return switch(&mut request);
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return StatusCode::BAD_REQUEST.into_response() };
    let bytes = body.to_bytes().len();
    let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let version = parts.version;
    let seen = Seen { version, method: parts.method.to_string(), target, headers: parts.headers, bytes };
    told.seen.lock().unwrap().push(seen);
    special(&told, &path).unwrap_or_else(|| told.name.to_string().into_response())
}

fn special(told: &Told, path: &str) -> Option<Response> {
    if let Some(status) = path.strip_prefix("/status/") {
        return Some(StatusCode::from_u16(status.parse().unwrap()).unwrap().into_response());
    }
    if let Some(bytes) = path.strip_prefix("/big/") {
        return Some("x".repeat(bytes.parse().unwrap()).into_response());
    }
    if path == "/events" {
        let gate = told.gate.clone();
        let events = futures_util::stream::unfold(0, move |number| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Some((Ok::<_, Infallible>(format!("data: {number}\n\n")), number + 1))
            }
        });
        return Some(
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response(),
        );
    }
    None
}

/// Changes the protocol to one that sends everything back.
fn switch(request: &mut Request) -> Response {
    if request.uri().path() == "/declines" {
        return (StatusCode::UPGRADE_REQUIRED, "no").into_response();
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        tokio::io::copy(&mut reader, &mut writer).await.ok();
        writer.shutdown().await.ok();
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "websocket")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// The settings of a text, on any free port.
pub(crate) fn settings(text: &str) -> Settings {
    let text = format!("[gateway]\nport = 0\nadmin_port = 0\n{text}");
    Settings::read(&text, Path::new("/")).unwrap_or_else(|mistakes| panic!("{mistakes:#?}")).unwrap()
}

/// A gateway by these lines of its configuration.
pub(crate) async fn gateway(text: &str) -> Gateway {
    gateway_with(text, None).await
}

pub(crate) async fn gateway_with(text: &str, log: Option<Sink>) -> Gateway {
    Gateway::start(settings(text), Outside { log, door: None }).await.unwrap()
}

/// A route for everything to one service.
pub(crate) fn to(service: &Service) -> String {
    format!("[[gateway.route]]\nname = \"all\"\nupstreams = [\"{}\"]\n", service.url())
}

/// Sends bytes, and returns everything that comes until the end.
pub(crate) async fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other end may have had enough before all is sent.
    stream.write_all(bytes.as_ref()).await.ok();
    until_end(&mut stream).await
}

pub(crate) async fn until_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end, too.
    drop(read.expect("the connection was left open"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of the first answer in a text.
pub(crate) fn status(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// The document of a problem in an answer.
pub(crate) fn problem(answer: &str) -> serde_json::Value {
    assert!(answer.to_ascii_lowercase().contains("content-type: application/problem+json"), "{answer}");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str(body.trim()).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// A request of HTTP/1.1 that closes, with further lines of headers.
pub(crate) async fn get(gateway: &Gateway, target: &str, headers: &str) -> String {
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{headers}\r\n");
    raw(gateway.address(), request).await
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(BOUND, async {
        let mut clock = tokio::time::interval(Duration::from_millis(10));
        while !is_so().await {
            clock.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "it did not happen in time: {what}");
}

/// What the admin port says under a path.
pub(crate) async fn admin(gateway: &Gateway, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    raw(gateway.admin_address().unwrap(), request).await
}
