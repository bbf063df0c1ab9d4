//! Documents by key in one file of redb: a service's own database without SQL.
//!
//! ```text
//!  reads ──────── any number, each a snapshot that no writer waits for ─┐
//!  transactions ─ queue of this process ─ one writer, synced ───────────┼── one file, of one process
//!  upkeep ─────── queue of this process ─ one writer, not synced ───────┘
//! ```
//!
//! One writer at a time is the store's rule, as it is SQLite's: numbering happens in the publishing transaction itself, and no
//! commit can be late. Whoever holds a transaction holds up every other writer of the service; so keep transactions short, and
//! wait for nothing inside one. Everything that may touch the disk runs on the runtime's threads for blocking work.
//!
//! Upkeep does not sync: what a power cut takes back of it is only repeated (a removed row is sent again under the same number,
//! a lease is claimed again), and it becomes durable with the next commit, because the file has one order of commits.
//!
//! The file belongs to one process at a time, which the store ensures by a lock. So a service on it has one replica.
//!
//! Invariant: documents, events and cursor of a transaction are in one commit of the store, and that commit is synced before
//! anybody is told of it.

mod failure;
mod store;
mod rows;
mod schema;
mod collection;
mod keys;
mod reading;
mod transaction;
mod outbox;
mod leader;
mod generations;
mod later;
mod cursors;
mod leases;
mod parked;
mod effects;
mod views;
mod requests;
mod recovery;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use collection::Collection;
pub use failure::is_open_elsewhere;
pub use keys::Keys;
pub use reading::Reading;
pub use redb;
pub use schema::schema_text;
pub use transaction::Tx;

use async_trait::async_trait;
use redb::WriteTransaction;

use crate::mutant::{Mutant, Mutation};
use crate::{Committed, Database, Error, Kind, Outgoing, Publisher, Result};
use store::{Store, Synced};

/// How long a writer waits for the writers of this process before it.
pub const WRITER_WAIT_MAX: Duration = Duration::from_secs(30);
/// The most memory that pages of the file are kept in.
pub const CACHE_BYTES: usize = 64 << 20;
/// The most commits of upkeep in a row that are not synced, so that what a power cut takes back of them is bounded.
pub const UNSYNCED_MAX: u32 = 64;
/// The longest key of a document.
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// The largest document, as JSON.
pub const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// What the address of such a database begins with.
const SCHEME: &str = "documents:";

/// A service's database of documents in one file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Documents {
    store: Arc<Store>,
    mutation: Mutation,
}

impl Documents {
    /// The database in the file that `place` names, as a path or as `documents:path`; made when first used.
    ///
    /// Nothing touches the disk yet. All handles of a process that name one file share it; another process that has it
    /// open is named as an error when it is first used.
    ///
    /// # Errors
    /// `Unsafe` for an address of another kind of database.
    pub fn open(place: impl AsRef<str>) -> Result<Self> {
        let place = place.as_ref();
        let path = place.strip_prefix(SCHEME).map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        let other = place.split_once(':').filter(|(scheme, _)| path.is_none() && scheme.len() > 1);
        if let Some((scheme, _)) = other {
            return Err(Error::new(
                Kind::Unsafe,
                format!(
                    "found a database of the scheme {scheme:?}, but this service is built for documents; expected documents:PATH or a path (TOMBOLO_DATABASE, or `database` in the manifest)"
                ),
            ));
        }
        let path = PathBuf::from(path.unwrap_or(place));
        Ok(Self { store: Store::of_file(path)?, mutation: Mutation::default() })
    }

    /// The database that the user's program has opened already, with tables of its own beside those of the collections.
    #[must_use]
    pub fn new(database: Arc<redb::Database>) -> Self {
        Self { store: Store::given(database), mutation: Mutation::default() }
    }

    /// Begins a transaction, which may write. Every other writer of the service waits until it ends.
    ///
    /// # Errors
    /// `Unavailable` if others write for longer than [`WRITER_WAIT_MAX`], if another process has the file open, or if the
    /// disk fails.
    pub async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        let sync = if self.mutation.is(Mutant::NoSync) { Synced::Later } else { Synced::Now };
        Ok(Tx::new(self.store.begin(sync).await?, Outgoing::new(publisher.clone()), self.mutation))
    }

    /// What is committed now, for reading outside a transaction. It waits for no writer, and no writer waits for it.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be opened.
    pub async fn read(&self) -> Result<Reading> {
        Ok(Reading::new(self.store.snapshot().await?))
    }

    /// The store itself, for tables of the user's own types beside the collections, and for transactions of the user's own,
    /// into which events are written by [`Database::write_outgoing`]. Do not keep it: once the disk has failed, the file is
    /// opened anew only when nobody has it any more.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be opened.
    pub async fn redb(&self) -> Result<Arc<redb::Database>> {
        self.store.open().await
    }

    /// The same database with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        self
    }
}

#[async_trait]
impl Database for Documents {
    type Tx = Tx;
    /// The store's own write transaction, which the user's program began on the database that it gave. What is written here
    /// is written on the caller's thread, as everything else in that transaction is.
    type Connection = WriteTransaction;

    async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Documents::begin(self, publisher).await
    }

    async fn write_outgoing(&self, own: &mut WriteTransaction, mut outgoing: Outgoing) -> Result<Committed> {
        let taken = outgoing.take()?;
        Ok(Committed { positions: transaction::write(own, &outgoing.publisher().service, &taken)? })
    }
}
