//! Tombolo's own tables in the store, and what their rows hold.
//!
//! Rows are JSON, so that a later version adds fields and reads the rows of before; what is written for each event is not.
//! Collections of the users' stand beside them, under names that none of these can have.
//!
//! Invariant: every table here is made by `prepare`, so a missing one is a database that was not prepared.

use redb::{Key, ReadableTable, Table, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tombolo_event::operator::Request;
use tombolo_event::{Cursor, Generations, Incarnation};
use uuid::Uuid;

use super::failure::{unreadable, unwritable};
use crate::Result;

/// A row that is JSON.
pub(super) type Json = &'static [u8];
/// Subscription, topic, partition.
pub(super) type Place = (&'static str, &'static str, u32);
/// A place with a sequence.
pub(super) type Numbered = (&'static str, &'static str, u32, u64);
/// Partition, sequence, id, type, milliseconds since 1970 when it was written, and the stored bytes of an event in the outbox.
pub(super) type OutboxEvent = (u32, u64, u128, &'static str, i64, &'static [u8]);
/// Id, hash of the key, type and stored bytes of an event that is kept for later.
pub(super) type LaterEvent = (u128, u64, &'static str, &'static [u8]);
/// Subscription, topic, hash of the key, partition, sequence of a parked event.
pub(super) type OfKey = (&'static str, &'static str, u64, u32, u64);

/// What there is one of, by the names below.
pub(super) const ONE: TableDefinition<&str, Json> = TableDefinition::new("tombolo/one");
/// How far each partition is numbered and removed.
pub(super) const PARTITION: TableDefinition<u32, Json> = TableDefinition::new("tombolo/partition");
/// The events that wait for the relay, by position.
pub(super) const OUTBOX: TableDefinition<u64, OutboxEvent> = TableDefinition::new("tombolo/outbox");
/// Their positions, by partition and sequence.
pub(super) const NUMBER: TableDefinition<(u32, u64), u64> = TableDefinition::new("tombolo/number");
/// The events whose time has not come, by due time in microseconds since 1970 and the order in which they were kept.
pub(super) const LATER: TableDefinition<(i64, u64), LaterEvent> = TableDefinition::new("tombolo/later");
/// Their places, by id.
pub(super) const LATER_ID: TableDefinition<u128, (i64, u64)> = TableDefinition::new("tombolo/later-id");
/// Consequences that are on the bus, though this database was restored since.
pub(super) const KNOWN: TableDefinition<u128, ()> = TableDefinition::new("tombolo/known");
/// What was found to differ from the bus, and what was decided.
pub(super) const HALT: TableDefinition<u128, Json> = TableDefinition::new("tombolo/halt");
/// The types that each subscription handles.
pub(super) const SUBSCRIPTION: TableDefinition<&str, Json> = TableDefinition::new("tombolo/subscription");
/// Where each subscription stands, and who holds it.
pub(super) const CURSOR: TableDefinition<Place, Json> = TableDefinition::new("tombolo/cursor");
/// Who wants each subscription, by replica, for as long as its lease lasts.
pub(super) const MEMBER: TableDefinition<(&str, u128), Json> = TableDefinition::new("tombolo/member");
/// The calls of effects: those after their cursor, and the last ones before it.
pub(super) const CALL: TableDefinition<Numbered, Json> = TableDefinition::new("tombolo/call");
/// The events that could not be handled, and those behind them of the same key: what is known of each, and its stored bytes.
pub(super) const PARKED: TableDefinition<Numbered, (Json, &[u8])> = TableDefinition::new("tombolo/parked");
/// The same by key.
pub(super) const PARKED_KEY: TableDefinition<OfKey, ()> = TableDefinition::new("tombolo/parked-key");
/// What operators asked, and what became of it.
pub(super) const REQUEST: TableDefinition<u128, Json> = TableDefinition::new("tombolo/request");
/// Those that wait, by subscription.
pub(super) const OPEN: TableDefinition<(&str, u128), ()> = TableDefinition::new("tombolo/open");
/// Which build of each view is read.
pub(super) const VIEW: TableDefinition<&str, Json> = TableDefinition::new("tombolo/view");
/// The builds of each view, by version and number; a dropped one keeps its name.
pub(super) const BUILD: TableDefinition<(&str, u32, u32), Json> = TableDefinition::new("tombolo/build");

/// In [`ONE`]: the version of these tables.
pub(super) const VERSION: &str = "version";
/// In [`ONE`]: whose database it is.
pub(super) const SERVICE: &str = "service";
/// In [`ONE`]: the relay.
pub(super) const LEADER: &str = "leader";
/// In [`ONE`]: what was given and what is kept, so that nobody has to count.
pub(super) const COUNTS: &str = "counts";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ServiceRow {
    pub(super) service: String,
    pub(super) generations: Generations,
    /// Of the topic, once it was seen.
    pub(super) incarnation: Option<Incarnation>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct LeaderRow {
    pub(super) epoch: u64,
    pub(super) holder: Option<Uuid>,
    pub(super) until_ms: i64,
    /// Why nobody may lead.
    pub(super) halt: Option<Uuid>,
}

impl LeaderRow {
    /// The epoch under which somebody may lead; 0, which nobody has, while the database is halted.
    pub(super) fn led(&self) -> u64 {
        if self.halt.is_none() { self.epoch } else { 0 }
    }

    /// Whether `holder` could lead: nobody else's lease holds.
    pub(super) fn is_free_for(&self, holder: Uuid) -> bool {
        self.until_ms <= now_ms() || self.holder == Some(holder)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct CountsRow {
    /// The position that was given last; it never repeats.
    pub(super) position: u64,
    /// The same of what is kept for later.
    pub(super) later: u64,
    pub(super) later_rows: u64,
    pub(super) later_bytes: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct PartitionRow {
    pub(super) numbered: u64,
    pub(super) removed_sequence: u64,
    pub(super) removed_id: Option<Uuid>,
    pub(super) waiting_bytes: u64,
    /// Its last number, in earlier generations.
    pub(super) sealed: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CursorRow {
    pub(super) cursor: Cursor,
    pub(super) lease_epoch: u64,
    pub(super) holder: Option<Uuid>,
    pub(super) until_ms: i64,
    pub(super) attempts: u32,
    pub(super) attempt_id: Option<Uuid>,
    pub(super) error: Option<String>,
    pub(super) moved_ms: Option<i64>,
    /// The holder before did not release it.
    pub(super) abandoned: bool,
    /// The most events of its next transaction.
    pub(super) in_hand: u32,
    pub(super) paused_by: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MemberRow {
    pub(super) life: Uuid,
    /// Whether it wants all partitions or none.
    pub(super) whole: bool,
    pub(super) until_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CallRow {
    pub(super) id: Uuid,
    pub(super) attempts: u32,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) done_ms: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ParkedRow {
    pub(super) id: Uuid,
    pub(super) key_hash: u64,
    pub(super) event_type: String,
    pub(super) parked_ms: i64,
    pub(super) attempts: u32,
    pub(super) unfinished: u32,
    pub(super) error: Option<String>,
    pub(super) retry_ms: Option<i64>,
}

/// A request as it was asked, with its outcome once it has one.
pub(super) type RequestRow = Request;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HaltRow {
    pub(super) found_ms: i64,
    pub(super) finding: String,
    pub(super) decided_ms: Option<i64>,
    pub(super) decided_by: Option<String>,
    pub(super) choice: Option<String>,
    pub(super) outcome: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ViewRow {
    pub(super) version: u32,
    pub(super) number: u32,
    /// Counts the switches.
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BuildRow {
    pub(super) subscription: String,
    pub(super) namespace: String,
    /// The names of its collections, unless they are the user's own.
    pub(super) tables: Option<String>,
    /// Who asked for it, if it is a further one.
    pub(super) request: Option<Uuid>,
    pub(super) switches: bool,
    pub(super) live_epoch: Option<u64>,
    /// When it was switched away from last.
    pub(super) left_ms: Option<i64>,
    pub(super) made_ms: i64,
    pub(super) dropped_ms: Option<i64>,
}

/// The clock by which leases are kept.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Reads a row of JSON.
pub(super) fn get<'k, K: Key + 'static, R: DeserializeOwned>(
    table: &impl ReadableTable<K, Json>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
) -> Result<Option<R>> {
    table.get(key)?.map(|row| read(row.value())).transpose()
}

/// Writes a row of JSON.
pub(super) fn put<'k, K: Key + 'static>(
    table: &mut Table<'_, K, Json>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
    row: &impl Serialize,
) -> Result<()> {
    table.insert(key, &*write(row)?)?;
    Ok(())
}

/// A row out of its JSON.
pub(super) fn read<R: DeserializeOwned>(row: &[u8]) -> Result<R> {
    serde_json::from_slice(row)
        .map_err(|error| unreadable("a row of Tombolo's tables, which somebody changed by hand,", error))
}

/// A row as JSON.
pub(super) fn write(row: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(row).map_err(|error| unwritable("a row of Tombolo's tables", error))
}
