//! `POST /topics/{topic}/events`: CloudEvents, one or a batch.
//!
//! Invariant: nothing of a batch is stored if one of it cannot be.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tombolo_event::position::POSITION_HEADER;
use tombolo_event::{Position, Positions, ServiceName};

use crate::access::Caller;
use crate::cloudevents::{Body, Incoming};
use crate::door::Shared;
use crate::feed::Placed;
use crate::problem::Problem;

pub(crate) async fn publish(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Response, Problem> {
    let Path(topic) = place?;
    let topic = ServiceName::new(topic)?;
    caller.must_own(&topic)?;
    let body = door.collect(body).await?;
    match Body::read(&headers, &body.bytes)? {
        Body::One(event) => {
            let placed = store(&door, &caller, &topic, vec![*event]).await?;
            Ok(one(&topic, &placed))
        }
        Body::Batch(events) => {
            let given: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
            let placed = store(&door, &caller, &topic, events).await?;
            Ok(batch(&topic, &given, &placed))
        }
    }
}

async fn store(
    door: &Shared,
    caller: &Caller,
    topic: &ServiceName,
    events: Vec<Incoming>,
) -> Result<Vec<Placed>, Problem> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let source = caller.source();
    let envelopes = events.into_iter().map(|event| event.into_envelope(topic.as_str(), source)).collect();
    door.feeds.publish(topic, envelopes).await
}

/// 201 for an event that is stored now, 200 for one that was there.
fn one(topic: &ServiceName, placed: &[Placed]) -> Response {
    let is_repeated = placed.iter().all(|it| it.is_repeated);
    let status = if is_repeated { StatusCode::OK } else { StatusCode::CREATED };
    let body = placed.first().map(|it| place(topic, it)).unwrap_or_default();
    (status, positions(topic, placed), Json(body)).into_response()
}

fn batch(topic: &ServiceName, given: &[String], placed: &[Placed]) -> Response {
    let each = given.iter().zip(placed).map(|(id, placed)| {
        let mut json = place(topic, placed);
        json["given"] = json!(id);
        json
    });
    let body = json!({"events": each.collect::<Vec<_>>()});
    (StatusCode::OK, positions(topic, placed), Json(body)).into_response()
}

fn place(topic: &ServiceName, placed: &Placed) -> Value {
    json!({
        "topic": topic, "partition": placed.partition, "sequence": placed.sequence, "id": placed.id,
        "repeated": placed.is_repeated,
    })
}

/// Where the events went, for whoever reads them next.
fn positions(topic: &ServiceName, placed: &[Placed]) -> HeaderMap {
    let mut positions = Positions::default();
    for placed in placed {
        positions.note(Position {
            topic: topic.clone(),
            partition: placed.partition,
            key_hash: placed.key_hash,
            id: placed.id,
            sequence: Some(placed.sequence),
        });
    }
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&positions.to_string()) {
        headers.insert(POSITION_HEADER, value);
    }
    headers
}
