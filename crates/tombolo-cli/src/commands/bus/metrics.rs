//! `GET /metrics` of a bus: what its topics hold, in the format of Prometheus.
//!
//! Invariant: figures are read from the bus when they are asked for; nothing is counted beside it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
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
use tombolo_bus::Bus;

use crate::error::{Context, Result};

/// What the format is called.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPartition {
    topic: String,
    partition: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTopic {
    topic: String,
}

/// A door that is open and not yet answered at.
pub(super) struct Metrics {
    listener: TcpListener,
    bus: Arc<dyn Bus>,
}

impl Metrics {
    pub(super) async fn bind(listen: SocketAddr, bus: Arc<dyn Bus>) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.context(|| format!("cannot listen on {listen}"))?;
        Ok(Self { listener, bus })
    }

    pub(super) fn url(&self) -> Result<String> {
        let address =
            self.listener.local_addr().context(|| "cannot find the address of the metrics".into())?;
        Ok(format!("http://{address}/metrics"))
    }

    /// Answers until the token is cancelled.
    pub(super) async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let routes = Router::new().route("/metrics", get(answer)).with_state(self.bus);
        let served = axum::serve(self.listener, routes).with_graceful_shutdown(shutdown.cancelled_owned());
        served.await.context(|| "cannot serve the metrics".into())
    }
}

async fn answer(State(bus): State<Arc<dyn Bus>>) -> Response {
    match text(&*bus).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.message).into_response(),
    }
}

async fn text(bus: &dyn Bus) -> Result<String> {
    let (events, epochs) = (Family::<OfPartition, Counter>::default(), Family::<OfTopic, Gauge>::default());
    for topic in bus.topics().await? {
        let name = topic.name.to_string();
        for tail in bus.tails(&topic.name).await? {
            let labels = OfPartition { topic: name.clone(), partition: tail.partition };
            events.get_or_create(&labels).inc_by(tail.sequence);
        }
        epochs.get_or_create(&OfTopic { topic: name }).set(i64::try_from(topic.epoch).unwrap_or(i64::MAX));
    }
    let mut registry = Registry::with_prefix("tombolo_bus");
    registry.register("events", "Events that a partition holds: its last sequence", events);
    registry.register("topic_epoch", "The epoch of the relay that may append", epochs);
    let mut text = String::new();
    encode(&mut text, &registry).context(|| "cannot write the metrics".into())?;
    Ok(text)
}
