//! Asking a service for something as an operator: finding it by its subscription, writing the request down, waiting for
//! what becomes of it.
//!
//! Invariant: a command that says that something was done has read it in the outcome of every request.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, interval, timeout_at};
use tombolo_event::operator::{Action, Ask, OPERATOR_TOKEN, Request};

use super::subscriptions::{ask_one, replicas};
use crate::arguments::{Asked, How};
use crate::commands::{operator, say};
use crate::error::{Context, Error, Kind, Result, with_causes};
use crate::output::Format;
use crate::runner::client;

/// How long a service may take to answer; a preview reads the topic.
const ANSWER_BOUND: Duration = Duration::from_secs(120);
/// How often the outcome of a request is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A subscription of a service that runs.
pub(super) struct Target {
    client: Client,
    url: String,
    pub(super) subscription: String,
}

impl Target {
    /// What is asked about as `subscription`, of a replica that has it.
    pub(super) fn of(client: Client, url: &str, subscription: String) -> Self {
        Self { client, url: url.to_owned(), subscription }
    }

    /// Finds the service that has the subscription, which may be named as `SERVICE/SUBSCRIPTION`.
    pub(super) async fn find(asked: &Asked) -> Result<Self> {
        let (service, name) = match asked.subscription.split_once('/') {
            Some((service, name)) => (Some(service), name),
            None => (None, asked.subscription.as_str()),
        };
        let client = client()?;
        let (mut found, mut names, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for replica in replicas(&asked.how.reached).await? {
            if service.is_some_and(|service| service != replica.service) {
                continue;
            }
            match ask_one(&client, &replica.url).await {
                Ok(status) => {
                    let its = status["subscriptions"].as_array().cloned().unwrap_or_default();
                    for its in its.iter().filter_map(|its| its["name"].as_str()) {
                        names.push(format!("{}/{its}", replica.service));
                        if its == name {
                            found.push((replica.service.clone(), replica.url.clone()));
                        }
                    }
                }
                Err(why) => silent.push(format!("{} {}: {why}", replica.service, replica.number)),
            }
        }
        found.sort();
        found.dedup_by(|one, other| one.0 == other.0);
        match &found[..] {
            [(_, url)] => Ok(Self { client, url: url.clone(), subscription: name.to_owned() }),
            [] => Err(missing(&asked.subscription, names, &silent)),
            many => {
                let names: Vec<_> = many.iter().map(|(service, _)| format!("{service}/{name}")).collect();
                Err(Error::usage(format!("several services have it; say which: {}", names.join(", "))))
            }
        }
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        self.get_within(path, query, ANSWER_BOUND).await
    }

    pub(super) async fn get_within(
        &self,
        path: &str,
        query: &[(&str, String)],
        bound: Duration,
    ) -> Result<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}{path}", self.url), query)
            .context(|| format!("the service's address {} cannot be read", self.url))?;
        self.answer(self.client.get(url), bound).await
    }

    pub(super) async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<Value> {
        self.answer(self.client.post(format!("{}{path}", self.url)).json(body), ANSWER_BOUND).await
    }

    async fn answer(&self, request: RequestBuilder, bound: Duration) -> Result<Value> {
        let silent = |error: reqwest::Error| {
            Error::not_running(format!(
                "the service at {} does not answer: {}",
                self.url,
                with_causes(&error)
            ))
        };
        let request = match std::env::var(OPERATOR_TOKEN) {
            Ok(token) => request.bearer_auth(token),
            Err(_) => request,
        };
        let answer = request.timeout(bound).send().await.map_err(silent)?;
        let status = answer.status();
        let body = answer.json().await.context(|| "the service's answer cannot be read".into());
        if status.is_success() {
            return body;
        }
        // Not every program beside the services is one of Tombolo's, and speaks its JSON.
        let body: Value = body.unwrap_or_else(|_| format!("it answers {status}").into());
        let kind = if status == StatusCode::NOT_FOUND { Kind::NotFound } else { Kind::Failed };
        Err(Error::new(
            kind,
            body["detail"].as_str().or(body.as_str()).map_or_else(|| body.to_string(), str::to_owned),
        ))
    }

    /// Asks for `action`, and prints what became of it.
    pub(super) async fn carry_out(&self, how: &How, action: Action) -> Result<()> {
        let ask = Ask { subscription: self.subscription.clone(), asked_by: operator(), action };
        let taken = self.post("/tombolo/requests", &ask).await?;
        let ids = taken["requests"].as_array().cloned().unwrap_or_default();
        let ends = Instant::now() + Duration::from_secs(how.wait);
        let mut requests = Vec::new();
        for id in ids.iter().filter_map(Value::as_str) {
            requests.push(self.outcome(id, ends).await?);
        }
        if how.format == Format::Json {
            say(&serde_json::to_string(&requests).context(|| "cannot write the outcome".into())?)?;
        }
        let waiting = requests.iter().filter(|request| request.outcome.is_none()).count();
        let mut refused = 0;
        for outcome in requests.iter().filter_map(|request| request.outcome.as_ref()) {
            refused += usize::from(!outcome.done);
            match (how.format, outcome.done) {
                (Format::Json, _) => {}
                (Format::Table, true) => say(&outcome.text)?,
                (Format::Table, false) => say(&format!("not done: {}", outcome.text))?,
            }
        }
        verdict(requests.len(), waiting, refused, how.wait)
    }

    /// The request with its outcome; without, if none came in time.
    async fn outcome(&self, id: &str, ends: Instant) -> Result<Request> {
        let mut looks = interval(LOOK_EVERY);
        loop {
            let request = self.get(&format!("/tombolo/requests/{id}"), &[]).await?;
            let request: Request =
                serde_json::from_value(request).context(|| "the service's answer cannot be read".into())?;
            if request.outcome.is_some() || timeout_at(ends, looks.tick()).await.is_err() {
                return Ok(request);
            }
        }
    }
}

fn verdict(asked: usize, waiting: usize, refused: usize, seconds: u64) -> Result<()> {
    if waiting > 0 {
        return Err(Error::not_running(format!(
            "{waiting} of {asked} requests were not carried out within {seconds} s; they stay, and are as soon as a replica holds the partitions that they are about (`tombolo subscriptions list` shows who does)"
        )));
    }
    match refused {
        0 => Ok(()),
        refused => Err(Error::failed(format!("{refused} of {asked} requests were refused, as said above"))),
    }
}

fn missing(subscription: &str, mut names: Vec<String>, silent: &[String]) -> Error {
    names.sort();
    names.dedup();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let silent =
        if silent.is_empty() { String::new() } else { format!("; no answer from {}", silent.join(", ")) };
    Error::not_found(format!(
        "no service that runs has subscription {subscription:?}; there are: {names}{silent}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_that_was_done_everywhere_is_a_success() {
        assert!(verdict(8, 0, 0, 30).is_ok());
        assert_eq!(verdict(8, 1, 0, 30).unwrap_err().kind, Kind::NotRunning);
        assert_eq!(verdict(8, 0, 2, 30).unwrap_err().kind, Kind::Failed);
    }
}
