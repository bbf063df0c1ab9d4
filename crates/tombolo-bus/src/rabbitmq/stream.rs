//! A stream on the server: declared, checked, published to, and read from an offset.
//!
//! AMQP tells nobody how a queue was declared, but it refuses a declaration that differs. So our streams have one argument
//! that nobody else gives (an odd size of segments), and declaring again is the check.
//!
//! Invariant: a queue that was declared in another way is refused by name before anything is written to it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};

use super::link::{Lines, REQUEST_SECONDS_MAX, failed, unavailable};
use super::message::{Found, Message};
use crate::{Error, Kind, Result};

/// The size of a segment, in bytes; its oddness is what marks a stream as ours.
const SEGMENT_BYTES: i64 = 500_000_107;
/// The header in which the server says where a message is.
const OFFSET: &str = "x-stream-offset";
/// How the server begins to say that a queue was declared in another way.
const DIFFERS: &str = "inequivalent arg";
/// How it says that there is none, and not that it cannot be reached.
const ABSENT: &str = "no queue";
/// How it fails at a stream that is declared and has no leader yet, because somebody else is making it at this moment.
const HALF_MADE: &str = "INTERNAL_ERROR";
/// How many messages may be on their way to one reader; the server goes over it by what it stored together.
const UNREAD_MAX: u16 = 32;
/// After how many messages a reader says that it got them.
const ACKNOWLEDGED_EACH: u16 = UNREAD_MAX / 4;

fn arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(SEGMENT_BYTES));
    arguments
}

/// Makes a stream, or finds it as it would have been made.
///
/// # Errors
/// `TopicDiffers` if it is not ours, `Unsafe` if it would lose messages.
pub(super) async fn ensure(lines: &Lines, stream: &str) -> Result<()> {
    let channel = lines.sending().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(stream.into(), options, arguments()).await {
        Ok(_) => Ok(()),
        Err(error) if error.to_string().contains(DIFFERS) => Err(differs(stream, &error)),
        Err(error) => Err(failed(&format!("stream {stream} cannot be declared"), error)),
    }
}

/// Whether there is a stream of this name, and that it is ours.
pub(super) async fn exists(lines: &Lines, stream: &str) -> Result<bool> {
    let channel = lines.sending().await?;
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(stream.into(), options, FieldTable::default()).await {
        Ok(_) => ensure(lines, stream).await.map(|()| true),
        Err(error) if error.to_string().contains(ABSENT) => Ok(false),
        Err(error) => Err(failed(&format!("stream {stream} cannot be found"), error)),
    }
}

/// Whether the server failed because a stream was not made to the end yet.
pub(super) fn is_half_made(error: &Error) -> bool {
    error.is_transient() && error.to_string().contains(HALF_MADE)
}

fn differs(stream: &str, error: &lapin::Error) -> Error {
    let found = error.to_string();
    let trims = ["x-max-age", "x-max-length"].into_iter().find(|argument| found.contains(argument));
    if let Some(argument) = trims {
        let message = format!(
            "queue {stream} has the argument {argument}, which would lose events; expected none, because only Tombolo trims a topic: {found}"
        );
        return Error::new(Kind::Unsafe, message);
    }
    let message = format!(
        "queue {stream} is not a stream that Tombolo declared ({found}); expected none or ours: choose another namespace"
    );
    Error::new(Kind::TopicDiffers, message)
}

/// Publishes and returns when the server has stored it.
pub(super) async fn publish(channel: &Channel, stream: &str, body: &[u8]) -> Result<()> {
    let sent = send(channel, stream, body).await?;
    confirmed(stream, sent).await
}

/// Publishes; the order on a channel is that of the calls.
pub(super) async fn send(channel: &Channel, stream: &str, body: &[u8]) -> Result<lapin::PublisherConfirm> {
    // Not mandatory: the client would write a whole message into the log if the stream were gone. Its readers tell.
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish("".into(), stream.into(), options, body, BasicProperties::default());
    let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
    match tokio::time::timeout(limit, sent).await {
        Ok(sent) => sent.map_err(|error| failed("the RabbitMQ server does not take a message", error)),
        Err(_) => Err(Error::new(Kind::Unavailable, "the RabbitMQ server did not take a message in time")),
    }
}

/// Waits until what was sent is stored.
pub(super) async fn confirmed(stream: &str, sent: lapin::PublisherConfirm) -> Result<()> {
    let confirmed = tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), sent).await;
    let lost = |why: &str| Error::new(Kind::Unavailable, format!("a message to {stream} {why}"));
    match confirmed {
        Ok(Ok(Confirmation::Ack(_))) => Ok(()),
        Ok(Ok(_)) => Err(lost("was not stored by the RabbitMQ server")),
        Ok(Err(error)) => Err(failed("a message was not confirmed", error)),
        Err(_) => Err(lost("was not confirmed in time")),
    }
}

/// Where to begin to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    First,
    /// The last messages that were stored together.
    Last,
    Offset(u64),
}

