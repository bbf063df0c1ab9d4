//! What waits parked, in the store.
//!
//! takes: events that could not be handled, and those behind them · writes: one row each · commits: with the cursor that
//! moves over it, and its removal with its effect · if we crash here: the cursor and the row say the same · if it
//! repeats: the cursor has moved, or the row is gone, so the repeat is refused.
//!
//! Invariant: only the holder of the lease changes anything here, in the transaction that proves that it is; and a row is in
//! both tables or in none.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::{EventId, KeyHash, ServiceName};

use super::Documents;
use super::cursors::{LAST, cut, held};
use super::rows::{self, CURSOR, Json, Numbered, PARKED, PARKED_KEY, ParkedRow};
use super::store::Synced;
use crate::mutant::{Mutant, Mutation};
use crate::port::parked::{ParkedCount, ParkedEvent, ParkedFilter, ParkedHead, Parking, Tries, not_parked};
use crate::{Claim, Result};

#[async_trait]
impl Parking for Documents {
    async fn parked_heads(&self, subscription: &str) -> Result<Vec<ParkedHead>> {
        let subscription = subscription.to_owned();
        self.store.read(move |snapshot| heads(&snapshot.open_table(PARKED)?, &subscription)).await
    }

    async fn parked_of(&self, claim: &Claim, key: KeyHash, most: usize) -> Result<Vec<ParkedEvent>> {
        let claim = claim.clone();
        let of = move |snapshot: &ReadTransaction| {
            let (parked, keys) = (snapshot.open_table(PARKED)?, snapshot.open_table(PARKED_KEY)?);
            let place = (&*claim.subscription, claim.topic.as_str(), key.0, claim.partition);
            let place = |sequence| (place.0, place.1, place.2, place.3, sequence);
            let mut events = Vec::new();
            for found in ReadableTable::range(&keys, place(0)..=place(u64::MAX))?.take(most) {
                let of_key = found?.0;
                let (subscription, topic, _, partition, sequence) = of_key.value();
                let place = (subscription, topic, partition, sequence);
                if let Some(row) = ReadableTable::get(&parked, place)? {
                    events.push(event(place, row.value())?);
                }
            }
            Ok(events)
        };
        self.store.read(of).await
    }

    async fn record_tries(&self, claim: &Claim, sequence: u64, tries: &Tries) -> Result<()> {
        let (claim, tries, mutation) = (claim.clone(), tries.clone(), self.mutation);
        let record = move |transaction: &WriteTransaction| {
            held(&transaction.open_table(CURSOR)?, &claim, mutation)?;
            let mut parked = transaction.open_table(PARKED)?;
            let place = (&*claim.subscription, claim.topic.as_str(), claim.partition, sequence);
            let found = parked.get(place)?.map(|row| {
                let (row, bytes) = row.value();
                Ok::<_, crate::Error>((rows::read::<ParkedRow>(row)?, bytes.to_vec()))
            });
            let (row, bytes) = found.transpose()?.ok_or_else(|| not_parked(&claim, sequence))?;
            parked.insert(place, (&*rows::write(&tried(row, &tries))?, &*bytes))?;
            Ok(())
        };
        self.store.write(Synced::Later, record).await
    }

    async fn is_parked(&self, subscription: &str, topic: &ServiceName, key: KeyHash) -> Result<bool> {
        let (subscription, topic) = (subscription.to_owned(), topic.clone());
        let look = move |snapshot: &ReadTransaction| {
            let place = |partition, sequence| (&*subscription, topic.as_str(), key.0, partition, sequence);
            let keys = snapshot.open_table(PARKED_KEY)?;
            let mut of_key = ReadableTable::range(&keys, place(0, 0)..=place(u32::MAX, u64::MAX))?;
            Ok(of_key.next().transpose()?.is_some())
        };
        self.store.read(look).await
    }

