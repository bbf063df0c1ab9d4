//! Reading by offset: `GET /topics/{topic}/partitions/{partition}/events`, and `GET /topics/{topic}/events` for all partitions at once; as
//! JSON, as newline-delimited JSON, or as server-sent events. With `wait`, a read at the end stays until something comes.
//!
//! Invariant: of each partition what is read is contiguous; a reader is told where it stands, and never gets past what it was not given.

mod live;
mod page;
mod place;

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::Value;
use tombolo_bus::Record;
use tombolo_event::{Envelope, ServiceName};

use crate::access::Caller;
use crate::cloudevents::{BATCH, to_json};
use crate::door::Shared;
use crate::limits::{READ_EVENTS_DEFAULT, READ_EVENTS_MAX, WAIT_MAX};
use crate::problem::{Problem, Refusal};
use place::Places;

/// Where a reader stands, in the answer.
const CURSOR_HEADER: HeaderName = HeaderName::from_static("tombolo-cursor");
const NDJSON: &str = "application/x-ndjson";
const EVENT_STREAM: &str = "text/event-stream";

/// What to read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    /// The place to read after. By default the start.
    after: Option<String>,
    /// The most events.
    limit: Option<usize>,
    /// How long to wait for the first event, in seconds.
    wait: Option<f64>,
    /// Only these types, separated by commas.
    types: Option<String>,
}

/// A read as it was asked for.
struct Asked {
    after: String,
    limit: usize,
    wait: Duration,
    types: Option<Vec<String>>,
    form: Form,
}

/// In which form events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Batch,
    Lines,
    Stream,
}

/// All partitions.
pub(crate) async fn of_topic(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(topic) = place?;
    let topic = ServiceName::new(topic)?;
    caller.must_read(&topic)?;
    let asked = Asked::new(parameters?.0, &headers)?;
    let topic = door.bus.topic(&topic).await?;
    let places = Places::read(&topic, &asked.after)?;
    match asked.form {
        Form::Stream => live::of_topic(door.bus.clone(), topic, places, asked.types).await,
        form => {
            let (events, places) = page::of_topic(&*door.bus, &topic, places, &asked).await?;
            answer(form, events, &places.to_string())
        }
    }
}

/// One partition.
pub(crate) async fn of_partition(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<(String, u32)>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path((topic, partition)) = place?;
    let topic = ServiceName::new(topic)?;
    caller.must_read(&topic)?;
    let asked = Asked::new(parameters?.0, &headers)?;
    let topic = door.bus.topic(&topic).await?;
    let cursor = place::of_partition(&*door.bus, &topic, partition, &asked.after).await?;
    match asked.form {
        Form::Stream => live::of_partition(&*door.bus, &topic, partition, cursor, asked.types).await,
        form => {
            let (events, cursor) = page::of_partition(&*door.bus, &topic, partition, cursor, &asked).await?;
            answer(form, events, &place::written(&cursor))
        }
    }
}

impl Asked {
    fn new(parameters: Parameters, headers: &HeaderMap) -> Result<Self, Problem> {
        let last = headers.get("last-event-id").map(|it| it.to_str().unwrap_or("?").to_owned());
        let last = last.filter(|it| !it.is_empty());
        let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        Ok(Self {
            after: last.or(parameters.after).filter(|it| !it.is_empty()).unwrap_or_else(|| "0".into()),
            limit: limit(parameters.limit.unwrap_or(READ_EVENTS_DEFAULT))?,
            wait: wait(parameters.wait.unwrap_or(0.0))?,
            types: parameters.types.map(|it| it.split(',').map(str::to_owned).collect()),
            form: match accept {
                it if it.contains(EVENT_STREAM) => Form::Stream,
                it if it.contains(NDJSON) => Form::Lines,
                _ => Form::Batch,
            },
        })
    }
}

fn limit(limit: usize) -> Result<usize, Problem> {
    match (1..=READ_EVENTS_MAX).contains(&limit) {
        true => Ok(limit),
        false => {
            let detail =
                format!("limit is {limit}; expected a number of events, from 1 to {READ_EVENTS_MAX}");
            Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", "limit"))
        }
    }
}

fn wait(seconds: f64) -> Result<Duration, Problem> {
    let wait = Duration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= WAIT_MAX);
    wait.ok_or_else(|| {
        let detail = format!("wait is {seconds}; expected seconds, from 0 to {}", WAIT_MAX.as_secs());
        Problem::new(Refusal::InvalidParameter, detail).with("parameter", "wait")
    })
}

fn answer(form: Form, events: Vec<Value>, cursor: &str) -> Result<Response, Problem> {
    let (media, body) = match form {
        Form::Lines => (NDJSON, events.iter().map(|event| format!("{event}\n")).collect()),
        _ => (BATCH, Value::Array(events).to_string()),
    };
    let cursor = HeaderValue::from_str(cursor);
    let cursor = cursor.map_err(|error| Problem::new(Refusal::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(media)), (CURSOR_HEADER, cursor)], body)
        .into_response())
}

/// A stored event in the JSON format.
fn shown(record: Record) -> Result<Value, Problem> {
    let sequence = record.sequence;
    Ok(to_json(Envelope::decode(record.bytes)?, Some(sequence)))
}
