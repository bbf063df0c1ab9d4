//! What the store does when its file and the bus do not agree.
//!
//! takes: an operator's decision · writes: numbers, marks, what was published before, the end of the halt · commits:
//! all of it in one synced transaction · if we crash here: the database is halted as before · if it repeats: the
//! halt is over, and the repeat is refused.
//!
//! Invariant: while the halt is written or ended nobody publishes, because this is the only writer.

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tombolo_event::{EventId, Generations};
use uuid::Uuid;

use super::Documents;
use super::generations;
use super::later;
use super::outbox::{counted, leader};
use super::rows::{
    self, HALT, HaltRow, KNOWN, LATER_ID, LEADER, LeaderRow, NUMBER, ONE, OUTBOX, PARTITION, PartitionRow,
    SERVICE, ServiceRow, now_ms,
};
use super::store::Synced;
use crate::mutant::Mutant;
use crate::outgoing::key_of;
use crate::owner;
use crate::port::recovery::{Adopted, Adoption, Counted, Decision, Halt, Halted, Standing};
use crate::{Mark, Recovery, Result, fencing};

#[async_trait]
impl Recovery for Documents {
    async fn standing(&self, holder: Uuid) -> Result<Standing> {
        self.store.read(move |snapshot| standing(snapshot, holder)).await
    }

    async fn numbered(&self, partition: u32, sequence: u64) -> Result<Option<EventId>> {
        let look = move |snapshot: &ReadTransaction| {
            let (numbers, outbox) = (snapshot.open_table(NUMBER)?, snapshot.open_table(OUTBOX)?);
            let position = ReadableTable::get(&numbers, (partition, sequence))?;
            let Some(position) = position.map(|position| position.value()) else { return Ok(None) };
            let event = ReadableTable::get(&outbox, position)?;
            Ok(event.map(|event| EventId(Uuid::from_u128(event.value().2))))
        };
        self.store.read(look).await
    }

    async fn waiting(&self) -> Result<Vec<(u32, EventId)>> {
        let look = |snapshot: &ReadTransaction| {
            let outbox = snapshot.open_table(OUTBOX)?;
            let each = ReadableTable::iter(&outbox)?.map(|found| {
                let event = found?.1;
                let (partition, _, id, ..) = event.value();
                Ok((partition, EventId(Uuid::from_u128(id))))
            });
            each.collect()
        };
        self.store.read(look).await
    }

    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool> {
        let halt = halt.clone();
        let write = move |transaction: &WriteTransaction| {
            let mut one = transaction.open_table(ONE)?;
            let row = leader(&one)?;
            if row.epoch != epoch || row.halt.is_some() || !row.is_free_for(holder) {
                return Ok(false);
            }
            let row = LeaderRow { halt: Some(halt.id), holder: None, until_ms: 0, ..row };
            rows::put(&mut one, LEADER, &row)?;
            let row = HaltRow {
                found_ms: halt.found_at.as_millisecond(),
                finding: halt.finding,
                decided_ms: None,
                decided_by: None,
                choice: None,
                outcome: None,
            };
            rows::put(&mut transaction.open_table(HALT)?, halt.id.as_u128(), &row)?;
            Ok(true)
        };
        self.store.write(Synced::Now, write).await
    }

    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted> {
        let forgets = self.mutation.is(Mutant::NoMemoryOfTheBus);
        let (decision, adoption) = (decision.clone(), adoption.clone());
        let adopt = move |transaction: &WriteTransaction| {
            end(transaction, &decision, Some(adoption.epoch))?;
            pin(transaction, &adoption)?;
            if !forgets {
                remember(transaction, &adoption.on_bus)?;
            }
            let generations = owner::adopted(&generations::read(transaction)?, &adoption.generations);
            let adopted = number(transaction, &generations, &adoption.tails)?;
            let outcome = Some(adopted.to_string());
            say(transaction, decision.halt, |row| row.outcome = outcome)?;
            Ok(adopted)
        };
        self.store.write(Synced::Now, adopt).await
    }

    async fn resume(&self, decision: &Decision) -> Result<()> {
        let decision = decision.clone();
        self.store.write(Synced::Now, move |transaction| end(transaction, &decision, None)).await
    }

