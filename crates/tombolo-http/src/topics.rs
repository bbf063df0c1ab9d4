//! `GET /topics`, `GET` and `PUT /topics/{topic}`: what is there, and how far it goes; `GET /health`.
//!
//! Invariant: what is told is asked of the bus at that moment.

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_bus::Topic;
use tombolo_bus::feed::is_fed_by_bus;
use tombolo_event::ServiceName;
use tombolo_event::key::PARTITIONS_DEFAULT;

use crate::access::Caller;
use crate::door::Shared;
use crate::problem::{Problem, Refusal};

/// What a topic is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// How many partitions it has.
    #[serde(default = "partitions_default")]
    partitions: u32,
}

fn partitions_default() -> u32 {
    PARTITIONS_DEFAULT
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
    Path(topic): Path<String>,
) -> Result<Json<Value>, Problem> {
    let topic = ServiceName::new(topic)?;
    caller.must_read(&topic)?;
    let topic = door.bus.topic(&topic).await?;
    Ok(Json(described(&door, topic).await?))
}

/// Makes a topic that the bus feeds, or finds it.
pub(crate) async fn ensure(
    State(door): State<Shared>,
    caller: Caller,
    Path(topic): Path<String>,
    body: axum::body::Bytes,
) -> Result<Json<Value>, Problem> {
    let topic = ServiceName::new(topic)?;
    caller.must_own(&topic)?;
    let wanted = if body.is_empty() {
        Ok(Wanted { partitions: PARTITIONS_DEFAULT })
    } else {
        serde_json::from_slice(&body)
    };
    let wanted: Wanted = wanted.map_err(|error| {
        Problem::new(
            Refusal::Malformed,
            format!("the body cannot be read: {error}; expected nothing, or {{\"partitions\": 8}}"),
        )
    })?;
    let topic = door.feeds.ensure(&topic, wanted.partitions).await?;
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
