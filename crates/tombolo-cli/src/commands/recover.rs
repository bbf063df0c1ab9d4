//! `tombolo recover`: what a service's database and the bus do not agree about, and an operator's word on it.
//!
//! Invariant: nothing is decided that was not shown: a decision names the halt, and the service refuses it if that is over.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use tombolo_event::operator::OPERATOR_TOKEN;

use crate::arguments::Recover;
use crate::commands::{operator, reach, say};
use crate::error::{Context, Error, Result, with_causes};
use crate::output::{self, Format};
use crate::runner::client;

/// How long a service may take: it reads what its database does not know from the bus.
const ANSWER_BOUND: Duration = Duration::from_secs(600);

/// As much of a service's answer as is shown.
#[derive(Debug, Deserialize)]
struct Report {
    halt: Option<Halt>,
    now: Option<Value>,
    partitions: Vec<Partition>,
    past: Vec<Past>,
}

#[derive(Debug, Deserialize)]
struct Halt {
    id: String,
    found_at: String,
    found: String,
}

#[derive(Debug, Deserialize)]
struct Partition {
    partition: u32,
    tail: u64,
    unknown: Option<u64>,
    lost: Option<u64>,
    dropped: u64,
    kept: u64,
}

#[derive(Debug, Deserialize)]
struct Past {
    #[serde(flatten)]
    halt: Halt,
    choice: String,
    by: String,
    outcome: Option<String>,
}

/// Shows, or decides.
pub(crate) async fn recover(arguments: Recover) -> Result<()> {
    let url = format!("{}/tombolo/recovery", address(&arguments).await?);
    let client = client()?;
    let (halt, choice) = match (&arguments.take_bus, &arguments.resume) {
        (Some(halt), _) => (halt, "take-bus"),
        (None, Some(halt)) => (halt, "resume"),
        (None, None) => return show(&arguments, answer(client.get(&url)).await?),
    };
    let decide = json!({ "halt": halt, "choice": choice, "by": operator() });
    let decided = answer(post(&client, &url, &decide)).await?;
    match arguments.format {
        Format::Json => say(&decided.to_string()),
        Format::Table => say(decided["done"].as_str().unwrap_or_default()),
    }
}

fn post(client: &Client, url: &str, body: &Value) -> RequestBuilder {
    client.post(url).json(body)
}

