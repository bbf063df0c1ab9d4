//! What waits parked, in MongoDB.
//!
//! takes: events that could not be handled, and those behind them · writes: one document each · commits: with the cursor that
//! moves over it, and its removal with its effect · if we crash here: the cursor and the document say the same · if it
//! repeats: the cursor has moved, or the document is gone, so the repeat is refused.
//!
//! Invariant: only the holder of the lease changes anything here, in a transaction that touches its cursor.

use std::collections::{BTreeMap, BTreeSet};

use ::mongodb::ClientSession;
use ::mongodb::bson::{Document, doc};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use tombolo_event::{EventId, KeyHash, ServiceName};

use super::cursors::cut;
use super::rows::{self, PARKED, ParkedDocument, ParkedRow, after, binary, numbered, of_partition, place};
use super::session::Tries;
use super::{Mongodb, limit};
use crate::mutant::Mutant;
use crate::port::parked::{
    ParkedCount, ParkedEvent, ParkedFilter, ParkedHead, Parking, Tries as Tried, not_parked,
};
use crate::{Claim, Result};

#[async_trait]
impl Parking for Mongodb {
    async fn parked_heads(&self, subscription: &str) -> Result<Vec<ParkedHead>> {
        Ok(heads(self.parked_rows(doc! { "subscription": subscription }).await?))
    }

    async fn parked_of(&self, claim: &Claim, key: KeyHash, most: usize) -> Result<Vec<ParkedEvent>> {
        let mut of = of_partition(claim);
        of.insert("key_hash", key.0.cast_signed());
        self.parked_events(of, most).await
    }

    async fn record_tries(&self, claim: &Claim, sequence: u64, tried: &Tried) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let recorded = self.record_now(&mut session, claim, sequence, tried).await;
            if let Some(()) = tries.end(&mut session, recorded).await? {
                return Ok(());
            }
        }
    }

    async fn is_parked(&self, subscription: &str, topic: &ServiceName, key: KeyHash) -> Result<bool> {
        let of =
            doc! { "subscription": subscription, "topic": topic.as_str(), "key_hash": key.0.cast_signed() };
        Ok(self.rows::<ParkedRow>(PARKED).find_one(of).await?.is_some())
    }

    async fn parked(&self, filter: &ParkedFilter, most: usize) -> Result<Vec<ParkedEvent>> {
        let mut wanted = Document::new();
        if let Some(subscription) = &filter.subscription {
            wanted.insert("subscription", subscription);
        }
        if let Some(key) = filter.key_hash {
            wanted.insert("key_hash", key.0.cast_signed());
        }
        if let Some(id) = filter.id {
            wanted.insert("id", rows::id(id.0));
        }
        self.parked_events(wanted, most).await
    }

    async fn parked_counts(&self) -> Result<Vec<ParkedCount>> {
        let mut counts: BTreeMap<String, (ParkedCount, BTreeSet<(ServiceName, i64)>)> = BTreeMap::new();
        for row in self.parked_rows(doc! {}).await? {
            let (count, keys) = counts.entry(row.subscription.clone()).or_insert_with(|| {
                (
                    ParkedCount { subscription: row.subscription, keys: 0, events: 0, oldest: None },
                    BTreeSet::new(),
                )
            });
            keys.insert((row.topic, row.key_hash));
            count.events += 1;
            count.keys = keys.len() as u64;
            let parked_at = time(row.parked_ms);
            count.oldest = Some(count.oldest.map_or(parked_at, |oldest| oldest.min(parked_at)));
        }
        Ok(counts.into_values().map(|(count, _)| count).collect())
    }
}

impl Mongodb {
    /// What is known of parked events, in order, without their bytes.
    async fn parked_rows(&self, filter: Document) -> Result<Vec<ParkedRow>> {
        let rows = self.rows::<ParkedRow>(PARKED);
        let rows = rows.find(filter).sort(order()).projection(doc! { "bytes": 0 });
        Ok(rows.await?.try_collect().await?)
    }

    async fn parked_events(&self, filter: Document, most: usize) -> Result<Vec<ParkedEvent>> {
        let found = self.rows::<ParkedDocument>(PARKED).find(filter).sort(order()).limit(limit(most)).await?;
        Ok(found.map_ok(event).try_collect().await?)
    }

