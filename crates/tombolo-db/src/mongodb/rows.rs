//! Tombolo's own collections, and what their documents hold.
//!
//! What has a name of several parts has it twice: as its `_id`, by which it is found and written, and in fields, by which it
//! is looked for. Ids of events and replicas are their 16 bytes.
//!
//! Invariant: documents of a version are read by the next one, which only adds fields.

use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Binary, Bson, Document, doc, serialize_to_raw_document_buf};
use ::mongodb::{ClientSession, Collection};
use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};
use uuid::Uuid;

use super::failure::refused;
use super::{Mongodb, signed};
use crate::{Claim, Error, Kind, Result};

/// What there is one of: [`VERSION`], [`SERVICE`], [`LEADER`], [`OPENING`], [`CLAIMS`].
pub(super) const ONE: &str = "one";
/// How far each partition is numbered and removed.
pub(super) const PARTITION: &str = "partition";
/// The positions that the keys of each stripe were given last.
pub(super) const STRIPE: &str = "stripe";
/// The events that wait for the relay.
pub(super) const OUTBOX: &str = "outbox";
/// The events whose time has not come.
pub(super) const LATER: &str = "later";
/// Consequences that are on the bus, though this database was restored since.
pub(super) const KNOWN: &str = "known";
/// What was found to differ from the bus, and what was decided.
pub(super) const HALT: &str = "halt";
/// The types that each subscription handles.
pub(super) const SUBSCRIPTION: &str = "subscription";
/// Where each subscription stands, and who holds it.
pub(super) const CURSOR: &str = "cursor";
/// Who wants each subscription, for as long as its lease lasts.
pub(super) const MEMBER: &str = "member";
/// The calls of effects: those after their cursor, and the last ones before it.
pub(super) const CALL: &str = "effect_call";
/// What could not be handled, and what came behind it of the same key.
pub(super) const PARKED: &str = "parked";
/// What operators asked, and what became of it.
pub(super) const REQUEST: &str = "request";
/// Which build of each view is read.
pub(super) const VIEW: &str = "view";
/// The builds of each view; a dropped one keeps its name.
pub(super) const BUILD: &str = "build";

