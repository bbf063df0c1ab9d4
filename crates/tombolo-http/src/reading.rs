//! `GET /topics/{topic}/partitions/{partition}/events`: reading by offset, as JSON, as newline-delimited JSON, or as server-sent
//! events; with `wait`, a read at the tail stays until something comes.
//!
//! A place is a sequence, or the token of `Tombolo-Cursor`, which also proves that the log is the one which was read before.
//!
//! Invariant: what is read is contiguous; a reader is told where it stands, and never gets past what it was not given.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tombolo_bus::{Batch, Read, Record, RecordStream, Topic};
use tombolo_event::{Cursor, Envelope, EventId, ServiceName};

use crate::access::Caller;
use crate::cloudevents::{BATCH, to_json};
use crate::door::Shared;
use crate::limits::{ALIVE_EVERY, READ_EVENTS_DEFAULT, READ_EVENTS_MAX, WAIT_MAX};
use crate::problem::{Problem, Refusal};

/// Where a reader stands, in the answer.
const CURSOR_HEADER: HeaderName = HeaderName::from_static("tombolo-cursor");
const NDJSON: &str = "application/x-ndjson";
const EVENT_STREAM: &str = "text/event-stream";

/// What to read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    /// The place to read after: a sequence, or the token of an answer. By default the start.
    after: Option<String>,
    /// The most events.
    limit: Option<usize>,
    /// How long to wait for the first event, in seconds.
    wait: Option<f64>,
    /// Only these types, separated by commas.
    types: Option<String>,
}

pub(crate) async fn read(
    State(door): State<Shared>,
    caller: Caller,
    Path((topic, partition)): Path<(String, u32)>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let topic = ServiceName::new(topic)?;
    caller.must_read(&topic)?;
    let topic = door.bus.topic(&topic).await?;
    let last = headers.get("last-event-id").map(|it| it.to_str().unwrap_or_default());
    let after = last.or(parameters.after.as_deref()).unwrap_or("0");
    let cursor = place(&door, &topic, partition, after).await?;
    let types = parameters.types.as_ref().map(|it| it.split(',').map(str::to_owned).collect());
    let read = Read { types, ..Read::following(&topic.name, partition, cursor) };
    match wanted(&headers) {
        Form::Stream => Ok(sse(door.bus.read(read).await?, topic).into_response()),
        form => {
            let limit = parameters.limit.unwrap_or(READ_EVENTS_DEFAULT).clamp(1, READ_EVENTS_MAX);
            let until = Instant::now() + waiting(parameters.wait)?;
            let page = Page::read(door.bus.read(read).await?, cursor, limit, until).await?;
            page.answer(form)
        }
    }
}

/// In which form events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Batch,
    Lines,
    Stream,
}

fn wanted(headers: &HeaderMap) -> Form {
    let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    match accept {
        it if it.contains(EVENT_STREAM) => Form::Stream,
        it if it.contains(NDJSON) => Form::Lines,
        _ => Form::Batch,
    }
}

fn waiting(seconds: Option<f64>) -> Result<Duration, Problem> {
    let seconds = seconds.unwrap_or(0.0);
    let wrong = || {
        let detail = format!("wait is {seconds}; expected seconds, from 0 to {}", WAIT_MAX.as_secs());
        Problem::new(Refusal::InvalidParameter, detail).with("parameter", "wait")
    };
    let wait = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if wait > WAIT_MAX { Err(wrong()) } else { Ok(wait) }
}

/// The place that a reader names.
async fn place(door: &Shared, topic: &Topic, partition: u32, after: &str) -> Result<Cursor, Problem> {
    if let Ok(sequence) = after.parse() {
        return Ok(door.bus.cursor_at(topic, partition, sequence).await?);
    }
    token(after).ok_or_else(|| {
        let detail = format!(
            "after is {after:?}; expected a sequence, or a token that was answered in {CURSOR_HEADER}"
        );
        Problem::new(Refusal::InvalidParameter, detail).with("parameter", "after")
    })
}

/// `incarnation/sequence/id`, the id left out at the start.
fn token(text: &str) -> Option<Cursor> {
    let mut parts = text.split('/');
    let incarnation = tombolo_event::Incarnation(parts.next()?.parse().ok()?);
    let sequence = parts.next()?.parse().ok()?;
    let id = match parts.next()? {
        "" => None,
        id => Some(id.parse::<EventId>().ok()?),
    };
    let is_whole = parts.next().is_none() && (sequence == 0) == id.is_none();
    is_whole.then_some(Cursor { incarnation, sequence, id })
}

