//! NATS JetStream as the bus: one stream per topic, records and epochs in one order.
//!
//! ```text
//! stream tombolo_<namespace>_topic_orders        subjects <namespace>.topic.orders.*
//!   1 control {incarnation, generations, epoch 0}
//!   2 control {…, epoch 1}      an epoch is raised, and a topic divided, by a record of the same stream, so it breaks
//!   3 orders.0  sequence 1      the chain of every writer that does not know of it
//!   4 orders.2  sequence 1
//!   5 orders.0  sequence 2      each message names the stream's last sequence *and* the last message's id:
//!   ┆                           the first link proves that the writer knows everything before it,
//!   └ last                      the next ones that nothing came between
//! ```
//!
//! A sequence alone does not chain messages that are sent without waiting: when a stranger's message takes the
//! place of the first, the first is refused and the *second* then names the right last sequence. The id does.
//!
//! `?replicas=3` keeps each stream on three servers of a cluster. A message is then acknowledged when a majority of them has it,
//! and survives the death of any one for good, disk and all; each still syncs when its own settings say so. A server that
//! has just begun to lead may not have caught up with what others acknowledged, so what refuses or acknowledges something is
//! read behind a *barrier* (`log`): the removal of nothing, answered in its place in the order that the majority agreed on. Appends to such streams
//! do not chain by ids (`agreed`). The test on a cluster (`tests/suite/nats/faults.rs`) runs with NATS 2.15; with 2.9 it did not end green, because a
//! replica that was stopped did not always catch up, so use 2.12 or later for replicas.
//!
//! What this engine cannot do: an append of several records is several messages, so a raise in their middle leaves the
//! first of them stored (the next relay finds them in its tails); types are not filtered; only the server's own
//! accounts say who may publish to which topic.
//!
//! Invariant: every answer follows from an accepted link of the chain or from what was read from the stream in the
//! same call; nothing is answered from memory alone.

mod link;
mod log;
mod made;
mod message;
mod names;
mod pull;
mod reader;
mod registrations;
mod signals;
mod trimming;
mod agreed;
mod writer;
#[cfg(feature = "mutants")]
mod mutants;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tombolo_event::{Cursor, Generations, Incarnation, ServiceName};

use crate::accept::{Accepted, Weakness};
use crate::{
    Append, Appended, Bus, Guarantee, Reach, Read, RecordStream, Registration, Result, Signal, SignalStream,
    Tail, Topic, TopicSpec,
};
use link::Link;
use log::Log;
#[cfg(feature = "mutants")]
pub use mutants::Mutant;
use names::Address;
use writer::Writer;

/// A connection to a NATS server (2.9 or later, with JetStream) used as a bus.
pub struct Nats {
    link: Arc<Link>,
    /// One for each topic that this process appended to; topics are as many as services.
    writers: Mutex<HashMap<ServiceName, Arc<Writer>>>,
}

/// What a server does unless it is told otherwise, and a client cannot see.
const UNSYNCED: Weakness = Weakness {
    name: "unsynced",
    costs: "a power cut, or the death of the machine, loses acknowledged events",
    remedy: "set `sync_interval: always` (NATS 2.10 or later; a client cannot see it)",
};

/// The same where several servers have each message.
const UNSYNCED_REPLICAS: Weakness = Weakness {
    costs: "the death of one server loses nothing, but a power cut of a majority of them at once loses acknowledged events",
    remedy: "give them power that does not fail together and accept it, or set `sync_interval: always` on each (NATS 2.10 or later; a client cannot see it)",
    ..UNSYNCED
};

/// Connects to `nats://[user:password@]host:port[,host:port…][/namespace][?replicas=3&accept=unsynced]`; the namespace is
/// `tombolo` unless named, and streams are kept on one server unless `replicas` says on how many of a cluster.
///
/// A server that is away is no error: calls answer `Unavailable` until it is there.
///
/// # Errors
/// `Unsafe` unless it is accepted that acknowledged messages are not on disk yet; `Configuration` if the address is wrong, the
/// server is older than 2.9 or has no JetStream.
pub async fn connect(url: &str) -> Result<Nats> {
    let (url, accepted) = Accepted::split(url, &[UNSYNCED])?;
    let address = Address::parse(&url)?;
    let weakness = if address.replicas > 1 { &UNSYNCED_REPLICAS } else { &UNSYNCED };
    accepted
        .check(weakness, "JetStream syncs what it acknowledged only every two minutes (sync_interval)")?;
    Ok(Nats { link: Arc::new(Link::connect(address).await?), writers: Mutex::default() })
}

impl Nats {
    /// The largest [`crate::Record::bytes`] that the server's `max_payload` leaves room for, in bytes, up to
    /// [`tombolo_event::envelope::EVENT_BYTES_MAX`].
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        message::record_bytes_max(self.link.client.max_payload())
    }

    /// Breaks this connection on purpose.
    ///
    /// # Errors
    /// `Configuration`, `Unavailable`.
    #[cfg(feature = "mutants")]
    pub async fn connect_broken(url: &str, mutant: Mutant) -> Result<Self> {
        let mut link = Link::connect(Address::parse(url)?).await?;
        link.mutant = Some(mutant);
        Ok(Self { link: Arc::new(link), writers: Mutex::default() })
    }

    fn writer(&self, topic: &ServiceName) -> Arc<Writer> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Writer::new(&self.link, topic));
        Arc::clone(writers.entry(topic.clone()).or_insert_with(made))
    }
}

/// What an acknowledgement means, for people.
fn detail(replicas: usize) -> String {
    let synced = "to disk only every two minutes unless it is set otherwise (sync_interval), which a client cannot see";
    if replicas > 1 {
        let majority = replicas / 2 + 1;
        return format!(
            "stored in files by {majority} of {replicas} servers before it is acknowledged, so the death of {} of them for good \
             loses nothing; but each syncs {synced}: a power cut of {majority} at once can lose acknowledged events",
            replicas - majority
        );
    }
    format!(
        "stored in a file before it is acknowledged, but the server syncs {synced}: an acknowledged event survives the death of \
         the server's process, and not its machine's power cut (`?replicas=3` keeps it on three servers of a cluster)"
    )
}

#[async_trait]
impl Bus for Nats {
    fn guarantee(&self) -> Guarantee {
        let server = self.link.client.try_server_info();
        let version = server.map_or_else(|| "of a version not known yet".to_owned(), |server| server.version);
        Guarantee {
            engine: format!("NATS JetStream {version}"),
            survives_power_cut: false,
            detail: detail(self.link.replicas),
        }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.link.asking(Log::ensure(&self.link, spec)).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let found = async {
            let log = Log::open(&self.link, name).await?;
            log.settle().await?;
            log.control().await
        };
        Ok(self.link.asking(found).await?.topic(name))
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.link.asking(log::topics(&self.link)).await
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        self.link.asking(self.writer(topic).raise(incarnation, epoch)).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.link.asking(self.writer(topic).divide(incarnation, epoch, generations)).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        crate::port::check_append(&append)?;
        self.link.asking(self.writer(&append.topic).append(&append)).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        let known = async { Log::open(&self.link, topic).await?.known().await };
        Ok(self.link.asking(known).await?.tails())
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        self.link.asking(reader::open(&self.link, read)).await
    }

    async fn trim(&self, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
        trimming::trim(&self.link, topic, partition, first).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        signals::send(&self.link, subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        signals::listen(&self.link, subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.link.asking(registrations::register(&self.link, registration)).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.link.asking(registrations::all(&self.link)).await
    }

    async fn close(&self) {
        self.link.close().await;
    }
}