    async fn halts(&self, most: usize) -> Result<Vec<Halted>> {
        let look = move |snapshot: &ReadTransaction| {
            let halts = snapshot.open_table(HALT)?;
            let each = ReadableTable::iter(&halts)?.map(|found| {
                let (id, row) = found?;
                Ok(halted(Uuid::from_u128(id.value()), rows::read(row.value())?))
            });
            let mut halts = each.collect::<Result<Vec<_>>>()?;
            halts.sort_by_key(|halted| std::cmp::Reverse(halted.halt.found_at));
            halts.truncate(most);
            Ok(halts)
        };
        self.store.read(look).await
    }
}

fn standing(snapshot: &ReadTransaction, holder: Uuid) -> Result<Standing> {
    let one = snapshot.open_table(ONE)?;
    let (leader, service) = (leader(&one)?, generations::service(&one)?);
    let halts = snapshot.open_table(HALT)?;
    let halt = match leader.halt {
        Some(id) => rows::get(&halts, id.as_u128())?.map(|row| halted(id, row).halt),
        None => None,
    };
    let counted = |(partition, row): (u32, PartitionRow)| Counted {
        removed: Mark { partition, sequence: row.removed_sequence, id: row.removed_id.map(EventId) },
        numbered: row.numbered,
    };
    Ok(Standing {
        epoch: leader.epoch,
        is_free: leader.is_free_for(holder),
        lease: leader.until_ms.to_string(),
        incarnation: service.incarnation,
        halt,
        generations: service.generations,
        partitions: self::counted(&snapshot.open_table(PARTITION)?)?.into_iter().map(counted).collect(),
    })
}

/// Lets somebody lead again, from `epoch` on if it is a higher one, and writes down who decided it.
fn end(transaction: &WriteTransaction, decision: &Decision, epoch: Option<u64>) -> Result<()> {
    let mut one = transaction.open_table(ONE)?;
    let row = leader(&one)?;
    if row.halt != Some(decision.halt) {
        return Err(fencing::not_halted(decision.halt));
    }
    let row = LeaderRow { halt: None, epoch: row.epoch.max(epoch.unwrap_or(0)), ..row };
    rows::put(&mut one, LEADER, &row)?;
    say(transaction, decision.halt, |row| {
        row.decided_ms = Some(now_ms());
        row.decided_by = Some(decision.by.clone());
        row.choice = Some(decision.choice.clone());
    })
}

fn say(transaction: &WriteTransaction, halt: Uuid, say: impl FnOnce(&mut HaltRow)) -> Result<()> {
    let mut halts = transaction.open_table(HALT)?;
    let row: Option<HaltRow> = rows::get(&halts, halt.as_u128())?;
    let mut row = row.ok_or_else(|| fencing::not_halted(halt))?;
    say(&mut row);
    rows::put(&mut halts, halt.as_u128(), &row)
}

fn pin(transaction: &WriteTransaction, adoption: &Adoption) -> Result<()> {
    let mut one = transaction.open_table(ONE)?;
    let row = generations::service(&one)?;
    rows::put(&mut one, SERVICE, &ServiceRow { incarnation: Some(adoption.incarnation), ..row })
}

/// Remembers what is on the bus.
fn remember(transaction: &WriteTransaction, ids: &[EventId]) -> Result<()> {
    let mut known = transaction.open_table(KNOWN)?;
    for id in ids {
        known.insert(id.0.as_u128(), ())?;
    }
    Ok(())
}

