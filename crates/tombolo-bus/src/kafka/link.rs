//! The clients: made, watched, made again with a back-off when all brokers are away, and said once each way.
//!
//! The client library reconnects by itself and keeps what was sent meanwhile, which nobody waits for any more. So when all
//! brokers are away its clients are thrown away with what they hold, and new ones are made once a broker answers.
//!
//! Invariant: whoever uses a link that is closed or away is told so at once; nothing waits for its return.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{Notify, watch};
use tombolo_event::{Backoff, ServiceName};

use super::admin::Admin;
use super::names::Address;
use super::settings::{MESSAGE_BYTES_MAX, Settings, UNSYNCED};
use super::stream::{Aside, Feed, Outlet, PARTITION, Pool};
use crate::accept::Accepted;
use crate::judged::{self, From, Names, REQUEST_SECONDS_MAX, Root, Streams};
use crate::{Error, Kind, Result};

/// Ends the link when nobody is left who uses it.
pub(super) type Used = judged::Used<Link>;

/// How long the first connection is waited for before going on without it.
const CONNECT_SECONDS_MAX: u64 = 3;
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(4));
/// How long one question to a broker may take.
pub(super) const ASK: Duration = Duration::from_secs(5);
/// How often the settings of a topic are looked at again.
const CHECKED_FOR: Duration = Duration::from_secs(60);
/// How often it is looked for a topic that was just made.
const MADE_TRIES_MAX: u32 = 12;
/// How often a client is asked for one that it does not know: for about a second.
const KNOWN_TRIES_MAX: u32 = 5;
/// How long a reader waits at the broker for something to come, in milliseconds.
const WAIT_MS: u32 = 500;
#[cfg(feature = "conformance")]
const WAIT_MS_OF_TESTS: u32 = 10;
/// The most that waits to be sent, in KiB.
const UNSENT_KIB_MAX: usize = 64 << 10;
/// How a topic that was made and is not known yet is spoken of.
const HALF_MADE: &str = "is being made";

/// What the client library tells by itself.
#[derive(Clone, Default)]
pub(super) struct Events {
    /// That no broker can be reached, or that a client is broken for good.
    pub(super) down: Arc<Notify>,
}

impl ClientContext for Events {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "Kafka client: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "Kafka client: {reason}");
        if matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Fatal)
        ) {
            self.down.notify_one();
        }
    }
}

impl ConsumerContext for Events {}

/// The cluster as it was found last.
#[derive(Clone)]
pub(super) enum Server {
    /// Nobody has tried yet.
    Untried,
    Here(Arc<Lines>),
    Away(Kind, String),
}

/// One life of the clients.
pub(super) struct Lines {
    pub(super) producer: Aside<FutureProducer<Events>>,
    /// Asks and is told; reads nothing.
    pub(super) asker: Aside<Arc<BaseConsumer<Events>>>,
    pub(super) pool: Arc<Pool>,
    brokers: usize,
}

/// What everything of one bus shares.
pub(super) struct Link {
    pub(super) root: Root,
    pub(super) names: Names,
    brokers: String,
    accepted: Accepted,
    /// How long a reader at the end waits at the broker before it asks again.
    wait_ms: u32,
    events: Events,
    server: watch::Sender<Server>,
    admin: Admin,
    /// What was found of each topic, and when.
    checked: Mutex<HashMap<String, (Instant, Settings)>>,
    pub(super) signals: super::signals::Signals,
}

fn common(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "tombolo")
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.fast.interval.ms", "50")
        .set("message.max.bytes", (MESSAGE_BYTES_MAX + 4096).to_string());
    config
}

/// The settings of a client that asks.
fn asking(brokers: &str) -> ClientConfig {
    let mut config = common(brokers);
    config.set("allow.auto.create.topics", "false");
    config
}

/// The settings of a client that reads.
fn reading(brokers: &str, wait_ms: u32) -> ClientConfig {
    let mut config = asking(brokers);
    config
        // The library wants a group; nothing is ever committed to it.
        .set("group.id", "tombolo")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        // A stranger's open transaction must not hold anybody up; we have none.
        .set("isolation.level", "read_uncommitted")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", wait_ms.to_string())
        .set("fetch.error.backoff.ms", "50")
        .set("queued.min.messages", "1000")
        .set("queued.max.messages.kbytes", "8192");
    config
}

