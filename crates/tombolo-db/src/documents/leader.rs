//! The elected relay of a service on documents.
//!
//! takes: rows that are numbered already · writes: marks and removals · commits: removals in one short transaction
//! that is not synced · if we crash here: the rows are handed out again, with the same numbers · if it repeats: the
//! bus finds the same bytes under the same numbers.
//!
//! Invariant: a row is handed out by each leader once, in the order of its position, which is the order of commits.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::operator::Outcome;
use tombolo_event::{EventId, Generations, Incarnation, barrier};
use uuid::Uuid;

use super::outbox::{leader, millis};
use super::rows::{
    self, LATER, LEADER, LeaderRow, NUMBER, ONE, OUTBOX, PARTITION, PartitionRow, SERVICE, ServiceRow, now_ms,
};
use super::store::Synced;
use super::{Documents, generations, later, requests};
use crate::mutant::{Mutant, Mutation};
use crate::port::due_time;
use crate::{Leader, Mark, OutboxRow, Result, RoundLimit, fencing};

/// What somebody who leads begins with.
pub(super) struct Won {
    pub(super) epoch: u64,
    pub(super) generations: Generations,
    pub(super) marks: Vec<Mark>,
}

/// The elected relay.
pub(super) struct DocumentsLeader {
    database: Documents,
    led: Led,
    generations: Generations,
    holder: Uuid,
    lease: Duration,
    marks: Vec<Mark>,
    removed: Vec<Mark>,
    /// The position of the last row that was handed out.
    taken: u64,
    next_due: Option<Timestamp>,
}

/// The epoch under which somebody leads.
#[derive(Clone, Copy)]
struct Led {
    epoch: u64,
    mutation: Mutation,
}

impl Led {
    fn compare(self, found: &LeaderRow) -> Result<()> {
        if found.led() == self.epoch || self.mutation.is(Mutant::NoFencing) {
            return Ok(());
        }
        Err(fencing::replaced(self.epoch, found.led()))
    }

    fn check(self, transaction: &WriteTransaction) -> Result<()> {
        self.compare(&leader(&transaction.open_table(ONE)?)?)
    }
}

impl DocumentsLeader {
    pub(super) fn new(database: &Documents, holder: Uuid, lease: Duration, won: Won) -> Self {
        Self {
            database: database.clone(),
            led: Led { epoch: won.epoch, mutation: database.mutation },
            generations: won.generations,
            holder,
            lease,
            removed: won.marks.clone(),
            marks: won.marks,
            taken: 0,
            next_due: None,
        }
    }

    /// The marks of `done` that lie above what was removed before.
    fn news(&self, done: &[Mark]) -> Vec<Mark> {
        let is_news = |mark: &&Mark| {
            let known = self.removed.iter().find(|known| known.partition == mark.partition);
            mark.sequence > known.map_or(0, |known| known.sequence)
        };
        done.iter().filter(is_news).copied().collect()
    }

    async fn remove(&mut self, done: &[Mark]) -> Result<()> {
        let news = self.news(done);
        if news.is_empty() {
            return Ok(());
        }
        let led = self.led;
        let work = move |transaction: &WriteTransaction| {
            led.check(transaction)?;
            remove(transaction, &news)?;
            Ok(news)
        };
        for mark in self.database.store.write(Synced::Later, work).await? {
            self.removed.retain(|known| known.partition != mark.partition);
            self.removed.push(mark);
        }
        barrier::reach("relay.after-remove");
        Ok(())
    }

    /// The next rows, under the epoch at the moment when they are read.
    async fn next(&mut self, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let (led, taken) = (self.led, self.taken);
        let next = self.database.store.read(move |snapshot| next(snapshot, led, taken, limit)).await?;
        self.taken = next.taken;
        self.next_due = next.due;
        Ok(next.rows)
    }

    /// Changes the row of the relay, if this one leads still.
    async fn update(&self, change: impl FnOnce(&mut LeaderRow) + Send + 'static) -> Result<()> {
        let led = self.led;
        let work = move |transaction: &WriteTransaction| {
            let mut one = transaction.open_table(ONE)?;
            let mut row = leader(&one)?;
            led.compare(&row)?;
            change(&mut row);
            rows::put(&mut one, LEADER, &row)
        };
        self.database.store.write(Synced::Later, work).await
    }
}

#[async_trait]
impl Leader for DocumentsLeader {
    fn epoch(&self) -> u64 {
        self.led.epoch
    }

    fn marks(&self) -> &[Mark] {
        &self.marks
    }

    async fn pin(&mut self, found: Incarnation) -> Result<()> {
        let led = self.led;
        let work = move |transaction: &WriteTransaction| {
            led.check(transaction)?;
            let mut one = transaction.open_table(ONE)?;
            let row = generations::service(&one)?;
            match row.incarnation {
                Some(known) => fencing::compare_incarnation(&row.service, known, found),
                None => rows::put(&mut one, SERVICE, &ServiceRow { incarnation: Some(found), ..row }),
            }
        };
        self.database.store.write(Synced::Now, work).await
    }

