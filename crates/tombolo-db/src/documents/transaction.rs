//! The transaction of a service's documents.
//!
//! takes: the user's documents and events · writes: outbox rows with their numbers, the cursor · commits: all of it,
//! synced, in [`Tx::commit`] · if we crash here: nothing happened · if it repeats: a new transaction.
//!
//! Invariant: documents, events and cursor commit together or not at all, and numbers are in commit order, because this
//! transaction is the only writer from its first moment.

use async_trait::async_trait;
use jiff::Timestamp;
use redb::WriteTransaction;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tombolo_event::operator::Outcome;
use tombolo_event::{Cursor, Event, EventId, Position, ServiceName, barrier};
use uuid::Uuid;

use super::collection::{self, Collection};
use super::keys::Keys;
use super::outbox::write_rows;
use super::store::Writing;
use super::{cursors, effects, generations, later, parked, requests};
use crate::mutant::Mutation;
use crate::outgoing::Taken;
use crate::{Claim, Committed, EffectCall, Outgoing, ParkedEvent, Result, Transaction};

/// A transaction, in which documents are read and written by key. Dropped, it is undone.
///
/// It is the only writer of the service from its first moment to its end: keep it short. A future of its that is dropped
/// before it has ended makes a commit impossible.
#[derive(Debug)]
pub struct Tx {
    writing: Writing,
    outgoing: Outgoing,
    mutation: Mutation,
    has_written: bool,
}

impl Tx {
    pub(super) fn new(writing: Writing, outgoing: Outgoing, mutation: Mutation) -> Self {
        Self { writing, outgoing, mutation, has_written: false }
    }

    /// The document under `key`, if there is one; what this transaction wrote is there.
    ///
    /// # Errors
    /// `View` for a collection that the view does not have, or outside a handler of a view; `Database` for a document that
    /// is no `T`; `Unavailable`.
    pub async fn get<T>(&mut self, collection: &Collection<T>, key: &str) -> Result<Option<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (place, name, key) = (self.place(collection)?, collection.name(), key.to_owned());
        let get = move |transaction: &WriteTransaction| {
            collection::get(&transaction.open_table(collection::table(&place))?, name, &key)
        };
        self.writing.run(get).await
    }

    /// Puts `document` under `key`, in the place of what was there.
    ///
    /// # Errors
    /// `Database` for a key that is empty or longer than [`super::KEY_BYTES_MAX`], for a document that is larger than
    /// [`super::DOCUMENT_BYTES_MAX`] or cannot be JSON: then nothing was written, and the transaction goes on. `View`, `Unavailable`.
    pub async fn put<T: Serialize>(
        &mut self,
        collection: &Collection<T>,
        key: &str,
        document: &T,
    ) -> Result<()> {
        let (place, key) = (self.place(collection)?, key.to_owned());
        let json = collection::written(collection.name(), &key, document)?;
        self.write(move |transaction| {
            transaction.open_table(collection::table(&place))?.insert(&*key, &*json)?;
            Ok(())
        })
        .await
    }

    /// Removes what is under `key`; whether there was something.
    ///
    /// # Errors
    /// `View`, `Unavailable`, `Database`.
    pub async fn remove<T>(&mut self, collection: &Collection<T>, key: &str) -> Result<bool> {
        let (place, key) = (self.place(collection)?, key.to_owned());
        self.write(move |transaction| {
            let was_there = transaction.open_table(collection::table(&place))?.remove(&*key)?.is_some();
            Ok(was_there)
        })
        .await
    }

    /// The first `most` documents whose keys are among `keys`, with their keys, in the order of the keys' bytes.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub async fn scan<T>(
        &mut self,
        collection: &Collection<T>,
        keys: Keys,
        most: usize,
    ) -> Result<Vec<(String, T)>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (place, name) = (self.place(collection)?, collection.name());
        let scan = move |transaction: &WriteTransaction| {
            collection::scan(&transaction.open_table(collection::table(&place))?, name, &keys, most)
        };
        self.writing.run(scan).await
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
        self.write(move |transaction| later::withdraw(transaction, id)).await
    }

    /// Commits documents and events together, synced, and wakes the relay.
    ///
    /// # Errors
    /// `Poisoned` if anything makes a commit impossible, `Unavailable` (the outcome is unknown if the disk failed in the
    /// commit itself), `Database`.
    pub async fn commit(mut self) -> Result<Committed> {
        let taken = match self.outgoing.take() {
            Ok(taken) => taken,
            Err(error) => {
                // Dropped without an answer it would be undone all the same.
                self.rollback().await.ok();
                return Err(error);
            }
        };
        if taken.is_empty() && !self.has_written {
            self.rollback().await?;
            return Ok(Committed::default());
        }
        let publishes = !taken.is_empty();
        let topic = self.outgoing.publisher().service.clone();
        let positions = self.writing.run(move |transaction| write(transaction, &topic, &taken)).await?;
        if publishes {
            barrier::reach("outbox.before-commit");
        }
        self.writing.commit().await?;
        if publishes {
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
        self.writing.rollback().await
    }

    /// What the store calls a collection, in the build of the view that is being kept if it is of one.
    fn place<T>(&self, collection: &Collection<T>) -> Result<String> {
        self.outgoing.mark_used();
        collection.place(|name| self.outgoing.collection(name))
    }

    async fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.has_written = true;
        self.writing.run(work).await
    }

    /// Runs what must succeed if anything is to be committed.
    async fn guarded<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.outgoing.mark_used();
        let done = self.write(work).await;
        self.outgoing.poison_on(done)
    }
}