fn sending(brokers: &str) -> ClientConfig {
    let mut config = common(brokers);
    config
        .set("acks", "all")
        // It would take half a second for each connection, and a message that is stored twice is void the second time.
        .set("enable.idempotence", "false")
        .set("max.in.flight.requests.per.connection", "5")
        .set("linger.ms", "0")
        .set("message.timeout.ms", (REQUEST_SECONDS_MAX * 1000).to_string())
        .set("request.timeout.ms", ASK.as_millis().to_string())
        .set("queue.buffering.max.kbytes", UNSENT_KIB_MAX.to_string());
    config
}

impl Link {
    pub(super) fn new(address: Address, accepted: Accepted) -> Result<Self> {
        let events = Events::default();
        let admin = common(&address.brokers).create_with_context(events.clone());
        let admin = admin.map_err(|error| unusable("the client for administration", error))?;
        Ok(Self {
            root: Root::new(),
            names: address.names,
            brokers: address.brokers,
            accepted,
            wait_ms: WAIT_MS,
            events,
            server: watch::Sender::new(Server::Untried),
            admin: Admin::Brokers(admin),
            checked: Mutex::default(),
            signals: super::signals::Signals::default(),
        })
    }

    /// Lets somebody else make topics: the cluster of tests has no administration.
    #[cfg(feature = "conformance")]
    pub(super) fn made_by(mut self, stand_in: Arc<super::admin::StandIn>) -> Self {
        self.admin = Admin::StandIn(stand_in);
        // It lets a reader wait to the end, whatever comes.
        self.wait_ms = WAIT_MS_OF_TESTS;
        self
    }

