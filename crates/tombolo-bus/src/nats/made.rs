//! How a topic's stream is made, and what it is refused for when it is found.
//!
//! Invariant: a stream that is not marked as ours, or whose settings would lose events, is refused by name.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use tombolo_event::ServiceName;

use super::link::{Link, unavailable};
use crate::{Error, Kind, Result};

/// The shortest time for which the server compares message ids, in milliseconds; ours never repeat.
const DUPLICATES_MS: u64 = 100;
/// The same where there are replicas: one that was away knows the id of its last message if it returns within it.
const DUPLICATES_OF_REPLICAS_MS: u64 = 10_000;

pub(super) async fn make(link: &Arc<Link>, topic: &ServiceName) -> Result<()> {
    let made = link.jetstream.create_stream(settings(link, topic)).await;
    match made {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            // Somebody else made it in the meantime; whether as we would have is checked when it is found.
            CreateStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                Ok(())
            }
            CreateStreamErrorKind::JetStream(why) => Err(not_made(link, &format!("topic {topic}"), &why)),
            _ => Err(unavailable("the topic's stream cannot be made", error)),
        },
    }
}

/// Why a server would not make a stream.
pub(super) fn not_made(link: &Link, what: &str, why: &async_nats::jetstream::Error) -> Error {
    let asked = match link.replicas {
        1 => String::new(),
        replicas => format!(", on {replicas} servers of a cluster (`?replicas={replicas}`)"),
    };
    let kind = match why.error_code() {
        // Servers that are away come back; until then nothing can be made.
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NO_PEERS | ErrorCode::CLUSTER_NOT_LEADER => {
            Kind::Unavailable
        }
        _ => Kind::Configuration,
    };
    Error::new(kind, format!("the NATS server refused to make {what}{asked}: {why}"))
}

fn settings(link: &Link, topic: &ServiceName) -> Config {
    let duplicates_ms = if link.replicas > 1 { DUPLICATES_OF_REPLICAS_MS } else { DUPLICATES_MS };
    Config {
        name: link.names.topic_stream(topic),
        description: Some(link.names.topic_mark(topic)),
        subjects: vec![link.names.topic_subjects(topic)],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_age: Duration::ZERO,
        duplicate_window: Duration::from_millis(duplicates_ms),
        deny_delete: true,
        num_replicas: link.replicas,
        // Otherwise an append waits for each of its messages (`agreed`).
        allow_atomic_publish: link.replicas > 1 && link.client.is_server_compatible(2, 12, 0),
        ..Config::default()
    }
}

/// Refuses a stream that is not ours, or that would lose events.
pub(super) fn check(link: &Link, topic: &ServiceName, found: &Config) -> Result<()> {
    let name = &found.name;
    if found.description.as_ref() != Some(&link.names.topic_mark(topic)) {
        let message = format!(
            "stream {name} is not Tombolo's: its description is {:?}; expected {:?}: choose another namespace",
            found.description.as_deref().unwrap_or_default(),
            link.names.topic_mark(topic)
        );
        return Err(Error::new(Kind::TopicDiffers, message));
    }
    let setting = unsafe_setting(found).or_else(|| {
        (found.subjects != [link.names.topic_subjects(topic)])
            .then(|| format!("subjects {:?}", found.subjects))
    });
    let Some(setting) = setting else { return check_replicas(link, found) };
    let message = format!(
        "stream {name} of topic {topic} has {setting}, which would lose or mix events; expected file storage, no limits and only its own subjects: put the setting back"
    );
    Err(Error::new(Kind::Unsafe, message))
}

/// Refuses a stream that is kept on fewer servers than were asked for.
pub(super) fn check_replicas(link: &Link, found: &Config) -> Result<()> {
    let (name, has, asked) = (&found.name, found.num_replicas, link.replicas);
    if has >= asked {
        return Ok(());
    }
    let message = format!(
        "stream {name} is kept on {has} of the servers; expected {asked}, as the bus URL says: `nats stream edit {name} --replicas {asked}`, or write `replicas={has}`"
    );
    Err(Error::new(Kind::Unsafe, message))
}

fn unsafe_setting(found: &Config) -> Option<String> {
    let limits = [
        ("max_msgs", found.max_messages),
        ("max_bytes", found.max_bytes),
        ("max_msgs_per_subject", found.max_messages_per_subject),
    ];
    match found {
        Config { storage: StorageType::Memory, .. } => return Some("storage memory".into()),
        Config { retention, .. } if *retention != RetentionPolicy::Limits => {
            return Some(format!("retention {retention:?}"));
        }
        Config { max_age, .. } if !max_age.is_zero() => return Some(format!("max_age {max_age:?}")),
        Config { discard, .. } if *discard != DiscardPolicy::New => return Some("discard old".into()),
        Config { no_ack: true, .. } => return Some("no_ack".into()),
        Config { sealed: true, .. } => return Some("sealed".into()),
        Config { allow_rollup: true, .. } => return Some("allow_rollup_hdrs".into()),
        Config { mirror: Some(_), .. } => return Some("a mirror".into()),
        Config { sources: Some(sources), .. } if !sources.is_empty() => return Some("sources".into()),
        Config { subject_transform: Some(_), .. } => return Some("a subject transform".into()),
        _ => {}
    }
    let limited = limits.into_iter().find(|(_, limit)| *limit > 0);
    limited.map(|(name, limit)| format!("{name} {limit}"))
}