/// Writes what is to be published: rows of the outbox with their numbers, and what is for later.
pub(super) fn write(
    transaction: &WriteTransaction,
    topic: &ServiceName,
    taken: &Taken,
) -> Result<Vec<Position>> {
    later::keep(transaction, &taken.later)?;
    if taken.rows.is_empty() {
        return Ok(Vec::new());
    }
    let generations = generations::read(transaction)?;
    let given = write_rows(transaction, &taken.rows, &generations)?;
    let position = |row: &crate::outgoing::Row| Position {
        topic: topic.clone(),
        partition: generations.partition(row.key_hash),
        key_hash: row.key_hash,
        id: row.id,
        sequence: given.get(&row.id.0).copied(),
    };
    Ok(taken.rows.iter().map(position).collect())
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
        let (claim, to, mutation) = (claim.clone(), *to, self.mutation);
        self.guarded(move |transaction| cursors::advance(transaction, &claim, &to, mutation)).await
    }

    async fn complete(&mut self, claim: &Claim, call: &EffectCall) -> Result<()> {
        let (claim, call, mutation) = (claim.clone(), call.clone(), self.mutation);
        self.guarded(move |transaction| effects::complete(transaction, &claim, &call, mutation)).await
    }

    async fn forget_calls_after(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        let claim = claim.clone();
        self.guarded(move |transaction| effects::forget_after(transaction, &claim, sequence)).await
    }

    async fn park(&mut self, events: &[ParkedEvent]) -> Result<()> {
        let (events, mutation) = (events.to_vec(), self.mutation);
        self.guarded(move |transaction| parked::park(transaction, &events, mutation)).await
    }

    async fn unpark(&mut self, claim: &Claim, sequence: u64) -> Result<()> {
        let (claim, mutation) = (claim.clone(), self.mutation);
        self.guarded(move |transaction| parked::unpark(transaction, &claim, sequence, mutation)).await
    }

    async fn unpark_after(&mut self, claim: &Claim, sequence: u64) -> Result<u64> {
        let claim = claim.clone();
        self.guarded(move |transaction| parked::unpark_after(transaction, &claim, sequence)).await
    }

    async fn pause(&mut self, claim: &Claim, by: Option<&str>) -> Result<()> {
        let (claim, by, mutation) = (claim.clone(), by.map(str::to_owned), self.mutation);
        self.guarded(move |transaction| cursors::pause(transaction, &claim, by, mutation)).await
    }

    async fn finish(&mut self, request: Uuid, outcome: &Outcome) -> Result<()> {
        let outcome = outcome.clone();
        self.guarded(move |transaction| requests::finish(transaction, request, &outcome)).await
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