    async fn record_now(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        sequence: u64,
        tried: &Tried,
    ) -> Result<()> {
        self.hold_lease(session, claim).await?;
        let set = doc! {
            "attempts": i64::from(tried.attempts),
            "unfinished": i64::from(tried.unfinished),
            "error": tried.error.as_deref().map(cut),
            "retry_ms": tried.retry_at.map(Timestamp::as_millisecond),
        };
        let id = doc! { "_id": numbered(claim, sequence) };
        let stored =
            self.rows::<Document>(PARKED).update_one(id, doc! { "$set": set }).session(session).await?;
        if stored.matched_count == 0 { Err(not_parked(claim, sequence)) } else { Ok(()) }
    }

    /// Writes parked events; the cursor that moves over them is what guards it.
    pub(super) async fn park(&self, session: &mut ClientSession, events: &[ParkedEvent]) -> Result<()> {
        let only_heads = self.mutation.is(Mutant::ParkWithoutFollowers);
        let wanted = |event: &&ParkedEvent| !only_heads || event.tries.attempts > 0;
        let documents: Vec<ParkedDocument> = events.iter().filter(wanted).map(document).collect();
        if !documents.is_empty() {
            self.rows::<ParkedDocument>(PARKED).insert_many(&documents).session(session).await?;
        }
        Ok(())
    }

    /// Takes out one event, under the lease.
    pub(super) async fn unpark(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        sequence: u64,
    ) -> Result<()> {
        if !self.mutation.is(Mutant::RedriveWithoutLease) {
            self.hold_lease(session, claim).await?;
        }
        let id = doc! { "_id": numbered(claim, sequence) };
        let gone = self.rows::<ParkedRow>(PARKED).delete_one(id).session(session).await?;
        if gone.deleted_count == 0 { Err(not_parked(claim, sequence)) } else { Ok(()) }
    }

    /// Takes out everything after `sequence`; guarded by the cursor that is moved there.
    pub(super) async fn unpark_after(
        &self,
        session: &mut ClientSession,
        claim: &Claim,
        sequence: u64,
    ) -> Result<u64> {
        let gone =
            self.rows::<ParkedRow>(PARKED).delete_many(after(claim, sequence)).session(session).await?;
        Ok(gone.deleted_count)
    }
}

fn order() -> Document {
    doc! { "subscription": 1, "topic": 1, "partition": 1, "sequence": 1 }
}

fn heads(rows: Vec<ParkedRow>) -> Vec<ParkedHead> {
    let mut heads: BTreeMap<(ServiceName, u32, KeyHash), ParkedHead> = BTreeMap::new();
    for row in rows {
        let (partition, key_hash) = (row.partition, KeyHash(row.key_hash.cast_unsigned()));
        let head = heads.entry((row.topic.clone(), partition, key_hash)).or_insert_with(|| ParkedHead {
            topic: row.topic.clone(),
            partition,
            key_hash,
            events: 0,
            parked_at: time(row.parked_ms),
            tries: tried(&row),
        });
        head.events += 1;
    }
    heads.into_values().collect()
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

fn tried(row: &ParkedRow) -> Tried {
    Tried {
        attempts: row.attempts,
        unfinished: row.unfinished,
        error: row.error.clone(),
        retry_at: row.retry_ms.map(time),
    }
}

fn document(event: &ParkedEvent) -> ParkedDocument {
    let row = ParkedRow {
        place: format!("{}/{}", place(&event.subscription, &event.topic, event.partition), event.sequence),
        subscription: event.subscription.clone(),
        topic: event.topic.clone(),
        partition: event.partition,
        sequence: event.sequence,
        id: event.id.0,
        key_hash: event.key_hash.0.cast_signed(),
        event_type: event.event_type.clone(),
        parked_ms: event.parked_at.as_millisecond(),
        attempts: event.tries.attempts,
        unfinished: event.tries.unfinished,
        error: event.tries.error.as_deref().map(cut),
        retry_ms: event.tries.retry_at.map(Timestamp::as_millisecond),
    };
    ParkedDocument { row, bytes: binary(&event.bytes) }
}

fn event(ParkedDocument { row, bytes }: ParkedDocument) -> ParkedEvent {
    ParkedEvent {
        tries: tried(&row),
        subscription: row.subscription,
        topic: row.topic,
        partition: row.partition,
        sequence: row.sequence,
        id: EventId(row.id),
        key_hash: KeyHash(row.key_hash.cast_unsigned()),
        event_type: row.event_type,
        bytes: bytes.bytes.into(),
        parked_at: time(row.parked_ms),
    }
}