fn written(cursor: &Cursor) -> String {
    let id = cursor.id.map(|id| id.to_string()).unwrap_or_default();
    format!("{}/{}/{id}", cursor.incarnation, cursor.sequence)
}

/// Some events, and the place after them.
struct Page {
    events: Vec<Value>,
    cursor: Cursor,
}

impl Page {
    /// What is there now, up to `limit`; if there is nothing, what comes first until `until`.
    async fn read(
        mut batches: RecordStream,
        mut cursor: Cursor,
        limit: usize,
        until: Instant,
    ) -> Result<Self, Problem> {
        let mut events = Vec::new();
        // The bus gives what it has at once; the first look may therefore be over before a wait begins.
        let mut tail = None;
        while events.len() < limit && tail.is_none_or(|tail| cursor.sequence < tail || events.is_empty()) {
            let Ok(Some(batch)) = timeout_at(until.max(Instant::now() + LOOK), batches.next()).await else {
                break;
            };
            let batch = batch?;
            tail = Some(batch.tail);
            take(batch, limit, &mut events, &mut cursor)?;
        }
        Ok(Self { events, cursor })
    }

    fn answer(self, form: Form) -> Result<Response, Problem> {
        let (media, body) = match form {
            Form::Lines => (NDJSON, self.events.iter().map(|event| format!("{event}\n")).collect()),
            _ => (BATCH, Value::Array(self.events).to_string()),
        };
        let cursor = HeaderValue::from_str(&written(&self.cursor));
        let cursor = cursor.map_err(|error| Problem::new(Refusal::Internal, error.to_string()))?;
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(media)), (CURSOR_HEADER, cursor)], body)
            .into_response())
    }
}

/// How long a read that does not wait gives the bus to say that there is nothing.
const LOOK: Duration = Duration::from_millis(100);

/// Takes of a batch what there is room for, and moves the place after it.
fn take(batch: Batch, limit: usize, events: &mut Vec<Value>, cursor: &mut Cursor) -> Result<(), Problem> {
    let end = Cursor::at(cursor.incarnation, batch.last, batch.last_id);
    for record in batch.records {
        if events.len() == limit {
            return Ok(());
        }
        (cursor.sequence, cursor.id) = (record.sequence, Some(record.id));
        events.push(shown(record)?);
    }
    *cursor = end;
    Ok(())
}

fn shown(record: Record) -> Result<Value, Problem> {
    let sequence = record.sequence;
    Ok(to_json(Envelope::decode(record.bytes)?, Some(sequence)))
}

/// The events from a place on, live. Each is sent with the place after it, so that whoever is cut off goes on there.
fn sse(batches: RecordStream, topic: Topic) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let incarnation = topic.incarnation;
    let events = batches.flat_map(move |batch| {
        let events = match batch {
            Ok(batch) => batch.records.into_iter().map(|record| message(record, incarnation)).collect(),
            Err(error) => vec![failed(&error.into())],
        };
        stream::iter(events.into_iter().map(Ok))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE_EVERY))
}

fn message(record: Record, incarnation: tombolo_event::Incarnation) -> Event {
    let id = written(&Cursor::at(incarnation, record.sequence, record.id));
    match shown(record) {
        Ok(event) => Event::default().id(id).data(event.to_string()),
        Err(problem) => failed(&problem),
    }
}

/// The last message of a stream that cannot go on.
fn failed(problem: &Problem) -> Event {
    Event::default().event("problem").data(problem.document().to_string())
}

/// A body that is written as it comes.
pub(crate) fn streamed<S>(chunks: S) -> Body
where
    S: Stream<Item = Result<bytes::Bytes, Problem>> + Send + 'static,
{
    Body::from_stream(
        chunks.map(|chunk| chunk.map_err(|problem| std::io::Error::other(problem.detail().to_owned()))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_event::Incarnation;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let incarnation = Incarnation::new();
        for cursor in [Cursor::start(incarnation), Cursor::at(incarnation, 7, EventId::new())] {
            assert_eq!(token(&written(&cursor)), Some(cursor));
        }
        for odd in
            ["", "x", "7/", &format!("{incarnation}/0/{}", EventId::new()), &format!("{incarnation}/7/")]
        {
            assert_eq!(token(odd), None, "{odd}");
        }
    }
}
