//! The port to a service's own database.
//!
//! ```text
//!  user's tables ─┐
//!  outbox rows   ─┤ one transaction (Transaction), one sync
//!  cursor        ─┘
//!
//!  outbox:  position   1    2    3    4    5            given under the lock of the key's stripe
//!           sequence   7    8    -    -    -            given durably before the row is first sent
//!           removed ───┘    └ numbered, in flight       then removed; the mark (6, its id) stays
//! ```
//!
//! What is published for later waits in a table of its own, without position and sequence, until the leader moves it
//! into the outbox, under the same locks as a commit. When that is, the service's own clock says, never the database's.
//!
//! Invariants, which the conformance suite checks case by case for every database:
//! - positions of one key are in commit order, and a row that commits late is not passed over: rows are taken by
//!   being there and removed once published;
//! - a row's (partition, sequence) is on disk before anybody sees it, and never changes;
//! - a cursor moves only from where the claim says, under the claim's lease, in the transaction of the effect.

pub mod parked;
pub mod leases;
pub mod requests;
pub mod foreign;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Generations, Incarnation, Position, ServiceName};
use uuid::Uuid;

pub use foreign::{ForeignParked, ForeignParts, HintStream};
pub use leases::{Claimed, Holder, Leases, Share, Standing};
pub use parked::{ParkedCount, ParkedEvent, ParkedFilter, ParkedHead, Parking, Tries};
pub use requests::Requests;

use crate::{EffectCall, Effects, Goal, Outgoing, Publisher, Result, Views};

pub mod recovery;

pub use recovery::Recovery;

/// The number of lock stripes that keys fall into.
pub const STRIPES: u32 = 256;
/// The number of partitions, rows and bytes that one round of the outbox holds at most, unless a limit says less.
pub const ROUND_ROWS_MAX: usize = 1_000;
/// The most bytes of one round.
pub const ROUND_BYTES_MAX: usize = 2 << 20;

/// How many of the rows numbered last in a partition [`Outbox::complete`] looks through.
pub const NUMBERED_LOOK_BACK: u64 = 1_000;

/// A service's own database. Cheap to clone; holds the user's pool.
#[async_trait]
pub trait Database: Outbox + Cursors + Leases + Effects + Parking + Requests + Views + Clone {
    /// The transaction, concrete for each database, in which the user's own statements run.
    type Tx: Transaction;
    /// What a transaction of the user's own runs on: sqlx's connection, or the store's own transaction.
    type Connection: Send;

    /// Begins a transaction, which may write.
    async fn begin(&self, publisher: &Publisher) -> Result<Self::Tx>;

    /// Writes the outbox rows of `outgoing` within a transaction of the user's own, which then commits or undoes them with
    /// its state. Takes the locks of the keys now, until that transaction ends; nobody wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if something in `outgoing` failed, or if no transaction is open on `connection`; `Unavailable`, `Database`.
    async fn write_outgoing(
        &self,
        connection: &mut Self::Connection,
        outgoing: Outgoing,
    ) -> Result<Committed>;
}