/// A place in a stream that moves on.
pub(super) struct Feed {
    channel: Channel,
    consumer: Consumer,
    stream: String,
    unacknowledged: u16,
    /// The tag of the last message that arrived.
    last_tag: u64,
}

impl Feed {
    pub(super) async fn open(lines: &Lines, stream: &str, from: From) -> Result<Self> {
        let channel = lines.receiving(UNREAD_MAX).await?;
        let from = match from {
            From::First => AMQPValue::LongString("first".into()),
            From::Last => AMQPValue::LongString("last".into()),
            From::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        };
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), from);
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(stream.into(), "".into(), options, arguments).await;
        let consumer = consumer.map_err(|error| failed(&format!("stream {stream} cannot be read"), error))?;
        Ok(Self { channel, consumer, stream: stream.to_owned(), unacknowledged: 0, last_tag: 0 })
    }

    /// The bytes of the next message, as soon as there is one, and their offset.
    pub(super) async fn next_bytes(&mut self) -> Result<(u64, Bytes)> {
        let delivery = self.consumer.next().await;
        self.take(delivery).await
    }

    async fn take(&mut self, delivery: Option<lapin::Result<Delivery>>) -> Result<(u64, Bytes)> {
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => {
                return Err(unavailable(&format!("stream {} cannot be read", self.stream), error));
            }
            None => return Err(self.ended()),
        };
        self.last_tag = delivery.delivery_tag;
        self.unacknowledged += 1;
        if self.unacknowledged >= ACKNOWLEDGED_EACH {
            self.acknowledge().await?;
        }
        let Some(offset) = offset(&delivery) else {
            let message = format!("a message of stream {} has no offset", self.stream);
            return Err(Error::new(Kind::Corrupt, message));
        };
        Ok((offset, delivery.data.into()))
    }

    fn ended(&self) -> Error {
        let stream = &self.stream;
        let message = format!("stream {stream} is not sent any more: it was deleted, or its server stops");
        Error::new(Kind::Unavailable, message)
    }

    async fn acknowledge(&mut self) -> Result<()> {
        self.unacknowledged = 0;
        let options = BasicAckOptions { multiple: true };
        let sent = self.channel.basic_ack(self.last_tag, options).await;
        sent.map_err(|error| unavailable("a reader cannot ask for more", error))
    }

    /// The bytes of the next message if it has already arrived.
    pub(super) async fn next_bytes_ready(&mut self) -> Result<Option<(u64, Bytes)>> {
        match self.consumer.next().now_or_never() {
            Some(delivery) => self.take(delivery).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns when everything has arrived that the server had when it was asked. It looks for more when it learns what was
    /// received, and deals with the requests of a channel one after the other.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.unacknowledged > 0 {
            self.acknowledge().await?;
        }
        let asked = self.channel.basic_qos(UNREAD_MAX, BasicQosOptions::default()).await;
        asked.map_err(|error| unavailable("a reader got no answer", error))
    }

    /// The next of our messages. What others wrote is passed over, and said.
    pub(super) async fn next(&mut self) -> Result<(u64, Message)> {
        loop {
            let (at, bytes) = self.next_bytes().await?;
            if let Some(message) = self.ours(at, bytes)? {
                return Ok((at, message));
            }
        }
    }

    /// The next of our messages if it has already arrived.
    pub(super) async fn next_ready(&mut self) -> Result<Option<(u64, Message)>> {
        while let Some((at, bytes)) = self.next_bytes_ready().await? {
            if let Some(message) = self.ours(at, bytes)? {
                return Ok(Some((at, message)));
            }
        }
        Ok(None)
    }

    fn ours(&self, at: u64, bytes: Bytes) -> Result<Option<Message>> {
        match Message::decode(bytes, at)? {
            Found::Ours(message) => Ok(Some(message)),
            Found::Foreign => {
                let stream = &self.stream;
                tracing::warn!(
                    "message {at} of {stream} is passed over: Tombolo did not write it; find out who did"
                );
                Ok(None)
            }
        }
    }
}

fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

/// The offset of the first message that a stream which is not empty still has: 0, unless a policy of the server removes messages.
pub(super) async fn begins(lines: &Lines, stream: &str) -> Result<u64> {
    Ok(Feed::open(lines, stream, From::First).await?.next_bytes().await?.0)
}

/// What is said of a stream whose beginning is needed and gone.
pub(super) fn forgotten(kind: Kind, stream: &str, begins: u64) -> Error {
    let message = format!(
        "stream {stream} begins at message {begins}: a policy of the RabbitMQ server (max-age or max-length-bytes) has removed what was \
         before; take it off and restore the stream, or name an archive that has it (TOMBOLO_ARCHIVE, --archive)"
    );
    Error::new(kind, message)
}

/// Checks that nothing was removed from a stream that is not empty.
///
/// # Errors
/// `Unsafe` if its first message is not the very first that there was.
pub(super) async fn check_beginning(lines: &Lines, stream: &str) -> Result<()> {
    match begins(lines, stream).await? {
        0 => Ok(()),
        begins => Err(forgotten(Kind::Unsafe, stream, begins)),
    }
}
