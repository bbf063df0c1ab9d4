//! The transaction of a service's MongoDB database.
//!
//! takes: the user's statements and events · writes: outbox rows with positions, the cursor · commits: all of it, by a majority
//! that has it in its journal, in [`Tx::commit`] · if we crash here: nothing happened, or all of it if the server had the
//! commit · if it repeats: a new transaction.
//!
//! Invariant: state, events and cursor commit together or not at all. The server ends a transaction with the first statement
//! that fails; everything after that, ours first of all, is refused.

use std::collections::BTreeMap;

use ::mongodb::bson::{Bson, Document, doc};
use ::mongodb::options::ReturnDocument;
use ::mongodb::{ClientSession, Collection};
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Generations, KeyHash, Position, barrier};
use uuid::Uuid;

use super::failure::conflicting;
use super::rows::{ONE, STRIPE, StripeRow};
use super::session::{self, Tries};
use super::{Mongodb, STRIPES};
use crate::mutant::Mutant;
use crate::outgoing::{Row as Outbound, Taken};
use crate::{Claim, Committed, EffectCall, Error, Kind, Outgoing, ParkedEvent, Result, Transaction};

/// A transaction, in which the user's own statements run with the driver: `.session(tx.session())` puts each of them in it.
/// Dropped, it is undone.
///
/// A statement that fails ends it, whether or not its error is passed on. One that writes a document which another open
/// transaction has written, or which was committed since this one's first statement, fails with the driver's label
/// `TransientTransactionError`: begin the transaction again. In a handler, pass the error on with `?`: the event is handled
/// again, and the try does not count.
pub struct Tx {
    session: ClientSession,
    database: Mongodb,
    outgoing: Outgoing,
    /// Whether anything but publishing was done, which only the user could do again.
    has_statements: bool,
    /// The turn of those in this process that met others: one at a time, so that they do not meet each other for ever.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Tx {
    pub(super) fn new(session: ClientSession, database: Mongodb, outgoing: Outgoing) -> Self {
        Self { session, database, outgoing, has_statements: false, turn: None }
    }

    /// The driver's session, which every statement has to be given: one without it runs outside of the transaction.
    pub fn session(&mut self) -> &mut ClientSession {
        self.outgoing.mark_used();
        self.has_statements = true;
        &mut self.session
    }

    /// A collection of the service's own.
    #[must_use]
    pub fn collection<T: Send + Sync>(&self, name: &str) -> Collection<T> {
        self.database.database.collection(name)
    }

    /// A collection of the view's build, in a handler of a view that declared it: `.tables("{orders}")`.
    ///
    /// # Errors
    /// `View` for a name that the view's tables do not have, or outside a handler of a view.
    pub fn view_collection<T: Send + Sync>(&self, name: &str) -> Result<Collection<T>> {
        Ok(self.collection(&self.outgoing.collection(name)?))
    }

    /// Publishes `event` when the transaction commits.
    ///
    /// # Errors
    /// `Refused` or `Full`; either makes a commit impossible.
    pub fn publish<E: Event>(&mut self, event: &E) -> Result<EventId> {
        self.outgoing.publish(event)
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
        if self.outgoing.withdraw(id)? {
            return Ok(true);
        }
        self.has_statements = true;
        self.database.withdraw(&mut self.session, id).await
    }

