//! The transaction of a service's MySQL or MariaDB database.
//!
//! takes: the user's statements and events · writes: outbox rows with positions, the cursor · commits: all of it, synced, in
//! [`Tx::commit`] · if we crash here: nothing happened, or all of it if the server had the commit · if it repeats: a new
//! transaction.
//!
//! Invariant: state, events and cursor commit together or not at all. These servers keep a transaction alive from which a
//! failed statement is missing, and go on without one after a deadlock; so the commit first proves that the transaction is
//! the one that began and whole, and everything after that is ours, whose errors undo it.

use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlStr};
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Generations, Position, barrier};
use uuid::Uuid;

use super::session::{self, Found, Session};
use super::{Mysql, generations, signed};
use crate::mutant::Mutant;
use crate::outgoing::{Row as Outbound, Taken};
use crate::port::STRIPES;
use crate::{Claim, Committed, EffectCall, Error, Kind, Outgoing, ParkedEvent, Result, Transaction, fencing};

/// The sizes of one insert, so that only these few statements are ever prepared.
const INSERT_ROWS: [usize; 4] = [512, 64, 8, 1];
/// The most bytes of events of one insert; one larger event is an insert of its own. With the largest event and what goes
/// with it, below the smallest packet that `settings.rs` accepts.
const INSERT_BYTES_MAX: usize = 2 << 20;

/// A transaction: dereferences to sqlx's connection for the user's own statements. Dropped, it is rolled back.
///
/// A statement in it that fails makes the commit impossible, even if its error is not passed on; so does one that commits by
/// itself. For a statement that may fail, nest a transaction with `tx.begin()`, and roll that back.
/// Only tables of InnoDB take part in it.
pub struct Tx {
    session: Session,
    database: Mysql,
    outgoing: Outgoing,
}

impl Tx {
    pub(super) fn new(session: Session, database: Mysql, outgoing: Outgoing) -> Self {
        Self { session, database, outgoing }
    }

    /// Publishes `event` when the transaction commits.
    ///
    /// # Errors
    /// `Refused` or `Full`; either makes a commit impossible.
    pub fn publish<E: Event>(&mut self, event: &E) -> Result<EventId> {
        self.outgoing.publish(event)
    }

    /// A statement with the tables of the view's build in the places of their names in braces: in a handler of a view,
    /// `sqlx::query(tx.sql("INSERT INTO {orders} …")?)`. A brace that is meant as such is written twice: `{{`.
    ///
    /// # Errors
    /// `View` for a name that the view's tables do not have, or outside a handler of a view.
    pub fn sql(&self, text: &'static str) -> Result<SqlStr> {
        self.outgoing.sql(text)
    }

    /// Publishes `event` when `due` has come by the service's clock, whatever is restarted until then; at once if that is
    /// past. Its id is given now, and its time is `due`.
    ///
    /// # Errors
    /// As [`Tx::publish`].
    pub fn publish_at<E: Event>(&mut self, event: &E, due: Timestamp) -> Result<EventId> {
        self.outgoing.publish_at(event, due)
    }

    /// Takes back an event that is kept for later. `false` if it is not there: it became due before, or never was.
    ///
    /// # Errors
    /// `Refused` in a view, which makes a commit impossible; `Unavailable`, `Database`.
    pub async fn withdraw(&mut self, id: EventId) -> Result<bool> {
        Ok(self.outgoing.withdraw(id)? || self.database.withdraw(&mut self.session, id).await?)
    }

