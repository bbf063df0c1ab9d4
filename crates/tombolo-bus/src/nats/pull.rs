//! One partition's messages from a place in the stream on, pulled in bounded requests.
//!
//! Invariant: at most [`PULL_MESSAGES_MAX`] messages and [`PULL_BYTES_MAX`] bytes are on their way to a reader, however slow.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::{Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::sync::watch;

use super::link::{Link, unavailable};
use super::log::Log;
use super::message::{self, Stored};
use crate::{Error, Kind, Result};

/// How many messages one request asks for.
const PULL_MESSAGES_MAX: usize = 256;
/// How many bytes one request asks for; room for several of the largest records.
const PULL_BYTES_MAX: usize = 4 << 20;
/// How long a request waits at the server for something to come.
const PULL_SECONDS_MAX: u64 = 20;
/// How often the server says that it waits with a request, in seconds: two and a half times without a word, and it is gone.
const HEARTBEAT_SECONDS: u64 = 2;
/// How long it is waited for a place on a cluster, in seconds, before another is asked for: it may be put on a server that is away.
const PLACE_SECONDS_MAX: u64 = 2;
/// How many places are asked for on a cluster.
const PLACES_MAX: u32 = 4;
/// How long the server keeps the place of a reader that asks for nothing.
const IDLE_SECONDS_MAX: u64 = 60;

/// A place in one partition that moves on.
pub(super) struct Pull {
    link: Arc<Link>,
    subject: String,
    inbox: String,
    subscriber: Subscriber,
    losses: watch::Receiver<u64>,
    /// How many messages the server still owes to the last request.
    owed: usize,
    /// Whether there is something to come: then a request that is idle, or ends with nothing, means that it is gone, or that the
    /// place is on a replica that does not have it yet.
    pub(super) expected: bool,
}

/// A record, and how many more there are behind it.
pub(super) struct Pulled {
    pub(super) stored: Stored,
    pub(super) pending: u64,
}

impl Pull {
    pub(super) async fn open(log: &Log, partition: u32, from: u64, expected: bool) -> Result<Self> {
        let link = Arc::clone(&log.link);
        let mut losses = link.losses.clone();
        // What was lost before is no concern of this one.
        losses.mark_unchanged();
        link.ready().await?;
        let place = pull::Config {
            description: Some("a Tombolo reader".into()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ack_policy: AckPolicy::None,
            filter_subject: link.names.partition(&log.topic, partition),
            inactive_threshold: Duration::from_secs(IDLE_SECONDS_MAX),
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = place_on(log, place).await?;
        let info = consumer.cached_info();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", info.stream_name, info.name);
        let inbox = link.client.new_inbox();
        let subscriber = link.client.subscribe(inbox.clone()).await;
        let subscriber = subscriber.map_err(|error| unavailable("a reader cannot listen", error))?;
        Ok(Self { link, subject, inbox, subscriber, losses, owed: 0, expected })
    }

    /// The next record, as soon as there is one.
    pub(super) async fn next(&mut self) -> Result<Pulled> {
        loop {
            if self.owed == 0 {
                self.request().await?;
            }
            let waiting = tokio::time::timeout(
                Duration::from_millis(HEARTBEAT_SECONDS * 2_500),
                self.subscriber.next(),
            );
            let message = tokio::select! {
                message = waiting => message,
                _ = self.losses.changed() => return Err(lost("the connection to the NATS server was lost")),
            };
            let Ok(Some(message)) = message else {
                return Err(lost("the NATS server stopped answering a reader"));
            };
            if let Some(pulled) = self.take(message)? {
                return Ok(pulled);
            }
        }
    }

    /// The next record if it has already arrived.
    pub(super) fn next_ready(&mut self) -> Result<Option<Pulled>> {
        while let Some(Some(message)) = self.subscriber.next().now_or_never() {
            if let Some(pulled) = self.take(message)? {
                return Ok(Some(pulled));
            }
        }
        Ok(None)
    }

    async fn request(&mut self) -> Result<()> {
        self.link.ready().await?;
        let request = json!({
            "batch": PULL_MESSAGES_MAX,
            "max_bytes": PULL_BYTES_MAX.max(self.link.client.max_payload() * 2),
            "expires": Duration::from_secs(PULL_SECONDS_MAX).as_nanos() as u64,
            "idle_heartbeat": Duration::from_secs(HEARTBEAT_SECONDS).as_nanos() as u64,
        });
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let asked = self.link.client.publish_with_reply(subject, inbox, request.to_string().into()).await;
        asked.map_err(|error| unavailable("a reader cannot ask for more", error))?;
        self.owed = PULL_MESSAGES_MAX;
        Ok(())
    }

    /// Takes a record; `None` if the message only ends a request.
    fn take(&mut self, message: Message) -> Result<Option<Pulled>> {
        match message.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::IDLE_HEARTBEAT) => {
                if self.expected && self.owed == PULL_MESSAGES_MAX {
                    return Err(lost("messages that are there are not sent: the reader's replica is behind"));
                }
                return Ok(None);
            }
            Some(StatusCode::NO_RESPONDERS) => return Err(lost("the reader's place is gone")),
            Some(_) => {
                let ended = message.description.as_deref().unwrap_or_default().to_ascii_lowercase();
                if ended.contains("deleted") || ended.contains("shutdown") || ended.contains("leadership") {
                    return Err(lost("the reader's place was taken away by the NATS server"));
                }
                let nothing = self.owed == PULL_MESSAGES_MAX && message.status == Some(StatusCode::TIMEOUT);
                if nothing && self.expected {
                    return Err(lost("messages that were there are not sent by the NATS server"));
                }
                self.owed = 0;
                return Ok(None);
            }
        }
        self.owed = self.owed.saturating_sub(1);
        let message = async_nats::jetstream::Message { message, context: self.link.jetstream.clone() };
        let info =
            message.info().map_err(|error| unavailable("a message has no place in the stream", error))?;
        let (at, pending) = (info.stream_sequence, info.pending);
        let headers = message.message.headers.clone().unwrap_or_default();
        let stored = message::record(&headers, message.message.payload.clone(), at)?;
        Ok(Some(Pulled { stored, pending }))
    }
}

/// Makes a place; on one of several servers, the first that answers.
async fn place_on(log: &Log, place: pull::Config) -> Result<Consumer<pull::Config>> {
    let refused = |error| unavailable("a reader's place cannot be made", error);
    for _ in 1..PLACES_MAX {
        if !log.has_replicas() {
            break;
        }
        let made = log.stream.create_consumer(place.clone());
        if let Ok(made) = tokio::time::timeout(Duration::from_secs(PLACE_SECONDS_MAX), made).await {
            return made.map_err(refused);
        }
    }
    log.stream.create_consumer(place).await.map_err(refused)
}

fn lost(what: &str) -> Error {
    Error::new(Kind::Unavailable, what)
}