    /// Starts to keep the clients up; waits a moment for the first.
    pub(super) async fn start(self: &Arc<Self>) {
        let keeper = Arc::clone(self);
        self.root.tasks.spawn(async move {
            let closed = keeper.root.closed.clone();
            closed.run_until_cancelled(keeper.keep_up()).await;
            keeper.server.send_replace(Server::Away(Kind::Closed, String::new()));
            keeper.signals.close();
        });
        let mut found = self.server.subscribe();
        let tried = found.wait_for(|server| !matches!(server, Server::Untried));
        // Who is not there by then is waited for in the background.
        drop(tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), tried).await);
    }

    async fn keep_up(&self) {
        let (mut attempt, mut said) = (0, false);
        loop {
            match self.open().await {
                Ok(lines) => {
                    tracing::info!("connected to Kafka ({} brokers)", lines.brokers);
                    (attempt, said) = (0, true);
                    self.server.send_replace(Server::Here(Arc::clone(&lines)));
                    self.lost(&lines).await;
                    self.server.send_replace(away());
                    tracing::warn!("no Kafka broker answers; connecting again with a back-off");
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(
                            "going on without the bus for now, and trying with a back-off: {error}"
                        );
                        said = true;
                    }
                    self.server.send_replace(Server::Away(error.kind(), error.to_string()));
                }
            }
            tokio::time::sleep(RECONNECT.jittered(attempt)).await;
            attempt += 1;
        }
    }

    async fn open(&self) -> Result<Arc<Lines>> {
        let asker: BaseConsumer<Events> = asking(&self.brokers)
            .create_with_context(self.events.clone())
            .map_err(|error| unusable("the client that asks", error))?;
        let producer: FutureProducer<Events> = sending(&self.brokers)
            .create_with_context(self.events.clone())
            .map_err(|error| unusable("the client that sends", error))?;
        let asker = Arc::new(asker);
        let pool = Arc::new(Pool::new(reading(&self.brokers, self.wait_ms), self.events.clone()));
        let brokers = self.count(&asker).await?;
        Ok(Arc::new(Lines { producer: Aside::new(producer), asker: Aside::new(asker), pool, brokers }))
    }

    async fn count(&self, asker: &Arc<BaseConsumer<Events>>) -> Result<usize> {
        let topic = self.names.directory();
        let found = ask(asker, move |asker| asker.fetch_metadata(Some(&topic), ASK)).await?;
        Ok(found.brokers().len())
    }

    /// Returns when the clients are of no use any more.
    async fn lost(&self, lines: &Lines) {
        loop {
            self.events.down.notified().await;
            let broken = lines.producer.client().fatal_error().is_some();
            // All brokers are down for a moment whenever the only one restarts its connection.
            if broken || self.count(&lines.asker).await.is_err() {
                return;
            }
        }
    }

    /// The clients, or why there are none.
    pub(super) fn ready(&self) -> Result<Arc<Lines>> {
        if self.root.closed.is_cancelled() {
            return Err(Error::new(Kind::Closed, "the bus was closed by this process"));
        }
        match &*self.server.borrow() {
            Server::Here(lines) => Ok(Arc::clone(lines)),
            Server::Away(kind, why) => Err(Error::new(*kind, why.clone())),
            Server::Untried => Err(Error::new(Kind::Unavailable, "Kafka has not answered yet")),
        }
    }

    /// The cluster as it is, and as it changes.
    pub(super) fn server(&self) -> watch::Receiver<Server> {
        self.server.subscribe()
    }

    pub(super) fn brokers(&self) -> Option<usize> {
        match &*self.server.borrow() {
            Server::Here(lines) => Some(lines.brokers),
            _ => None,
        }
    }

    /// What is kept of an acknowledged event, as far as topics were used already; for people.
    pub(super) fn keeps(&self) -> String {
        let signals = self.names.signals();
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let used = checked.iter().filter(|(name, _)| **name != signals).map(|(_, (_, settings))| settings);
        let in_memory = used.filter(|settings| !settings.is_synced()).map(Settings::copies).min();
        match in_memory {
            Some(copies) => {
                format!("by then in the memory of {copies} brokers at least, which sync when they please")
            }
            None if self.accepted.names(&UNSYNCED) => {
                "by then in memory or synced, as each topic is set".into()
            }
            None => "each of which has synced it by then (flush.messages=1)".into(),
        }
    }

    fn was_checked(&self, stream: &str) -> bool {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.get(stream).is_some_and(|(at, _)| at.elapsed() < CHECKED_FOR)
    }

    /// A topic of Kafka's as it is; none if there is none.
    async fn found(&self, stream: &str) -> Result<Option<Settings>> {
        let (lines, topic) = (self.ready()?, stream.to_owned());
        let found = ask(&lines.asker, move |asker| asker.fetch_metadata(Some(&topic), ASK)).await?;
        let Some(found) = found.topics().iter().find(|found| found.name() == stream) else {
            return Ok(None);
        };
        match found.error() {
            None => {}
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(None),
            Some(error) => {
                return Err(unavailable(&format!("topic {stream} {HALF_MADE}"), format!("{error:?}")));
            }
        }
        let replicas = found.partitions().iter().map(|partition| partition.replicas().len()).min();
        let found = Settings {
            partitions: found.partitions().len(),
            replicas: replicas.unwrap_or(0),
            values: BTreeMap::new(),
        };
        if found.partitions == 0 {
            return Err(unavailable(&format!("topic {stream} {HALF_MADE}"), "it has no partition yet"));
        }
        self.admin.settings(stream, found).await.map(Some)
    }

    /// Makes a topic of Kafka's, or finds it; judged by `check`.
    pub(super) async fn ensure_as(
        &self,
        stream: &str,
        wished: impl Fn(usize) -> Settings,
        check: impl Fn(&Settings) -> Result<()>,
    ) -> Result<()> {
        if self.was_checked(stream) {
            return Ok(());
        }
        for attempt in 0..MADE_TRIES_MAX {
            match self.found(stream).await {
                Ok(Some(found)) => {
                    check(&found)?;
                    self.remember(stream, found);
                    return Ok(());
                }
                Ok(None) if attempt == 0 => {
                    let lines = self.ready()?;
                    self.admin.make(stream, &wished(lines.brokers)).await?;
                }
                Err(error) if !Self::is_half_made(&error) => return Err(error),
                // A broker that has not heard of it yet.
                Ok(None) | Err(_) => tokio::time::sleep(RECONNECT.jittered(attempt)).await,
            }
        }
        Err(unavailable(&format!("topic {stream} {HALF_MADE}"), "no broker knows of it yet"))
    }

    fn remember(&self, stream: &str, found: Settings) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.insert(stream.to_owned(), (Instant::now(), found));
    }

    pub(super) async fn close(&self) {
        self.root.close().await;
    }
}

