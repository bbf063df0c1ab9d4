//! The operator's door: `POST /tombolo/requests` writes down what is asked of a subscription, a view or the topic, `GET`
//! tells what became of it.
//!
//! takes: what an operator asks · writes: one request for each partition that it is about · commits when: all are
//! written down · if we crash here: they wait, and whoever holds the partitions finds them · if it repeats: asked twice,
//! each with its own outcome.
//!
//! Invariant: nothing is done here. Only the holder of a partition's lease, the keeper of a view or the leader of the relay
//! carries a request out; it is woken by a
//! signal, and a slow poll is the net under that.

mod desk;
mod parked;
mod preview;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Path, Query, Request as HttpRequest, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use tombolo_db::{CursorState, Database, ParkedFilter};
use tombolo_event::operator::{Action, Ask, OPERATOR_TOKEN, PartitionOf, Request, Which, of_topic, of_view};
use tombolo_event::{Generations, KeyHash};
use uuid::Uuid;

use crate::problem::Problem;
use crate::view;
use crate::{App, recovery};
pub(crate) use desk::Desk;

/// How many requests are listed unless another number is asked for, and at most.
const LISTED: usize = 100;
const LISTED_MAX: usize = 1_000;
/// The longest name of whoever asks, in bytes.
const ASKED_BY_BYTES_MAX: usize = 200;

/// The routes for operators.
pub(crate) fn router<D: Database>(app: &App<D>) -> Router<App<D>> {
    Router::new()
        .route("/tombolo/requests", post(ask::<D>).get(list::<D>))
        .route("/tombolo/requests/preview", post(preview::preview::<D>))
        .route("/tombolo/requests/{id}", get(one::<D>))
        .route("/tombolo/parked", get(parked::list::<D>))
        .route("/tombolo/views/{view}/compare", get(view::compare::<D>))
        .merge(recovery::routes())
        // Of these routes alone: a layer would also answer for every path that the service does not know.
        .route_layer(middleware::from_fn_with_state(app.clone(), admit::<D>))
}

/// What was written down.
#[derive(Serialize)]
struct Asked {
    requests: Vec<Uuid>,
}

async fn ask<D: Database>(
    State(app): State<App<D>>,
    Json(ask): Json<Ask>,
) -> Result<(StatusCode, Json<Asked>), Problem> {
    if ask.asked_by.is_empty() || ask.asked_by.len() > ASKED_BY_BYTES_MAX {
        return Err(wrong(format!(
            "asked_by is {} bytes long; expected who asks, 1 to {ASKED_BY_BYTES_MAX} bytes",
            ask.asked_by.len()
        )));
    }
    let requests = requests(&app, &ask).await?;
    app.database().ask(&requests).await?;
    app.desk().wake().await;
    for request in &requests {
        tracing::info!(subscription = request.subscription, action = request.action, by = request.asked_by,
            detail = %request.detail, "asked for");
    }
    let requests = requests.iter().map(|request| request.id).collect();
    Ok((StatusCode::ACCEPTED, Json(Asked { requests })))
}

/// One request for each partition that the action is about; one for all if it is about a view.
async fn requests<D: Database>(app: &App<D>, ask: &Ask) -> Result<Vec<Request>, Problem> {
    if let Action::Rebuild { .. } | Action::Switch { .. } | Action::Drop { .. } = &ask.action {
        check_view(app, &ask.subscription)?;
        return Ok(vec![Request::new(&ask.subscription, None, &ask.action, &ask.asked_by)]);
    }
    if let Action::Divide { partitions } = &ask.action {
        check_topic(app, &ask.subscription, *partitions)?;
        return Ok(vec![Request::new(&ask.subscription, None, &ask.action, &ask.asked_by)]);
    }
    let cursors = cursors_of(app, &ask.subscription).await?;
    let request =
        |of: PartitionOf, action: &Action| Request::new(&ask.subscription, Some(of), action, &ask.asked_by);
    if let Action::Redrive(which) | Action::Discard(which) = &ask.action {
        let places = places_of(app, &ask.subscription, which).await?;
        return Ok(places.into_iter().map(|of| request(of, &ask.action)).collect());
    }
    if let Action::Reset { to, .. } = &ask.action {
        preview::check_reset(app.desk().bus(), &cursors, to).await?;
    }
    let everywhere = || cursors.iter().map(|cursor| request(of(cursor), &ask.action)).collect();
    Ok(match &ask.action {
        Action::Reset { to, force } => to
            .iter()
            .map(|place| {
                let action = Action::Reset { to: vec![place.clone()], force: *force };
                request(place.of.clone(), &action)
            })
            .collect(),
        Action::Skip { to } => vec![request(to.of.clone(), &ask.action)],
        _ => everywhere(),
    })
}