/// Drops the rows that are on the bus, those that were kept for later included, and numbers the others after its tails, in
/// the last generation, in the order of their positions.
fn number(transaction: &WriteTransaction, generations: &Generations, tails: &[Mark]) -> Result<Adopted> {
    transaction.open_table(PARTITION)?.retain(|_, _| false)?;
    generations::store(transaction, generations)?;
    let dropped = drop_known(transaction)? + drop_known_later(transaction)?;
    // Only consequences come again under the same id; a request's event never does.
    let is_consequence = |id| Uuid::from_u128(id).get_version() == Some(uuid::Version::Sha1);
    transaction.open_table(KNOWN)?.retain(|id, ()| is_consequence(id))?;
    let mut partitions = transaction.open_table(PARTITION)?;
    for tail in tails {
        let row = PartitionRow {
            numbered: tail.sequence,
            removed_sequence: tail.sequence,
            removed_id: tail.id.map(|id| id.0),
            ..PartitionRow::default()
        };
        rows::put(&mut partitions, tail.partition, &row)?;
    }
    drop(partitions);
    let kept = after_tails(transaction, generations)?;
    generations::seal(transaction, generations)?;
    Ok(Adopted { dropped, kept })
}

/// Removes what waits and is on the bus; returns how many.
fn drop_known(transaction: &WriteTransaction) -> Result<u64> {
    let known = transaction.open_table(KNOWN)?;
    let mut outbox = transaction.open_table(OUTBOX)?;
    let mut gone = Vec::new();
    for found in outbox.iter()? {
        let (position, event) = found?;
        if known.get(event.value().2)?.is_some() {
            gone.push(position.value());
        }
    }
    for position in &gone {
        outbox.remove(position)?;
    }
    Ok(gone.len() as u64)
}

/// The same of what is kept for later.
fn drop_known_later(transaction: &WriteTransaction) -> Result<u64> {
    let (known, kept) = (transaction.open_table(KNOWN)?, transaction.open_table(LATER_ID)?);
    let mut gone = Vec::new();
    for found in kept.iter()? {
        let id = found?.0.value();
        if known.get(id)?.is_some() {
            gone.push(EventId(Uuid::from_u128(id)));
        }
    }
    drop((known, kept));
    later::remove(transaction, &gone)
}

/// Numbers what waits after what is on the bus, in the present generation; returns how many.
fn after_tails(transaction: &WriteTransaction, generations: &Generations) -> Result<u64> {
    let (mut outbox, mut numbers) = (transaction.open_table(OUTBOX)?, transaction.open_table(NUMBER)?);
    let mut partitions = transaction.open_table(PARTITION)?;
    numbers.retain(|_, _| false)?;
    let mut after = 0;
    let mut kept = 0;
    // One after the other, because what waits may be more than memory holds.
    while let Some(waiting) = first_after(&outbox, after)? {
        let Waiting { position, partition, id, event_type, written_ms, bytes } = waiting;
        let partition = match generations.each().len() {
            1 => partition,
            _ => generations.partition(key_of(EventId(Uuid::from_u128(id)), bytes.clone().into())),
        };
        let mut row: PartitionRow = rows::get(&partitions, partition)?.unwrap_or_default();
        row.numbered += 1;
        row.waiting_bytes += bytes.len() as u64;
        outbox.insert(position, (partition, row.numbered, id, &*event_type, written_ms, &*bytes))?;
        numbers.insert((partition, row.numbered), position)?;
        rows::put(&mut partitions, partition, &row)?;
        after = position;
        kept += 1;
    }
    Ok(kept)
}

/// An event that waits, out of its row.
struct Waiting {
    position: u64,
    partition: u32,
    id: u128,
    event_type: String,
    written_ms: i64,
    bytes: Vec<u8>,
}

fn first_after(outbox: &impl ReadableTable<u64, rows::OutboxEvent>, after: u64) -> Result<Option<Waiting>> {
    let Some(found) = outbox.range(after + 1..)?.next() else { return Ok(None) };
    let (position, event) = found?;
    let (partition, _, id, event_type, written_ms, bytes) = event.value();
    Ok(Some(Waiting {
        position: position.value(),
        partition,
        id,
        event_type: event_type.to_owned(),
        written_ms,
        bytes: bytes.to_vec(),
    }))
}

fn halted(id: Uuid, row: HaltRow) -> Halted {
    let found_at = Timestamp::from_millisecond(row.found_ms).unwrap_or_default();
    let decision = row.decided_by.zip(row.choice).map(|(by, choice)| Decision { halt: id, by, choice });
    Halted { halt: Halt { id, found_at, finding: row.finding }, decision, outcome: row.outcome }
}
