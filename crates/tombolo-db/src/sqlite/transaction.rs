//! The transaction of a service's SQLite database.
//!
//! takes: the user's statements and events · writes: outbox rows with their numbers, the cursor · commits: all of
//! it, synced, in [`Tx::commit`] · if we crash here: nothing happened · if it repeats: a new transaction.
//!
//! Invariant: state, events and cursor commit together or not at all, and numbers are in commit order, because
//! this transaction is the only writer from its first moment.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Row, SqlStr};
use tokio::sync::OwnedSemaphorePermit;
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Generations, Position, barrier};
use uuid::Uuid;

use super::{Gate, cursors, effects, generations, later, parked, recovery, requests};
use crate::mutant::Mutation;
use crate::outgoing::{Row as Outbound, Taken};
use crate::{
    Claim, Committed, EffectCall, Error, Kind, Outgoing, ParkedEvent, Publisher, Result, Transaction,
};

/// The sizes of one insert, so that only these few statements are ever prepared.
const INSERT_ROWS: [usize; 4] = [512, 64, 8, 1];

/// The most bytes of events of one insert; one larger event is an insert of its own.
const INSERT_BYTES_MAX: usize = 16 << 20;

/// A transaction: dereferences to sqlx's connection for the user's own statements. Dropped, it is rolled back.
pub struct Tx {
    inner: sqlx::Transaction<'static, sqlx::Sqlite>,
    /// Given back after `inner`, in the order of the fields.
    _turn: OwnedSemaphorePermit,
    gate: Gate,
    outgoing: Outgoing,
    mutation: Mutation,
}

impl Tx {
    pub(super) fn new(
        inner: sqlx::Transaction<'static, sqlx::Sqlite>,
        turn: OwnedSemaphorePermit,
        gate: Gate,
        outgoing: Outgoing,
        mutation: Mutation,
    ) -> Self {
        Self { inner, _turn: turn, gate, outgoing, mutation }
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
        Ok(self.outgoing.withdraw(id)? || later::withdraw(&mut self.inner, id).await?)
    }

    /// Commits state and events together, and wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if anything makes a commit impossible, `Unavailable`, `Database`.
    pub async fn commit(mut self) -> Result<Committed> {
        let taken = match self.take() {
            Ok(taken) => taken,
            Err(error) => {
                // Dropped without an answer it would be rolled back all the same.
                self.rollback().await.ok();
                return Err(error);
            }
        };
        let positions = write(&mut self.inner, self.outgoing.publisher(), &taken).await.map_err(name_lost)?;
        if !taken.is_empty() {
            barrier::reach("outbox.before-commit");
        }
        let open = self.gate.open();
        self.inner.commit().await.map_err(|error| name_lost(error.into()))?;
        if !open.is_passed() {
            return Err(lost());
        }
        drop(open);
        if !taken.is_empty() {
            barrier::reach("outbox.after-commit");
            self.outgoing.committed(&positions);
        }
        Ok(Committed { positions })
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// `Unavailable`, `Database`; everything is undone all the same.
    pub async fn rollback(self) -> Result<()> {
        Ok(self.inner.rollback().await?)
    }

    fn take(&mut self) -> Result<Taken> {
        if !self.inner.is_in_transaction() {
            return Err(lost());
        }
        self.outgoing.take()
    }
}

/// Writes what is to be published: rows of the outbox with their numbers, and what is for later.
async fn write(
    connection: &mut SqliteConnection,
    publisher: &Publisher,
    taken: &Taken,
) -> Result<Vec<Position>> {
    later::keep(connection, &taken.later).await?;
    if taken.rows.is_empty() {
        return Ok(Vec::new());
    }
    let generations = generations::read(connection).await?;
    let given = write_rows(connection, &taken.rows, &generations).await?;
    let position = |row: &Outbound| Position {
        topic: publisher.service.clone(),
        partition: generations.partition(row.key_hash),
        key_hash: row.key_hash,
        id: row.id,
        sequence: given.get(&row.id.0).and_then(|sequence| u64::try_from(*sequence).ok()),
    };
    Ok(taken.rows.iter().map(position).collect())
}

/// Writes what `outgoing` buffered within a transaction of the user's own.
pub(super) async fn write_outgoing(
    connection: &mut SqliteConnection,
    mut outgoing: Outgoing,
) -> Result<Committed> {
    let taken = outgoing.take()?;
    if !connection.is_in_transaction() {
        return Err(Error::new(
            Kind::Poisoned,
            "events were to be published on a connection without a transaction, so that state and events could part; begin one (`pool.begin_with(\"BEGIN IMMEDIATE\")`), publish in it, and commit it",
        ));
    }
    Ok(Committed { positions: write(connection, outgoing.publisher(), &taken).await? })
}

/// A row with the number that it gets.
struct Numbered<'r> {
    row: &'r Outbound,
    partition: u32,
    sequence: i64,
}