    /// Commits state and events together, and wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if anything makes a commit impossible; `Unavailable` if another transaction published the same key
    /// meanwhile, of which nothing is kept here, or if the outcome could not be learned; `Database`.
    pub async fn commit(mut self) -> Result<Committed> {
        let (taken, generations) = match self.write().await {
            Ok(written) => written,
            Err(error) => {
                // Dropped without an answer it would be undone all the same.
                self.rollback().await.ok();
                return Err(error);
            }
        };
        let Some(generations) = generations else {
            session::commit(&mut self.session).await?;
            return Ok(Committed::default());
        };
        barrier::reach("outbox.before-commit");
        session::commit(&mut self.session).await?;
        barrier::reach("outbox.after-commit");
        let committed = committed(&self.outgoing, &taken.rows, &generations);
        self.outgoing.committed(&committed.positions);
        Ok(committed)
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// `Unavailable`, `Database`; everything is undone all the same.
    pub async fn rollback(mut self) -> Result<()> {
        Ok(self.session.abort_transaction().await?)
    }

    /// Writes what is to be published, as often as it meets others if nothing else is in the transaction. Tells how the topic
    /// is divided, which may be older than the stripes; nothing if nothing is published.
    async fn write(&mut self) -> Result<(Taken, Option<Generations>)> {
        let taken = self.outgoing.take()?;
        if taken.is_empty() {
            return Ok((taken, None));
        }
        let mut tries = Tries::new();
        loop {
            match self.database.write_taken(&mut self.session, &taken).await {
                Ok(generations) => return Ok((taken, Some(generations))),
                Err(error) if self.has_statements => return Err(error),
                Err(error) => tries.again(error).await?,
            }
            if self.turn.is_none() {
                self.turn = Some(self.database.turn.clone().lock_owned().await);
                tries = Tries::new();
            }
            // The server has ended it.
            self.session.abort_transaction().await.ok();
            session::start(&mut self.session).await?;
        }
    }

    /// Runs what must succeed if anything is to be committed.
    fn guard<T>(&mut self, done: Result<T>) -> Result<T> {
        self.outgoing.mark_used();
        self.has_statements = true;
        self.outgoing.poison_on(done)
    }
}

/// The positions of a transaction's keys, by stripe.
pub(super) struct Touched(BTreeMap<u32, i64>);

impl Touched {
    /// The position of a key.
    pub(super) fn at(&self, key: KeyHash) -> i64 {
        self.0.get(&key.stripe(STRIPES)).copied().unwrap_or_default()
    }
}

impl Mongodb {
    /// Writes rows and what is for later, after the stripes of both.
    async fn write_taken(&self, session: &mut ClientSession, taken: &Taken) -> Result<Generations> {
        let touched = self.touch_stripes(session, &taken.stripes(STRIPES)).await?;
        let generations = self.service(session).await?.generations;
        self.insert(session, &taken.rows, &touched, &generations).await?;
        self.keep(session, &taken.later, &touched).await?;
        Ok(generations)
    }

    /// Touches stripes, which are sorted: whoever else publishes one of their keys meanwhile is refused, here or there. Gives
    /// each the next position.
    pub(super) async fn touch_stripes(
        &self,
        session: &mut ClientSession,
        stripes: &[u32],
    ) -> Result<Touched> {
        let session = if self.mutation.is(Mutant::NoKeyLock) { None } else { Some(session) };
        match stripes {
            [stripe] => self.touch_stripe(session, *stripe).await,
            _ => self.touch_many(session, stripes).await,
        }
    }

    async fn touch_stripe(&self, session: Option<&mut ClientSession>, stripe: u32) -> Result<Touched> {
        let id = doc! { "_id": i64::from(stripe) };
        let rows = self.rows::<StripeRow>(STRIPE);
        let touch = rows.find_one_and_update(id, vec![next_position(now_us())]);
        let touch = touch.upsert(true).return_document(ReturnDocument::After);
        let row = match session {
            Some(session) => touch.session(session).await,
            None => touch.await,
        };
        let row = row.map_err(conflicting)?;
        Ok(Touched(row.into_iter().map(|row| (stripe, row.at)).collect()))
    }

    async fn touch_many(&self, mut session: Option<&mut ClientSession>, stripes: &[u32]) -> Result<Touched> {
        // One time for all of them, so that what comes of it is in the order in which it was published.
        let now_us = now_us();
        let these: Vec<Bson> = stripes.iter().map(|stripe| Bson::Int64(i64::from(*stripe))).collect();
        let these = doc! { "_id": { "$in": these } };
        let rows = self.rows::<StripeRow>(STRIPE);
        let touch = rows.update_many(these.clone(), vec![next_position(now_us)]);
        let found: Vec<StripeRow> = match session.as_deref_mut() {
            Some(session) => {
                touch.session(&mut *session).await?;
                self.all(session, STRIPE, these, doc! {}).await?
            }
            None => {
                touch.await?;
                self.look(STRIPE, these, doc! {}).await?
            }
        };
        let at = |row: StripeRow| Some((u32::try_from(row.stripe).ok()?, row.at));
        let mut touched = Touched(found.into_iter().filter_map(at).collect());
        self.make_stripes(session, &mut touched, (stripes, now_us)).await?;
        Ok(touched)
    }

