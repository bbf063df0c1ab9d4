//! The routes, and what stands behind them.
//!
//! Invariant: every answer that is no success is a problem document.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt};
use http::header;
use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tombolo_bus::Bus;
use tombolo_bus::server::{ClientCertificate, Credentials, Peer};

use crate::access::{Access, Caller};
use crate::feed::Feeds;
use crate::index::Index;
use crate::limits::{BODIES_BYTES_MAX, BODY_BYTES_MAX, BODY_STILL_MAX};
use crate::plain::{Places, Plain};
use crate::problem::{Problem, Refusal};
use crate::push::{self, Subscriptions};
use crate::{publish, reading, topics};

/// What the routes take and answer, which a generator of requests holds against the running server.
const OPENAPI: &str = include_str!("../openapi.json");

/// What a door needs to know.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where it keeps its own files.
    pub folder: PathBuf,
    /// Who may come in.
    pub credentials: Credentials,
    /// Where plain events are taken.
    pub plain: Vec<Plain>,
    /// Who is sent events.
    pub push: push::Settings,
}

/// The bus's side for HTTP.
pub struct Door {
    shared: Shared,
    plain: Places,
}

/// What the routes share.
pub(crate) type Shared = Arc<Inside>;

pub(crate) struct Inside {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) access: Access,
    pub(crate) feeds: Feeds,
    pub(crate) push: Subscriptions,
    /// Room for bodies, a permit for each byte.
    bodies: Arc<Semaphore>,
    index: Arc<Index>,
}

impl Door {
    /// Opens it in front of `bus`.
    ///
    /// # Errors
    /// If its files cannot be used.
    pub async fn open(bus: Arc<dyn Bus>, settings: Settings) -> Result<Self, Problem> {
        let broken = |error: std::io::Error| {
            let detail = format!("the folder {} cannot be made: {error}", settings.folder.display());
            Problem::new(Refusal::Internal, detail)
        };
        std::fs::create_dir_all(&settings.folder).map_err(broken)?;
        let index = Arc::new(Index::open(&settings.folder.join("ids"))?);
        let feeds = Feeds::new(bus.clone(), index.clone());
        let push = Subscriptions::open(bus.clone(), &settings.folder, settings.push).await?;
        let access = Access::new(settings.credentials);
        let shared = Arc::new(Inside {
            bus,
            access,
            feeds,
            push,
            bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            index,
        });
        let plain = Places::open(&shared, settings.plain).await?;
        Ok(Self { shared, plain })
    }

    /// What it answers to.
    pub fn routes(&self) -> Router {
        let of_partition = "/topics/{topic}/partitions/{partition}/events";
        Router::new()
            .route("/health", get(topics::health))
            .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)))
            .route("/topics", get(topics::list))
            .route("/topics/{topic}", get(topics::show).put(topics::ensure))
            .route("/topics/{topic}/events", post(publish::publish).get(reading::of_topic))
            .route(of_partition, get(reading::of_partition))
            .merge(push::routes::routes())
            .method_not_allowed_fallback(async || {
                Problem::new(
                    Refusal::Method,
                    "this address is not for this method; GET /openapi.json says what there is",
                )
            })
            .fallback(async || {
                Problem::new(
                    Refusal::NotFound,
                    "there is nothing under this address; GET /openapi.json says what there is",
                )
            })
            .with_state(self.shared.clone())
    }

    /// Where plain events are taken, with the ports that were chosen where 0 was asked for.
    #[must_use]
    pub fn plain_addresses(&self) -> &[SocketAddr] {
        self.plain.addresses()
    }

    /// Waits until nothing is half done. The bus stays open.
    pub async fn close(&self) {
        self.plain.close().await;
        self.shared.push.close().await;
        self.shared.feeds.close().await;
        let index = self.shared.index.clone();
        if tokio::task::spawn_blocking(move || index.close()).await.is_err() {
            tracing::error!("the file of ids could not be closed");
        }
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Shared) -> Result<Self, Problem> {
        door.access.caller(&parts.headers, address(parts), certificate(parts))
    }
}

/// Where a request comes from; none is this machine.
pub(crate) fn address(parts: &Parts) -> Option<IpAddr> {
    let own = parts.extensions.get::<Peer>().and_then(|peer| peer.address);
    let plain = parts.extensions.get::<axum::extract::ConnectInfo<SocketAddr>>().map(|it| it.0);
    own.or(plain).map(|it| it.ip())
}

/// What the other end of the request's connection has shown of itself.
pub(crate) fn certificate(parts: &Parts) -> Option<&ClientCertificate> {
    parts.extensions.get::<Peer>()?.certificate.as_ref()
}

/// A body that is written as it comes.
pub(crate) fn streamed<S>(chunks: S) -> Body
where
    S: Stream<Item = Result<Bytes, Problem>> + Send + 'static,
{
    Body::from_stream(
        chunks.map(|chunk| chunk.map_err(|problem| std::io::Error::other(problem.detail().to_owned()))),
    )
}

/// A body that came whole. What it counts against the bound of all bodies is given back when it is dropped.
pub(crate) struct Collected {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Inside {
    /// A whole body, within its bound and that of all bodies together, without standing still.
    pub(crate) async fn collect(&self, body: Body) -> Result<Collected, Problem> {
        let mut chunks = body.into_data_stream();
        let (mut whole, mut room) = (Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(chunk) = still_coming(chunks.next()).await? {
            if whole.len() + chunk.len() > BODY_BYTES_MAX {
                let detail = format!("the body is over {BODY_BYTES_MAX} bytes; send smaller batches");
                return Err(Problem::new(Refusal::TooLarge, detail));
            }
            let more = self.room(chunk.len())?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Collected { bytes: whole.into(), _room: room })
    }

    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.bodies.clone().try_acquire_many_owned(wanted).map_err(|_| {
            let detail =
                format!("bodies of more than {BODIES_BYTES_MAX} bytes are being sent at once; try again");
            Problem::new(Refusal::Unavailable, detail)
        })
    }
}

/// The next piece of a body, if it comes in time.
async fn still_coming(
    next: impl Future<Output = Option<Result<Bytes, axum::Error>>>,
) -> Result<Option<Bytes>, Problem> {
    let stood_still = |_| {
        let detail = format!("nothing of the body came for {} seconds", BODY_STILL_MAX.as_secs());
        Problem::new(Refusal::Malformed, detail)
    };
    let ended = |error| Problem::new(Refusal::Malformed, format!("the body ended early: {error}"));
    timeout(BODY_STILL_MAX, next).await.map_err(stood_still)?.transpose().map_err(ended)
}
