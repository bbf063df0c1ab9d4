//! Topics of Kafka's made, and their settings read, by the brokers' administration.
//!
//! The cluster that librdkafka brings for tests has none; a test that uses it makes topics through that cluster itself, and
//! they are taken to be as they were wished.
//!
//! Invariant: what is made is what [`Settings`] says, or nothing is.

use std::collections::BTreeMap;
#[cfg(feature = "conformance")]
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::link::{Events, unavailable};
use super::settings::Settings;
use crate::judged::REQUEST_SECONDS_MAX;
use crate::{Error, Kind, Result};

/// Makes a topic of this name with one partition, on so many brokers.
#[cfg(feature = "conformance")]
pub type StandIn = dyn Fn(&str, usize) -> std::result::Result<(), String> + Send + Sync;

/// Who makes topics.
pub(super) enum Admin {
    Brokers(AdminClient<Events>),
    #[cfg(feature = "conformance")]
    StandIn(Arc<StandIn>),
}

fn options() -> AdminOptions {
    let limit = Some(Duration::from_secs(REQUEST_SECONDS_MAX));
    AdminOptions::new().request_timeout(limit).operation_timeout(limit)
}

impl Admin {
    /// Makes a topic; somebody else may have made it meanwhile, in whichever way.
    pub(super) async fn make(&self, topic: &str, settings: &Settings) -> Result<()> {
        let admin = match self {
            Self::Brokers(admin) => admin,
            #[cfg(feature = "conformance")]
            Self::StandIn(make) => {
                let refused = |why| Error::new(Kind::Configuration, why);
                return make(topic, settings.replicas).map_err(refused);
            }
        };
        let replicas = i32::try_from(settings.replicas).unwrap_or(1);
        let mut new = NewTopic::new(topic, 1, TopicReplication::Fixed(replicas));
        for (name, value) in &settings.values {
            new = new.set(name, value);
        }
        let made = admin.create_topics([&new], &options()).await;
        let made = made.map_err(|error| unavailable("Kafka makes no topics now", error))?;
        match made.into_iter().next() {
            Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => Ok(()),
            Some(Err((_, code))) => Err(not_made(topic, code)),
        }
    }

    /// The settings of a topic that is there, of which `found` says the rest.
    pub(super) async fn settings(&self, topic: &str, found: Settings) -> Result<Settings> {
        let admin = match self {
            Self::Brokers(admin) => admin,
            #[cfg(feature = "conformance")]
            Self::StandIn(_) => {
                let values = Settings::wished(found.replicas, &crate::accept::Accepted::default()).values;
                return Ok(Settings { values, ..found });
            }
        };
        let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options()).await;
        let described = described.map_err(|error| unavailable("Kafka describes no topics now", error))?;
        let resource = match described.into_iter().next() {
            Some(Ok(resource)) => resource,
            Some(Err(code)) => return Err(not_described(topic, code)),
            None => return Err(unavailable("Kafka described nothing", topic)),
        };
        let entries = resource.entries.into_iter();
        let values: BTreeMap<String, String> =
            entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        Ok(Settings { values, ..found })
    }
}

fn not_made(topic: &str, code: RDKafkaErrorCode) -> Error {
    let kind = match code {
        RDKafkaErrorCode::RequestTimedOut
        | RDKafkaErrorCode::NotController
        | RDKafkaErrorCode::OperationTimedOut
        // Brokers that are away come back.
        | RDKafkaErrorCode::InvalidReplicationFactor => Kind::Unavailable,
        _ => Kind::Configuration,
    };
    Error::new(kind, format!("Kafka refused to make topic {topic}: {code}"))
}

fn not_described(topic: &str, code: RDKafkaErrorCode) -> Error {
    let kind = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
            Kind::Configuration
        }
        _ => Kind::Unavailable,
    };
    let message = format!(
        "Kafka does not say how topic {topic} is set ({code}), without which nobody knows what it keeps: let this client describe its configs"
    );
    Error::new(kind, message)
}
