//! PostgreSQL as the bus: a schema with the records of all topics, and a row for the end of each partition.
//!
//! ```text
//! topic      orders  incarnation 7f…  generations {8}  epoch 3
//! partition  orders/0  epoch 3  last 5  id of 5      an append locks this row, compares epoch and last, moves it and
//! partition  orders/1  epoch 3  last 9  id of 9      inserts the records: one statement, one commit, one sync
//! record     orders/0  1 │ 2 │ 3 │ 4 │ 5
//! ```
//!
//! **What an acknowledgement means.** Every append commits with `synchronous_commit = on`, whatever the server's default. Such
//! a commit writes the log of the server to disk *before* other sessions see it (and waits for synchronous standbys, if any
//! are named), so a reader never sees what a power cut could take back. `fsync` and `full_page_writes` must be on for that;
//! they are checked whenever a connection is made.
//!
//! **Signals** are notices (`NOTIFY`) to the listening connections of those who hear a subject; see `signals`.
//!
//! What this engine cannot do: only the server's own accounts say who may append to which topic; a pooler that hands a
//! session's statements to different connections (PgBouncer in transaction mode) breaks listening.
//!
//! Invariant: every answer follows from a statement of the same call; nothing is answered from memory.

mod address;
mod failure;
mod found;
mod link;
mod tables;
mod topics;
mod append;
mod wakes;
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
use wakes::Wakes;

/// A PostgreSQL server (15 or later) used as a bus. It connects when it is used.
pub struct Postgres {
    link: Arc<Link>,
    wakes: Arc<Wakes>,
    hearing: Arc<Hearing>,
    life: Life,
    /// Started by the first append.
    lanes: OnceLock<Lanes>,
    /// Started by the first reader that follows, or listener.
    listening: OnceLock<Listening>,
}

/// Connects to `postgres://[user[:password]@]host[:port][/database][?namespace=NAME][&accept=NAME]`; the namespace is `tombolo`
/// unless named.
///
/// A server that is away is no error: calls answer `Unavailable` until it is there.
///
/// # Errors
/// `Configuration` if the address is wrong, the server is older than 15 or does not let us in; `Unsafe` if its settings would
/// lose events and that is not accepted; `TopicDiffers` if the namespace's schema is somebody else's.
pub async fn connect(url: &str) -> Result<Postgres> {
    Postgres::greeted(linked(url)?).await
}

fn linked(url: &str) -> Result<Link> {
    let (url, accepted) = Accepted::split(url, found::WEAKNESSES)?;
    Ok(Link::new(Address::parse(&url)?, accepted))
}

impl Postgres {
    async fn greeted(link: Link) -> Result<Self> {
        link.greet().await?;
        let link = Arc::new(link);
        Ok(Self {
            life: Life::of(&link.closed),
            link,
            wakes: Arc::default(),
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
            let (link, wakes) = (Arc::clone(&self.link), Arc::clone(&self.wakes));
            self.link.tasks.spawn(wakes::announce(Arc::clone(&link), Arc::clone(&wakes)));
            let (lanes, work) = Lanes::new(Arc::new(Appending { link, wakes }), self.link.closed.clone());
            self.link.tasks.spawn(work);
            lanes
        })
    }

    fn listening(&self) -> &Listening {
        self.listening.get_or_init(|| Listening::start(&self.link, &self.hearing, &self.wakes))
    }

    fn open(&self) -> Result<()> {
        if self.link.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }
}

#[async_trait]
impl Bus for Postgres {
    fn guarantee(&self) -> Guarantee {
        Found::guarantee(self.link.found().as_ref())
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.link.ensure(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        Ok(self.link.stored(name).await?.topic)
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.link.all_topics().await
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
        let stream = reader::open(&self.link, read, Some(&self.wakes)).await?;
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
