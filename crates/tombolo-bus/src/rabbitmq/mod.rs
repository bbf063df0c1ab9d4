//! RabbitMQ streams as the bus: one stream per topic, records, epochs and divisions in one order.
//!
//! RabbitMQ has no condition on a write and no fence: what anybody sends is stored and confirmed. (Its deduplication makes it
//! worse: a repeated number with another body is confirmed and dropped; it is not used.) So the order of the stream is the
//! judge, by the rule that all engines of this kind share (`judged/`).
//!
//! **What an acknowledgement means.** RabbitMQ never syncs a stream: a message is confirmed, and readable, when a majority of
//! the stream's replicas have written it to their operating systems. It survives the death of the server's process. A power
//! cut of one node alone loses what was not written back (the server has no setting for that), so it has to be accepted by
//! name (`?accept=unsynced`); in a cluster an event survives as long as a majority of the replicas keeps power. A new server
//! that is killed within half a second of its very first stream loses that stream: it has not kept yet that it has any.
//!
//! What this engine cannot do: types are not filtered; a reader far back is sent the records of all partitions; who may
//! publish where is up to the server's own accounts, each of which must be allowed to declare and to write (looks are messages); a
//! retention *policy* cannot be seen by a client, only what it has removed, which is then refused.
//!
//! Invariant: every answer follows from the rule and from messages that were read after the call began; nothing is answered
//! from a confirmation or from memory alone.

mod names;
mod hello;
mod link;
mod stream;
mod signals;

use std::sync::Arc;

use async_trait::async_trait;
use tombolo_event::{Generations, Incarnation, ServiceName};

use crate::accept::{Accepted, Weakness};
#[cfg(feature = "mutants")]
pub use crate::judged::Mutant;
use crate::judged::Topics;
use crate::{
    Append, Appended, Bus, Guarantee, Reach, Read, RecordStream, Registration, Result, Signal, SignalStream,
    Tail, Topic, TopicSpec,
};
use link::Link;

/// A RabbitMQ server (3.10 or later) used as a bus.
pub struct RabbitMq {
    topics: Topics<Link>,
}

/// What RabbitMQ does whatever it is told.
const UNSYNCED: Weakness = Weakness {
    name: "unsynced",
    costs: "a power cut, or the death of a machine that is not one of several, loses acknowledged events",
    remedy: "use another engine, or a cluster whose nodes do not lose power together",
};

/// Connects to `amqp://user:password@host:port[/vhost][?namespace=name&accept=unsynced]` (or `amqps://`); the namespace is
/// `tombolo` unless named.
///
/// A server that is away is no error: calls answer `Unavailable` until it is there.
///
/// # Errors
/// `Unsafe` unless it is accepted that acknowledged messages are not on disk yet; `Configuration` if the address is wrong, the
/// server refuses the user or the vhost, or it is older than 3.10.
pub async fn connect(url: &str) -> Result<RabbitMq> {
    let (url, accepted) = Accepted::split(url, &[UNSYNCED])?;
    let link = Link::new(&url)?;
    accepted.check(&UNSYNCED, "RabbitMQ never syncs a stream to disk")?;
    RabbitMq::on(link).await
}

impl RabbitMq {
    async fn on(link: Link) -> Result<Self> {
        let link = Arc::new(link);
        link.start().await?;
        Ok(Self { topics: Topics::of(link) })
    }

    /// Breaks this connection on purpose.
    ///
    /// # Errors
    /// `Configuration`, `Unavailable`.
    #[cfg(feature = "mutants")]
    pub async fn connect_broken(url: &str, mutant: Mutant) -> Result<Self> {
        let mut link = Link::new(url)?;
        link.root.mutant = Some(mutant);
        Self::on(link).await
    }

    fn link(&self) -> &Arc<Link> {
        self.topics.server()
    }
}

#[async_trait]
impl Bus for RabbitMq {
    fn guarantee(&self) -> Guarantee {
        let version = self.link().version().unwrap_or_else(|| "of a version not known yet".to_owned());
        Guarantee {
            engine: format!("RabbitMQ {version} streams"),
            survives_power_cut: false,
            detail: "written by a majority of the stream's replicas before it is acknowledged, but never synced to disk: an \
                acknowledged event survives the death of the server's process, and a power cut only if a majority of the \
                replicas keeps power"
                .into(),
        }
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
