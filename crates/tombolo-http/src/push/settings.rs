//! What an operator, or a service over the API, says of a push subscription.
//!
//! Invariant: what is not understood is refused by name; what is left out has a default that loses nothing.

use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tombolo_event::retry::Backoff;
use tombolo_event::{ServiceName, name};

use super::whole;
use crate::problem::{Problem, Refusal};

/// The most deliveries of one subscription that run beside each other.
const CONCURRENCY_MAX: usize = 64;
/// The longest that a delivery may take, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 600_000;

/// The longest wait between two tries, in milliseconds: a day.
const WAIT_MS_MAX: u64 = 86_400_000;

/// The push subscriptions of a bus.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Those of the operator, `[[bus.push]]`.
    pub subscriptions: Vec<Subscription>,
    /// What holds for those that services make over the API, `[bus.webhooks]`.
    pub webhooks: Webhooks,
    /// A deliberate fault, for the tests that must catch it.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

impl Settings {
    /// With these subscriptions, and this for those that services make.
    #[must_use]
    pub fn new(subscriptions: Vec<Subscription>, webhooks: Webhooks) -> Self {
        Self {
            subscriptions,
            webhooks,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// A deliberate fault of deliveries, each of which the tests must catch.
#[cfg(feature = "mutants")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mutant {
    /// What may have been under way when the bus ended is not marked.
    MarksNothing,
    /// An event is done before the subscriber has answered.
    MovesFirst,
}

/// What holds for targets that are not the operator's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Who asks, in the handshake: the DNS name of this bus.
    pub origin: String,
    /// Networks that may be reached though they are private, link-local or this machine's own.
    pub allow: Vec<IpNet>,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self { origin: "tombolo".into(), allow: Vec::new() }
    }
}

/// How an event is written in a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Attributes in `ce-` headers, data as the body.
    #[default]
    Binary,
    /// All of it as one JSON object.
    Structured,
    /// The data alone, as JSON: a plain event.
    #[serde(skip_deserializing)]
    Plain,
}

/// Which events wait for which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Events of one key, for each other.
    #[default]
    Key,
    /// Each for the one before.
    Serial,
}

/// Where a new subscription begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// With the first event that the topic keeps.
    #[default]
    Start,
    /// With the next one.
    Now,
}

/// How a delivery that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The first wait, in milliseconds; never longer than the longest.
    #[serde(deserialize_with = "whole::read")]
    pub first_ms: u64,
    /// The longest wait, in milliseconds.
    #[serde(deserialize_with = "whole::read")]
    pub max_ms: u64,
    /// After how many failed tries an event is parked. A subscriber that cannot be reached does not count.
    #[serde(deserialize_with = "whole::read")]
    pub attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first_ms: 200, max_ms: 30_000, attempts: 5 }
    }
}

impl Retry {
    /// The waits.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(self.first_ms), Duration::from_millis(self.max_ms))
    }
}

/// One push subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// Its name: what its cursors are kept under.
    #[serde(default)]
    pub name: String,
    /// The topic that it reads.
    pub topic: ServiceName,
    /// Only these types; none for all.
    #[serde(default)]
    pub types: Option<Vec<String>>,
    /// Where events are sent.
    pub url: String,
    /// How they are written.
    #[serde(default)]
    pub mode: Mode,
    /// Which wait for which.
    #[serde(default)]
    pub order: Order,
    /// How many deliveries run beside each other, where the order is by key.
    #[serde(default = "concurrency_default", deserialize_with = "whole::read")]
    pub concurrency: usize,
    /// How long an answer may take, in milliseconds.
    #[serde(default = "timeout_ms_default", deserialize_with = "whole::read")]
    pub timeout_ms: u64,
    /// Whether it answers. Where it does not, no answer in time counts as delivered.
    #[serde(default = "yes")]
    pub answers: bool,
    /// How it is tried again.
    #[serde(default, deserialize_with = "of_object")]
    pub retry: Retry,
    /// After how many parked events the subscription stands still, as stuck.
    #[serde(default = "parked_max_default", deserialize_with = "whole::read")]
    pub parked_max: usize,
    /// Where it begins when it is new.
    #[serde(default)]
    pub from: From,
}