/// In [`ONE`]: the version of these collections.
pub(super) const VERSION: &str = "version";
/// In [`ONE`]: whose database it is.
pub(super) const SERVICE: &str = "service";
/// In [`ONE`]: the relay.
pub(super) const LEADER: &str = "leader";
/// In [`ONE`]: touched by whoever changes what subscriptions and builds there are.
pub(super) const OPENING: &str = "opening";
/// In [`ONE`]: touched by whoever claims.
pub(super) const CLAIMS: &str = "claims";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ServiceRow {
    pub(super) service: String,
    pub(super) generations: Generations,
    /// Of the topic, once it was seen.
    pub(super) incarnation: Option<Incarnation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LeaderRow {
    pub(super) epoch: i64,
    pub(super) holder: Option<Uuid>,
    pub(super) until_ms: i64,
    /// Why nobody may lead.
    pub(super) halt: Option<Uuid>,
    /// The session of whoever leads: what a successor ends if it is in the way.
    #[serde(default)]
    pub(super) session: Option<Document>,
}

impl LeaderRow {
    /// The epoch under which somebody may lead; 0, which nobody has, while the database is halted.
    pub(super) fn led(&self) -> u64 {
        if self.halt.is_none() { self.epoch.unsigned_abs() } else { 0 }
    }

    /// Whether `holder` could lead at `now_ms`: nobody else's lease holds.
    pub(super) fn is_free_for(&self, holder: Uuid, now_ms: i64) -> bool {
        self.until_ms <= now_ms || self.holder == Some(holder)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PartitionRow {
    #[serde(rename = "_id")]
    pub(super) partition: u32,
    pub(super) numbered: i64,
    pub(super) removed_sequence: i64,
    pub(super) removed_id: Option<Uuid>,
    /// Its last number, in earlier generations.
    pub(super) sealed: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StripeRow {
    #[serde(rename = "_id")]
    pub(super) stripe: i64,
    /// The position that was given last: microseconds since 1970, and more than the one before.
    pub(super) at: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OutboxDocument {
    #[serde(rename = "_id")]
    pub(super) place: ObjectId,
    /// The position, with `nth` for the events of one transaction.
    pub(super) at: i64,
    pub(super) nth: i64,
    /// Given by the relay before it is sent, with its sequence; before that a hint.
    pub(super) partition: u32,
    pub(super) sequence: Option<i64>,
    pub(super) id: Uuid,
    pub(super) key_hash: i64,
    pub(super) event_type: String,
    pub(super) bytes: Binary,
    pub(super) size: i64,
    pub(super) written_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LaterRow {
    #[serde(rename = "_id")]
    pub(super) id: Uuid,
    pub(super) due_us: i64,
    /// The order in which those of one key and one due time were kept.
    pub(super) at: i64,
    pub(super) nth: i64,
    pub(super) key_hash: i64,
    pub(super) event_type: String,
    pub(super) bytes: Binary,
    pub(super) size: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CursorRow {
    #[serde(rename = "_id")]
    pub(super) place: String,
    pub(super) subscription: String,
    pub(super) topic: ServiceName,
    pub(super) partition: u32,
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
    #[serde(rename = "_id")]
    pub(super) place: String,
    pub(super) subscription: String,
    pub(super) replica: Uuid,
    pub(super) life: Uuid,
    /// Whether it wants all partitions or none.
    pub(super) whole: bool,
    pub(super) until_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CallRow {
    #[serde(rename = "_id")]
    pub(super) place: String,
    pub(super) subscription: String,
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) sequence: u64,
    pub(super) id: Uuid,
    pub(super) attempts: u32,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) done_ms: Option<i64>,
}

/// What is known of a parked event, without its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ParkedRow {
    #[serde(rename = "_id")]
    pub(super) place: String,
    pub(super) subscription: String,
    pub(super) topic: ServiceName,
    pub(super) partition: u32,
    pub(super) sequence: u64,
    pub(super) id: Uuid,
    pub(super) key_hash: i64,
    pub(super) event_type: String,
    pub(super) parked_ms: i64,
    pub(super) attempts: u32,
    pub(super) unfinished: u32,
    pub(super) error: Option<String>,
    pub(super) retry_ms: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ParkedDocument {
    #[serde(flatten)]
    pub(super) row: ParkedRow,
    pub(super) bytes: Binary,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RequestRow {
    #[serde(rename = "_id")]
    pub(super) id: Uuid,
    pub(super) subscription: String,
    /// Whether it waits.
    pub(super) open: bool,
    pub(super) action: String,
    pub(super) topic: Option<String>,
    pub(super) partition: Option<u32>,
    /// All of it, as JSON.
    pub(super) request: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HaltRow {
    #[serde(rename = "_id")]
    pub(super) id: Uuid,
    pub(super) found_ms: i64,
    pub(super) finding: String,
    pub(super) decided_ms: Option<i64>,
    pub(super) decided_by: Option<String>,
    pub(super) choice: Option<String>,
    pub(super) outcome: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ViewRow {
    #[serde(rename = "_id")]
    pub(super) view: String,
    pub(super) version: u32,
    pub(super) number: u32,
    /// Counts the switches.
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BuildRow {
    #[serde(rename = "_id")]
    pub(super) place: String,
    pub(super) view: String,
    pub(super) version: u32,
    pub(super) number: u32,
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

/// The name of a cursor. A topic has no slash, so it cannot be another one's.
pub(super) fn place(subscription: &str, topic: &ServiceName, partition: u32) -> String {
    format!("{subscription}/{topic}/{partition}")
}

/// The name of a claim's cursor.
pub(super) fn place_of(claim: &Claim) -> String {
    place(&claim.subscription, &claim.topic, claim.partition)
}

/// The name of what a subscription has at a sequence.
pub(super) fn numbered(claim: &Claim, sequence: u64) -> String {
    format!("{}/{sequence}", place_of(claim))
}

/// What a claim's partition has after `sequence`.
pub(super) fn after(claim: &Claim, sequence: u64) -> Document {
    let mut filter = of_partition(claim);
    filter.insert("sequence", doc! { "$gt": signed(sequence) });
    filter
}

/// What a claim's partition has.
pub(super) fn of_partition(claim: &Claim) -> Document {
    doc! {
        "subscription": &claim.subscription,
        "topic": claim.topic.as_str(),
        "partition": i64::from(claim.partition),
    }
}

/// Bytes as documents hold them.
pub(super) fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: ::mongodb::bson::spec::BinarySubtype::Generic, bytes: bytes.to_vec() }
}

/// An id as documents hold it.
pub(super) fn id(id: Uuid) -> Bson {
    Bson::Binary(binary(id.as_bytes()))
}

/// The ids as documents hold them.
pub(super) fn ids(ids: impl IntoIterator<Item = Uuid>) -> Vec<Bson> {
    ids.into_iter().map(id).collect()
}

/// The same of one that may be missing.
pub(super) fn event_id(id: Option<EventId>) -> Bson {
    id.map_or(Bson::Null, |event| self::id(event.0))
}

/// Our clock, for what people read.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The fields of a row.
pub(super) fn fields(row: &impl Serialize) -> Result<Document> {
    let raw = serialize_to_raw_document_buf(row).and_then(|raw| Document::try_from(&raw));
    raw.map_err(|error| {
        Error::new(Kind::Database, "a document of Tombolo's collections could not be written").because(error)
    })
}

impl Mongodb {
    /// A collection of Tombolo's.
    pub(super) fn rows<R: Send + Sync>(&self, name: &str) -> Collection<R> {
        self.database.collection(&format!("{}{name}", self.prefix))
    }

    /// What there is one of.
    pub(super) async fn one<R>(&self, session: &mut ClientSession, name: &str) -> Result<Option<R>>
    where
        R: DeserializeOwned + Send + Sync,
    {
        Ok(self.rows(ONE).find_one(doc! { "_id": name }).session(session).await?)
    }

    /// Writes what nobody else may write at the same time, so that whoever does is refused.
    pub(super) async fn touch(&self, session: &mut ClientSession, name: &str) -> Result<()> {
        let rows = self.rows::<Document>(ONE);
        let touch = rows.update_one(doc! { "_id": name }, doc! { "$inc": { "touched": 1_i64 } });
        touch.upsert(true).session(session).await?;
        Ok(())
    }

    /// What a filter lets through, as the transaction sees it.
    pub(super) async fn all<R>(
        &self,
        session: &mut ClientSession,
        name: &str,
        filter: Document,
        order: Document,
    ) -> Result<Vec<R>>
    where
        R: DeserializeOwned + Send + Sync + Unpin,
    {
        let mut found = self.rows::<R>(name).find(filter).sort(order).session(&mut *session).await?;
        Ok(found.stream(session).try_collect().await?)
    }

    /// The same outside a transaction.
    pub(super) async fn look<R>(&self, name: &str, filter: Document, order: Document) -> Result<Vec<R>>
    where
        R: DeserializeOwned + Send + Sync + Unpin,
    {
        Ok(self.rows::<R>(name).find(filter).sort(order).await?.try_collect().await?)
    }

    /// Puts a row in the place of what has its `_id`.
    pub(super) async fn put<R>(
        &self,
        session: &mut ClientSession,
        name: &str,
        id: impl Into<Bson>,
        row: &R,
    ) -> Result<()>
    where
        R: Serialize + Send + Sync,
    {
        let rows = self.rows::<R>(name);
        let put = rows.replace_one(doc! { "_id": id.into() }, row);
        put.upsert(true).session(session).await?;
        Ok(())
    }

    /// Runs a command of many statements in one message; any of them that is refused is an error.
    pub(super) async fn run(
        &self,
        session: Option<&mut ClientSession>,
        name: &str,
        (verb, statements): (&str, &str),
        each: Vec<Document>,
    ) -> Result<()> {
        if each.is_empty() {
            return Ok(());
        }
        let mut command = doc! { verb: format!("{}{name}", self.prefix), statements: each };
        let answer = match session {
            Some(session) => self.database.run_command(command).session(session).await?,
            None => {
                command.insert("writeConcern", doc! { "w": "majority", "j": true });
                self.database.run_command(command).await?
            }
        };
        let wrong = answer.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
        match wrong {
            Some(wrong) => Err(refused(
                wrong.get_i32("code").unwrap_or_default(),
                wrong.get_str("errmsg").unwrap_or_default(),
            )),
            None => Ok(()),
        }
    }

    /// The server's clock, by which leases are kept. It may be a moment old when it is compared, which only makes a lease
    /// of another last longer.
    pub(super) async fn server_ms(&self) -> Result<i64> {
        let hello = self.database.run_command(doc! { "hello": 1 }).await?;
        let time = hello.get_datetime("localTime").map_err(|error| {
            Error::new(Kind::Database, "the server does not tell its time (hello.localTime)").because(error)
        })?;
        Ok(time.timestamp_millis())
    }
}

/// The verbs of commands with many statements.
pub(super) const UPDATE: (&str, &str) = ("update", "updates");
pub(super) const DELETE: (&str, &str) = ("delete", "deletes");