    fn generations(&self) -> &Generations {
        &self.generations
    }

    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()> {
        let (led, next) = (self.led, generations.clone());
        let asked = asked.map(|(request, outcome)| (request, outcome.clone()));
        let mut writing = self.database.store.begin(Synced::Now).await?;
        let work = move |transaction: &WriteTransaction| {
            led.check(transaction)?;
            generations::divide(transaction, &next)?;
            match asked {
                Some((request, outcome)) => requests::finish(transaction, request, &outcome),
                None => Ok(()),
            }
        };
        writing.run(work).await?;
        barrier::reach("divide.before-commit");
        writing.commit().await?;
        barrier::reach("divide.after-commit");
        self.generations = generations.clone();
        Ok(())
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        self.remove(done).await?;
        let rows = self.next(limit).await?;
        if !rows.is_empty() {
            barrier::reach("relay.after-numbering");
        }
        Ok(rows)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let (led, store) = (self.led, &self.database.store);
        let apart = led.mutation.is(Mutant::LaterRemovedApart);
        let mut writing = store.begin(Synced::Now).await?;
        let work = move |transaction: &WriteTransaction| {
            led.check(transaction)?;
            let due = later::due(transaction, now, limit)?;
            later::publish(transaction, &due)?;
            let ids: Vec<EventId> = due.iter().map(|row| row.id).collect();
            if !apart {
                later::remove(transaction, &ids)?;
            }
            Ok(ids)
        };
        let ids = writing.run(work).await?;
        barrier::reach("later.before-move");
        writing.commit().await?;
        barrier::reach("later.after-move");
        let moved = ids.len();
        if apart {
            store.write(Synced::Now, move |transaction| later::remove(transaction, &ids)).await?;
        }
        self.next_due = self.next_due.filter(|_| moved == 0);
        Ok(moved)
    }

    async fn renew(&mut self) -> Result<()> {
        let lease = self.lease;
        self.update(move |row| row.until_ms = now_ms() + millis(lease)).await
    }

    async fn resign(mut self: Box<Self>, done: &[Mark]) -> Result<()> {
        self.remove(done).await?;
        tracing::debug!(epoch = self.led.epoch, holder = %self.holder, "the relay resigns");
        let resign = |row: &mut LeaderRow| {
            row.holder = None;
            row.until_ms = 0;
        };
        self.update(resign).await
    }
}

/// Moves the marks and removes the rows below them.
fn remove(transaction: &WriteTransaction, news: &[Mark]) -> Result<()> {
    let mut partitions = transaction.open_table(PARTITION)?;
    let (mut outbox, mut numbers) = (transaction.open_table(OUTBOX)?, transaction.open_table(NUMBER)?);
    for mark in news {
        let row: Option<PartitionRow> = rows::get(&partitions, mark.partition)?;
        let mut row =
            row.filter(|row| row.numbered >= mark.sequence).ok_or_else(|| fencing::beyond_numbers(news))?;
        let below = (mark.partition, 0)..=(mark.partition, mark.sequence);
        for gone in numbers.extract_from_if(below, |_, _| true)? {
            let bytes = outbox.remove(gone?.1.value())?.map_or(0, |event| event.value().5.len() as u64);
            row.waiting_bytes = row.waiting_bytes.saturating_sub(bytes);
        }
        row.removed_sequence = mark.sequence;
        row.removed_id = mark.id.map(|id| id.0);
        rows::put(&mut partitions, mark.partition, &row)?;
    }
    Ok(())
}

/// What comes after the rows that were handed out.
struct Next {
    rows: Vec<OutboxRow>,
    taken: u64,
    due: Option<Timestamp>,
}

fn next(snapshot: &ReadTransaction, led: Led, taken: u64, limit: RoundLimit) -> Result<Next> {
    led.compare(&leader(&snapshot.open_table(ONE)?)?)?;
    let due = snapshot.open_table(LATER)?.first()?.map(|(place, _)| due_time(place.value().0));
    let outbox = snapshot.open_table(OUTBOX)?;
    let mut next = Next { rows: Vec::new(), taken, due };
    let mut bytes = 0;
    for found in ReadableTable::range(&outbox, taken + 1..)?.take(limit.rows.max(1)) {
        let (position, event) = found?;
        let (partition, sequence, id, event_type, _, stored) = event.value();
        bytes += stored.len();
        if !next.rows.is_empty() && bytes > limit.bytes {
            break;
        }
        let (id, event_type) = (EventId(Uuid::from_u128(id)), event_type.to_owned());
        next.rows.push(OutboxRow { partition, sequence, id, event_type, bytes: stored.to_vec().into() });
        next.taken = position.value();
    }
    Ok(next)
}
