//! What is published for later, in the store.
//!
//! takes: events with a due time · writes: the table of later, then the outbox with its numbers · commits: with the
//! transaction that publishes; moved under the leader's epoch, in one synced transaction · if we crash here: it is in one
//! of the two tables, never in both or none · if it repeats: what was moved is not there to be moved again.
//!
//! Invariant: what is moved gets its number as a commit's events do, as the only writer, so that its place among the
//! events of its key is the moment at which it became due.

use jiff::Timestamp;
use redb::{ReadableTable, WriteTransaction};
use tombolo_event::{EventId, KeyHash};
use uuid::Uuid;

use super::generations;
use super::outbox::write_rows;
use super::rows::{self, COUNTS, CountsRow, LATER, LATER_ID, ONE};
use crate::outgoing::Row;
use crate::port::due_us;
use crate::{Result, RoundLimit};

/// Keeps events until they are due. One that is kept already, under the same id, is the same.
pub(super) fn keep(transaction: &WriteTransaction, later: &[Row]) -> Result<()> {
    if later.is_empty() {
        return Ok(());
    }
    let (mut kept, mut ids) = (transaction.open_table(LATER)?, transaction.open_table(LATER_ID)?);
    let mut one = transaction.open_table(ONE)?;
    let mut counts: CountsRow = rows::get(&one, COUNTS)?.unwrap_or_default();
    for row in later {
        let id = row.id.0.as_u128();
        if ids.get(id)?.is_some() {
            continue;
        }
        counts.later += 1;
        counts.later_rows += 1;
        counts.later_bytes += row.bytes.len() as u64;
        let place = (row.due.map_or(0, due_us), counts.later);
        kept.insert(place, (id, row.key_hash.0, row.event_type.as_str(), &row.bytes[..]))?;
        ids.insert(id, place)?;
    }
    rows::put(&mut one, COUNTS, &counts)
}

/// Takes one back; whether it was there.
pub(super) fn withdraw(transaction: &WriteTransaction, id: EventId) -> Result<bool> {
    Ok(remove(transaction, &[id])? > 0)
}

/// What is due at `now`, by when it is: one however large, and no more than the limit.
pub(super) fn due(transaction: &WriteTransaction, now: Timestamp, limit: RoundLimit) -> Result<Vec<Row>> {
    let kept = transaction.open_table(LATER)?;
    let (mut due, mut bytes) = (Vec::new(), 0);
    for found in kept.range(..=(now.as_microsecond(), u64::MAX))?.take(limit.rows.max(1)) {
        let (_, event) = found?;
        let (id, key_hash, event_type, stored) = event.value();
        bytes += stored.len();
        if !due.is_empty() && bytes > limit.bytes {
            break;
        }
        due.push(Row {
            id: EventId(Uuid::from_u128(id)),
            key_hash: KeyHash(key_hash),
            event_type: event_type.to_owned(),
            bytes: stored.to_vec().into(),
            due: None,
        });
    }
    Ok(due)
}

/// Writes what is due to the end of the outbox.
pub(super) fn publish(transaction: &WriteTransaction, due: &[Row]) -> Result<()> {
    let generations = generations::read(transaction)?;
    write_rows(transaction, due, &generations).map(|_numbers| ())
}

/// Removes events from where they were kept; how many were there.
pub(super) fn remove(transaction: &WriteTransaction, events: &[EventId]) -> Result<u64> {
    let (mut kept, mut ids) = (transaction.open_table(LATER)?, transaction.open_table(LATER_ID)?);
    let mut one = transaction.open_table(ONE)?;
    let mut counts: CountsRow = rows::get(&one, COUNTS)?.unwrap_or_default();
    let mut removed = 0;
    for id in events {
        let Some(place) = ids.remove(id.0.as_u128())?.map(|place| place.value()) else { continue };
        let bytes = kept.remove(place)?.map_or(0, |event| event.value().3.len() as u64);
        removed += 1;
        counts.later_rows = counts.later_rows.saturating_sub(1);
        counts.later_bytes = counts.later_bytes.saturating_sub(bytes);
    }
    if removed > 0 {
        rows::put(&mut one, COUNTS, &counts)?;
    }
    Ok(removed)
}
