//! The relay's half of the store.
//!
//! takes: events of a commit · writes: rows of the outbox with their numbers · commits: with the transaction that
//! publishes, synced · if we crash here: nothing happened · if it repeats: a new transaction.
//!
//! Invariant: positions never repeat and are in the order of commits, and so are the numbers of each partition, because
//! whoever gives them is the only writer.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::{EventId, Generations, Position};
use uuid::Uuid;

use super::leader::{DocumentsLeader, Won};
use super::rows::{
    self, COUNTS, CountsRow, KNOWN, LATER, LEADER, LeaderRow, NUMBER, ONE, OUTBOX, PARTITION, PartitionRow,
    now_ms,
};
use super::store::Synced;
use super::{Documents, generations};
use crate::mutant::Mutant;
use crate::outgoing::Row;
use crate::port::due_time;
use crate::{Depth, Error, Kind, Leader, Mark, Outbox, Outgoing, Owner, Result, Schema, fencing};

#[async_trait]
impl Outbox for Documents {
    fn kind(&self) -> &'static str {
        "documents"
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()> {
        self.prepare_tables(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>> {
        let may = move |leader: &LeaderRow| leader.is_free_for(holder);
        if !self.store.read(move |snapshot| Ok(may(&leader(&snapshot.open_table(ONE)?)?))).await? {
            return Ok(None);
        }
        let halts = !self.mutation.is(Mutant::NoHalt);
        let won =
            self.store.write(Synced::Now, move |transaction| win(transaction, holder, lease, halts)).await?;
        Ok(won.map(|won| Box::new(DocumentsLeader::new(self, holder, lease, won)) as Box<dyn Leader>))
    }

    async fn depth(&self) -> Result<Depth> {
        self.store.read(depth).await
    }

    /// Nothing is left to complete: the publishing transaction gives the numbers.
    async fn complete(&self, _positions: &mut [Position]) -> Result<()> {
        Ok(())
    }
}

/// The row of the relay.
pub(super) fn leader(one: &impl ReadableTable<&'static str, rows::Json>) -> Result<LeaderRow> {
    rows::get(one, LEADER)?.ok_or_else(fencing::nobodys)
}

/// Raises the epoch, if the lease is free, and reads the marks.
fn win(transaction: &WriteTransaction, holder: Uuid, lease: Duration, halts: bool) -> Result<Option<Won>> {
    let mut one = transaction.open_table(ONE)?;
    let found = leader(&one)?;
    if !found.is_free_for(holder) || (found.halt.is_some() && halts) {
        return Ok(None);
    }
    let epoch = found.epoch + 1;
    let row = LeaderRow { epoch, holder: Some(holder), until_ms: now_ms() + millis(lease), ..found };
    rows::put(&mut one, LEADER, &row)?;
    let marks = marks(&transaction.open_table(PARTITION)?)?;
    let generations = generations::service(&one)?.generations;
    Ok(Some(Won { epoch, generations, marks }))
}

fn marks(partitions: &impl ReadableTable<u32, rows::Json>) -> Result<Vec<Mark>> {
    let mark = |(partition, row): (u32, PartitionRow)| Mark {
        partition,
        sequence: row.removed_sequence,
        id: row.removed_id.map(EventId),
    };
    Ok(counted(partitions)?.into_iter().map(mark).collect())
}

/// Every partition with its row, in order.
pub(super) fn counted(partitions: &impl ReadableTable<u32, rows::Json>) -> Result<Vec<(u32, PartitionRow)>> {
    let each = partitions.iter()?.map(|found| {
        let (partition, row) = found?;
        Ok((partition.value(), rows::read(row.value())?))
    });
    each.collect()
}

fn depth(snapshot: &ReadTransaction) -> Result<Depth> {
    let partitions = counted(&snapshot.open_table(PARTITION)?)?;
    let counts: CountsRow = rows::get(&snapshot.open_table(ONE)?, COUNTS)?.unwrap_or_default();
    let (outbox, later) = (snapshot.open_table(OUTBOX)?, snapshot.open_table(LATER)?);
    let (first, next) = (outbox.first()?, later.first()?);
    Ok(Depth {
        rows: partitions.iter().map(|(_, row)| row.numbered.saturating_sub(row.removed_sequence)).sum(),
        bytes: partitions.iter().map(|(_, row)| row.waiting_bytes).sum(),
        oldest: first.and_then(|(_, event)| Timestamp::from_millisecond(event.value().4).ok()),
        later_rows: counts.later_rows,
        later_bytes: counts.later_bytes,
        next_due: next.map(|(place, _)| due_time(place.value().0)),
        parked_rows: 0,
    })
}

/// Writes rows to the outbox with the next numbers of their partitions, but for consequences that are on the bus already;
/// returns the numbers by event.
pub(super) fn write_rows(
    transaction: &WriteTransaction,
    rows: &[Row],
    generations: &Generations,
) -> Result<BTreeMap<Uuid, u64>> {
    let known = on_bus_already(transaction, &Outgoing::consequences(rows))?;
    let mut one = transaction.open_table(ONE)?;
    let mut counts: CountsRow = rows::get(&one, COUNTS)?.unwrap_or_default();
    let mut partitions = transaction.open_table(PARTITION)?;
    let (mut outbox, mut numbers) = (transaction.open_table(OUTBOX)?, transaction.open_table(NUMBER)?);
    let (mut touched, mut given) = (BTreeMap::new(), BTreeMap::new());
    let written_ms = now_ms();
    for row in rows.iter().filter(|row| !known.contains(&row.id.0)) {
        let partition = generations.partition(row.key_hash);
        let counted = match touched.entry(partition) {
            std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert(unsealed(rows::get(&partitions, partition)?, partition)?)
            }
        };
        counted.numbered += 1;
        counted.waiting_bytes += row.bytes.len() as u64;
        counts.position += 1;
        let (id, event_type) = (row.id.0.as_u128(), row.event_type.as_str());
        let event = (partition, counted.numbered, id, event_type, written_ms, &row.bytes[..]);
        outbox.insert(counts.position, event)?;
        numbers.insert((partition, counted.numbered), counts.position)?;
        given.insert(row.id.0, counted.numbered);
    }
    for (partition, row) in &touched {
        super::rows::put(&mut partitions, *partition, row)?;
    }
    super::rows::put(&mut one, COUNTS, &counts)?;
    Ok(given)
}

/// A partition in which numbers may be given.
fn unsealed(row: Option<PartitionRow>, partition: u32) -> Result<PartitionRow> {
    row.filter(|row| row.sealed.is_none()).ok_or_else(|| {
        Error::new(
            Kind::Schema,
            format!(
                "the database has no open partition {partition}; it was not prepared for this service: start it with Schema::Apply"
            ),
        )
    })
}

/// The consequences among `ids` that are on the bus already.
fn on_bus_already(transaction: &WriteTransaction, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let known = transaction.open_table(KNOWN)?;
    let mut found = Vec::new();
    for id in ids {
        if known.get(id.as_u128())?.is_some() {
            found.push(*id);
        }
    }
    Ok(found)
}

/// A duration as leases count it.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX >> 1)
}
