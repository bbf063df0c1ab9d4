//! A service's HTTP side: the user's own routes, and beside them what every service answers.
//!
//! `GET /health` (the process runs, and what is wrong with it), `GET /ready` (it serves), `GET /metrics`, `GET /tombolo/status`, `GET /tombolo/views`,
//! `GET /tombolo/descriptor`, `POST /tombolo/questions/{name}`; for operators `/tombolo/requests` and `/tombolo/recovery`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::request::Parts;
use http::{StatusCode, header};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tombolo_db::Database;
use tombolo_event::descriptor::Descriptor;
use tracing::Instrument;

use crate::current::Current;
use crate::operator;
use crate::problem::Problem;
use crate::question::answer;
use crate::status::ServiceStatus;
use crate::view::ViewsStatus;
use crate::{App, freshness};

/// All routes of a service.
pub(crate) fn router<D: Database>(
    app: App<D>,
    routes: Router<App<D>>,
    descriptor: Descriptor,
    ready: Vec<watch::Receiver<bool>>,
) -> Router {
    let own = Router::new()
        .route("/health", get(health))
        .route("/ready", get(move || is_ready(ready.clone())))
        .route("/metrics", get(metrics::<D>))
        .route("/tombolo/status", get(status::<D>))
        .route("/tombolo/views", get(views::<D>))
        .route("/tombolo/descriptor", get(async move || Json(descriptor.clone())))
        .route("/tombolo/questions/{name}", post(question::<D>));
    let with_current = middleware::from_fn_with_state(app.clone(), with_current);
    let operators = operator::router(&app);
    routes.merge(own).merge(operators).layer(with_current).with_state(app)
}

/// Every request is a piece of work with its trace, deadline and path, and says where its events went.
async fn with_current<D: Database>(
    State(app): State<App<D>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let current = Current::from_headers(request.headers());
    let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path(), trace = current.trace.trace_id());
    let mut response = current.clone().scope(next.run(request)).instrument(span).await;
    freshness::answer(app.database(), &current, response.headers_mut()).await;
    response
}

/// The process runs; what it cannot know is said, but is no reason to end it.
#[cfg(feature = "auth")]
async fn health(parts: Parts) -> String {
    crate::auth::complaint(&parts).map_or_else(|| "ok".to_owned(), |wrong| format!("degraded: {wrong}"))
}

#[cfg(not(feature = "auth"))]
async fn health() -> &'static str {
    "ok"
}

/// Whether everything is there that the service does not serve without.
async fn is_ready(ready: Vec<watch::Receiver<bool>>) -> Response {
    if ready.iter().all(|ready| *ready.borrow()) {
        "ready".into_response()
    } else {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the service is starting").into_response()
    }
}

async fn metrics<D: Database>(State(app): State<App<D>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics().expose()).into_response()
}

async fn status<D: Database>(State(app): State<App<D>>) -> Json<ServiceStatus> {
    Json(app.status())
}

async fn views<D: Database>(State(app): State<App<D>>) -> Result<Json<ViewsStatus>, Problem> {
    Ok(Json(app.builds().status(app.service().as_str()).await?))
}

async fn question<D: Database>(
    State(app): State<App<D>>,
    Path(name): Path<String>,
    parts: Parts,
    body: String,
) -> Result<Json<Box<RawValue>>, Problem> {
    #[cfg_attr(not(feature = "auth"), expect(unused_mut, reason = "only checks say who asks"))]
    let mut current = Current::from_headers(&parts.headers);
    #[cfg(feature = "auth")]
    {
        current.for_whom = std::sync::Arc::new(std::sync::Mutex::new(crate::auth::for_whom(&parts).await));
    }
    answer::answer(&app, current, &name, &body).await.map(Json)
}
