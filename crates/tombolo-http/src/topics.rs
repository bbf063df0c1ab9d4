//! `GET /topics`, `GET` and `PUT /topics/{topic}`: what is there, and how far it goes; `GET /health`.
//!
//! Invariant: what is told is asked of the bus at that moment.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_bus::Topic;
use tombolo_bus::feed::is_fed_by_bus;
use tombolo_event::ServiceName;
use tombolo_event::key::{PARTITIONS_DEFAULT, PARTITIONS_MAX};

use crate::access::Caller;
use crate::door::Shared;
use crate::problem::{Problem, Refusal};

/// What a topic is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// How many partitions it has.
    partitions: Option<f64>,
}

impl Wanted {
    /// JSON knows no whole numbers: 8 and 8.0 are the same.
    fn partitions(&self) -> Result<u32, Problem> {
        let partitions = self.partitions.unwrap_or(f64::from(PARTITIONS_DEFAULT));
        match partitions.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&partitions) {
            true => Ok(partitions as u32),
            false => {
                let detail =
                    format!("partitions is {partitions}; expected a whole number from 1 to {PARTITIONS_MAX}");
                Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", "partitions"))
            }
        }
    }
}

pub(crate) async fn list(State(door): State<Shared>, caller: Caller) -> Result<Json<Value>, Problem> {
    let mut topics = door.bus.topics().await?;
    topics.retain(|topic| caller.must_read(&topic.name).is_ok());
    let mut each = Vec::with_capacity(topics.len());
    for topic in topics {
        each.push(described(&door, topic).await?);
    }
    Ok(Json(json!({"topics": each})))
}

pub(crate) async fn show(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(topic) = place?;
    let topic = ServiceName::new(topic)?;
    caller.must_read(&topic)?;
    let topic = door.bus.topic(&topic).await?;
    Ok(Json(described(&door, topic).await?))
}

/// Makes a topic that the bus feeds, or finds it.
pub(crate) async fn ensure(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
    body: axum::body::Body,
) -> Result<Json<Value>, Problem> {
    let Path(topic) = place?;
    let topic = ServiceName::new(topic)?;
    caller.must_own(&topic)?;
    let body = door.collect(body).await?.bytes;
    let wanted =
        if body.is_empty() { Ok(Wanted { partitions: None }) } else { serde_json::from_slice(&body) };
    let wanted: Wanted = wanted.map_err(|error| {
        Problem::new(
            Refusal::Malformed,
            format!("the body cannot be read: {error}; expected nothing, or {{\"partitions\": 8}}"),
        )
    })?;
    let topic = door.feeds.ensure(&topic, wanted.partitions()?).await?;
    Ok(Json(described(&door, topic).await?))
}

async fn described(door: &Shared, topic: Topic) -> Result<Value, Problem> {
    let tails = door.bus.tails(&topic.name).await?;
    let partitions = tails.iter().map(|tail| {
        json!({
            "partition": tail.partition, "sequence": tail.sequence, "id": tail.id,
            "sealed": topic.generations.is_sealed(tail.partition),
        })
    });
    Ok(json!({
        "topic": topic.name, "incarnation": topic.incarnation, "generations": topic.generations.each(),
        "fed_by": if is_fed_by_bus(topic.epoch) { "bus" } else { "outbox" },
        "partitions": partitions.collect::<Vec<_>>(),
    }))
}

pub(crate) async fn health(State(door): State<Shared>) -> Result<Json<Value>, Problem> {
    door.bus.topics().await?;
    let guarantee = door.bus.guarantee();
    Ok(Json(json!({
        "status": "ok", "engine": guarantee.engine, "survives_power_cut": guarantee.survives_power_cut,
        "acknowledged_means": guarantee.detail,
    })))
}