/// Asks a broker, on a thread that may wait.
pub(super) async fn ask<T: Send + 'static>(
    asker: &Arc<BaseConsumer<Events>>,
    question: impl FnOnce(&BaseConsumer<Events>) -> std::result::Result<T, KafkaError> + Send + 'static,
) -> Result<T> {
    let asker = Arc::clone(asker);
    let answer = tokio::task::spawn_blocking(move || question(&asker)).await;
    let answer = answer.map_err(|error| unavailable("a question to Kafka was interrupted", error))?;
    answer.map_err(|error| failed("Kafka does not answer", error))
}

/// The first offset that is kept, and the one after the last. A client that has just heard that there is no such topic keeps that for a
/// moment, and is asked again.
pub(super) async fn ends(lines: &Lines, stream: &str) -> Result<(u64, u64)> {
    for attempt in 0..KNOWN_TRIES_MAX {
        let topic = stream.to_owned();
        let asked = ask(&lines.asker, move |asker| match asker.fetch_watermarks(&topic, PARTITION, ASK) {
            Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::UnknownTopicOrPartition,
            )) => Ok(None),
            found => found.map(Some),
        });
        if let Some((low, high)) = asked.await? {
            return Ok((low.try_into().unwrap_or(0), high.try_into().unwrap_or(0)));
        }
        tokio::time::sleep(RECONNECT.jittered(attempt)).await;
    }
    Err(unavailable(&format!("topic {stream} {HALF_MADE}"), "no broker knows of it yet"))
}

impl Streams for Link {
    type Outlet = Outlet;
    type Feed = Feed;

    fn root(&self) -> &Root {
        &self.root
    }

    fn topic(&self, topic: &ServiceName) -> String {
        self.names.topic(topic)
    }

    fn directory(&self) -> String {
        self.names.directory()
    }

    async fn ensure(&self, stream: &str) -> Result<()> {
        let wished = |brokers| Settings::wished(brokers, &self.accepted);
        self.ensure_as(stream, wished, |found| found.check(stream, &self.accepted)).await
    }

    async fn exists(&self, stream: &str) -> Result<bool> {
        self.ready()?;
        if self.was_checked(stream) {
            return Ok(true);
        }
        let Some(found) = self.found(stream).await? else { return Ok(false) };
        found.check(stream, &self.accepted)?;
        self.remember(stream, found);
        Ok(true)
    }

    async fn begins(&self, stream: &str) -> Result<u64> {
        Ok(ends(&*self.ready()?, stream).await?.0)
    }

    async fn outlet(&self, stream: &str) -> Result<Outlet> {
        Ok(Outlet::open(self.ready()?, self.server(), stream))
    }

    async fn feed(&self, stream: &str, from: From) -> Result<Feed> {
        let lines = self.ready()?;
        let offset = match from {
            From::First => 0,
            From::Offset(offset) => offset,
            From::Last => ends(&lines, stream).await?.1.saturating_sub(1),
        };
        Feed::open(lines, self.server(), stream, offset).await
    }

    fn is_half_made(error: &Error) -> bool {
        error.is_transient() && error.to_string().contains(HALF_MADE)
    }
}

pub(super) fn away() -> Server {
    Server::Away(Kind::Unavailable, "no Kafka broker answers; the connection is being made again".into())
}

pub(super) fn unavailable(what: &str, error: impl Display) -> Error {
    Error::new(Kind::Unavailable, format!("{what}: {error}"))
}

fn unusable(what: &str, error: KafkaError) -> Error {
    Error::new(Kind::Configuration, format!("{what} of Kafka cannot be made: {error}"))
}

/// What an error of the client means where it has no meaning of its own.
pub(super) fn failed(what: &str, error: KafkaError) -> Error {
    let kind = match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::UnsupportedVersion,
        ) => Kind::Configuration,
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => Kind::TooLarge,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("{what}: {error}"))
}
