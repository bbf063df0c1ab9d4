//! Plain events: the contract of many small hand-written buses, served as it is.
//!
//! `POST /events` takes any JSON object; `GET /events` gives all of them, oldest first; each is then posted to every subscriber, the
//! sender included. They live in one topic with one partition.
//!
//! Invariant: a sender is answered when its event is on disk, and before anybody is told of it; what is told is byte for byte what came.

mod body;
mod settings;
mod snapshot;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_event::envelope::JSON;
use tombolo_event::{Envelope, EventId};

pub use settings::{Plain, Recovers, Source, Subscriber};

use crate::door::{Shared, address, certificate};
use crate::problem::{Problem, Refusal};
use crate::push::{Handle, Owner};

/// Who publishes without saying who they are.
const ANONYMOUS: &str = "anonymous";
/// The one key of plain events: they are all in order.
const KEY: &str = "events";
/// How long answers that are under way may still take when the bus closes.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The places where plain events are taken.
#[derive(Default)]
pub(crate) struct Places {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One place.
struct Inside {
    door: Shared,
    settings: Plain,
    subscribers: Vec<(Subscriber, Handle)>,
}

type Place = Arc<Inside>;

impl Places {
    /// Listens, and starts to tell the subscribers.
    ///
    /// # Errors
    /// If an address cannot be had, the topic is fed by an outbox, or a setting cannot be.
    pub(crate) async fn open(door: &Shared, settings: Vec<Plain>) -> Result<Self, Problem> {
        let mut places = Self::default();
        for plain in settings {
            plain.check()?;
            let topic = door.feeds.ensure(&plain.topic, 1).await?;
            if topic.partitions() != 1 {
                let detail = format!(
                    "topic {} has {} partitions; plain events need a topic with one",
                    topic.name,
                    topic.partitions()
                );
                return Err(Problem::new(Refusal::TopicDiffers, detail));
            }
            let mut listeners = Vec::new();
            for address in &plain.listen {
                listeners.push(listen(*address).await?);
            }
            let place = Inside::start(door, plain).await?;
            for listener in listeners {
                places.addresses.extend(listener.local_addr());
                places.serve(listener, place.clone());
            }
        }
        Ok(places)
    }

    /// Where it listens, with the ports that were chosen where 0 was asked for.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn serve(&self, listener: TcpListener, place: Place) {
        let stop = self.stop.clone();
        let routes = routes(place).into_make_service_with_connect_info::<SocketAddr>();
        self.tasks.spawn(async move {
            let stopped = stop.clone().cancelled_owned();
            let served = axum::serve(listener, routes).with_graceful_shutdown(stopped).into_future();
            tokio::pin!(served);
            let ended = tokio::select! {
                ended = &mut served => ended,
                () = stop.cancelled() => timeout(CLOSE_MAX, served).await.unwrap_or(Ok(())),
            };
            if let Err(error) = ended {
                tracing::error!(%error, "plain events are not taken any more");
            }
        });
    }

    /// Takes no more, and waits for what is under way.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Inside {
    async fn start(door: &Shared, settings: Plain) -> Result<Place, Problem> {
        let started = settings.subscribers.iter().map(|subscriber| {
            let definition = subscriber.subscription(&settings.topic);
            let patience = Duration::from_millis(subscriber.recover_ms);
            let recovers = (subscriber.recovers != Recovers::Never).then_some(patience);
            door.push.run(definition, Owner::Configured, recovers)
        });
        let handles = join_all(started).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let subscribers = settings.subscribers.iter().cloned().zip(handles).collect();
        Ok(Arc::new(Self { door: door.clone(), settings, subscribers }))
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        let detail = format!("plain events cannot be taken on {address}: {error}; stop who listens there, or choose another address");
        Problem::new(Refusal::Unavailable, detail)
    })
}

fn routes(place: Place) -> Router {
    let path = place.settings.path.clone();
    let nothing = |State(place): State<Place>| async move {
        let path = &place.settings.path;
        Problem::new(
            Refusal::NotFound,
            format!("there is nothing under this address; expected POST or GET {path}"),
        )
    };
    Router::new()
        .route(&path, get(snapshot::all).post(publish).options(options))
        .fallback(nothing)
        .layer(from_fn_with_state(place.clone(), with_cors))
        .with_state(place)
}

/// Who calls.
struct Caller {
    address: Option<IpAddr>,
    /// The service whose credential was shown.
    service: Option<String>,
    /// What stands in the `source` of its events.
    source: String,
}

impl FromRequestParts<Place> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, place: &Place) -> Result<Self, Problem> {
        let connected = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|it| it.0.ip().to_canonical());
        let address = connected.or_else(|| address(parts));
        let source = &place.settings.source;
        let mut service = None;
        if parts.headers.contains_key(header::AUTHORIZATION) || source.credential_required {
            let caller = place.door.access.caller(&parts.headers, address, certificate(parts))?;
            service = caller.service().map(|it| it.as_str().to_owned());
        }
        let by_address = address.and_then(|it| source.addresses.get(&it)).cloned();
        let known = service.clone().or(by_address).unwrap_or_else(|| ANONYMOUS.into());
        Ok(Self { address, service, source: known })
    }
}

/// Stores an event. Whoever sent it is answered before anybody is told.
async fn publish(State(place): State<Place>, caller: Caller, body: Body) -> Result<Response, Problem> {
    let data = place.door.collect(body).await?.bytes;
    let event = Envelope {
        id: EventId::new(),
        source: caller.source,
        event_type: body::type_of(&data)?,
        key: KEY.into(),
        time: Timestamp::now(),
        content_type: JSON.into(),
        trace: None,
        correlation: None,
        causation: None,
        extensions: tombolo_event::envelope::Extensions::default(),
        data,
    };
    place.door.feeds.publish(&place.settings.topic, vec![event]).await?;
    Ok((StatusCode::OK, axum::Json(serde_json::json!({"status": "OK"}))).into_response())
}

async fn options() -> (StatusCode, HeaderMap) {
    let allow = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");
    (StatusCode::NO_CONTENT, [(header::ALLOW, allow)].into_iter().collect())
}

/// Lets the pages of the configured origins use it.
async fn with_cors(State(place): State<Place>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let is_asked = request.method() == Method::OPTIONS;
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = next.run(request).await;
    let allowed = &place.settings.cors;
    let is_any = allowed.iter().any(|it| it == "*");
    let Some(origin) = origin.filter(|it| is_any || allowed.iter().any(|allowed| it == allowed.as_str()))
    else {
        return response;
    };
    let headers = response.headers_mut();
    let origin = if is_any { HeaderValue::from_static("*") } else { origin };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if is_asked {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HeaderValue::from_static("*")));
    }
    response
}
