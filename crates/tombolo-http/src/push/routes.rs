//! `/subscriptions`: push subscriptions over the API.
//!
//! An operator sees and changes all of them; a service those that it made, of topics that it may read. What is in the configuration
//! is paused and moved here like the others, and changed there.
//!
//! Invariant: nobody learns of, or touches, a subscription that is not theirs.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_event::{Cursor, EventId};

use super::settings::target;
use super::state::Parked;
use super::{Command, Handle, Owner, Subscription};
use crate::access::Caller;
use crate::door::Shared;
use crate::problem::{Problem, Refusal};

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
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let handle = theirs(&door, &caller, &name)?;
    let mut stands = standing(&door, &handle).await?;
    stands["definition"] = json!(*handle.definition);
    stands["configured"] = json!(handle.owner == Owner::Configured);
    Ok(Json(stands))
}

async fn define(
    State(door): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
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
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let handle = theirs(&door, &caller, &name)?;
    if handle.owner == Owner::Configured {
        let detail = format!("subscription {name} is in the configuration of the bus; remove it there");
        return Err(Problem::new(Refusal::Forbidden, detail));
    }
    door.push.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What an action may be told.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Told {
    /// Why; or which event.
    reason: Option<String>,
    id: Option<EventId>,
    partition: Option<u32>,
    sequence: Option<u64>,
    to: Option<String>,
}

async fn act(
    State(door): State<Shared>,
    caller: Caller,
    Path((name, action)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let handle = theirs(&door, &caller, &name)?;
    let told: Told =
        if body.is_empty() { Told::default() } else { read(&body, "nothing, or a JSON object")? };
    let answer = done(&door, &handle, &action, told).await?;
    let mut stands = standing(&door, &handle).await?;
    if let (Some(stands), Some(answer)) = (stands.as_object_mut(), answer.as_object()) {
        stands.extend(answer.clone());
    }
    Ok(Json(stands))
}

/// Does what is asked, and gives what there is to say of it.
async fn done(door: &Shared, handle: &Handle, action: &str, told: Told) -> Result<Value, Problem> {
    Ok(match action {
        "pause" => {
            let reason = told.reason.unwrap_or_else(|| "by request".into());
            handle.ask(|to| Command::Pause(reason, to)).await?;
            Value::Null
        }
        "resume" => {
            handle.ask(Command::Resume).await?;
            Value::Null
        }
        "redrive" => json!({"redriven": handle.ask(|to| Command::Redrive(told.id, to)).await?}),
        "skip" => {
            let place = told.sequence.map(|sequence| (told.partition.unwrap_or(0), sequence));
            json!({"skipped": handle.ask(|to| Command::Skip(place, to)).await?})
        }
        "reset" => {
            let cursors = places(door, handle, &told).await?;
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

/// Where a reset leads: `{"to": "start"}`, `{"to": "now"}`, or `{"partition": 0, "sequence": 7}`, after which it goes on.
async fn places(door: &Shared, handle: &Handle, told: &Told) -> Result<Vec<(u32, Cursor)>, Problem> {
    let topic = door.bus.topic(&handle.definition.topic).await?;
    if let (None, Some(sequence)) = (&told.to, told.sequence) {
        let partition = told.partition.unwrap_or(0);
        return Ok(vec![(partition, door.bus.cursor_at(&topic, partition, sequence).await?)]);
    }
    let tails = door.bus.tails(&topic.name).await?;
    let start = Cursor::start(topic.incarnation);
    match told.to.as_deref() {
        Some("start") => Ok(tails.iter().map(|tail| (tail.partition, start)).collect()),
        Some("now") => {
            let at = |tail: &tombolo_bus::Tail| Cursor { sequence: tail.sequence, id: tail.id, ..start };
            Ok(tails.iter().map(|tail| (tail.partition, at(tail))).collect())
        }
        _ => {
            let detail = r#"where to is not said; expected {"to": "start"}, {"to": "now"} or {"partition": 0, "sequence": 7}"#;
            Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", "to"))
        }
    }
}

async fn list_parked(
    State(door): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    theirs(&door, &caller, &name)?;
    let parked = door.push.parked(&name).await?;
    Ok(Json(json!({"parked": parked.iter().map(described).collect::<Vec<_>>()})))
}

async fn show_parked(
    State(door): State<Shared>,
    caller: Caller,
    Path((name, id)): Path<(String, EventId)>,
) -> Result<Json<Value>, Problem> {
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
    Path((name, id)): Path<(String, EventId)>,
) -> Result<StatusCode, Problem> {
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

fn read<T: serde::de::DeserializeOwned>(body: &Bytes, expected: &str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(Refusal::Malformed, format!("the body cannot be read: {error}; expected {expected}"))
    })
}