    /// Commits state and events together, and wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if anything makes a commit impossible, `Unavailable` (the outcome is unknown if the connection broke
    /// in the commit itself), `Database`.
    pub async fn commit(mut self) -> Result<Committed> {
        let (taken, generations) = match self.write().await {
            Ok(written) => written,
            Err(error) => {
                // Dropped without an answer it would be rolled back all the same.
                self.rollback().await.ok();
                return Err(error);
            }
        };
        let Some(generations) = generations else {
            self.session.commit().await.map_err(name_unknown)?;
            return Ok(Committed::default());
        };
        barrier::reach("outbox.before-commit");
        self.session.commit().await.map_err(name_unknown)?;
        barrier::reach("outbox.after-commit");
        let committed = committed(&self.outgoing, &taken.rows, &generations);
        self.outgoing.committed(&committed.positions);
        Ok(committed)
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// `Unavailable`, `Database`; everything is undone all the same.
    pub async fn rollback(self) -> Result<()> {
        Ok(self.session.rollback().await?)
    }

    /// Proves that the transaction is alive and whole, and writes what is to be published. Tells how the topic is divided, which
    /// may be older than the locks; nothing if nothing is published.
    async fn write(&mut self) -> Result<(Taken, Option<Generations>)> {
        let taken = self.outgoing.take()?;
        let database = &self.database;
        let stripes = database.stripes(&taken);
        let lock = (!stripes.is_empty()).then(|| format!("; {}", database.locking(&stripes)));
        let then = || format!("{}{}", database.asking_generations(), lock.unwrap_or_default());
        let then = (!taken.is_empty()).then(then);
        let (found, rows) = self.session.verify(then.as_deref()).await?;
        let is_verified = !database.mutation.is(Mutant::CommitUnverified);
        match found {
            Found::Gone => return Err(lost()),
            Found::Torn if is_verified => return Err(torn()),
            Found::Torn | Found::Whole => {}
        }
        if taken.is_empty() {
            return Ok((taken, None));
        }
        let (service, locked) = rows.split_first().ok_or_else(fencing::nobodys)?;
        all_locked(&stripes, locked.len())?;
        let generations = generations::of(service, 0)?;
        database.insert(&mut self.session, &taken.rows, &generations).await?;
        database.keep(&mut self.session, &taken.later).await?;
        Ok((taken, Some(generations)))
    }
}

impl Mysql {
    /// The stripes of what is to be published.
    fn stripes(&self, taken: &Taken) -> Vec<u32> {
        if self.mutation.is(Mutant::NoKeyLock) { Vec::new() } else { taken.stripes(STRIPES) }
    }

    /// The query that locks stripes, which are sorted: by the primary key, so in its order.
    fn locking(&self, stripes: &[u32]) -> String {
        let stripes: Vec<String> = stripes.iter().map(u32::to_string).collect();
        format!(
            "SELECT stripe FROM {}stripe FORCE INDEX (PRIMARY) WHERE stripe IN ({}) ORDER BY stripe FOR UPDATE",
            self.prefix,
            stripes.join(", ")
        )
    }

    /// Locks stripes, which are sorted, until the commit.
    pub(super) async fn lock_stripes(&self, connection: &mut MySqlConnection, stripes: &[u32]) -> Result<()> {
        if stripes.is_empty() || self.mutation.is(Mutant::NoKeyLock) {
            return Ok(());
        }
        let locked = sqlx::raw_sql(AssertSqlSafe(self.locking(stripes))).fetch_all(connection).await?;
        all_locked(stripes, locked.len())
    }

    /// Writes `rows` to the outbox, but for consequences that are on the bus already. Under the locks of their keys.
    pub(super) async fn insert(
        &self,
        connection: &mut MySqlConnection,
        rows: &[Outbound],
        generations: &Generations,
    ) -> Result<()> {
        let known = self.on_bus_already(connection, &Outgoing::consequences(rows)).await?;
        let new: Vec<&Outbound> = rows.iter().filter(|row| !known.contains(&row.id.0)).collect();
        for some in chunks(&new) {
            let values = vec!["(?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))"; some.len()].join(", ");
            let sql = format!(
                "INSERT INTO {}outbox (`partition`, id, key_hash, event_type, bytes, size, written) VALUES {values}",
                self.prefix
            );
            let mut insert = sqlx::query(AssertSqlSafe(sql));
            for row in some {
                insert = insert.bind(signed(generations.partition(row.key_hash))).bind(row.id.0);
                insert = insert.bind(row.key_hash.0.cast_signed());
                insert = insert.bind(&row.event_type).bind(&row.bytes[..]).bind(row.bytes.len() as i64);
            }
            insert.execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Writes what `outgoing` buffered within a transaction of the user's own. If that fails, the transaction keeps nothing,
    /// whatever its owner does with the error.
    pub(super) async fn write_within(
        &self,
        connection: &mut MySqlConnection,
        mut outgoing: Outgoing,
    ) -> Result<Committed> {
        if !session::is_open(&mut *connection).await? {
            outgoing.take()?;
            return Err(no_transaction());
        }
        match self.write_taken(&mut *connection, outgoing.take()).await {
            Ok((rows, generations)) => Ok(committed(&outgoing, &rows, &generations)),
            Err(error) => {
                session::spoil(connection).await?;
                Err(error)
            }
        }
    }

    async fn write_taken(
        &self,
        connection: &mut MySqlConnection,
        taken: Result<Taken>,
    ) -> Result<(Vec<Outbound>, Generations)> {
        let taken = taken?;
        self.lock_stripes(connection, &self.stripes(&taken)).await?;
        let generations = self.generations(connection).await?;
        self.insert(connection, &taken.rows, &generations).await?;
        self.keep(connection, &taken.later).await?;
        Ok((taken.rows, generations))
    }
}

/// Cuts `rows` into inserts of the sizes that are prepared.
pub(super) fn chunks<'a, 'r>(mut rows: &'a [&'r Outbound]) -> Vec<&'a [&'r Outbound]> {
    let mut cut = Vec::new();
    while !rows.is_empty() {
        let fits = |size: &usize| {
            let bytes = |some: &[&Outbound]| some.iter().map(|row| row.bytes.len()).sum::<usize>();
            rows.get(..*size).is_some_and(|some| bytes(some) <= INSERT_BYTES_MAX)
        };
        let (some, rest) = rows.split_at(INSERT_ROWS.into_iter().find(fits).unwrap_or(1));
        cut.push(some);
        rows = rest;
    }
    cut
}

/// A stripe without a row would be a lock that nobody holds.
fn all_locked(stripes: &[u32], locked: usize) -> Result<()> {
    if stripes.len() == locked {
        return Ok(());
    }
    Err(Error::new(
        Kind::Schema,
        format!(
            "found {locked} of the {} rows that lock the keys of this transaction; Tombolo's table of stripes is damaged: run `tombolo schema apply`",
            stripes.len()
        ),
    ))
}

fn committed(outgoing: &Outgoing, rows: &[Outbound], generations: &Generations) -> Committed {
    let position = |row: &Outbound| Position {
        topic: outgoing.publisher().service.clone(),
        partition: generations.partition(row.key_hash),
        key_hash: row.key_hash,
        id: row.id,
        sequence: None,
    };
    Committed { positions: rows.iter().map(position).collect() }
}

fn no_transaction() -> Error {
    Error::new(
        Kind::Poisoned,
        "events were to be published on a connection without a transaction, so that state and events could part; begin one (`pool.begin()`), publish in it, and commit it",
    )
}

fn lost() -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction had ended before its commit: by the server after a deadlock, by a statement COMMIT or ROLLBACK, or by one that commits by itself, such as CREATE TABLE; no event was kept, nor what came after that: only commit through the transaction itself, and make tables outside of it",
    )
}