    /// Makes the stripes that nobody has touched before.
    async fn make_stripes(
        &self,
        session: Option<&mut ClientSession>,
        touched: &mut Touched,
        (stripes, now_us): (&[u32], i64),
    ) -> Result<()> {
        let new = stripes.iter().filter(|stripe| !touched.0.contains_key(stripe));
        let made: Vec<StripeRow> =
            new.map(|stripe| StripeRow { stripe: i64::from(*stripe), at: now_us }).collect();
        if made.is_empty() {
            return Ok(());
        }
        touched.0.extend(made.iter().filter_map(|row| Some((u32::try_from(row.stripe).ok()?, row.at))));
        let rows = self.rows::<StripeRow>(STRIPE);
        let make = rows.insert_many(&made);
        let made = match session {
            Some(session) => make.session(session).await,
            None => make.await,
        };
        made.map(drop).map_err(conflicting)
    }

    /// Writes what `outgoing` buffered within a transaction of the user's own. If that fails, the transaction keeps nothing,
    /// whatever its owner does with the error.
    pub(super) async fn write_within(
        &self,
        session: &mut ClientSession,
        mut outgoing: Outgoing,
    ) -> Result<Committed> {
        if !is_open(session).await {
            outgoing.take()?;
            return Err(no_transaction());
        }
        let written = match outgoing.take() {
            Ok(taken) => self.write_taken(session, &taken).await.map(|generations| (taken, generations)),
            Err(error) => Err(error),
        };
        match written {
            Ok((taken, generations)) => Ok(committed(&outgoing, &taken.rows, &generations)),
            Err(error) => {
                self.spoil(session).await;
                Err(error)
            }
        }
    }

    /// Makes the server end a transaction of the user's own, so that its commit is refused: by a statement that fails.
    async fn spoil(&self, session: &mut ClientSession) {
        let again = doc! { "_id": super::rows::SERVICE };
        self.rows::<Document>(ONE).insert_one(again).session(session).await.ok();
    }
}

/// The change that gives a stripe its next position: the time, unless it was there before.
fn next_position(now_us: i64) -> Document {
    let next = doc! { "$add": [{ "$ifNull": ["$at", 0_i64] }, 1_i64] };
    doc! { "$set": { "at": { "$max": [next, now_us] } } }
}

fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Whether a session of the user's own is in a transaction. The driver tells it only by refusing to begin another one.
async fn is_open(session: &mut ClientSession) -> bool {
    if session.start_transaction().await.is_err() {
        return true;
    }
    // Nothing was sent yet, and nothing is.
    session.abort_transaction().await.ok();
    false
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
        "events were to be published in a session without a transaction, so that state and events could part; begin one (`session.start_transaction()`), publish in it, and commit it",
    )
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
        let moved = self.database.advance(&mut self.session, claim, to).await;
        self.guard(moved)
    }

    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let completed = self.database.complete_call(&mut self.session, claim, call).await;
        self.guard(completed)
    }

    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        let forgotten = self.database.forget_after(&mut self.session, claim, sequence).await;
        self.guard(forgotten)
    }

    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()> {
        let parked = self.database.park(&mut self.session, events).await;
        self.guard(parked)
    }

    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        let gone = self.database.unpark(&mut self.session, claim, sequence).await;
        self.guard(gone)
    }

    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64> {
        let gone = self.database.unpark_after(&mut self.session, claim, sequence).await;
        self.guard(gone)
    }

    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()> {
        let paused = self.database.pause(&mut self.session, claim, by).await;
        self.guard(paused)
    }

    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()> {
        let finished = self.database.finish_request(&mut self.session, request, outcome).await;
        self.guard(finished)
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
