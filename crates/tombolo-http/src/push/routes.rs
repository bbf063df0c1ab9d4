//! `/subscriptions`: push subscriptions over the API.
//!
//! An operator sees and changes all of them; a service those that it made, of topics that it may read. What is in the configuration
//! is paused and moved here like the others, and changed there.
//!
//! Invariant: nobody learns of, or touches, a subscription that is not theirs.

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tombolo_event::{Cursor, EventId};

use super::settings::target;
use super::state::Parked;
use super::{Command, From, Handle, Owner, Subscription, whole};
use crate::access::Caller;
use crate::door::Shared;
use crate::problem::{Problem, Refusal};

const SKIP: &str = r#"{"partition": 0, "sequence": 7}"#;
const RESET: &str = r#"{"to": "start"}, {"to": "now"} or {"partition": 0, "sequence": 7}"#;

/// What is answered to here.
pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/subscriptions", get(list))
        .route("/subscriptions/{name}", get(show).put(define).delete(remove))
        .route("/subscriptions/{name}/{action}", post(act))
        .route("/subscriptions/{name}/parked", get(list_parked))
        .route("/subscriptions/{name}/parked/{id}", get(show_parked).delete(discard))
}

/// The subscription, if it is the caller's to see.
fn theirs(door: &Shared, caller: &Caller, name: &str) -> Result<Handle, Problem> {
    let found = door.push.find(name).filter(|handle| is_theirs(caller, handle));
    found.ok_or_else(|| {
        Problem::new(
            Refusal::NotFound,
            format!("there is no subscription {name} here; PUT one, or GET /subscriptions"),
        )
    })
}

fn is_theirs(caller: &Caller, handle: &Handle) -> bool {
    let is_own = matches!(&handle.owner, Owner::Made(Some(owner)) if Some(owner) == caller.service());
    is_own || caller.must_operate().is_ok()
}

/// Where a subscription stands against the topic as it is at this moment.
async fn standing(door: &Shared, handle: &Handle) -> Result<Value, Problem> {
    let mut stands = handle.stands().await?;
    let tails = match door.bus.tails(&handle.definition.topic).await {
        Ok(tails) => tails,
        // It waits for the topic, and says so.
        Err(error) if error.kind() == tombolo_bus::Kind::UnknownTopic => return Ok(stands),
        Err(error) => return Err(error.into()),
    };
    let done = |cursor: &Value| {
        let after = cursor["done_after"].as_array().map_or(0, |it| it.len() as u64);
        cursor["sequence"].as_u64().unwrap_or(0) + after
    };
    let done: u64 = stands["cursors"].as_array().into_iter().flatten().map(done).sum();
    let lag = tails.iter().map(|tail| tail.sequence).sum::<u64>().saturating_sub(done);
    stands["lag"]["events"] = json!(lag);
    if lag > 0 && stands["state"] == "current" {
        stands["state"] = json!("behind");
    }
    Ok(stands)
}

async fn list(State(door): State<Shared>, caller: Caller) -> Result<Json<Value>, Problem> {
    let mut each = Vec::new();
    for handle in door.push.each().into_iter().filter(|handle| is_theirs(&caller, handle)) {
        each.push(standing(&door, &handle).await?);
    }
    Ok(Json(json!({"subscriptions": each})))
}

async fn show(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(name) = place?;
    let handle = theirs(&door, &caller, &name)?;
    let mut stands = standing(&door, &handle).await?;
    stands["definition"] = json!(*handle.definition);
    stands["configured"] = json!(handle.owner == Owner::Configured);
    Ok(Json(stands))
}

