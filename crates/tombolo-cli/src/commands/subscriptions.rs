//! `tombolo subscriptions`: where each subscription stands, as the running replicas say.
//!
//! Invariant: a replica that does not answer is listed with the reason, never left out.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::arguments::{OfBus, Reached};
use crate::commands::{reach, show};
use crate::error::{Result, with_causes};
use crate::folder::{Place, find_bus};
use crate::runner::client;
use crate::runner::control::{Request, ask};

/// How long a replica may take to answer.
const ANSWER_BOUND: Duration = Duration::from_secs(3);

/// A replica that may be asked.
pub(super) struct Replica {
    pub(super) service: String,
    pub(super) number: usize,
    pub(super) url: String,
}

/// As much of a service's own status as the table shows.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    subscriptions: Vec<Subscription>,
}

#[derive(Debug, Deserialize)]
struct Subscription {
    name: String,
    kind: String,
    lag_events: u64,
    lag_seconds: f64,
    #[serde(default)]
    parked_events: u64,
    state: String,
    #[serde(default)]
    partitions: Vec<Partition>,
    #[serde(default)]
    detail: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Partition {
    held: bool,
    #[serde(default)]
    error: Option<String>,
}

/// What each replica says of itself, or why it says nothing: service, number, answer.
pub(super) async fn statuses(
    reached: &Reached,
) -> Result<Vec<(String, usize, std::result::Result<Value, String>)>> {
    let (replicas, client) = (replicas(reached).await?, client()?);
    let asked = replicas.into_iter().map(async |replica| {
        let answer = ask_one(&client, &replica.url).await;
        (replica.service, replica.number, answer)
    });
    Ok(join_all(asked).await)
}

/// `tombolo subscriptions list`.
pub(crate) async fn list(arguments: OfBus) -> Result<()> {
    let replicas = replicas(&arguments.reached).await?;
    let client = client()?;
    let asked = replicas.iter().map(async |replica| (replica, ask_one(&client, &replica.url).await));
    let answers = join_all(asked).await;
    let rows = answers.iter().flat_map(|(replica, answer)| rows(replica, answer)).collect();
    let list = answers.iter().map(|(replica, answer)| json(replica, answer)).collect();
    let header = [
        "SERVICE",
        "REPLICA",
        "SUBSCRIPTION",
        "KIND",
        "STATE",
        "BEHIND",
        "SECONDS",
        "PARKED",
        "HOLDS",
        "DETAIL",
    ];
    show(arguments.format, header, rows, &Value::Array(list))
}

/// The replicas that the runner runs; those that registered at the bus, if only that is known.
pub(super) async fn replicas(reached: &Reached) -> Result<Vec<Replica>> {
    let of = |service: &str, number, url: &str| Replica { service: service.into(), number, url: url.into() };
    let runner = match reached.bus {
        Some(_) => None,
        None => match find_bus(reached.found.data.as_deref())? {
            Place::Runner(run) => Some(run),
            Place::Bus(_) => None,
        },
    };
    let Some(runner) = runner else {
        let bus = reach(reached).await?;
        let registrations = bus.registrations().await?;
        bus.close().await;
        let replica = |r: &tombolo_bus::Registration| of(r.service.as_str(), r.replica as usize, &r.url);
        return Ok(registrations.iter().map(replica).collect());
    };
    let status = ask(&runner, &Request::Status).await?;
    let services = status.services.iter().flat_map(|service| {
        let replicas = service.replicas.iter().zip(1..).filter(|(replica, _)| replica.pid.is_some());
        replicas.map(|(replica, number)| of(&service.name, number, &replica.url))
    });
    Ok(services.collect())
}

pub(super) async fn ask_one(client: &reqwest::Client, url: &str) -> std::result::Result<Value, String> {
    let failed = |error: reqwest::Error| with_causes(&error);
    let request = client.get(format!("{url}/tombolo/status")).timeout(ANSWER_BOUND);
    let answer = request.send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(format!("GET /tombolo/status answers {}", answer.status()));
    }
    answer.json().await.map_err(failed)
}

fn rows(replica: &Replica, answer: &std::result::Result<Value, String>) -> Vec<[String; 10]> {
    let first = [replica.service.clone(), replica.number.to_string()];
    let silent = |why: &str| {
        let [service, number] = first.clone();
        let none = || "-".to_owned();
        vec![[
            service,
            number,
            none(),
            none(),
            "unknown".into(),
            none(),
            none(),
            none(),
            none(),
            why.to_owned(),
        ]]
    };
    let said = match answer {
        Err(why) => return silent(why),
        Ok(answer) => match Said::deserialize(answer) {
            Ok(said) => said,
            Err(error) => return silent(&format!("its answer cannot be read: {error}")),
        },
    };
    said.subscriptions.iter().map(|subscription| row(first.clone(), subscription)).collect()
}

/// The row of one subscription, behind its service and replica.
fn row([service, number]: [String; 2], subscription: &Subscription) -> [String; 10] {
    let held = subscription.partitions.iter().filter(|partition| partition.held).count();
    let failing = subscription.partitions.iter().find_map(|partition| partition.error.clone());
    [
        service,
        number,
        subscription.name.clone(),
        subscription.kind.clone(),
        subscription.state.clone(),
        subscription.lag_events.to_string(),
        format!("{:.1}", subscription.lag_seconds),
        subscription.parked_events.to_string(),
        format!("{held}/{}", subscription.partitions.len()),
        subscription.detail.clone().or(failing).unwrap_or_else(|| "-".into()),
    ]
}

fn json(replica: &Replica, answer: &std::result::Result<Value, String>) -> Value {
    let Replica { service, number, url } = replica;
    match answer {
        Ok(status) => json!({ "service": service, "replica": number, "url": url, "status": status }),
        Err(error) => json!({ "service": service, "replica": number, "url": url, "error": error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Replica {
        Replica { service: "orders".into(), number: 1, url: "http://127.0.0.1:1".into() }
    }

    #[test]
    fn a_status_becomes_a_row_for_each_subscription() {
        let status = json!({ "service": "orders", "replica": 1, "relay": null, "subscriptions": [{
            "name": "customers", "kind": "view", "lag_events": 3, "lag_seconds": 0.25, "parked_events": 2, "state": "behind", "detail": null,
            "partitions": [
                { "topic": "users", "partition": 0, "sequence": 4, "tail": 7, "lag_events": 3, "held": true, "attempts": 1, "error": "no such table" },
                { "topic": "users", "partition": 1, "sequence": 0, "tail": 0, "lag_events": 0, "held": false, "attempts": 0, "error": null },
            ],
        }]});
        let rows = rows(&orders(), &Ok(status));
        assert_eq!(
            rows,
            [["orders", "1", "customers", "view", "behind", "3", "0.2", "2", "1/2", "no such table"]]
        );
    }

    #[test]
    fn a_replica_that_does_not_answer_is_listed_with_the_reason() {
        let rows = rows(&orders(), &Err("connection refused".into()));
        assert_eq!(rows[0][4], "unknown");
        assert_eq!(rows[0][9], "connection refused");
    }
}
