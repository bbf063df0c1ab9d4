//! Kafka as the bus: for each of our topics one of Kafka's, with a single partition, which holds records, epochs and divisions in
//! one order.
//!
//! Kafka fences by transactions, per producer and not per place: what is fenced is a *name*, and a name has to be had before
//! anything is read. Its idempotence is of one session. What it does have is one total order of a partition, the same for
//! everybody, below a mark that is never taken back as long as no broker leads that lacks what was acknowledged. So the order is
//! the judge, by the rule that all engines of this kind share (`judged/`), as with RabbitMQ; our partitions are told apart in the messages. The
//! price is that all events of a service go through one partition of Kafka's: one broker leads it, and a reader far back is sent
//! the records of all of our partitions.
//!
//! **What an acknowledgement means.** Messages are sent with `acks=all`, so all replicas that are in sync have a message that is
//! read back, at least as many as `min.insync.replicas` says. By default they have it in memory: Kafka writes back when it
//! pleases. A topic that we make is set to sync each message first (`flush.messages=1`), unless the bus URL accepts otherwise
//! (`?accept=unsynced`); then at least two copies are asked for (`?accept=one-copy`). What is found is judged alike
//! (`settings`); retention, compaction and unclean elections are refused.
//!
//! **What was tried.** Everything was run against the cluster that librdkafka brings for tests, which speaks the protocol and
//! keeps nothing. No test has run against a real broker: what it makes of the settings is *unverified*, and the guarantee says so.
//!
//! What this engine cannot do: types are not filtered; TLS and SASL are not built in; who may publish where is up to the
//! brokers' own lists, in which each account must be allowed to write to the topics that it reads (looks are messages).
//!
//! Invariant: every answer follows from the rule and from messages that were read after the call began; nothing is answered
//! from a confirmation or from memory alone.

mod names;
mod settings;
mod admin;
mod link;
mod stream;
mod heard;
mod signals;

use std::sync::Arc;

use async_trait::async_trait;
use tombolo_event::{Generations, Incarnation, ServiceName};

use crate::accept::Accepted;
#[cfg(feature = "mutants")]
pub use crate::judged::Mutant;
use crate::judged::Topics;
use crate::{
    Append, Appended, Bus, Guarantee, Reach, Read, RecordStream, Registration, Result, Signal, SignalStream,
    Tail, Topic, TopicSpec,
};
#[cfg(feature = "conformance")]
pub use admin::StandIn;
use link::Link;
use names::Address;
use settings::{ONE_COPY, UNSYNCED};

/// A Kafka cluster used as a bus.
pub struct Kafka {
    topics: Topics<Link>,
}

/// Connects to `kafka://host:port[,host:port…][?namespace=name&accept=unsynced,one-copy]`; the namespace is `tombolo` unless
/// named.
///
/// A cluster that is away is no error: calls answer `Unavailable` until it is there.
///
/// # Errors
/// `Configuration` if the address is wrong.
pub async fn connect(url: &str) -> Result<Kafka> {
    Kafka::on(link(url)?).await
}

fn link(url: &str) -> Result<Link> {
    let (url, accepted) = Accepted::split(url, &[UNSYNCED, ONE_COPY])?;
    Link::new(Address::parse(&url)?, accepted)
}

impl Kafka {
    async fn on(link: Link) -> Result<Self> {
        let link = Arc::new(link);
        link.start().await;
        tracing::warn!("Kafka as the bus is unverified: no test of Tombolo has run against a real broker");
        Ok(Self { topics: Topics::of(link) })
    }

    /// Connects to a cluster without administration, where `stand_in` makes topics. For tests.
    ///
    /// # Errors
    /// `Configuration` if the address is wrong.
    #[cfg(feature = "conformance")]
    pub async fn connect_with(url: &str, stand_in: Arc<StandIn>) -> Result<Self> {
        Self::on(link(url)?.made_by(stand_in)).await
    }

    /// Breaks such a connection on purpose.
    ///
    /// # Errors
    /// `Configuration` if the address is wrong.
    #[cfg(all(feature = "conformance", feature = "mutants"))]
    pub async fn connect_broken(url: &str, stand_in: Arc<StandIn>, mutant: Mutant) -> Result<Self> {
        let mut link = link(url)?.made_by(stand_in);
        link.root.mutant = Some(mutant);
        Self::on(link).await
    }

    fn link(&self) -> &Arc<Link> {
        self.topics.server()
    }
}

#[async_trait]
impl Bus for Kafka {
    fn guarantee(&self) -> Guarantee {
        let brokers = self.link().brokers();
        let engine = brokers.map_or_else(
            || "Kafka (unverified), which has not answered yet".to_owned(),
            |brokers| format!("Kafka (unverified), {brokers} brokers"),
        );
        let kept = self.link().keeps();
        let detail = format!(
            "read back below the mark that all replicas in sync have reached (acks=all), {kept}; unverified: no test of Tombolo \
             has run against a real broker"
        );
        Guarantee { engine, survives_power_cut: false, detail }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.topics.ensure_topic(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        self.topics.topic(name).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.topics.topics().await
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        self.topics.raise_epoch(topic, incarnation, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.topics.divide(topic, incarnation, epoch, generations).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        self.topics.append(append).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        self.topics.tails(topic).await
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        self.topics.read(read).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        signals::send(self.link(), subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        signals::listen(&self.topics.used, subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.topics.register(registration).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.topics.registrations().await
    }

    async fn close(&self) {
        self.link().close().await;
    }
}
