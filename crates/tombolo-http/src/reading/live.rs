//! Server-sent events: what is there from a place on, and then what comes. Each event is sent with the place after it as its id, so
//! whoever is cut off goes on there.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
//!
//! Invariant: of each key events are sent in their order, also where the topic was divided: a stream ends when it is, and goes on
//! behind what was sealed when its reader comes back.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use tombolo_bus::{Batch, Bus, Read, Record, Topic};
use tombolo_event::Cursor;

use super::page::following;
use super::place::{Places, written};
use super::shown;
use crate::limits::ALIVE_EVERY;
use crate::problem::Problem;

/// How often a stream looks whether its topic was divided.
const DIVIDED_EVERY: Duration = Duration::from_secs(2);

type Events = Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>;

/// One partition, from a place on.
pub(super) async fn of_partition(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    after: Cursor,
    types: Option<Vec<String>>,
) -> Result<Response, Problem> {
    let incarnation = topic.incarnation;
    let batches = bus.read(Read { types, ..Read::following(&topic.name, partition, after) }).await?;
    let place = move |record: &Record| written(&Cursor::at(incarnation, record.sequence, record.id));
    Ok(alive(Box::pin(batches.flat_map(move |batch| stream::iter(messages(batch, place))))))
}

/// All partitions: those of earlier generations to their ends, then the present ones.
pub(super) async fn of_topic(
    bus: Arc<dyn Bus>,
    topic: Topic,
    mut places: Places,
    types: Option<Vec<String>>,
) -> Result<Response, Problem> {
    let mut earlier = Vec::new();
    for partition in (0..topic.partitions()).filter(|it| topic.generations.is_sealed(*it)) {
        let after = places.cursor(&*bus, &topic, partition).await?;
        let read = Read { types: types.clone(), ..Read::to_tail(&topic.name, partition, after) };
        earlier.push(bus.read(read).await?.map(move |batch| (partition, batch)));
    }
    let live = following(&*bus, &topic, &places, types.as_ref()).await?;
    let all = stream::iter(earlier).flatten().chain(live).take_until(divided(bus, topic));
    let events = all.flat_map(move |(partition, batch)| {
        let place = |record: &Record| {
            places.moved(partition, record.sequence, record.id);
            places.to_string()
        };
        stream::iter(messages(batch, place))
    });
    Ok(alive(Box::pin(events)))
}

/// Ends when the topic is divided.
async fn divided(bus: Arc<dyn Bus>, topic: Topic) {
    let mut every = tokio::time::interval(DIVIDED_EVERY);
    loop {
        every.tick().await;
        if bus.topic(&topic.name).await.is_ok_and(|now| now.generations != topic.generations) {
            return;
        }
    }
}

fn messages(
    batch: tombolo_bus::Result<Batch>,
    mut place: impl FnMut(&Record) -> String,
) -> Vec<Result<Event, Infallible>> {
    let events = match batch {
        Ok(batch) => batch.records.into_iter().map(|record| message(place(&record), record)).collect(),
        Err(error) => vec![failed(&error.into())],
    };
    events.into_iter().map(Ok).collect()
}

fn message(place: String, record: Record) -> Event {
    match shown(record) {
        Ok(event) => Event::default().id(place).data(event.to_string()),
        Err(problem) => failed(&problem),
    }
}

/// The last message of a stream that cannot go on.
fn failed(problem: &Problem) -> Event {
    Event::default().event("problem").data(problem.document().to_string())
}

fn alive(events: Events) -> Response {
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE_EVERY)).into_response()
}
