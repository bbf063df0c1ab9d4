//! RabbitMQ streams as the bus: one stream per topic, records, epochs and divisions in one order.
//!
//! RabbitMQ has no condition on a write and no fence: what anybody sends is stored and confirmed. (Its deduplication makes it
//! worse: a repeated number with another body is confirmed and dropped; it is not used.) What it does have is one total
//! order of a stream, the same for everybody, and never taken back. That is enough:
//!
//! ```text
//! stream tombolo.<namespace>.topic.orders
//!   0 birth     incarnation, partitions            every message says under which epoch it was sent, where in its
//!   1 raise     epoch 1                            partition it belongs, and which event it follows;
//!   2 records   epoch 1, partition 0, 1..=40       whether it *counts* depends only on what stands before it (`rule`):
//!   3 raise     epoch 2                            not the present epoch, not the next number, not after the event that
//!   4 records   epoch 1, partition 0, 41..=80      is there, or a sealed partition: void, and passed over by everybody
//!   ┆           ↑ void: its relay reads that here, and is refused
//! ```
//!
//! - An append is one message, acknowledged when its sender has read it back in its place, where it counts. Before that a
//!   reader may see it already; that is no phantom, because it is stored and counts for good.
//! - Who is void has read everything before it, so its refusal is true as of its own message. Nothing is refused or
//!   acknowledged, and no tail is told, from what was read before the call began: then an empty message is sent, a *look*,
//!   and everything up to it is read.
//! - A relay that was replaced can send as late as it likes, from buffers of a dead connection even: it is void.
//! - Opening a topic reads from the last *mark* (`past`), about a thousand messages, not the whole stream. The same marks lead
//!   to a cursor far back, by halving. One follower in each process reads each new message once, for all (`follower`).
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
mod message;
mod rule;
mod stream;
mod past;
mod window;
mod follower;
mod writer;
mod reader;
mod directory;
mod signals;
#[cfg(feature = "mutants")]
mod mutants;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt;
use tombolo_event::envelope::EVENT_BYTES_MAX;
use tombolo_event::{Generations, Incarnation, ServiceName};

use crate::accept::{Accepted, Weakness};
use crate::{
    Append, Appended, Bus, Error, Guarantee, Kind, Reach, Read, RecordStream, Registration, Result, Signal,
    SignalStream, Tail, Topic, TopicSpec,
};
use directory::Directory;
use follower::Follower;
use link::{Link, RECONNECT, Used};
#[cfg(feature = "mutants")]
pub use mutants::Mutant;

/// A RabbitMQ server (3.10 or later) used as a bus.
pub struct RabbitMq {
    used: Arc<Used>,
    directory: Directory,
    /// One for each topic that this process uses; topics are as many as services.
    followers: Mutex<HashMap<ServiceName, Place>>,
}

/// How many topics are opened at once to list them.
const TOPICS_AT_ONCE: usize = 8;

/// How often a topic is ensured again whose stream somebody else is making at this moment; a few seconds in all.
const HALF_MADE_TRIES_MAX: u32 = 8;

/// Where a topic's follower is, once there is one; held while it is begun.
type Place = Arc<tokio::sync::Mutex<Option<Arc<Follower>>>>;

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
        Ok(Self { used: Arc::new(Used(link)), directory: Directory::default(), followers: Mutex::default() })
    }

    /// Breaks this connection on purpose.
    ///
    /// # Errors
    /// `Configuration`, `Unavailable`.
    #[cfg(feature = "mutants")]
    pub async fn connect_broken(url: &str, mutant: Mutant) -> Result<Self> {
        let mut link = Link::new(url)?;
        link.mutant = Some(mutant);
        Self::on(link).await
    }

    fn link(&self) -> &Arc<Link> {
        &self.used.0
    }

    /// The follower of a topic, if there is such a topic.
    async fn follower(&self, topic: &ServiceName) -> Result<Arc<Follower>> {
        let place = self.place(topic);
        let mut place = place.lock().await;
        if let Some(follower) = living(&place) {
            return Ok(follower);
        }
        // Asked first, because asking for a stream that is not there is an error that the client writes into the log.
        if !self.directory.lists(self.link(), topic).await? {
            return Err(rule::unknown(topic));
        }
        Ok(Arc::clone(place.insert(Follower::begin(self.link(), topic).await?)))
    }

    /// The follower of a topic that is being made.
    async fn follower_of_new(&self, topic: &ServiceName) -> Result<Arc<Follower>> {
        let place = self.place(topic);
        let mut place = place.lock().await;
        if let Some(follower) = living(&place) {
            return Ok(follower);
        }
        writer::make(self.link(), topic).await?;
        Ok(Arc::clone(place.insert(Follower::begin(self.link(), topic).await?)))
    }

    async fn ensure_once(&self, spec: &TopicSpec) -> Result<Topic> {
        let follower = self.follower_of_new(&spec.name).await?;
        let state = writer::begin(&follower, spec).await?;
        self.directory.add_topic(self.link(), &spec.name).await?;
        state.topic(&spec.name).ok_or_else(|| rule::unknown(&spec.name))?.matching(spec)
    }

    fn place(&self, topic: &ServiceName) -> Place {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(followers.entry(topic.clone()).or_default())
    }
}

fn living(place: &Option<Arc<Follower>>) -> Option<Arc<Follower>> {
    place.as_ref().filter(|follower| follower.lives()).map(Arc::clone)
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
        let mut attempt = 0;
        loop {
            match self.ensure_once(spec).await {
                // The connection went with it, and comes back.
                Err(error) if stream::is_half_made(&error) || (attempt > 0 && error.is_transient()) => {
                    if attempt == HALF_MADE_TRIES_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(RECONNECT.jittered(attempt)).await;
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let state = self.follower(name).await?.look().await?;
        state.topic(name).ok_or_else(|| rule::unknown(name))
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        let names = self.directory.topics(self.link()).await?;
        let found = futures_util::stream::iter(names).map(|name| async move { self.topic(&name).await });
        let mut found = found.buffered(TOPICS_AT_ONCE);
        let mut topics = Vec::new();
        while let Some(topic) = found.next().await {
            match topic {
                Ok(topic) => topics.push(topic),
                Err(error) if matches!(error.kind(), Kind::UnknownTopic | Kind::TopicDiffers) => {
                    tracing::warn!("a topic is left out of the list: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(topics)
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        writer::raise(&*self.follower(topic).await?, incarnation, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        writer::divide(&*self.follower(topic).await?, incarnation, epoch, generations).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        crate::port::check_append(&append)?;
        if let Some(record) = append.records.iter().find(|record| record.bytes.len() > EVENT_BYTES_MAX) {
            let (id, found) = (record.id, record.bytes.len());
            let message = format!("event {id} is {found} bytes; expected at most {EVENT_BYTES_MAX}");
            return Err(Error::new(Kind::TooLarge, message));
        }
        writer::append(&self.follower(&append.topic).await?, &append).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        let state = self.follower(topic).await?.look().await?;
        if state.control.is_none() {
            return Err(rule::unknown(topic));
        }
        Ok(state.tails())
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        let follower = self.follower(&read.topic).await?;
        reader::open(&self.used, follower, read).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        signals::send(self.link(), subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        signals::listen(&self.used, subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.directory.register(self.link(), registration).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.directory.registrations(self.link()).await
    }

    async fn close(&self) {
        self.link().close().await;
    }
}
