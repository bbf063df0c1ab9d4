//! The transaction of a service's PostgreSQL database.
//!
//! takes: the user's statements and events · writes: outbox rows with positions, the cursor · commits: all of it,
//! synced if it publishes, in [`Tx::commit`] · if we crash here: nothing happened, or all of it if the server had
//! the commit · if it repeats: a new transaction.
//!
//! Invariant: state, events and cursor commit together or not at all. The server answers the COMMIT of an aborted
//! transaction with ROLLBACK and no error, so the statement before it proves that the transaction is alive.

use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::postgres::PgConnection;
use sqlx::{Row, SqlStr};
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Generations, Position, barrier};
use uuid::Uuid;

use super::{Postgres, generations, signed};
use crate::mutant::Mutant;
use crate::outgoing::{Row as Outbound, Taken};
use crate::port::STRIPES;
use crate::{Claim, Committed, EffectCall, Error, Kind, Outgoing, ParkedEvent, Result, Transaction, fencing};

/// The most rows of one insert.
const INSERT_ROWS_MAX: usize = 1_000;
/// The most bytes of events of one insert; one larger event is an insert of its own.
const INSERT_BYTES_MAX: usize = 16 << 20;

/// The setting by which a transaction is known again.
const MARK: &str = "tombolo.transaction";

/// A transaction: dereferences to sqlx's connection for the user's own statements. Dropped, it is rolled back.
pub struct Tx {
    inner: sqlx::Transaction<'static, sqlx::Postgres>,
    database: Postgres,
    outgoing: Outgoing,
}

impl Tx {
    pub(super) fn new(
        inner: sqlx::Transaction<'static, sqlx::Postgres>,
        database: Postgres,
        outgoing: Outgoing,
    ) -> Self {
        Self { inner, database, outgoing }
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
        Ok(self.outgoing.withdraw(id)? || self.database.withdraw(&mut self.inner, id).await?)
    }

    /// Commits state and events together, and wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if anything makes a commit impossible, `Unavailable` (the outcome is unknown if the connection broke
    /// in the commit itself), `Database`.
    pub async fn commit(mut self) -> Result<Committed> {
        let taken = match self.outgoing.take() {
            Ok(taken) => taken,
            Err(error) => {
                // Dropped without an answer it would be rolled back all the same.
                self.rollback().await.ok();
                return Err(error);
            }
        };
        if taken.is_empty() {
            self.check_alive().await.map_err(name_aborted)?;
            self.inner.commit().await.map_err(name_unknown)?;
            return Ok(Committed::default());
        }
        let Some(generations) = self.database.write(&mut self.inner, &taken).await? else {
            return Err(lost());
        };
        barrier::reach("outbox.before-commit");
        self.inner.commit().await.map_err(name_unknown)?;
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
        Ok(self.inner.rollback().await?)
    }

    /// Proves that this is still the transaction that was begun, and that the server did not abort it.
    async fn check_alive(&mut self) -> Result<()> {
        let mark = sqlx::query("SELECT current_setting('tombolo.transaction', true)");
        let mark: Option<String> = mark.fetch_one(&mut *self.inner).await?.try_get(0)?;
        if mark.as_deref() == Some("open") { Ok(()) } else { Err(lost()) }
    }
}

impl Postgres {
    /// Writes what is to be published, under the locks of its stripes; returns how the topic is divided, or nothing if the
    /// marked transaction is not open.
    async fn write(&self, connection: &mut PgConnection, taken: &Taken) -> Result<Option<Generations>> {
        let open = self.lock_stripes(connection, taken.stripes(STRIPES)).await.map_err(name_aborted)?;
        if let Some(generations) = &open {
            self.insert(connection, &taken.rows, generations).await?;
            self.keep(connection, &taken.later).await?;
        }
        Ok(open)
    }

    /// Locks stripes, which are sorted, until the commit, and makes the commit a synced one, in one statement that proves
    /// the same as `check_alive`: returns nothing if the marked transaction is not open; else how the topic is divided,
    /// which may be older than the locks.
    pub(super) async fn lock_stripes(
        &self,
        connection: &mut PgConnection,
        stripes: Vec<u32>,
    ) -> Result<Option<Generations>> {
        let is_locked = !self.mutation.is(Mutant::NoKeyLock);
        let stripes: Vec<i32> = stripes.into_iter().filter(|_| is_locked).map(signed).collect();
        let locked = sqlx::query(self.sql(
            "SELECT current_setting($3, true),
                    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
                    (SELECT count(pg_advisory_xact_lock($1, stripe)) FROM unnest($2::integer[]) AS stripe),
                    generations, partitions
             FROM tombolo.service",
        ));
        let locked = locked.bind(self.lock_class).bind(stripes).bind(MARK);
        let locked = locked.fetch_optional(connection).await?;
        let locked = locked.ok_or_else(fencing::nobodys)?;
        let mark: Option<String> = locked.try_get(0)?;
        if mark.as_deref() == Some("open") { Ok(Some(generations::of(&locked, 3)?)) } else { Ok(None) }
    }

