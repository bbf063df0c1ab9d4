//! Redis as the bus: a stream for each partition, and scripts that check an append inside the server.
//!
//! ```text
//! tombolo:<namespace>:{orders}:topic   mark, incarnation 7f…, generations [8], epoch 3
//! tombolo:<namespace>:{orders}:ends    0 → "5 412 <id of 5>"    the last sequence, the largest record, the last id
//! tombolo:<namespace>:{orders}:0       1-0 │ 2-0 │ 3-0 │ 4-0 │ 5-0    an entry's place is its sequence
//! ```
//!
//! Explicit places alone would take a hole, another epoch, another event: a script compares them all before it writes, and nothing comes
//! between, because the server does one thing at a time.
//!
//! **What an acknowledgement means.** With `appendfsync always` the server carries out the commands that have come, writes and syncs its
//! append-only file, and only then sends the answers of that round, to everybody. So an append is acknowledged after it is on disk; a
//! reader on another connection may be *looked up* an entry before the sync of that round, but is *sent* it after. Replicas follow later,
//! so a failover may lose what was acknowledged last; cursors and epochs find that out. The settings are checked whenever a connection is
//! made.
//!
//! **Signals** are messages to the listening connections of those who hear a subject; see `signals`.
//!
//! What this engine cannot do: types are not filtered; only the server's own accounts say who may append to which topic; everything is
//! kept in the server's memory; clusters are refused.
//!
//! Invariant: every answer follows from a command of the same call; nothing is answered from memory.

mod address;
mod failure;
mod values;
mod found;
mod scripts;
mod link;
mod topics;
mod append;
mod listening;
mod reader;
mod trimming;
mod signals;
mod registrations;
#[cfg(feature = "mutants")]
mod mutants;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tombolo_event::{Cursor, Generations, Incarnation, ServiceName};

use crate::accept::Accepted;
use crate::adapter::following::Following;
use crate::adapter::hearing::Hearing;
use crate::adapter::lanes::Lanes;
use crate::adapter::life::Life;
use crate::adapter::refusal::closed;
use crate::{
    Append, Appended, Bus, Guarantee, Reach, Read, RecordStream, Registration, Result, Signal, SignalStream,
    Tail, Topic, TopicSpec,
};
use address::Address;
use append::Appending;
use found::Found;
use link::Link;
use listening::Listening;
#[cfg(feature = "mutants")]
pub use mutants::Mutant;

/// A Redis server (7.0 or later) used as a bus. It connects when it is used.
pub struct Redis {
    link: Arc<Link>,
    following: Arc<Following<String>>,
    hearing: Arc<Hearing>,
    life: Life,
    /// Started by the first append.
    lanes: OnceLock<Lanes>,
    /// Started by the first reader that follows, or listener.
    listening: OnceLock<Listening>,
}

/// Connects to `redis://[[user]:password@]host[:port][/database number][?namespace=NAME][&accept=NAME]`; the namespace is `tombolo`
/// unless named.
///
/// A server that is away is no error: calls answer `Unavailable` until it is there.
///
/// # Errors
/// `Configuration` if the address is wrong, the server is older than 7.0, part of a cluster, or does not let us in; `Unsafe` if its
/// settings would lose events and that is not accepted.
pub async fn connect(url: &str) -> Result<Redis> {
    Redis::greeted(linked(url)?).await
}

fn linked(url: &str) -> Result<Link> {
    let (url, accepted) = Accepted::split(url, found::WEAKNESSES)?;
    Link::new(Address::parse(&url)?, accepted)
}

impl Redis {
    async fn greeted(link: Link) -> Result<Self> {
        link.greet().await?;
        let link = Arc::new(link);
        Ok(Self {
            life: Life::of(&link.closed),
            link,
            following: Arc::default(),
            hearing: Arc::default(),
            lanes: OnceLock::new(),
            listening: OnceLock::new(),
        })
    }

    /// Breaks this connection on purpose.
    ///
    /// # Errors
    /// As [`connect`].
    #[cfg(feature = "mutants")]
    pub async fn connect_broken(url: &str, mutant: Mutant) -> Result<Self> {
        let mut link = linked(url)?;
        link.mutant = Some(mutant);
        Self::greeted(link).await
    }

    fn lanes(&self) -> &Lanes {
        self.lanes.get_or_init(|| {
            let appending = Appending { link: Arc::clone(&self.link) };
            let (lanes, work) = Lanes::new(Arc::new(appending), self.link.closed.clone());
            self.link.tasks.spawn(work);
            lanes
        })
    }

    fn listening(&self) -> &Listening {
        self.listening.get_or_init(|| Listening::start(&self.link, &self.hearing, &self.following))
    }

    fn open(&self) -> Result<()> {
        if self.link.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }
}

#[async_trait]
impl Bus for Redis {
    fn guarantee(&self) -> Guarantee {
        Found::guarantee(self.link.found().as_ref())
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.link.ensure(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        self.link.topic(name).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.link.topics().await
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        self.link.raise(topic, incarnation, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.link.divide(topic, incarnation, epoch, generations).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        crate::port::check_append(&append)?;
        append::check(&append)?;
        self.open()?;
        self.lanes().append(append).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        self.link.tails(topic).await
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        if !read.follow {
            return Ok(self.life.keep(reader::open(&self.link, read, None).await?));
        }
        self.open()?;
        let stream = reader::open(&self.link, read, Some(&self.following)).await?;
        self.listening().settle().await?;
        Ok(self.life.keep(stream))
    }

    async fn trim(&self, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
        trimming::trim(&self.link, topic, partition, first).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        signals::send(&self.link, subject, &signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        crate::signal::check_subject(subject)?;
        group.map_or(Ok(()), crate::signal::check_subject)?;
        self.open()?;
        let stream = self.hearing.join(subject, group);
        self.listening().settle().await?;
        Ok(self.life.keep(stream))
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        registrations::register(&self.link, registration).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        registrations::all(&self.link).await
    }

    async fn close(&self) {
        self.link.closed.cancel();
        self.hearing.close();
        self.link.close().await;
    }
}
