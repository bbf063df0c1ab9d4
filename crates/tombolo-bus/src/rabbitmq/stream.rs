//! A stream on the server: declared, checked, published to, and read from an offset.
//!
//! AMQP tells nobody how a queue was declared, but it refuses a declaration that differs. So our streams have one argument
//! that nobody else gives (an odd size of segments), and declaring again is the check.
//!
//! Invariant: a queue that was declared in another way is refused by name before anything is written to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, PublisherConfirm};

use super::link::{Lines, REQUEST_SECONDS_MAX, failed, unavailable};
use crate::judged::{self, From};
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

/// A channel on which messages are sent to one stream, in the order of the calls.
pub(super) struct Outlet {
    channel: Channel,
    lines: Arc<Lines>,
    stream: String,
}

impl Outlet {
    pub(super) async fn open(lines: Arc<Lines>, stream: &str) -> Result<Self> {
        Ok(Self { channel: lines.sending().await?, lines, stream: stream.to_owned() })
    }
}

impl judged::Outlet for Outlet {
    type Confirm = PublisherConfirm;

    fn take_writes(&self) -> Result<()> {
        self.lines.take_writes()
    }

    async fn send(&self, body: Bytes) -> Result<PublisherConfirm> {
        // Not mandatory: the client would write a whole message into the log if the stream were gone. Its readers tell.
        let options = BasicPublishOptions::default();
        let stream = self.stream.as_str().into();
        let sent = self.channel.basic_publish("".into(), stream, options, &body, BasicProperties::default());
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        match tokio::time::timeout(limit, sent).await {
            Ok(sent) => sent.map_err(|error| failed("the RabbitMQ server does not take a message", error)),
            Err(_) => {
                Err(Error::new(Kind::Unavailable, "the RabbitMQ server did not take a message in time"))
            }
        }
    }

    async fn confirmed(&self, sent: PublisherConfirm) -> Result<()> {
        let confirmed = tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), sent).await;
        let stream = &self.stream;
        let lost = |why: &str| Error::new(Kind::Unavailable, format!("a message to {stream} {why}"));
        match confirmed {
            Ok(Ok(Confirmation::Ack(_))) => Ok(()),
            Ok(Ok(_)) => Err(lost("was not stored by the RabbitMQ server")),
            Ok(Err(error)) => Err(failed("a message was not confirmed", error)),
            Err(_) => Err(lost("was not confirmed in time")),
        }
    }

    fn lives(&self) -> bool {
        self.channel.status().connected()
    }
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
}

impl judged::Feed for Feed {
    fn stream(&self) -> &str {
        &self.stream
    }

    async fn next_bytes(&mut self) -> Result<(u64, Bytes)> {
        let delivery = self.consumer.next().await;
        self.take(delivery).await
    }

    async fn next_bytes_ready(&mut self) -> Result<Option<(u64, Bytes)>> {
        match self.consumer.next().now_or_never() {
            Some(delivery) => self.take(delivery).await.map(Some),
            None => Ok(None),
        }
    }

    /// The server looks for more when it learns what was received, and deals with the requests of a channel one after the
    /// other.
    async fn settle(&mut self) -> Result<()> {
        if self.unacknowledged > 0 {
            self.acknowledge().await?;
        }
        let asked = self.channel.basic_qos(UNREAD_MAX, BasicQosOptions::default()).await;
        asked.map_err(|error| unavailable("a reader got no answer", error))
    }
}

fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}
