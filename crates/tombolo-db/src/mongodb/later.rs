//! What is published for later, in MongoDB.
//!
//! takes: events with a due time · writes: what is kept for later, then the outbox · commits: with the transaction that
//! publishes; moved in one that touches the leader's document · if we crash here: it is in one of the two, never in both or
//! none · if it repeats: what was moved is not there to be moved again.
//!
//! Who withdraws an event removes its document, so a move that removes it too is refused as a whole. Then each document is
//! tried alone, and what somebody holds stays where it is, with what is due later under its key.
//!
//! Invariant: what is moved takes its position from its key's stripe, in the order in which it is due.

use std::collections::BTreeSet;

use ::mongodb::ClientSession;
use ::mongodb::bson::{Document, doc};
use jiff::Timestamp;
use tombolo_event::{EventId, KeyHash, barrier};
use uuid::Uuid;

use super::failure::is_conflict;
use super::numbering::MongodbLeader;
use super::rows::{self, DELETE, LATER, LaterRow, UPDATE, binary, fields};
use super::session::Tries;
use super::transaction::Touched;
use super::{Mongodb, STRIPES, limit as bound};
use crate::due::{Found, movable};
use crate::mutant::Mutant;
use crate::outgoing::{Row, sorted_stripes};
use crate::port::due_us;
use crate::{Result, RoundLimit};

impl Mongodb {
    /// Keeps events until they are due. One that is kept already, under the same id, is the same.
    pub(super) async fn keep(
        &self,
        session: &mut ClientSession,
        later: &[Row],
        touched: &Touched,
    ) -> Result<()> {
        let keep = |(nth, row): (usize, &Row)| {
            let kept = LaterRow {
                id: row.id.0,
                due_us: row.due.map_or(i64::MAX, due_us),
                at: touched.at(row.key_hash),
                nth: nth as i64,
                key_hash: row.key_hash.0.cast_signed(),
                event_type: row.event_type.clone(),
                bytes: binary(&row.bytes),
                size: row.bytes.len() as i64,
            };
            Ok(
                doc! { "q": { "_id": rows::id(row.id.0) }, "u": { "$setOnInsert": fields(&kept)? }, "upsert": true },
            )
        };
        // One message for some rows, so that none is larger than the server takes.
        for some in later.iter().enumerate().collect::<Vec<_>>().chunks(8) {
            let each = some.iter().copied().map(keep).collect::<Result<Vec<Document>>>()?;
            self.run(Some(&mut *session), LATER, UPDATE, each).await?;
        }
        Ok(())
    }

    /// Takes one back; whether it was there.
    pub(super) async fn withdraw(&self, session: &mut ClientSession, id: EventId) -> Result<bool> {
        let rows = self.rows::<LaterRow>(LATER);
        let gone = rows.delete_one(doc! { "_id": rows::id(id.0) });
        Ok(gone.session(session).await?.deleted_count > 0)
    }

    /// What is due at `now`, by when it is: one however large, and no more than the limit.
    async fn find_due(
        &self,
        session: &mut ClientSession,
        now: Timestamp,
        limit: RoundLimit,
    ) -> Result<Vec<LaterRow>> {
        let rows = self.rows::<LaterRow>(LATER);
        let due = rows.find(doc! { "due_us": { "$lte": now.as_microsecond() } });
        let due = due.sort(doc! { "due_us": 1, "at": 1, "nth": 1 }).limit(bound(limit.rows));
        let mut due = due.session(&mut *session).await?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = due.next(session).await.transpose()? {
            bytes += row.bytes.bytes.len();
            if !found.is_empty() && bytes > limit.bytes {
                break;
            }
            found.push(row);
        }
        Ok(found)
    }

    /// Which of these somebody is about to take back.
    async fn held(&self, found: &[Uuid]) -> Result<BTreeSet<Uuid>> {
        let mut held = BTreeSet::new();
        for id in found {
            let mut session = self.session().await?;
            let touch = doc! { "$inc": { "touched": 1_i64 } };
            let rows = self.rows::<LaterRow>(LATER);
            let touched = rows.update_one(doc! { "_id": rows::id(*id) }, touch);
            let touched = touched.session(&mut session).await.map_err(crate::Error::from);
            session.abort_transaction().await.ok();
            match touched {
                Err(error) if is_conflict(&error) => drop(held.insert(*id)),
                other => drop(other?),
            }
        }
        Ok(held)
    }

    async fn remove_later(&self, session: &mut ClientSession, moved: &[Row]) -> Result<()> {
        let gone = moved.iter().map(|row| doc! { "q": { "_id": rows::id(row.id.0) }, "limit": 1 });
        self.run(Some(session), LATER, DELETE, gone.collect()).await
    }
}

/// What a move looked at, and what it moved.
struct Moving {
    found: Vec<Uuid>,
    moved: Vec<Row>,
}

impl MongodbLeader {
    /// Moves what is due and nobody holds; returns how many.
    pub(super) async fn move_all(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let apart = self.database.mutation.is(Mutant::LaterRemovedApart);
        let mut tries = Tries::new();
        let mut held = BTreeSet::new();
        let moved = loop {
            let mut session = self.begin().await?;
            let mut moving = Moving { found: Vec::new(), moved: Vec::new() };
            let done = self.move_now(&mut session, (now, limit), &held, &mut moving).await;
            let met = done.as_ref().is_err_and(is_conflict);
            if self.end(&mut tries, session, done).await?.is_some() {
                break moving.moved;
            }
            if met {
                held = self.database.held(&moving.found).await?;
            }
        };
        barrier::reach("later.after-move");
        if apart {
            let mut session = self.begin().await?;
            let removed = self.database.remove_later(&mut session, &moved).await;
            self.end(&mut Tries::new(), session, removed).await?;
        }
        Ok(moved.len())
    }

    async fn move_now(
        &self,
        session: &mut ClientSession,
        (now, limit): (Timestamp, RoundLimit),
        held: &BTreeSet<Uuid>,
        moving: &mut Moving,
    ) -> Result<()> {
        self.touch(session).await?;
        let due = self.database.find_due(session, now, limit).await?;
        moving.found = due.iter().map(|row| row.id).collect();
        moving.moved = free_of(due, held);
        let stripes = sorted_stripes(moving.moved.iter().map(|row| row.key_hash), STRIPES);
        let touched = self.database.touch_stripes(session, &stripes).await?;
        self.database.insert(session, &moving.moved, &touched, self.generations_now()).await?;
        if !self.database.mutation.is(Mutant::LaterRemovedApart) {
            self.database.remove_later(session, &moving.moved).await?;
        }
        barrier::reach("later.before-move");
        Ok(())
    }
}

/// Of what is due, what nobody holds and has nothing of its key before it that somebody does.
fn free_of(due: Vec<LaterRow>, held: &BTreeSet<Uuid>) -> Vec<Row> {
    let key = |row: &LaterRow| KeyHash(row.key_hash.cast_unsigned());
    let found: Vec<Found> = due.iter().zip(0..).map(|(row, nth)| Found { nth, key_hash: key(row) }).collect();
    let free = due.iter().zip(0..).filter(|(row, _)| !held.contains(&row.id)).map(|(_, nth)| nth).collect();
    let movable = movable(&found, &free);
    let row = |(row, _): (LaterRow, i64)| Row {
        id: EventId(row.id),
        key_hash: KeyHash(row.key_hash.cast_unsigned()),
        event_type: row.event_type,
        bytes: row.bytes.bytes.into(),
        due: None,
    };
    due.into_iter().zip(0_i64..).filter(|(_, nth)| movable.contains(nth)).map(row).collect()
}