/// The partitions in which something that is meant is parked.
async fn places_of<D: Database>(
    app: &App<D>,
    subscription: &str,
    which: &Which,
) -> Result<BTreeSet<PartitionOf>, Problem> {
    let filter = ParkedFilter {
        subscription: Some(subscription.to_owned()),
        key_hash: which.key.as_deref().map(KeyHash::of),
        id: which.event,
    };
    let found = app.database().parked(&filter, usize::MAX).await?;
    if found.is_empty() {
        let detail = format!(
            "nothing of that is parked in subscription {subscription:?}; `tombolo parked list` shows what is"
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    Ok(found
        .into_iter()
        .map(|event| PartitionOf { topic: event.topic, partition: event.partition })
        .collect())
}

fn check_view<D: Database>(app: &App<D>, asked: &str) -> Result<(), Problem> {
    if app.builds().names().any(|view| of_view(view) == asked) {
        return Ok(());
    }
    let views: Vec<String> = app.builds().names().map(of_view).collect();
    let views = if views.is_empty() { "none".into() } else { views.join(", ") };
    let detail = format!("service {} has no view {asked:?}; it has: {views}", app.service());
    Err(Problem::new(StatusCode::NOT_FOUND, detail))
}

/// The relay's leader divides the topic, so there has to be one, and a number that a topic can have.
fn check_topic<D: Database>(app: &App<D>, asked: &str, partitions: u32) -> Result<(), Problem> {
    let service = app.service();
    if asked != of_topic(service) {
        let detail =
            format!("found {asked:?}; a service divides only its own topic, {:?}", of_topic(service));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    if app.publishes_nothing() {
        let detail = format!("service {service} publishes nothing, so it has no topic that could be divided");
        return Err(wrong(detail));
    }
    Generations::first(partitions).map(drop).map_err(|error| wrong(error.to_string()))
}

fn of(cursor: &CursorState) -> PartitionOf {
    PartitionOf { topic: cursor.topic.clone(), partition: cursor.partition }
}

/// Where a subscription stands, or who there is instead.
async fn cursors_of<D: Database>(app: &App<D>, subscription: &str) -> Result<Vec<CursorState>, Problem> {
    let all = app.database().cursors().await?;
    let (its, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|cursor| cursor.subscription == subscription);
    if its.is_empty() {
        let names: BTreeSet<String> = others.into_iter().map(|cursor| cursor.subscription).collect();
        let names = Vec::from_iter(names).join(", ");
        let detail = format!(
            "service {} has no subscription {subscription:?} that has read anything; it has: {names}",
            app.service()
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    Ok(its)
}

#[derive(Deserialize)]
struct Listed {
    most: Option<usize>,
}

async fn list<D: Database>(
    State(app): State<App<D>>,
    Query(listed): Query<Listed>,
) -> Result<Json<Vec<Request>>, Problem> {
    let most = listed.most.unwrap_or(LISTED).min(LISTED_MAX);
    Ok(Json(app.database().requests(most).await?))
}

async fn one<D: Database>(State(app): State<App<D>>, Path(id): Path<Uuid>) -> Result<Json<Request>, Problem> {
    let missing = || {
        let detail =
            format!("service {} knows no request {id}; GET /tombolo/requests lists them", app.service());
        Problem::new(StatusCode::NOT_FOUND, detail)
    };
    app.database().request(id).await?.map(Json).ok_or_else(missing)
}

fn wrong(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

/// Lets operators in, and nobody else.
async fn admit<D: Database>(
    State(app): State<App<D>>,
    request: HttpRequest,
    next: Next,
) -> Result<Response, Problem> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    check(app.desk().token(), peer, request.headers())?;
    Ok(next.run(request).await)
}

/// With a token set, whoever has it; without, who asks from this machine, not through a proxy and not from a web page.
fn check(token: Option<&str>, peer: Option<SocketAddr>, headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(token) = token {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        return match is_same(token.as_bytes(), given.as_bytes()) {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                format!(
                    "this door is for operators; send the service's {OPERATOR_TOKEN} as a bearer token (the CLI takes it from its own environment)"
                ),
            )),
        };
    }
    let is_forwarded =
        ["forwarded", "x-forwarded-for", "origin"].iter().any(|name| headers.contains_key(*name));
    if peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) && !is_forwarded {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        format!(
            "without {OPERATOR_TOKEN} this door is open to its own machine only, not to proxies and web pages; run the command there, or set {OPERATOR_TOKEN} for the service and for the command"
        ),
    ))
}

/// Compares without telling by the time taken where the difference is.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, header::HeaderValue::from_static(value))])
    }

    #[test]
    fn with_a_token_only_the_token_opens() {
        let near: Option<SocketAddr> = Some("127.0.0.1:1".parse().unwrap());
        let far: Option<SocketAddr> = Some("10.0.0.1:1".parse().unwrap());
        let door = |peer, headers: &HeaderMap| check(Some("secret"), peer, headers).is_ok();
        assert!(!door(near, &HeaderMap::new()));
        assert!(!door(near, &headers(header::AUTHORIZATION, "Bearer secre")));
        assert!(!door(near, &headers(header::AUTHORIZATION, "secret")));
        assert!(door(far, &headers(header::AUTHORIZATION, "Bearer secret")));
    }

    #[test]
    fn without_a_token_only_the_own_machine_comes_in() {
        let door =
            |peer: &str, headers: &HeaderMap| check(None, Some(peer.parse().unwrap()), headers).is_ok();
        assert!(door("127.0.0.1:1", &HeaderMap::new()));
        assert!(door("[::1]:1", &HeaderMap::new()) && door("[::ffff:127.0.0.1]:1", &HeaderMap::new()));
        assert!(!door("10.0.0.1:1", &HeaderMap::new()));
        assert!(!door("127.0.0.1:1", &headers(header::FORWARDED, "for=10.0.0.1")), "a proxy on this machine");
        assert!(!door("127.0.0.1:1", &headers(header::ORIGIN, "http://a.page")), "a page in a browser here");
        let refused = check(None, None, &HeaderMap::new()).unwrap_err();
        assert!(refused.detail.contains(OPERATOR_TOKEN), "{}", refused.detail);
    }
}