/// A transaction of the service's database. Dropped without a commit, it is rolled back.
#[async_trait]
pub trait Transaction: Send + Sized + 'static {
    /// What will be published when it commits.
    fn outgoing(&mut self) -> &mut Outgoing;

    /// Publishes `event` when the transaction commits: what each engine's own `Tx` does, for code that is of several engines.
    ///
    /// # Errors
    /// As [`Outgoing::publish`].
    fn publish<E: Event>(&mut self, event: &E) -> Result<EventId> {
        self.outgoing().publish(event)
    }

    /// Publishes `event` when `due` has come, as each engine's own `Tx` does.
    ///
    /// # Errors
    /// As [`Outgoing::publish_at`].
    fn publish_at<E: Event>(&mut self, event: &E, due: Timestamp) -> Result<EventId> {
        self.outgoing().publish_at(event, due)
    }

    /// Whether anything was done in it yet.
    fn is_used(&self) -> bool;

    /// Moves the claim's cursor to `to`, and forgets the attempts counted there.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch, `CursorMoved` if the cursor is elsewhere. Either poisons the transaction.
    async fn advance(&mut self, claim: &Claim, to: &Cursor) -> Result<()>;

    /// Stores that an effect's call is done, if the claim's cursor is where the claim says. Moves no cursor.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch, `CursorMoved` if the cursor is elsewhere or the call was done before.
    /// Either poisons the transaction.
    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()>;

    /// Forgets every call of the claim's partition after `sequence`, done or not, so that they are made again. The transaction
    /// also moves the cursor there, which is what guards it.
    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()>;

    /// Parks events of claimed partitions. The transaction also moves the cursor over them, which is what guards it.
    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()>;

    /// Takes out a parked event that was handled or is discarded.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch, `CursorMoved` if the event is not parked. Either poisons the transaction.
    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()>;

    /// Takes out every event of the claim's partition that is parked after `sequence`; returns how many. The transaction
    /// also moves the cursor there, which is what guards it.
    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64>;

    /// Marks the claim's partition as paused by somebody, or as not paused, over restarts.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch; poisons the transaction.
    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()>;

    /// Writes the outcome of a request together with its work.
    ///
    /// # Errors
    /// `Refused` if it has one already; poisons the transaction.
    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()>;

    /// Takes back an event that is kept for later; whether it was there, which it is not once it was moved to the outbox.
    ///
    /// # Errors
    /// `Refused` in a view, which poisons the transaction; `Unavailable`, `Database`.
    async fn withdraw(&mut self, id: EventId) -> Result<bool>;

    /// Locks the stripes of the keys in order, writes the outbox rows, commits, and verifies that it did.
    /// Wakes the relay.
    ///
    /// # Errors
    /// `Poisoned`, `Unavailable` (the outcome may be unknown if the connection broke in the commit itself), `Database`.
    async fn commit(self) -> Result<Committed>;

    /// Undoes everything.
    async fn rollback(self) -> Result<()>;
}

/// What a commit wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// The places of the events, in the order in which they were published; what is for later has none yet.
    pub positions: Vec<Position>,
}

/// How Tombolo's own tables come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// Made or brought up to date at the start.
    Apply,
    /// Only checked.
    Check,
}

/// Whose database it is.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The service.
    pub service: ServiceName,
    /// With how many partitions its topic begins. Once there is a topic, any number that one of its generations has is
    /// accepted, so that programs of before and after a division run together.
    pub partitions: u32,
}

/// The relay's half of the port.
#[async_trait]
pub trait Outbox: Recovery {
    /// The kind of the database: `sqlite`, `postgres`, ….
    fn kind(&self) -> &'static str;

    /// Makes or checks Tombolo's tables and settings, and that the database is `owner`'s.
    ///
    /// # Errors
    /// `Schema`, `Mismatch`, `Unsafe`, `Unavailable`: each with what to do.
    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()>;

    /// Becomes the leader with an epoch one higher than any before, if nobody else's lease holds and the database is not
    /// halted. Durable when it returns.
    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>>;

    /// What waits in the outbox.
    async fn depth(&self) -> Result<Depth>;

    /// Completes the sequences of `positions` that the relay has given by now, and the partitions of those that went to a
    /// later generation than they were meant for. A row that was removed meanwhile, or is
    /// not among the last [`NUMBERED_LOOK_BACK`] of its partition, is not found, and its position stays as it is.
    async fn complete(&self, positions: &mut [Position]) -> Result<()>;

    /// Makes or checks what other programs find in the database: the table in which they publish, the procedure with which
    /// they apply. Tombolo's own tables are there already.
    ///
    /// # Errors
    /// `Schema` for what is missing, or for a database that has no such thing; `Unavailable`, `Database`.
    async fn prepare_foreign(&self, parts: ForeignParts, _schema: Schema) -> Result<()> {
        if parts == ForeignParts::default() {
            return Ok(());
        }
        Err(crate::Error::new(
            crate::Kind::Schema,
            format!(
                "a database of the kind {:?} has nothing that other programs could use: it has no SQL; expected PostgreSQL, MySQL, MariaDB or SQLite",
                self.kind()
            ),
        ))
    }