/// Writes rows to the outbox with the next numbers of their partitions, but for consequences that are on the bus already;
/// returns the numbers by event.
pub(super) async fn write_rows(
    connection: &mut SqliteConnection,
    rows: &[Outbound],
    generations: &Generations,
) -> Result<BTreeMap<Uuid, i64>> {
    let known = recovery::on_bus_already(connection, &Outgoing::consequences(rows)).await?;
    let new = rows.iter().filter(|row| !known.contains(&row.id.0));
    let mut new: Vec<Numbered<'_>> = new
        .map(|row| Numbered { row, partition: generations.partition(row.key_hash), sequence: 0 })
        .collect();
    if new.is_empty() {
        return Ok(BTreeMap::new());
    }
    number(connection, &mut new).await?;
    insert(connection, &new).await?;
    Ok(new.iter().map(|new| (new.row.id.0, new.sequence)).collect())
}

/// Takes the next numbers of each partition, in one statement for all of them, and gives them out in order.
async fn number(connection: &mut SqliteConnection, rows: &mut [Numbered<'_>]) -> Result<()> {
    let mut counts: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
    for Numbered { row, partition, .. } in &*rows {
        let (count, bytes) = counts.entry(*partition).or_default();
        *count += 1;
        *bytes += row.bytes.len() as i64;
    }
    let wanted: Vec<_> = counts.iter().map(|(partition, (count, bytes))| (partition, count, bytes)).collect();
    let wanted = crate::json_text(&wanted)?;
    let numbered = sqlx::query(
        "UPDATE tombolo_partition AS p
         SET numbered = p.numbered + (w.value ->> 1), waiting_bytes = p.waiting_bytes + (w.value ->> 2)
         FROM json_each(?) AS w WHERE p.partition = (w.value ->> 0)
         RETURNING partition, numbered",
    )
    .bind(wanted)
    .fetch_all(connection)
    .await?;
    let mut next = BTreeMap::new();
    for row in numbered {
        let (partition, last): (u32, i64) = (row.try_get(0)?, row.try_get(1)?);
        next.insert(partition, last - counts.get(&partition).map_or(0, |(count, _)| *count));
    }
    for Numbered { partition, sequence, .. } in rows {
        let last = next.get_mut(partition).ok_or_else(|| no_partition(*partition))?;
        *last += 1;
        *sequence = *last;
    }
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, rows: &[Numbered<'_>]) -> Result<()> {
    let mut done = 0;
    while done < rows.len() {
        let size = insert_rows(&rows[done..]);
        let values = vec!["(?, ?, ?, ?, ?)"; size].join(", ");
        let sql = format!(
            "INSERT INTO tombolo_outbox (partition, sequence, id, event_type, bytes) VALUES {values}"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for Numbered { row, partition, sequence } in &rows[done..done + size] {
            query = query.bind(*partition).bind(*sequence).bind(row.id.0);
            query = query.bind(row.event_type.as_str()).bind(&row.bytes[..]);
        }
        query.execute(&mut *connection).await?;
        done += size;
    }
    Ok(())
}

/// How many of `rows` the next insert takes.
fn insert_rows(rows: &[Numbered<'_>]) -> usize {
    let fits = |size: &usize| {
        let bytes = |some: &[Numbered<'_>]| some.iter().map(|new| new.row.bytes.len()).sum::<usize>();
        rows.get(..*size).is_some_and(|some| bytes(some) <= INSERT_BYTES_MAX)
    };
    INSERT_ROWS.into_iter().find(fits).unwrap_or(1)
}

fn no_partition(partition: u32) -> Error {
    Error::new(
        Kind::Schema,
        format!(
            "the database has no row for partition {partition}; it was not prepared for this service: start it with Schema::Apply"
        ),
    )
}

/// SQLite rolls a transaction back by itself when a disk is full or a statement says `ON CONFLICT ROLLBACK`.
fn lost() -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction had ended before its commit, by SQLite after an earlier error or by a statement COMMIT or ROLLBACK; nothing was kept",
    )
}

/// SQLITE_CONSTRAINT_COMMITHOOK: the gate was closed.
const COMMIT_REFUSED: &str = "531";

fn name_lost(error: Error) -> Error {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<sqlx::Error>());
    let Some(sqlx::Error::Database(found)) = source else { return error };
    let ended = found.code().as_deref() == Some(COMMIT_REFUSED)
        || found.message().contains("no transaction is active");
    if ended { lost().because(error) } else { error }
}

impl Deref for Tx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
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
        let moved = cursors::advance(&mut self.inner, claim, to, self.mutation).await;
        self.outgoing.poison_on(moved)
    }

    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()> {
        let parked = parked::park(&mut self.inner, events, self.mutation).await;
        self.outgoing.poison_on(parked)
    }

    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let gone = parked::unpark(&mut self.inner, claim, sequence, self.mutation).await;
        self.outgoing.poison_on(gone)
    }

    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64> {
        self.outgoing.mark_used();
        let gone = parked::unpark_after(&mut self.inner, claim, sequence).await;
        self.outgoing.poison_on(gone)
    }

    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()> {
        self.outgoing.mark_used();
        let paused = cursors::pause(&mut self.inner, claim, by, self.mutation).await;
        self.outgoing.poison_on(paused)
    }

    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()> {
        self.outgoing.mark_used();
        let finished = requests::finish(&mut self.inner, request, outcome).await;
        self.outgoing.poison_on(finished)
    }

    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()> {
        self.outgoing.mark_used();
        let completed = effects::complete(&mut self.inner, claim, call, self.mutation).await;
        self.outgoing.poison_on(completed)
    }

    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        self.outgoing.mark_used();
        let forgotten = effects::forget_after(&mut self.inner, claim, sequence).await;
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
