//! What an operator says of plain events: one `[[bus.plain]]` table each.
//!
//! Invariant: what is not understood is refused by name.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use tombolo_event::ServiceName;

use crate::problem::{Problem, Refusal};
use crate::push::{Mode, Order, Retry, Subscription};

/// A place where plain events are taken, and who gets them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Where it listens: addresses with ports, of IPv4 and IPv6.
    pub listen: Vec<SocketAddr>,
    /// The path of both `POST` and `GET`.
    #[serde(default = "path_default")]
    pub path: String,
    /// The topic in which events are kept. It has one partition.
    pub topic: ServiceName,
    /// Who is told of each event.
    #[serde(default)]
    pub subscribers: Vec<Subscriber>,
    /// How callers are told from each other.
    #[serde(default)]
    pub source: Source,
    /// The origins whose pages may use it, or `*`. None sends no header of CORS.
    #[serde(default)]
    pub cors: Vec<String>,
}

/// Who is told of each event.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscriber {
    /// Its name: what its cursor is kept under.
    pub name: String,
    /// Where events are posted.
    pub url: String,
    /// Whether it answers. Where it does not, no answer in time counts as delivered.
    #[serde(default = "yes")]
    pub answers: bool,
    /// How long an answer may take, in milliseconds.
    #[serde(default = "timeout_ms_default")]
    pub timeout_ms: u64,
    /// How it is tried again.
    #[serde(default)]
    pub retry: Retry,
    /// After how many parked events it stands still.
    #[serde(default = "parked_max_default")]
    pub parked_max: usize,
    /// Whether it rebuilds itself by `GET`, and how it is told from others then.
    #[serde(default)]
    pub recovers: Recovers,
    /// How long it is waited for to ask, when it is back, in milliseconds.
    #[serde(default = "recover_ms_default")]
    pub recover_ms: u64,
    /// Its addresses, where it is told by them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The service whose credential it shows, where it is told by that; by default its name.
    #[serde(default)]
    pub credential: Option<String>,
}

/// How a subscriber that rebuilds itself is told from others that ask for all events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovers {
    /// It does not, or its cursor is not to be moved.
    #[default]
    Never,
    /// By the credential that it shows.
    ByCredential,
    /// By the address that it asks from.
    ByAddress,
    /// It is the one that is recovering, when only one is.
    OnlyOne,
}

/// How the identity of a caller is found: what stands in the `source` of its events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// By address, where no credential says it.
    pub addresses: std::collections::HashMap<IpAddr, String>,
    /// Whether a caller without a credential is refused, rather than `anonymous`.
    pub credential_required: bool,
}

fn path_default() -> String {
    "/events".into()
}

fn timeout_ms_default() -> u64 {
    10_000
}

fn parked_max_default() -> usize {
    1_000
}

fn recover_ms_default() -> u64 {
    500
}

fn yes() -> bool {
    true
}

impl Plain {
    /// Checks what no type says.
    ///
    /// # Errors
    /// `InvalidParameter`.
    pub fn check(&self) -> Result<(), Problem> {
        let wrong = |parameter: &str, detail: String| {
            Err(Problem::new(Refusal::InvalidParameter, detail).with("parameter", parameter))
        };
        if self.listen.is_empty() {
            return wrong(
                "listen",
                format!("plain events of {} listen nowhere; expected at least one address", self.topic),
            );
        }
        if !self.path.starts_with('/') || self.path.contains(['{', '}', '?', '#', ' ']) {
            return wrong("path", format!("path {:?} cannot be one; expected /events", self.path));
        }
        for subscriber in &self.subscribers {
            subscriber.subscription(&self.topic).check_bounds()?;
            if subscriber.recovers == Recovers::ByAddress && subscriber.addresses.is_empty() {
                return wrong(
                    "addresses",
                    format!(
                        "subscriber {} recovers by address and has none; expected addresses = [\"10.0.0.7\"]",
                        subscriber.name
                    ),
                );
            }
        }
        Ok(())
    }
}

impl Subscriber {
    /// The push subscription that it is.
    #[must_use]
    pub fn subscription(&self, topic: &ServiceName) -> Subscription {
        Subscription {
            name: format!("{topic}.{}", self.name),
            topic: topic.clone(),
            types: None,
            url: self.url.clone(),
            mode: Mode::Plain,
            order: Order::Serial,
            concurrency: 1,
            timeout_ms: self.timeout_ms,
            answers: self.answers,
            retry: self.retry,
            parked_max: self.parked_max,
            from: crate::push::From::Start,
        }
    }

    /// The name that its credential proves.
    #[must_use]
    pub fn credential(&self) -> &str {
        self.credential.as_deref().unwrap_or(&self.name)
    }
}
