//! `GET /metrics` of an archiver, in the format of Prometheus.
//!
//! Invariant: how far an archive is, is read from both buses when it is asked for; nothing is counted beside them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tombolo_event::ServiceName;

use super::topic::Topic;
use crate::commands::bus::CONTENT_TYPE;
use crate::error::{Context, Result};

/// The topics that are archived.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Mutex<BTreeMap<ServiceName, Arc<Topic>>>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Arc<Topic>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, name: &ServiceName) -> bool {
        self.lock().contains_key(name)
    }

    pub(super) fn add(&self, topic: &Arc<Topic>) {
        self.lock().insert(topic.name.clone(), Arc::clone(topic));
    }

    pub(super) fn topics(&self) -> Vec<Arc<Topic>> {
        self.lock().values().cloned().collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTopic {
    topic: String,
}

/// A door that is open and not yet answered at.
pub(super) struct Metrics {
    listener: TcpListener,
    board: Board,
}

impl Metrics {
    pub(super) async fn bind(listen: SocketAddr, board: Board) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.context(|| format!("cannot listen on {listen}"))?;
        Ok(Self { listener, board })
    }

    pub(super) fn url(&self) -> Result<String> {
        let address =
            self.listener.local_addr().context(|| "cannot find the address of the metrics".into())?;
        Ok(format!("http://{address}/metrics"))
    }

    /// Answers until the token is cancelled.
    pub(super) async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let routes = Router::new().route("/metrics", get(answer)).with_state(self.board);
        let served = axum::serve(self.listener, routes).with_graceful_shutdown(shutdown.cancelled_owned());
        served.await.context(|| "cannot serve the metrics".into())
    }
}

async fn answer(State(board): State<Board>) -> Response {
    match text(&board).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (axum::http::StatusCode::SERVICE_UNAVAILABLE, error.message).into_response(),
    }
}

async fn text(board: &Board) -> Result<String> {
    let (archived, removed) = (Family::<OfTopic, Counter>::default(), Family::<OfTopic, Counter>::default());
    let (behind, stopped) = (Family::<OfTopic, Gauge>::default(), Family::<OfTopic, Gauge>::default());
    for topic in board.topics() {
        let of = OfTopic { topic: topic.name.to_string() };
        stopped.get_or_create(&of).set(i64::from(topic.is_stopped()));
        removed.get_or_create(&of).inc_by(topic.removed());
        // What cannot be seen is not told; the others are.
        if let Ok((has, lacks)) = topic.standing().await {
            archived.get_or_create(&of).inc_by(has);
            behind.get_or_create(&of).set(i64::try_from(lacks).unwrap_or(i64::MAX));
        }
    }
    let mut registry = Registry::with_prefix("tombolo_archive");
    registry.register("events", "Events that the archive has", archived);
    registry.register("removed", "Events that this process removed from the bus", removed);
    registry.register("behind_events", "Events of the bus that the archive lacks", behind);
    registry.register("stopped", "Whether a topic is not archived at the moment", stopped);
    let mut text = String::new();
    encode(&mut text, &registry).context(|| "cannot write the metrics".into())?;
    Ok(text)
}