async fn define(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Response, Problem> {
    let Path(name) = place?;
    let body = door.collect(body).await?.bytes;
    let definition: Subscription = read(&body, r#"{"topic": "posts", "url": "https://host/path"}"#)?;
    if !definition.name.is_empty() && definition.name != name {
        let detail = format!(
            "the body names subscription {}, the address {name}; leave it out of the body",
            definition.name
        );
        return Err(Problem::new(Refusal::InvalidName, detail));
    }
    let definition = Subscription { name: name.clone(), ..definition };
    definition.check()?;
    caller.must_read(&definition.topic)?;
    if let Some(before) = door.push.find(&name) {
        may_change(&caller, &before, &definition)?;
    }
    within_reach(&door, &definition).await?;
    // An operator who changes it does not become its owner.
    let owner = match door.push.find(&name).map(|before| before.owner) {
        Some(Owner::Made(owner)) => owner,
        _ => caller.service().cloned(),
    };
    let is_new = door.push.define(definition, owner).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let stands = door.push.find(&name).ok_or_else(super::ended)?.stands().await?;
    Ok((status, Json(stands)).into_response())
}

fn may_change(caller: &Caller, before: &Handle, definition: &Subscription) -> Result<(), Problem> {
    let name = &definition.name;
    if !is_theirs(caller, before) {
        let detail = format!("the name {name} is taken by somebody else's subscription; choose another");
        return Err(Problem::new(Refusal::Forbidden, detail));
    }
    if before.owner == Owner::Configured {
        let detail = format!("subscription {name} is in the configuration of the bus; change it there");
        return Err(Problem::new(Refusal::Forbidden, detail));
    }
    let (found, asked) = (&before.definition, definition);
    if found.topic != asked.topic || found.order != asked.order {
        let detail = format!(
            "subscription {name} reads {} in the order {:?}; to read {} in the order {:?}, delete it or choose another name",
            found.topic, found.order, asked.topic, asked.order
        );
        return Err(Problem::new(Refusal::TopicDiffers, detail));
    }
    Ok(())
}

/// Refuses a target of which every address is out of reach. What is resolved here is checked again at each connect.
async fn within_reach(door: &Shared, definition: &Subscription) -> Result<(), Problem> {
    let target = target(&definition.url)?;
    let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let Ok(found) = tokio::net::lookup_host((host.as_str(), 0)).await else {
        // It may be there later; until then nothing is sent.
        return Ok(());
    };
    let reach = door.push.reach();
    let found: Vec<_> = found.map(|address| address.ip()).collect();
    if found.is_empty() || found.iter().any(|address| reach.allows(*address)) {
        return Ok(());
    }
    let detail = format!(
        "url {:?} leads to {}, which is not public; the operator allows its network in [bus.webhooks] allow, or configures the subscription",
        definition.url, found[0]
    );
    Err(Problem::new(Refusal::Forbidden, detail).with("parameter", "url"))
}

async fn remove(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path(name) = place?;
    let handle = theirs(&door, &caller, &name)?;
    if handle.owner == Owner::Configured {
        let detail = format!("subscription {name} is in the configuration of the bus; remove it there");
        return Err(Problem::new(Refusal::Forbidden, detail));
    }
    door.push.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a pause may be told.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pause {
    reason: Option<String>,
}

/// Which parked event a redrive is of; all, where none is named.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Redrive {
    id: Option<EventId>,
}

/// Which event is skipped; the one that fails, where none is named.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Skip {
    #[serde(deserialize_with = "whole::given")]
    partition: Option<u32>,
    #[serde(deserialize_with = "whole::given")]
    sequence: Option<u64>,
}

/// Where a reset leads.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reset {
    to: Option<From>,
    #[serde(deserialize_with = "whole::given")]
    partition: Option<u32>,
    #[serde(deserialize_with = "whole::given")]
    sequence: Option<u64>,
}

/// Nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Nothing {}

async fn act(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Path((name, action)) = place?;
    let handle = theirs(&door, &caller, &name)?;
    let body = door.collect(body).await?.bytes;
    let answer = done(&door, &handle, &action, &body).await?;
    let mut stands = standing(&door, &handle).await?;
    if let (Some(stands), Some(answer)) = (stands.as_object_mut(), answer.as_object()) {
        stands.extend(answer.clone());
    }
    Ok(Json(stands))
}