    /// Writes `rows` to the outbox, but for consequences that are on the bus already. Under the locks of their keys.
    pub(super) async fn insert(
        &self,
        connection: &mut PgConnection,
        rows: &[Outbound],
        generations: &Generations,
    ) -> Result<()> {
        let known = self.on_bus_already(connection, &Outgoing::consequences(rows)).await?;
        let new: Vec<&Outbound> = rows.iter().filter(|row| !known.contains(&row.id.0)).collect();
        for some in chunks(&new) {
            let partitions: Vec<i32> =
                some.iter().map(|row| signed(generations.partition(row.key_hash))).collect();
            let ids: Vec<_> = some.iter().map(|row| row.id.0).collect();
            let types: Vec<&str> = some.iter().map(|row| row.event_type.as_str()).collect();
            let bytes: Vec<&[u8]> = some.iter().map(|row| &row.bytes[..]).collect();
            sqlx::query(self.sql(
                "INSERT INTO tombolo.outbox (position, partition, id, event_type, bytes, size)
                 SELECT nextval('tombolo.position'), partition, id, event_type, bytes, octet_length(bytes)
                 FROM (SELECT * FROM unnest($1::integer[], $2::uuid[], $3::text[], $4::bytea[])
                       WITH ORDINALITY AS e (partition, id, event_type, bytes, nth) ORDER BY nth) AS e",
            ))
            .bind(partitions)
            .bind(ids)
            .bind(types)
            .bind(bytes)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// Writes what `outgoing` buffered within a transaction of the user's own. Its mark is only there in the next statement if
    /// a transaction is open.
    pub(super) async fn write_within(
        &self,
        connection: &mut PgConnection,
        mut outgoing: Outgoing,
    ) -> Result<Committed> {
        let taken = outgoing.take()?;
        let mark = sqlx::query("SELECT set_config('tombolo.transaction', 'open', true)");
        mark.execute(&mut *connection).await.map_err(|error| name_aborted(error.into()))?;
        match self.write(connection, &taken).await? {
            Some(generations) => Ok(committed(&outgoing, &taken.rows, &generations)),
            None => Err(no_transaction()),
        }
    }
}

/// Cuts `rows` where an insert would be too large.
pub(super) fn chunks<'a, 'r>(rows: &'a [&'r Outbound]) -> Vec<&'a [&'r Outbound]> {
    if rows.is_empty() {
        return Vec::new();
    }
    let (mut cut, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, row) in rows.iter().enumerate() {
        let is_full = at - from == INSERT_ROWS_MAX || bytes + row.bytes.len() > INSERT_BYTES_MAX;
        if at > from && is_full {
            cut.push(&rows[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += row.bytes.len();
    }
    cut.push(&rows[from..]);
    cut
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

pub(super) fn lost() -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction had ended before its commit, by a statement COMMIT or ROLLBACK; no event was kept: only commit through the transaction itself",
    )
}

/// in_failed_sql_transaction: a statement failed earlier.
const ABORTED: &str = "25P02";

fn name_aborted(error: Error) -> Error {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<sqlx::Error>());
    let code = source.and_then(|source| source.as_database_error()).and_then(|found| found.code());
    if code.as_deref() != Some(ABORTED) {
        return error;
    }
    Error::new(
        Kind::Poisoned,
        "the transaction was rolled back, because a statement in it failed earlier; use a savepoint around a statement that may fail",
    )
    .because(error)
}

/// When the connection breaks in the commit itself, nobody can tell what became of it.
fn name_unknown(error: sqlx::Error) -> Error {
    if !matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) {
        return error.into();
    }
    Error::new(
        Kind::Unavailable,
        format!("the connection to PostgreSQL broke in the commit ({error}); whether state and events were kept, both or neither, is only known by looking"),
    )
    .because(error)
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.outgoing.mark_used();
        &mut self.inner
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
        let moved = self.database.advance(&mut self.inner, claim, to).await;
        self.outgoing.poison_on(moved)
    }

    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()> {
        let parked = self.database.park(&mut self.inner, events).await;
        self.outgoing.poison_on(parked)
    }

    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let gone = self.database.unpark(&mut self.inner, claim, sequence).await;
        self.outgoing.poison_on(gone)
    }

    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64> {
        self.outgoing.mark_used();
        let gone = self.database.unpark_after(&mut self.inner, claim, sequence).await;
        self.outgoing.poison_on(gone)
    }

    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()> {
        self.outgoing.mark_used();
        let paused = self.database.pause(&mut self.inner, claim, by).await;
        self.outgoing.poison_on(paused)
    }

    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()> {
        self.outgoing.mark_used();
        let finished = self.database.finish_request(&mut self.inner, request, outcome).await;
        self.outgoing.poison_on(finished)
    }

    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()> {
        self.outgoing.mark_used();
        let completed = self.database.complete(&mut self.inner, claim, call).await;
        self.outgoing.poison_on(completed)
    }

    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let forgotten = self.database.forget_after(&mut self.inner, claim, sequence).await;
        if let Err(error) = &forgotten {
            self.outgoing.poison(&error.to_string());
        }
        forgotten
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