fn torn() -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction was rolled back, because a statement in it failed earlier, and the server would have committed the others without it; nest a transaction (`tx.begin()`) around a statement that may fail",
    )
}

/// When the connection breaks in the commit itself, nobody can tell what became of it.
fn name_unknown(error: sqlx::Error) -> Error {
    if !matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) {
        return error.into();
    }
    Error::new(
        Kind::Unavailable,
        format!("the connection to the MySQL server broke in the commit ({error}); whether state and events were kept, both or neither, is only known by looking"),
    )
    .because(error)
}

impl Deref for Tx {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.session
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        self.outgoing.mark_used();
        &mut self.session
    }
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").field("outgoing", &self.outgoing).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transaction for Tx {
    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    fn is_used(&self) -> bool {
        self.outgoing.is_used()
    }

    async fn advance(&mut self, claim: &Claim, to: &Cursor) -> Result<()> {
        self.outgoing.mark_used();
        let moved = self.database.advance(&mut self.session, claim, to).await;
        self.outgoing.poison_on(moved)
    }

    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()> {
        let parked = self.database.park(&mut self.session, events).await;
        self.outgoing.poison_on(parked)
    }

    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let gone = self.database.unpark(&mut self.session, claim, sequence).await;
        self.outgoing.poison_on(gone)
    }

    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64> {
        self.outgoing.mark_used();
        let gone = self.database.unpark_after(&mut self.session, claim, sequence).await;
        self.outgoing.poison_on(gone)
    }

    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()> {
        self.outgoing.mark_used();
        let paused = self.database.pause(&mut self.session, claim, by).await;
        self.outgoing.poison_on(paused)
    }

    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()> {
        self.outgoing.mark_used();
        let finished = self.database.finish_request(&mut self.session, request, outcome).await;
        self.outgoing.poison_on(finished)
    }

    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()> {
        self.outgoing.mark_used();
        let completed = self.database.complete(&mut self.session, claim, call).await;
        self.outgoing.poison_on(completed)
    }

    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let forgotten = self.database.forget_after(&mut self.session, claim, sequence).await;
        self.outgoing.poison_on(forgotten)
    }

    async fn withdraw(&mut self, id: EventId) -> Result<bool> {
        Tx::withdraw(self, id).await
    }

    async fn commit(self) -> Result<Committed> {
        Tx::commit(self).await
    }

    async fn rollback(self) -> Result<()> {
        Tx::rollback(self).await
    }
}