    /// The position of the first row of other programs that the leader would take in; none if none waits, or there is no table
    /// for them.
    async fn foreign_waiting(&self) -> Result<Option<i64>> {
        Ok(None)
    }

    /// Hints that such rows may wait, where the database gives them.
    async fn foreign_hints(&self) -> Result<Option<HintStream>> {
        Ok(None)
    }

    /// The rows of other programs that are parked, by position, at most so many.
    async fn foreign_parked(&self, _most: usize) -> Result<Vec<ForeignParked>> {
        Ok(Vec::new())
    }
}

/// The elected relay of a service. What it has taken but not yet reported done is remembered in here; after any
/// refusal it is dropped, and whoever leads next starts from what is in the database.
#[async_trait]
pub trait Leader: Send + Sync {
    /// The epoch, under which the bus takes its appends.
    fn epoch(&self) -> u64;

    /// What was last removed from each partition when leadership began, ordered by partition.
    fn marks(&self) -> &[Mark];

    /// The incarnation of the topic that this database publishes to: `found` is remembered if there is none yet.
    ///
    /// # Errors
    /// `Mismatch` if another one is remembered: the topic was made again, or this is another bus.
    async fn pin(&mut self, found: Incarnation) -> Result<()>;

    /// How the topic is divided, as this database has it. The bus follows.
    fn generations(&self) -> &Generations;

    /// Begins the next generation of partitions: `generations` is what is there and one more. An event that has no number
    /// when this commits gets one in the new generation, whatever was told to whoever published it; no other number is
    /// given in an earlier one any more. The request `asked` gets its outcome in the same transaction.
    ///
    /// # Errors
    /// `Refused` if that is not the next generation, or the request has its outcome already; `Fenced` if somebody else leads.
    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()>;

    /// Removes the rows up to `done` (which the bus acknowledged), remembers the marks, numbers the next rows where the
    /// publishing transaction did not, and returns them: each partition's in sequence, none that was returned before.
    /// What it returns is on disk with its numbers.
    ///
    /// Before it numbers, it takes in what other programs wrote: in the order of its positions, in the same transaction, each row
    /// gone from where it was when it is in the outbox. What no bus will ever take is parked, and its key's later rows wait.
    ///
    /// # Errors
    /// `Fenced` if somebody else leads.
    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>>;

    /// When the next of the events that are kept for later is due, as the last round found it.
    fn next_due(&self) -> Option<Timestamp>;

    /// Moves events that are due at `now`, up to the limit, to the end of the outbox: in the order in which they are due,
    /// each gone from where it was kept in the transaction that inserts it, under the locks of a commit. Returns how many.
    ///
    /// What a transaction is about to withdraw stays until that has ended, and so does what is due later under its key.
    ///
    /// # Errors
    /// `Fenced` if somebody else leads.
    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize>;

    /// Lengthens the lease.
    ///
    /// # Errors
    /// `Fenced` if somebody else leads.
    async fn renew(&mut self) -> Result<()>;

    /// Gives the lease up, so that a successor need not wait for its end. Reports `done` first.
    async fn resign(self: Box<Self>, done: &[Mark]) -> Result<()>;
}

/// The most that one round returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of the events; one row is returned however large.
    pub bytes: usize,
}

impl Default for RoundLimit {
    fn default() -> Self {
        Self { rows: ROUND_ROWS_MAX, bytes: ROUND_BYTES_MAX }
    }
}

/// A row of the outbox with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its partition.
    pub partition: u32,
    /// Its sequence in the partition.
    pub sequence: u64,
    /// The event.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// The stored bytes.
    pub bytes: Bytes,
}

/// How far a partition is done: the last sequence and the id of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The partition.
    pub partition: u32,
    /// The last sequence; 0 before the first.
    pub sequence: u64,
    /// The id of the event there.
    pub id: Option<EventId>,
}