/// Does what is asked, and gives what there is to say of it.
async fn done(door: &Shared, handle: &Handle, action: &str, body: &Bytes) -> Result<Value, Problem> {
    Ok(match action {
        "pause" => {
            let reason = told::<Pause>(body, r#"{"reason": "a release"}"#)?.reason;
            let reason = reason.unwrap_or_else(|| "by request".into());
            handle.ask(|to| Command::Pause(reason, to)).await?;
            Value::Null
        }
        "resume" => {
            told::<Nothing>(body, "{}")?;
            handle.ask(Command::Resume).await?;
            Value::Null
        }
        "redrive" => {
            let id = told::<Redrive>(body, r#"{"id": "…"}"#)?.id;
            json!({"redriven": handle.ask(|to| Command::Redrive(id, to)).await?})
        }
        "skip" => {
            let place = skipped(&told(body, SKIP)?)?;
            json!({"skipped": handle.ask(|to| Command::Skip(place, to)).await?})
        }
        "reset" => {
            let cursors = places(door, handle, &told(body, RESET)?).await?;
            handle.ask(|to| Command::Reset(cursors, to)).await?;
            Value::Null
        }
        _ => {
            let detail = format!(
                "{action} is nothing that a subscription does; expected pause, resume, redrive, skip or reset"
            );
            return Err(Problem::new(Refusal::NotFound, detail));
        }
    })
}

/// What an action is told; nothing at all is as good as an empty object.
fn told<T: Default + DeserializeOwned>(body: &Bytes, expected: &str) -> Result<T, Problem> {
    if body.is_empty() { Ok(T::default()) } else { read(body, &format!("nothing, or {expected}")) }
}

/// The event that is to be skipped, where one is named.
fn skipped(skip: &Skip) -> Result<Option<(u32, u64)>, Problem> {
    match (skip.partition, skip.sequence) {
        (partition, Some(sequence)) => Ok(Some((partition.unwrap_or(0), sequence))),
        (None, None) => Ok(None),
        (Some(partition), None) => {
            let detail =
                format!("partition {partition} is named and no sequence; expected nothing, or {SKIP}");
            Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", "sequence"))
        }
    }
}

/// The cursors that a reset leads to: it goes on after each.
async fn places(door: &Shared, handle: &Handle, reset: &Reset) -> Result<Vec<(u32, Cursor)>, Problem> {
    let topic = door.bus.topic(&handle.definition.topic).await?;
    let start = Cursor::start(topic.incarnation);
    match (reset.to, reset.partition, reset.sequence) {
        (None, partition, Some(sequence)) => {
            let partition = partition.unwrap_or(0);
            Ok(vec![(partition, door.bus.cursor_at(&topic, partition, sequence).await?)])
        }
        (Some(to), None, None) => {
            let tails = door.bus.tails(&topic.name).await?;
            let at = |tail: &tombolo_bus::Tail| match to {
                From::Start => start,
                From::Now => Cursor { sequence: tail.sequence, id: tail.id, ..start },
            };
            Ok(tails.iter().map(|tail| (tail.partition, at(tail))).collect())
        }
        _ => {
            let detail = format!("where to is not said, or twice; expected {RESET}");
            Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", "to"))
        }
    }
}

async fn list_parked(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(name) = place?;
    theirs(&door, &caller, &name)?;
    let parked = door.push.parked(&name).await?;
    Ok(Json(json!({"parked": parked.iter().map(described).collect::<Vec<_>>()})))
}

async fn show_parked(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<(String, EventId)>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path((name, id)) = place?;
    let handle = theirs(&door, &caller, &name)?;
    let parked = door.push.parked(&name).await?;
    let parked = parked.iter().find(|it| it.id == id).ok_or_else(|| super::runner::unknown(id))?;
    let topic = door.bus.topic(&handle.definition.topic).await?;
    let (partition, sequence) = parked.place;
    let bytes = crate::feed::record_at(&*door.bus, &topic, partition, sequence, id).await?;
    let mut shown = described(parked);
    shown["event"] = crate::cloudevents::to_json(tombolo_event::Envelope::decode(bytes)?, Some(sequence));
    Ok(Json(shown))
}

async fn discard(
    State(door): State<Shared>,
    caller: Caller,
    place: Result<Path<(String, EventId)>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path((name, id)) = place?;
    let handle = theirs(&door, &caller, &name)?;
    handle.ask(|to| Command::Discard(id, to)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn described(parked: &Parked) -> Value {
    let at = jiff::Timestamp::from_millisecond(parked.at_ms).ok();
    json!({
        "id": parked.id, "partition": parked.place.0, "sequence": parked.place.1, "key": parked.key,
        "type": parked.event_type, "attempts": parked.attempts, "cause": parked.cause, "at": at,
    })
}

/// Reads a JSON object; an array of the same values is none.
fn read<T: DeserializeOwned>(body: &Bytes, expected: &str) -> Result<T, Problem> {
    let wrong = |found: String| {
        Problem::new(Refusal::Malformed, format!("the body cannot be read: {found}; expected {expected}"))
    };
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong("it is no JSON object".into()));
    }
    serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))
}
