//! MongoDB, as a replica set: a service's own database, with Tombolo's collections behind a prefix of their own.
//!
//! ```text
//!  commit:  touch the keys' stripes (each gives a position) ── insert rows (no number) ── commitTransaction, majority and journal
//!  round:   touch the leader's document ── remove what is done ── number what is there ── commitTransaction, the same
//! ```
//!
//! Nobody waits for a document here: of two transactions that write one, the second is refused at once, and so is one that
//! writes what another has committed since its own first statement. So what SQL locks is *touched* here: written, so that
//! whoever else writes it is refused. Transactions of our own are begun again; one with statements of the user's fails as
//! [`Kind::Unavailable`], which pauses a partition and never counts, and a request tries it again.
//!
//! Invariant: positions of one key are in commit order, because a position is taken from the document of the key's
//! stripe in the transaction that publishes: two that overlap cannot both commit.
//!
//! Unverified: no test of Tombolo has run against MongoDB itself, only against a server that speaks its protocol.

mod failure;
mod session;
mod rows;
mod settings;
mod schema;
mod transaction;
mod outbox;
mod numbering;
mod generations;
mod later;
mod cursors;
mod leases;
mod effects;
mod parked;
mod views;
mod requests;
mod recovery;

use std::sync::Arc;
use std::time::Duration;

use ::mongodb::options::{
    Acknowledgment, ClientOptions, DatabaseOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use ::mongodb::{Client, ClientSession, Collection};
use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::mutant::Mutation;
use crate::{Committed, Database, Error, Kind, Outgoing, Publisher, Result, Tables};

pub use ::mongodb as driver;
pub use failure::is_transient;
pub use schema::schema_text;
pub use transaction::Tx;

/// What the names of Tombolo's collections begin with, unless another prefix is chosen.
pub const PREFIX: &str = "tombolo_";
/// How long a client made by [`Mongodb::open`] looks for a primary, unless the address says otherwise.
pub const SERVER_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a transaction of our own is begun again because it met another one.
pub const CONFLICTS_MAX: Duration = Duration::from_secs(30);
/// How long a commit is repeated whose outcome is not known.
pub const COMMIT_WAIT_MAX: Duration = Duration::from_secs(30);
/// The number of stripes that keys fall into. A stripe is a document, made when it is first touched, and two transactions
/// that meet in one are not both committed; so there are more of them than a server with locks would need.
pub const STRIPES: u32 = 1 << 16;
/// The longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 32;

/// A service's database on a MongoDB replica set. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mongodb {
    client: Client,
    database: driver::Database,
    prefix: Arc<str>,
    /// Before it those who met another transaction and may begin again.
    turn: Arc<Mutex<()>>,
    mutation: Mutation,
}

impl Mongodb {
    /// The database that `url` names: `mongodb://user@host/NAME`, or `mongodb+srv://…`. Nothing connects before the first
    /// use, but for the look-up of an address of the second kind.
    ///
    /// # Errors
    /// `Database` for a URL that does not parse or names no database, `Unavailable` if its name cannot be looked up.
    pub async fn open(url: &str) -> Result<Self> {
        let mut options = ClientOptions::parse(url).await?;
        let Some(name) = options.default_database.clone() else {
            let message = "the address names no database; expected mongodb://user@host/NAME";
            return Err(Error::new(Kind::Database, message));
        };
        options.server_selection_timeout.get_or_insert(SERVER_WAIT_MAX);
        options.app_name.get_or_insert_with(|| "tombolo".to_owned());
        Ok(Self::new(Client::with_options(options)?, &name))
    }

    /// The database `name` of the user's own client. Whatever the client's own concerns are, what Tombolo writes is
    /// acknowledged by a majority that has it in its journal.
    #[must_use]
    pub fn new(client: Client, name: &str) -> Self {
        let options = DatabaseOptions::builder()
            .read_concern(ReadConcern::majority())
            .write_concern(durable())
            .selection_criteria(primary())
            .build();
        let database = client.database_with_options(name, options);
        Self { client, database, prefix: PREFIX.into(), turn: Arc::default(), mutation: Mutation::default() }
    }

    /// The same with another prefix of Tombolo's collections, so that two services can share a database.
    ///
    /// # Errors
    /// `Schema` unless it is lowercase letters, digits and `_`, starting with a letter and ending with `_`.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self> {
        let word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        let fits = prefix.len() <= PREFIX_BYTES_MAX && prefix.starts_with(|c: char| c.is_ascii_lowercase());
        if !fits || !prefix.chars().all(word) || !prefix.ends_with('_') {
            return Err(Error::new(
                Kind::Schema,
                format!(
                    "{prefix:?} cannot be the prefix of Tombolo's collections; expected lowercase letters, digits and '_', starting with a letter and ending with '_', at most {PREFIX_BYTES_MAX} bytes"
                ),
            ));
        }
        self.prefix = prefix.into();
        Ok(self)
    }

    /// The driver's own database, for reads, and for writes that publish nothing. It reads what a majority has, and a
    /// write is answered when a majority has it in its journal.
    #[must_use]
    pub fn database(&self) -> &driver::Database {
        &self.database
    }

    /// A collection of a view's build, for reading: `tables` is what `app.view(…)` gives.
    ///
    /// # Errors
    /// `View` for a name that the view did not declare.
    pub fn view_collection<T: Send + Sync>(&self, tables: &Tables, name: &str) -> Result<Collection<T>> {
        Ok(self.database.collection(&tables.collection(name)?))
    }

    /// Begins a transaction, which may write.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Ok(Tx::new(self.session().await?, self.clone(), Outgoing::new(publisher.clone())))
    }

    /// The same database with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: crate::mutant::Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        self
    }
}

/// Acknowledged means: by a majority, in their journals.
fn durable() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// A duration as leases count it.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX >> 1)
}

/// A number as documents keep it.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A bound as the driver takes it; 0 would be none.
fn limit(most: usize) -> i64 {
    i64::try_from(most.max(1)).unwrap_or(i64::MAX)
}

#[async_trait]
impl Database for Mongodb {
    type Tx = Tx;
    /// The driver's session, in which the user's program began a transaction.
    type Connection = ClientSession;

    async fn begin(&self, publisher: &Publisher) -> Result<Tx> {
        Mongodb::begin(self, publisher).await
    }

    async fn write_outgoing(&self, session: &mut ClientSession, outgoing: Outgoing) -> Result<Committed> {
        self.write_within(session, outgoing).await
    }
}
