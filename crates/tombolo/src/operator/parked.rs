//! `GET /tombolo/parked`: what waits parked, with the reason.
//!
//! Invariant: only looks. What is done about it is asked for at `POST /tombolo/requests`.

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use tombolo_db::{Database, ParkedEvent, ParkedFilter};
use tombolo_event::operator::{Parked, PartitionOf};
use tombolo_event::{Envelope, EventId, KeyHash};

use crate::App;
use crate::problem::Problem;

/// How many events are listed unless another number is asked for, and at most.
const LISTED: usize = 100;
const LISTED_MAX: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct Listed {
    subscription: Option<String>,
    key: Option<String>,
    event: Option<EventId>,
    most: Option<usize>,
    /// Whether the events themselves are shown.
    #[serde(default)]
    full: bool,
}

pub(super) async fn list<D: Database>(
    State(app): State<App<D>>,
    Query(listed): Query<Listed>,
) -> Result<Json<Vec<Parked>>, Problem> {
    let filter = ParkedFilter {
        subscription: listed.subscription,
        key_hash: listed.key.as_deref().map(KeyHash::of),
        id: listed.event,
    };
    let found = app.database().parked(&filter, listed.most.unwrap_or(LISTED).min(LISTED_MAX)).await?;
    Ok(Json(found.into_iter().map(|event| shown(event, listed.full)).collect()))
}

fn shown(event: ParkedEvent, full: bool) -> Parked {
    let envelope = Envelope::decode(event.bytes).ok();
    Parked {
        subscription: event.subscription,
        of: PartitionOf { topic: event.topic, partition: event.partition },
        sequence: event.sequence,
        id: event.id,
        key: envelope.as_ref().map(|envelope| envelope.key.clone()),
        event_type: event.event_type,
        parked_at: event.parked_at,
        attempts: event.tries.attempts,
        error: event.tries.error,
        retry_at: event.tries.retry_at,
        event: envelope.filter(|_| full).map(|envelope| envelope.to_json(Some(event.sequence))),
    }
}