/// What waits in the outbox, and for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Rows.
    pub rows: u64,
    /// Bytes of the events.
    pub bytes: u64,
    /// When the oldest was written.
    pub oldest: Option<Timestamp>,
    /// Events that are kept for later.
    pub later_rows: u64,
    /// Their bytes.
    pub later_bytes: u64,
    /// When the next of them is due.
    pub next_due: Option<Timestamp>,
    /// Rows that other programs wrote and that no bus will take, without those that wait behind them.
    pub parked_rows: u64,
}

/// A due time as the databases keep it, in microseconds since 1970: rounded up, so that nothing is moved too early.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn due_us(due: Timestamp) -> i64 {
    i64::try_from(-(-due.as_nanosecond()).div_euclid(1_000)).unwrap_or(i64::MAX)
}

/// A due time out of what the databases keep.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn due_time(due_us: i64) -> Timestamp {
    Timestamp::from_microsecond(due_us).unwrap_or(Timestamp::MAX)
}

/// The subscriptions' half of the port.
#[async_trait]
pub trait Cursors: Send + Sync + 'static {
    /// Makes the cursors that a subscription does not have yet, and remembers the types that it handles. In a topic of which
    /// it has cursors already the others are of partitions that were made since: they begin before the first event, wherever
    /// `starts` says.
    /// Returns the types that it did not handle before, none for a new subscription. Unless `accept` is true those are
    /// not remembered and no cursor is made, so that the next opening finds them again.
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> Result<Vec<String>>;

    /// Records that try number `attempt` of an event after the claim's cursor is about to begin, and what the one before
    /// failed with, in a transaction of its own: so an event that kills the process is known by its attempts.
    ///
    /// # Errors
    /// `Fenced` if the lease has another epoch.
    async fn record_attempt(&self, claim: &Claim, event: EventId, attempt: u32, error: &str) -> Result<()>;

    /// Where a subscription stands in one partition; none if it has no cursor there.
    async fn cursor(&self, subscription: &str, topic: &ServiceName, partition: u32)
    -> Result<Option<Cursor>>;

    /// Which of these places the cursors of a subscription have not reached, or are to go back from because an operator asked
    /// for it: what has to be handled before what comes after them. One look at all of them.
    async fn not_reached(&self, subscription: &str, places: &[Goal]) -> Result<Vec<Goal>>;

    /// Where every subscription stands.
    async fn cursors(&self) -> Result<Vec<CursorState>>;
}

/// Where a new cursor begins.
#[derive(Debug, Clone)]
pub struct StartAt {
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The place.
    pub cursor: Cursor,
}

/// A partition that a subscription's worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The subscription.
    pub subscription: String,
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The epoch of the lease.
    pub lease_epoch: u64,
    /// Where the cursor is; the worker moves it along with each commit.
    pub cursor: Cursor,
    /// The attempts recorded at the event `attempted`, which comes after the cursor.
    pub attempts: u32,
    /// The event at which attempts are recorded.
    pub attempted: Option<EventId>,
    /// Whether the holder before did not release it: it died, or lost the lease.
    pub abandoned: bool,
    /// The most events that the holder's next transaction takes; written with each move of the cursor, so that a
    /// successor knows how much its predecessor may have had in hand.
    pub in_hand: u32,
    /// The operator who paused the partition.
    pub paused_by: Option<String>,
}

/// Where a subscription stands in one partition, for people.
#[derive(Debug, Clone)]
pub struct CursorState {
    /// The subscription.
    pub subscription: String,
    /// The topic.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The place.
    pub cursor: Cursor,
    /// Whether somebody holds its lease now.
    pub held: bool,
    /// The attempts recorded at the event after the cursor.
    pub attempts: u32,
    /// What the last of them failed with.
    pub error: Option<String>,
    /// When the cursor last moved.
    pub moved_at: Option<Timestamp>,
    /// The operator who paused the partition.
    pub paused_by: Option<String>,
}