/// Where the service is: as it was said, or as it registered at the bus.
async fn address(arguments: &Recover) -> Result<String> {
    if let Some(url) = &arguments.url {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let bus = reach(&arguments.reached).await?;
    let registrations = bus.registrations().await?;
    bus.close().await;
    let service = &arguments.service;
    let found = registrations.into_iter().find(|registration| registration.service == *service);
    found.map(|registration| registration.url).ok_or_else(|| {
        Error::not_found(format!(
            "service {service} never registered at this bus; say where it is with --url"
        ))
    })
}

async fn answer(request: RequestBuilder) -> Result<Value> {
    let silent = |error: reqwest::Error| {
        Error::not_running(format!(
            "the service does not answer: {}; it must run, halted or not",
            with_causes(&error)
        ))
    };
    let request = match std::env::var(OPERATOR_TOKEN) {
        Ok(token) => request.bearer_auth(token),
        Err(_) => request,
    };
    let answer = request.timeout(ANSWER_BOUND).send().await.map_err(silent)?;
    let status = answer.status();
    let body: Value = answer.json().await.context(|| "the service's answer cannot be read".into())?;
    if status.is_success() {
        return Ok(body);
    }
    Err(Error::failed(body["detail"].as_str().map_or_else(|| body.to_string(), str::to_owned)))
}

fn show(arguments: &Recover, answer: Value) -> Result<()> {
    if arguments.format == Format::Json {
        return say(&answer.to_string());
    }
    let report = Report::deserialize(&answer).context(|| "the service's answer cannot be read".into())?;
    say(&text(arguments.service.as_str(), &report))
}

fn text(service: &str, report: &Report) -> String {
    let mut text = match &report.halt {
        Some(halt) => format!("{service} is halted since {}:\n  {}.\n", halt.found_at, halt.found),
        None => format!("{service} is not halted: its database and the bus agree.\n"),
    };
    if let Some(halt) = &report.halt {
        text.push_str(&choices(service, halt, report));
    }
    for past in &report.past {
        let outcome = past.outcome.as_deref().unwrap_or("-");
        text.push_str(&format!(
            "\nEarlier, found {}:\n  {}.\n  {} decided {}: {outcome}\n",
            past.halt.found_at, past.halt.found, past.by, past.choice
        ));
    }
    text.trim_end().to_owned()
}

fn choices(service: &str, halt: &Halt, report: &Report) -> String {
    let id = &halt.id;
    let Some(now) = &report.now else {
        return format!(
            "\nBy now both sides agree again. To go on without a change:\n\n  tombolo recover {service} --resume {id}\n"
        );
    };
    if now["what"] == "led-elsewhere" {
        return format!(
            "
If this database is the copy: leave it halted, or end it.
If it is the one that counts: end the service with the other database, and then

  tombolo recover {service} --resume {id}
"
        );
    }
    let nothing = "\nTaking the bus's word would change no number.\n".to_owned();
    let would = if report.partitions.is_empty() { nothing } else { preview(service, &report.partitions) };
    format!(
        "{would}
To take the bus's word (it counts, and the database goes on behind it; any other database that publishes as {service} is
halted by this):

  tombolo recover {service} --take-bus {id}

If this database is a copy that should not publish here: leave it halted, or end it.
If the bus or the database can be put right (a newer copy, the right URL): do that, start {service}, and look again.
docs/recovery.md explains each choice.
"
    )
}

fn preview(service: &str, partitions: &[Partition]) -> String {
    let counted = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let row = |seen: &Partition| {
        [
            seen.partition.to_string(),
            seen.tail.to_string(),
            counted(seen.unknown),
            counted(seen.lost),
            seen.dropped.to_string(),
            seen.kept.to_string(),
        ]
    };
    let header = ["PARTITION", "BUS ENDS AT", "UNKNOWN HERE", "LOST THERE", "SENT ALREADY", "TO SEND"];
    let table = output::table(header, partitions.iter().map(row).collect());
    let unknown = partitions.iter().filter(|seen| seen.unknown > Some(0)).map(|seen| {
        let first = seen.tail + 1 - seen.unknown.unwrap_or_default() - seen.dropped;
        format!("\n  tombolo topics read {service} --partition {} --from {first}", seen.partition)
    });
    let unknown: String = unknown.collect();
    let read = match unknown.is_empty() {
        true => String::new(),
        false => format!(
            "\nThe database's state is that of before the events that are unknown here. To read them:\n{unknown}\n"
        ),
    };
    format!("\n{table}\n{read}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(now: Value) -> Report {
        let partition =
            json!({ "partition": 3, "tail": 1041, "unknown": 1000, "lost": 0, "dropped": 2, "kept": 7 });
        let halt =
            json!({ "id": "0193", "found_at": "2026-11-21T01:00:00Z", "found": "the database is older" });
        serde_json::from_value(json!({ "halt": halt, "now": now, "partitions": [partition], "past": [] }))
            .unwrap()
    }

    #[test]
    fn what_is_shown_names_the_commands_that_follow() {
        let shown = text("orders", &report(json!({})));
        for expected in [
            "orders is halted since 2026-11-21T01:00:00Z:\n  the database is older.",
            "tombolo topics read orders --partition 3 --from 40",
            "tombolo recover orders --take-bus 0193",
        ] {
            assert!(shown.contains(expected), "{shown}");
        }
    }

    #[test]
    fn what_was_put_right_is_resumed() {
        let shown = text("orders", &report(Value::Null));
        assert!(shown.contains("tombolo recover orders --resume 0193"), "{shown}");
        assert!(!shown.contains("--take-bus"), "{shown}");
    }
}
