//! One partition of Kafka's as a stream: sent to, and read from an offset.
//!
//! Invariant: what is sent on one outlet is stored in the order of the calls, or a part of it not at all; a place ends with the
//! clients that it was made with.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::FutureRecord;
use rdkafka::producer::future_producer::{Delivery, DeliveryFuture};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::watch;

use super::link::{Events, Lines, Server, ends, failed, unavailable};
use crate::judged::{self, REQUEST_SECONDS_MAX};
use crate::{Error, Kind, Result};

/// The one partition of each topic of ours.
pub(super) const PARTITION: i32 = 0;
/// How many clients that read wait to be used again.
const IDLE_MAX: usize = 4;

/// A client, whose end waits for its threads: it is dropped on a thread that may wait.
pub(super) struct Aside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Aside<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a client is there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
            Err(_) => drop(client),
        }
    }
}

/// Clients that read, and that nobody reads with at the moment: making one costs threads and connections.
pub(super) struct Pool {
    config: ClientConfig,
    events: Events,
    idle: Mutex<Vec<Aside<StreamConsumer<Events>>>>,
}

impl Pool {
    pub(super) fn new(config: ClientConfig, events: Events) -> Self {
        Self { config, events, idle: Mutex::default() }
    }

    fn take(&self) -> Result<Aside<StreamConsumer<Events>>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(idle) = idle {
            return Ok(idle);
        }
        let made = self.config.create_with_context(self.events.clone());
        made.map(Aside::new).map_err(|error| unavailable("a client that reads cannot be made", error))
    }

    fn give_back(&self, consumer: Aside<StreamConsumer<Events>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && consumer.unassign().is_ok() {
            idle.push(consumer);
        }
    }
}

/// A way to send to one topic of Kafka's.
pub(super) struct Outlet {
    lines: Arc<Lines>,
    server: watch::Receiver<Server>,
    stream: String,
}

impl Outlet {
    pub(super) fn open(lines: Arc<Lines>, server: watch::Receiver<Server>, stream: &str) -> Self {
        Self { lines, server, stream: stream.to_owned() }
    }

    /// Sends a message, and waits until it is stored; where it is, and since when.
    pub(super) async fn stored(&self, sent: DeliveryFuture) -> Result<Delivery> {
        let stream = &self.stream;
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX + 1);
        match tokio::time::timeout(limit, sent).await {
            Ok(Ok(Ok(delivery))) => Ok(delivery),
            Ok(Ok(Err((error, _)))) => Err(failed(&format!("a message to {stream} was not stored"), error)),
            Ok(Err(_)) => Err(unavailable(&format!("a message to {stream} was given up"), "Kafka was away")),
            Err(_) => Err(unavailable(&format!("a message to {stream} was not stored"), "it took too long")),
        }
    }
}

impl judged::Outlet for Outlet {
    type Confirm = DeliveryFuture;

    fn take_writes(&self) -> Result<()> {
        Ok(())
    }

    async fn send(&self, body: Bytes) -> Result<DeliveryFuture> {
        let record: FutureRecord<'_, (), [u8]> =
            FutureRecord::to(&self.stream).partition(PARTITION).payload(&body[..]);
        self.lines.producer.send_result(record).map_err(|(error, _)| {
            let what = match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => "too much waits to be sent to Kafka",
                _ => "Kafka does not take a message",
            };
            failed(what, error)
        })
    }

    async fn confirmed(&self, sent: DeliveryFuture) -> Result<()> {
        self.stored(sent).await.map(drop)
    }

    fn lives(&self) -> bool {
        is_here(&self.server.borrow(), &self.lines)
    }
}

/// Whether these are still the clients that are used.
fn is_here(server: &Server, lines: &Arc<Lines>) -> bool {
    matches!(server, Server::Here(here) if Arc::ptr_eq(here, lines))
}

/// A message as it was read.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) at: u64,
    /// When it was stored, in milliseconds; by the broker's clock, if the topic is set to that.
    pub(super) stored_ms: i64,
    pub(super) bytes: Bytes,
}

/// A place in one topic of Kafka's that moves on.
pub(super) struct Feed {
    consumer: Option<Aside<StreamConsumer<Events>>>,
    lines: Arc<Lines>,
    server: watch::Receiver<Server>,
    stream: String,
    /// The offset that comes next.
    next: u64,
    /// What has arrived and was not asked for yet.
    arrived: VecDeque<Found>,
}

impl Feed {
    pub(super) async fn open(
        lines: Arc<Lines>,
        server: watch::Receiver<Server>,
        stream: &str,
        offset: u64,
    ) -> Result<Self> {
        let consumer = lines.pool.take()?;
        let mut place = TopicPartitionList::new();
        let offset_there = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        place
            .add_partition_offset(stream, PARTITION, offset_there)
            .and_then(|()| consumer.assign(&place))
            .map_err(|error| failed(&format!("topic {stream} cannot be read"), error))?;
        let stream = stream.to_owned();
        Ok(Self { consumer: Some(consumer), lines, server, stream, next: offset, arrived: VecDeque::new() })
    }

    /// The next message, as soon as there is one.
    pub(super) async fn next_found(&mut self) -> Result<Found> {
        if let Some(found) = self.arrived.pop_front() {
            return Ok(found);
        }
        self.receive().await
    }

    async fn receive(&mut self) -> Result<Found> {
        loop {
            let Some(consumer) = &self.consumer else { return Err(lost(&self.stream)) };
            let lines = &self.lines;
            let received = tokio::select! {
                received = consumer.recv() => received.map(|message| found(&message)),
                _ = self.server.wait_for(|server| !is_here(server, lines)) => return Err(lost(&self.stream)),
            };
            if let Some(found) = self.take(received)? {
                return Ok(found);
            }
        }
    }

    /// Passes a message on; `None` for what the client library only tells.
    fn take(&mut self, received: std::result::Result<Found, KafkaError>) -> Result<Option<Found>> {
        match received {
            // A client that was used before may still have had one of its last place.
            Ok(found) if found.at < self.next => Ok(None),
            Ok(found) => {
                self.next = found.at + 1;
                Ok(Some(found))
            }
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => {
                Err(failed(&format!("topic {} cannot be read at {}", self.stream, self.next), error))
            }
        }
    }
}

fn found(message: &BorrowedMessage<'_>) -> Found {
    Found {
        at: message.offset().try_into().unwrap_or(0),
        stored_ms: message.timestamp().to_millis().unwrap_or(0),
        bytes: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}

/// Whether the client library gets over it by itself; that all brokers are away is told elsewhere.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

fn lost(stream: &str) -> Error {
    Error::new(Kind::Unavailable, format!("topic {stream} is not read any more: no Kafka broker answers"))
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            self.lines.pool.give_back(consumer);
        }
    }
}

impl judged::Feed for Feed {
    fn stream(&self) -> &str {
        &self.stream
    }

    async fn next_bytes(&mut self) -> Result<(u64, Bytes)> {
        self.next_found().await.map(|found| (found.at, found.bytes))
    }

    async fn next_bytes_ready(&mut self) -> Result<Option<(u64, Bytes)>> {
        if let Some(found) = self.arrived.pop_front() {
            return Ok(Some((found.at, found.bytes)));
        }
        let received = self.receive().now_or_never().transpose()?;
        Ok(received.map(|found| (found.at, found.bytes)))
    }

    async fn settle(&mut self) -> Result<()> {
        let (_, end) = ends(&self.lines, &self.stream).await?;
        while self.next < end {
            let found = self.receive().await?;
            self.arrived.push_back(found);
        }
        Ok(())
    }
}