    async fn parked(&self, filter: &ParkedFilter, most: usize) -> Result<Vec<ParkedEvent>> {
        let filter = filter.clone();
        let look = move |snapshot: &ReadTransaction| {
            let mut events = Vec::new();
            for found in ReadableTable::iter(&snapshot.open_table(PARKED)?)? {
                let (place, row) = found?;
                let event = event(place.value(), row.value())?;
                if events.len() < most && lets_through(&filter, &event) {
                    events.push(event);
                }
            }
            Ok(events)
        };
        self.store.read(look).await
    }

    async fn parked_counts(&self) -> Result<Vec<ParkedCount>> {
        self.store.read(counts).await
    }
}

fn lets_through(filter: &ParkedFilter, event: &ParkedEvent) -> bool {
    filter.subscription.as_ref().is_none_or(|name| *name == event.subscription)
        && filter.key_hash.is_none_or(|key| key == event.key_hash)
        && filter.id.is_none_or(|id| id == event.id)
}

fn heads(
    parked: &impl ReadableTable<Numbered, (Json, &'static [u8])>,
    subscription: &str,
) -> Result<Vec<ParkedHead>> {
    let mut heads: BTreeMap<(ServiceName, u32, KeyHash), ParkedHead> = BTreeMap::new();
    for found in parked.range((subscription, "", 0, 0)..=(subscription, LAST, u32::MAX, u64::MAX))? {
        let (place, row) = found?;
        let ((_, topic, partition, _), row) = (place.value(), rows::read::<ParkedRow>(row.value().0)?);
        let (topic, key_hash) = (ServiceName::new(topic)?, KeyHash(row.key_hash));
        let head = heads.entry((topic.clone(), partition, key_hash)).or_insert_with(|| ParkedHead {
            topic,
            partition,
            key_hash,
            events: 0,
            parked_at: time(row.parked_ms),
            tries: tries(&row),
        });
        head.events += 1;
    }
    Ok(heads.into_values().collect())
}

fn counts(snapshot: &ReadTransaction) -> Result<Vec<ParkedCount>> {
    let mut counts: Vec<(ParkedCount, BTreeSet<(String, u64)>)> = Vec::new();
    for found in ReadableTable::iter(&snapshot.open_table(PARKED)?)? {
        let (place, row) = found?;
        let ((subscription, topic, ..), row) = (place.value(), rows::read::<ParkedRow>(row.value().0)?);
        if counts.last().is_none_or(|(count, _)| count.subscription != subscription) {
            let subscription = subscription.to_owned();
            counts.push((ParkedCount { subscription, keys: 0, events: 0, oldest: None }, BTreeSet::new()));
        }
        if let Some((count, keys)) = counts.last_mut() {
            keys.insert((topic.to_owned(), row.key_hash));
            count.events += 1;
            count.keys = keys.len() as u64;
            let parked_at = time(row.parked_ms);
            count.oldest = Some(count.oldest.map_or(parked_at, |oldest| oldest.min(parked_at)));
        }
    }
    Ok(counts.into_iter().map(|(count, _)| count).collect())
}

/// Writes parked events; the cursor that moves over them is what guards it.
pub(super) fn park(transaction: &WriteTransaction, events: &[ParkedEvent], mutation: Mutation) -> Result<()> {
    let only_heads = mutation.is(Mutant::ParkWithoutFollowers);
    let (mut parked, mut keys) = (transaction.open_table(PARKED)?, transaction.open_table(PARKED_KEY)?);
    for event in events.iter().filter(|event| event.tries.attempts > 0 || !only_heads) {
        let (subscription, topic) = (&*event.subscription, event.topic.as_str());
        let row = ParkedRow {
            id: event.id.0,
            key_hash: event.key_hash.0,
            event_type: event.event_type.clone(),
            parked_ms: event.parked_at.as_millisecond(),
            attempts: 0,
            unfinished: 0,
            error: None,
            retry_ms: None,
        };
        let row = rows::write(&tried(row, &event.tries))?;
        let place = (subscription, topic, event.partition, event.sequence);
        parked.insert(place, (&*row, &event.bytes[..]))?;
        keys.insert((subscription, topic, event.key_hash.0, event.partition, event.sequence), ())?;
    }
    Ok(())
}

/// Takes a parked event out, under the lease.
pub(super) fn unpark(
    transaction: &WriteTransaction,
    claim: &Claim,
    sequence: u64,
    mutation: Mutation,
) -> Result<()> {
    if !mutation.is(Mutant::RedriveWithoutLease) {
        held(&transaction.open_table(CURSOR)?, claim, mutation)?;
    }
    match remove(
        transaction,
        &claim.subscription,
        claim.topic.as_str(),
        claim.partition,
        sequence..=sequence,
    )? {
        0 => Err(not_parked(claim, sequence)),
        _ => Ok(()),
    }
}

/// Takes out everything after `sequence`; guarded by the cursor that is moved there.
pub(super) fn unpark_after(transaction: &WriteTransaction, claim: &Claim, sequence: u64) -> Result<u64> {
    let after = sequence.saturating_add(1)..=u64::MAX;
    remove(transaction, &claim.subscription, claim.topic.as_str(), claim.partition, after)
}

/// Removes what is parked of a subscription altogether.
pub(super) fn forget(transaction: &WriteTransaction, subscription: &str) -> Result<()> {
    let (mut parked, mut keys) = (transaction.open_table(PARKED)?, transaction.open_table(PARKED_KEY)?);
    parked.retain_in((subscription, "", 0, 0)..=(subscription, LAST, u32::MAX, u64::MAX), |_, _| false)?;
    keys.retain_in(
        (subscription, "", 0, 0, 0)..=(subscription, LAST, u64::MAX, u32::MAX, u64::MAX),
        |_, ()| false,
    )?;
    Ok(())
}

fn remove(
    transaction: &WriteTransaction,
    subscription: &str,
    topic: &str,
    partition: u32,
    sequences: std::ops::RangeInclusive<u64>,
) -> Result<u64> {
    let (mut parked, mut keys) = (transaction.open_table(PARKED)?, transaction.open_table(PARKED_KEY)?);
    let place = |sequence| (subscription, topic, partition, sequence);
    let mut removed = 0;
    for gone in parked.extract_from_if(place(*sequences.start())..=place(*sequences.end()), |_, _| true)? {
        let (place, row) = gone?;
        let row: ParkedRow = rows::read(row.value().0)?;
        keys.remove((subscription, topic, row.key_hash, partition, place.value().3))?;
        removed += 1;
    }
    Ok(removed)
}

fn tried(row: ParkedRow, tries: &Tries) -> ParkedRow {
    ParkedRow {
        attempts: tries.attempts,
        unfinished: tries.unfinished,
        error: tries.error.as_deref().map(cut),
        retry_ms: tries.retry_at.map(Timestamp::as_millisecond),
        ..row
    }
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

fn tries(row: &ParkedRow) -> Tries {
    Tries {
        attempts: row.attempts,
        unfinished: row.unfinished,
        error: row.error.clone(),
        retry_at: row.retry_ms.map(time),
    }
}

fn event(
    (subscription, topic, partition, sequence): (&str, &str, u32, u64),
    (row, bytes): (&[u8], &[u8]),
) -> Result<ParkedEvent> {
    let row: ParkedRow = rows::read(row)?;
    Ok(ParkedEvent {
        subscription: subscription.to_owned(),
        topic: ServiceName::new(topic)?,
        partition,
        sequence,
        id: EventId(row.id),
        key_hash: KeyHash(row.key_hash),
        event_type: row.event_type.clone(),
        bytes: bytes.to_vec().into(),
        parked_at: time(row.parked_ms),
        tries: tries(&row),
    })
}
