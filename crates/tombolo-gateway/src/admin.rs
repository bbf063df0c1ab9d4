//! The admin port: whether the gateway lives and is ready, its metrics, its replicas. No request of a client comes here.
//!
//! Invariant: it answers until the gateway has ended, draining included.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::metrics::CONTENT_TYPE;

/// Answers until the token is cancelled.
pub(crate) async fn serve(listener: TcpListener, core: Arc<Core>, stop: CancellationToken) {
    let routes = Router::new()
        .route("/live", get(StatusCode::OK))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/replicas", get(replicas))
        .with_state(core);
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin port does not answer any more");
    }
}

async fn ready(State(core): State<Arc<Core>>) -> StatusCode {
    if core.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Route, address, whether it is well, requests.
fn all(core: &Core) -> Vec<(String, String, bool, u64)> {
    let table = core.table();
    let of_lane = |lane: &Arc<crate::table::Lane>| {
        let replicas = lane.upstream.replicas();
        let seen = replicas.iter().map(|replica| {
            let count = replica.requests.load(Ordering::Relaxed);
            (lane.route.name.clone(), replica.authority().to_string(), replica.is_well(), count)
        });
        seen.collect::<Vec<_>>()
    };
    table.lanes.iter().flat_map(of_lane).collect()
}

async fn metrics(State(core): State<Arc<Core>>) -> Response {
    match core.observer.metrics.text(&all(&core)) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn replicas(State(core): State<Arc<Core>>) -> Response {
    let one = |(route, replica, is_well, requests): (String, String, bool, u64)| json!({ "route": route, "replica": replica, "well": is_well, "requests": requests });
    Json(all(&core).into_iter().map(one).collect::<Vec<_>>()).into_response()
}
