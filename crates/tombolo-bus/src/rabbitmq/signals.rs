//! Signals: messages through a direct exchange, to a queue for each listener and one for each group.
//!
//! A listener's own queue goes with it. A group's queue is shared by its members, and goes with the last of them. Both are
//! bounded at the server, which drops the oldest; what was sent to a member that left goes to another.
//!
//! Invariant: a reach is what the server said a moment before it took the signal: an empty probe goes first, which the server
//! returns if no queue takes it. (The client writes into the log what is returned, so it is not the signal itself.)

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, ExchangeKind, PublisherConfirm};

use super::link::{Link, REQUEST_SECONDS_MAX, Used, failed};
use crate::signal::{SIGNAL_BYTES_MAX, SIGNALS_WAITING_MAX};
use crate::{Error, Kind, Reach, Result, Signal, SignalStream};

/// The longest subject, in bytes: that of a name in AMQP.
const SUBJECT_BYTES_MAX: usize = 255;
/// The type of a probe, which nobody is told of.
const PROBE: &str = "probe";
/// How many messages wait for a listener: each signal has a probe before it.
const WAITING_MAX: u32 = 2 * SIGNALS_WAITING_MAX as u32;
/// How many signals are on their way to a listener; the others wait in its queue.
const UNREAD_MAX: u16 = 32;
/// How long the queue of a group outlives a server that was killed, in milliseconds.
const GROUP_EXPIRES_MS: u32 = 60_000;

pub(super) async fn send(link: &Arc<Link>, subject: &str, signal: Signal) -> Result<Reach> {
    check_subject(subject)?;
    signal.reply_to.as_deref().map_or(Ok(()), check_subject)?;
    check_size(&signal)?;
    let lines = link.ready()?;
    let exchange = link.names.signals();
    let mut properties = BasicProperties::default();
    if let Some(reply_to) = &signal.reply_to {
        properties = properties.with_reply_to(reply_to.as_str().into());
    }
    let sending = async {
        let channel = lines.signals(async |channel| declare(channel, &exchange).await).await?;
        let probe = BasicProperties::default().with_type(PROBE.into());
        let probe = publish(&channel, &exchange, subject, true, &[], probe).await?;
        let sent = publish(&channel, &exchange, subject, false, &signal.payload, properties).await?;
        let reached = probe.await.map_err(not_taken)?;
        sent.await.map_err(not_taken).map(|_| reached)
    };
    match tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), sending).await {
        Ok(Ok(Confirmation::Ack(None))) => Ok(Reach::Somebody),
        Ok(Ok(Confirmation::Ack(Some(_)))) => Ok(Reach::Nobody),
        Ok(Ok(_)) => Err(Error::new(Kind::Unavailable, "the RabbitMQ server did not take a signal")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::new(Kind::Unavailable, "the RabbitMQ server did not take a signal in time")),
    }
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    subject: &str,
    mandatory: bool,
    payload: &[u8],
    properties: BasicProperties,
) -> Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish(exchange.into(), subject.into(), options, payload, properties);
    sent.await.map_err(not_taken)
}

async fn declare(channel: &Channel, exchange: &str) -> Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(exchange.into(), ExchangeKind::Direct, options, FieldTable::default());
    declared.await.map_err(|error| failed("the exchange of signals cannot be declared", error))
}

fn not_taken(error: lapin::Error) -> Error {
    failed("the RabbitMQ server does not take signals", error)
}

/// A listener, which begins anew when the server was away.
struct Listener {
    link: Arc<Link>,
    _used: Arc<Used>,
    subject: String,
    group: Option<String>,
    heard: Option<Heard>,
}

struct Heard {
    consumer: Consumer,
    _channel: Channel,
}

pub(super) async fn listen(used: &Arc<Used>, subject: &str, group: Option<&str>) -> Result<SignalStream> {
    check_subject(subject)?;
    group.map_or(Ok(()), check_subject)?;
    let closed = used.0.root.closed.clone();
    let mut listener = Listener {
        link: Arc::clone(&used.0),
        _used: Arc::clone(used),
        subject: subject.to_owned(),
        group: group.map(str::to_owned),
        heard: None,
    };
    listener.heard = Some(listener.begin().await?);
    let signals = stream::unfold(listener, |mut listener| async {
        let signal = listener.next().await;
        Some((signal, listener))
    });
    Ok(signals.take_until(closed.cancelled_owned()).boxed())
}

impl Listener {
    async fn next(&mut self) -> Signal {
        loop {
            let Some(heard) = &mut self.heard else {
                self.link.returned().await;
                match self.begin().await {
                    Ok(heard) => self.heard = Some(heard),
                    Err(error) => {
                        tracing::warn!(subject = self.subject, "not listening again yet: {error}");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                continue;
            };
            match heard.consumer.next().await {
                Some(Ok(delivery)) => {
                    if let Err(error) = delivery.acker.ack(BasicAckOptions::default()).await {
                        tracing::debug!(%error, "a signal was heard and not acknowledged");
                    }
                    let properties = &delivery.properties;
                    if properties.kind().as_ref().is_some_and(|kind| kind.as_str() == PROBE) {
                        continue;
                    }
                    let reply_to = properties.reply_to().as_ref().map(|subject| subject.as_str().to_owned());
                    return Signal { reply_to, payload: delivery.data.into() };
                }
                Some(Err(_)) | None => self.heard = None,
            }
        }
    }

    /// Listens from the moment that this returns.
    async fn begin(&self) -> Result<Heard> {
        let refused = |error| failed("the RabbitMQ server takes no listener", error);
        let channel = self.link.ready()?.receiving(UNREAD_MAX).await?;
        let exchange = self.link.names.signals();
        declare(&channel, &exchange).await?;
        let (name, options, arguments) = self.queue();
        let queue = channel.queue_declare(name.into(), options, arguments).await.map_err(refused)?;
        let bound = channel.queue_bind(
            queue.name().clone(),
            exchange.into(),
            self.subject.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.map_err(refused)?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default());
        Ok(Heard { consumer: consumer.await.map_err(refused)?, _channel: channel })
    }

    fn queue(&self) -> (String, QueueDeclareOptions, FieldTable) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongUInt(WAITING_MAX));
        let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
        match &self.group {
            None => (String::new(), QueueDeclareOptions { exclusive: true, ..options }, arguments),
            Some(group) => {
                arguments.insert("x-expires".into(), AMQPValue::LongUInt(GROUP_EXPIRES_MS));
                let name = self.link.names.group(&self.subject, group);
                (name, QueueDeclareOptions { durable: true, ..options }, arguments)
            }
        }
    }
}

/// How long a listener waits that was refused.
const AGAIN: Duration = Duration::from_secs(1);

fn check_size(signal: &Signal) -> Result<()> {
    let found = signal.payload.len();
    if found <= SIGNAL_BYTES_MAX {
        return Ok(());
    }
    let message = format!("signal holds {found} bytes; expected at most {SIGNAL_BYTES_MAX}");
    Err(Error::new(Kind::TooLarge, message))
}

fn check_subject(subject: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let word = |word: &str| !word.is_empty() && word.chars().all(allowed);
    if subject.len() <= SUBJECT_BYTES_MAX && subject.split('.').all(word) {
        return Ok(());
    }
    let message = format!(
        "subject {subject:?} is not dotted words of letters, digits, '-' and '_' within {SUBJECT_BYTES_MAX} bytes"
    );
    Err(Error::new(Kind::InvalidName, message))
}