/// Reads it from an object; an array of the same values is none.
fn of_object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    let object = serde_json::Map::deserialize(from)?;
    T::deserialize(serde_json::Value::Object(object)).map_err(serde::de::Error::custom)
}

fn concurrency_default() -> usize {
    8
}

fn timeout_ms_default() -> u64 {
    10_000
}

fn parked_max_default() -> usize {
    1_000
}

fn yes() -> bool {
    true
}

impl Subscription {
    /// Checks what no type says.
    ///
    /// # Errors
    /// `InvalidName`, `InvalidParameter` with the parameter's name.
    pub fn check(&self) -> Result<(), Problem> {
        name::check_subscription(&self.name)?;
        self.check_bounds()
    }

    pub(crate) fn check_bounds(&self) -> Result<(), Problem> {
        target(&self.url)?;
        let bounds = [
            ("concurrency", self.concurrency as u64, 1, CONCURRENCY_MAX as u64),
            ("timeout_ms", self.timeout_ms, 1, TIMEOUT_MS_MAX),
            ("attempts", u64::from(self.retry.attempts), 1, 1_000),
            ("first_ms", self.retry.first_ms, 1, WAIT_MS_MAX),
            ("max_ms", self.retry.max_ms, 1, WAIT_MS_MAX),
            ("parked_max", self.parked_max as u64, 0, 100_000),
        ];
        for (parameter, found, min, max) in bounds {
            if !(min..=max).contains(&found) {
                let detail =
                    format!("{parameter} of subscription {} is {found}; expected {min} to {max}", self.name);
                return Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", parameter));
            }
        }
        Ok(())
    }

    /// How many deliveries run beside each other.
    #[must_use]
    pub fn lanes(&self) -> usize {
        match self.order {
            Order::Key => self.concurrency,
            Order::Serial => 1,
        }
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// The address that events are sent to, if it is one.
///
/// # Errors
/// `InvalidParameter`.
pub(crate) fn target(url: &str) -> Result<Uri, Problem> {
    let wrong = |found: &str| {
        let detail = format!("url {url:?} {found}; expected http://host:port/path");
        Problem::new(Refusal::InvalidParameter, detail).with("parameter", "url")
    };
    let uri: Uri = url.parse().map_err(|error| wrong(&format!("cannot be read ({error})")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if cfg!(feature = "tls") => {}
        Some("https") => return Err(wrong("needs TLS, which this bus was built without")),
        _ => return Err(wrong("has another scheme, or none")),
    }
    if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(wrong("holds a password"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(wrong("has no host"));
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(json: &str) -> Result<Subscription, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn what_is_left_out_has_a_default_and_what_is_unknown_is_refused() {
        let short = subscription(r#"{"topic": "posts", "url": "http://a/b"}"#).unwrap();
        assert_eq!(
            (short.mode, short.order, short.from, short.answers),
            (Mode::Binary, Order::Key, From::Start, true)
        );
        let odd = subscription(r#"{"topic": "posts", "url": "http://a/b", "tyeps": []}"#).unwrap_err();
        assert!(odd.to_string().contains("tyeps"), "{odd}");
        assert!(subscription(r#"{"topic": "posts", "url": "http://a", "mode": "plain"}"#).is_err());
    }

    #[test]
    fn a_target_that_is_none_is_refused_by_name() {
        for url in ["", "ftp://a/b", "a/b", "http://", "http://user:secret@a/", "http://a b/"] {
            let problem = target(url).unwrap_err();
            assert_eq!(problem.document()["parameter"], "url", "{url}");
        }
        target("http://[::1]:4000/events").unwrap();
    }
}
