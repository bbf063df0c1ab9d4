//! `tombolo parked`: the events that could not be handled, and what to do about them.
//!
//! Invariant: nothing is changed here; the service's holder of the partition does it, and this says what it did.

use serde_json::{Value, json};
use tombolo_event::operator::{Action, Parked, Which};

use super::asking::Target;
use crate::arguments::{Discard, ParkedOf, Redrive, ShowParked};
use crate::commands::{say, show};
use crate::error::{Context, Error, Result};
use crate::output::Format;

/// How much of an error a table shows, in characters.
const ERROR_CHARS_MAX: usize = 80;

/// `tombolo parked list`.
pub(crate) async fn list(arguments: ParkedOf) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let mut query = vec![("most", arguments.limit.to_string())];
    query.extend(arguments.key.map(|key| ("key", key)));
    let parked = parked(&target, query).await?;
    let header =
        ["SUBSCRIPTION", "PARTITION", "SEQUENCE", "KEY", "TYPE", "EVENT", "TRIES", "NEXT TRY", "ERROR"];
    show(arguments.asked.how.format, header, parked.iter().map(row).collect(), &json!(parked))
}

/// `tombolo parked show`.
pub(crate) async fn show_one(arguments: ShowParked) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let query = vec![("event", arguments.event.to_string()), ("full", "true".to_owned())];
    let found = parked(&target, query).await?;
    let Some(event) = found.first() else {
        let (event, name) = (arguments.event, &target.subscription);
        return Err(Error::not_found(format!(
            "event {event} is not parked in {name}; `tombolo parked list` shows what is"
        )));
    };
    match arguments.asked.how.format {
        Format::Json => say(&json!(event).to_string()),
        Format::Table => say(&text(event)),
    }
}

/// `tombolo parked redrive`.
pub(crate) async fn redrive(arguments: Redrive) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let which = Which { key: arguments.which.key, event: arguments.which.event };
    target.carry_out(&arguments.asked.how, Action::Redrive(which)).await
}

/// `tombolo parked discard`: without `--yes` only what would be discarded.
pub(crate) async fn discard(arguments: Discard) -> Result<()> {
    let target = Target::find(&arguments.asked).await?;
    let which = Which { key: arguments.which.key, event: arguments.which.event };
    if arguments.yes {
        return target.carry_out(&arguments.asked.how, Action::Discard(which)).await;
    }
    let mut query = Vec::new();
    query.extend(which.key.map(|key| ("key", key)));
    query.extend(which.event.map(|event| ("event", event.to_string())));
    let parked = parked(&target, query).await?;
    if arguments.asked.how.format == Format::Json {
        say(&json!({ "would_discard": parked }).to_string())?;
    } else {
        for event in &parked {
            say(&format!(
                "{}/{} {} {} of key {}",
                event.of.topic,
                event.of.partition,
                event.sequence,
                event.event_type,
                key(event)
            ))?;
        }
    }
    let (count, name) = (parked.len(), &target.subscription);
    let events = if count == 1 { "the event above".to_owned() } else { format!("the {count} events above") };
    Err(Error::usage(format!("nothing was discarded: with --yes {name} would never handle {events}")))
}

async fn parked(target: &Target, mut query: Vec<(&str, String)>) -> Result<Vec<Parked>> {
    query.push(("subscription", target.subscription.clone()));
    let found: Value = target.get("/tombolo/parked", &query).await?;
    serde_json::from_value(found).context(|| "the service's answer cannot be read".into())
}

fn key(event: &Parked) -> &str {
    event.key.as_deref().unwrap_or("(cannot be read)")
}

fn next_try(event: &Parked) -> String {
    match (event.attempts, event.retry_at) {
        (0, _) => "after the one before it".into(),
        (_, Some(at)) => at.strftime("%F %TZ").to_string(),
        (_, None) => "when told".into(),
    }
}

fn row(event: &Parked) -> [String; 9] {
    let error = event.error.as_deref().unwrap_or("-");
    [
        event.subscription.clone(),
        format!("{}/{}", event.of.topic, event.of.partition),
        event.sequence.to_string(),
        key(event).to_owned(),
        event.event_type.clone(),
        event.id.to_string(),
        event.attempts.to_string(),
        next_try(event),
        error.chars().take(ERROR_CHARS_MAX).collect(),
    ]
}

fn text(event: &Parked) -> String {
    let body = event.event.as_ref().map_or_else(
        || "(it is not an event that can be read)".to_owned(),
        |event| serde_json::to_string_pretty(event).unwrap_or_else(|_| event.to_string()),
    );
    format!(
        "event      {}\ntype       {}\nkey        {}\nat         {}/{} {}\nparked     {}\ntries      {}\nnext try   {}\nerror      {}\n\n{body}",
        event.id,
        event.event_type,
        key(event),
        event.of.topic,
        event.of.partition,
        event.sequence,
        event.parked_at,
        event.attempts,
        next_try(event),
        event.error.as_deref().unwrap_or("-")
    )
}
