//! The outbox of MongoDB: who leads, what waits, and what is done.
//!
//! takes: marks of what the bus acknowledged · writes: epochs, marks, removals · commits: all of a round in one transaction
//! that touches the leader's document (`numbering.rs`) · if we crash here: the next leader hands out the same rows with the
//! same numbers first · if it repeats: the bus finds the same bytes under them.
//!
//! Invariant: who leads is one document, which changes only by a guarded update, and by the server's clock.

use std::collections::BTreeMap;
use std::time::Duration;

use ::mongodb::ClientSession;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, Document, doc};
use ::mongodb::options::ReturnDocument;
use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use tombolo_event::{EventId, Generations, Position};
use uuid::Uuid;

use super::failure::is_conflict;
use super::numbering::MongodbLeader;
use super::rows::{
    self, DELETE, KNOWN, LATER, LEADER, LaterRow, LeaderRow, ONE, OUTBOX, OutboxDocument, PARTITION,
    PartitionRow, UPDATE, binary, event_id, now_ms,
};
use super::session::Tries;
use super::transaction::Touched;
use super::{Mongodb, limit, millis, signed};
use crate::mutant::Mutant;
use crate::outgoing::Row;
use crate::port::due_time;
use crate::{Depth, Leader, Mark, Outbox, Outgoing, Owner, Result, Schema, fencing};

/// The rows that [`Outbox::depth`] counts one by one, in the outbox and for later; beyond them it estimates.
const DEPTH_EXACT_ROWS: usize = 50_000;
/// The rows of one insert; the driver cuts them into messages.
const INSERT_ROWS_MAX: usize = 10_000;

#[async_trait]
impl Outbox for Mongodb {
    fn kind(&self) -> &'static str {
        "mongodb"
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> Result<()> {
        self.prepare_collections(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> Result<Option<Box<dyn Leader>>> {
        let mut tries = Tries::new();
        loop {
            let now_ms = self.server_ms().await?;
            let found = self.rows::<LeaderRow>(ONE).find_one(doc! { "_id": LEADER }).await?;
            let found = leader_of(found)?;
            if !found.is_free_for(holder, now_ms) {
                return Ok(None);
            }
            let mut session = self.session().await?;
            let won = self.win(&mut session, holder, (now_ms, lease)).await;
            let is_held = won.as_ref().is_err_and(is_conflict);
            match tries.end(&mut session, won).await? {
                Some(won) => return Ok(won.map(|won| leader(self, lease, won, session))),
                // The lease is free, and yet somebody has the document: whoever led died inside a transaction.
                None if is_held => self.end_sessions(found.session).await,
                None => {}
            }
        }
    }

    async fn depth(&self) -> Result<Depth> {
        let waiting = self.counted(OUTBOX).await?;
        let later = self.counted(LATER).await?;
        Ok(Depth {
            rows: waiting.rows,
            bytes: waiting.bytes,
            oldest: waiting.first.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            later_rows: later.rows,
            later_bytes: later.bytes,
            next_due: self.next_due().await?,
            parked_rows: 0,
        })
    }

    async fn complete(&self, positions: &mut [Position]) -> Result<()> {
        let open = positions.iter().filter(|position| position.sequence.is_none());
        let ids = rows::ids(open.map(|position| position.id.0));
        if ids.is_empty() {
            return Ok(());
        }
        let numbered = doc! { "id": { "$in": ids }, "sequence": { "$ne": null } };
        for row in self.look::<OutboxDocument>(OUTBOX, numbered, doc! {}).await? {
            let is_its = |position: &&mut Position| position.id.0 == row.id && position.sequence.is_none();
            for position in positions.iter_mut().filter(is_its) {
                position.sequence = row.sequence.map(i64::unsigned_abs);
                position.partition = row.partition;
            }
        }
        Ok(())
    }
}

/// What somebody who leads begins with.
pub(super) struct Won {
    pub(super) epoch: u64,
    pub(super) generations: Generations,
    pub(super) marks: Vec<Mark>,
}

fn leader(database: &Mongodb, lease: Duration, won: Won, session: ClientSession) -> Box<dyn Leader> {
    Box::new(MongodbLeader::new(database.clone(), lease, won, session))
}

/// How much a collection has.
#[derive(Default)]
struct Counted {
    rows: u64,
    bytes: u64,
    first: Option<i64>,
}

impl Mongodb {
    /// Raises the epoch, if the lease is free, and reads the marks.
    async fn win(
        &self,
        session: &mut ClientSession,
        holder: Uuid,
        (now_ms, lease): (i64, Duration),
    ) -> Result<Option<Won>> {
        let mut free = doc! {
            "_id": LEADER,
            "$or": [{ "until_ms": { "$lte": now_ms } }, { "holder": rows::id(holder) }],
        };
        if !self.mutation.is(Mutant::NoHalt) {
            free.insert("halt", Bson::Null);
        }
        let until_ms = now_ms.saturating_add(millis(lease));
        let set = doc! { "holder": rows::id(holder), "until_ms": until_ms, "session": session.id().clone() };
        let rows = self.rows::<LeaderRow>(ONE);
        let raised = rows.find_one_and_update(free, doc! { "$inc": { "epoch": 1_i64 }, "$set": set });
        let raised = raised.return_document(ReturnDocument::After).session(&mut *session).await?;
        let Some(row) = raised else { return Ok(None) };
        if self.mutation.is(Mutant::NumberingNotDurable) {
            self.forget_numbers(session).await?;
        }
        let generations = self.service(session).await?.generations;
        let marks = self.partitions(session).await?.iter().map(mark).collect();
        Ok(Some(Won { epoch: row.epoch.unsigned_abs(), generations, marks }))
    }

    async fn end_sessions(&self, session: Option<Document>) {
        let Some(session) = session else { return };
        if let Err(error) = self.end_session(session).await {
            tracing::debug!(%error, "what the relay before left open ends by itself");
        }
    }

    /// What it would be if numbers lived in the relay's memory: a new leader knows none of them.
    async fn forget_numbers(&self, session: &mut ClientSession) -> Result<()> {
        let none = doc! { "$set": { "sequence": null } };
        self.rows::<Document>(OUTBOX).update_many(doc! {}, none).session(&mut *session).await?;
        let none = vec![doc! { "$set": { "numbered": "$removed_sequence" } }];
        self.rows::<Document>(PARTITION).update_many(doc! {}, none).session(session).await?;
        Ok(())
    }

    /// The rows and bytes of a collection, exactly or, beyond the bound, estimated from as many of its documents.
    async fn counted(&self, name: &str) -> Result<Counted> {
        let some = doc! { "$limit": limit(DEPTH_EXACT_ROWS) };
        let sum = doc! { "$group": {
            "_id": null, "rows": { "$sum": 1_i64 }, "bytes": { "$sum": "$size" }, "first": { "$min": "$written_ms" },
        } };
        let rows = self.rows::<Document>(name);
        let Some(found) = rows.aggregate([some, sum]).await?.try_next().await? else {
            return Ok(Counted::default());
        };
        let number = |name| whole(found.get(name)).unwrap_or_default().unsigned_abs();
        let counted =
            Counted { rows: number("rows"), bytes: number("bytes"), first: whole(found.get("first")) };
        if counted.rows < DEPTH_EXACT_ROWS as u64 {
            return Ok(counted);
        }
        let all = rows.estimated_document_count().await?.max(counted.rows);
        let bytes = (counted.bytes as f64 * (all as f64 / counted.rows as f64)) as u64;
        Ok(Counted { rows: all, bytes, ..counted })
    }

    /// When the next event that is kept for later is due.
    pub(super) async fn next_due(&self) -> Result<Option<Timestamp>> {
        let first = self.rows::<LaterRow>(LATER).find_one(doc! {}).sort(doc! { "due_us": 1 }).await?;
        Ok(first.map(|row| due_time(row.due_us)))
    }

    /// Inserts rows without numbers, but for consequences that are on the bus already.
    pub(super) async fn insert(
        &self,
        session: &mut ClientSession,
        rows: &[Row],
        touched: &Touched,
        generations: &Generations,
    ) -> Result<()> {
        let known = self.on_bus_already(session, &Outgoing::consequences(rows)).await?;
        let written_ms = now_ms();
        let document = |(nth, row): (usize, &Row)| OutboxDocument {
            place: ObjectId::new(),
            at: touched.at(row.key_hash),
            nth: nth as i64,
            partition: generations.partition(row.key_hash),
            sequence: None,
            id: row.id.0,
            key_hash: row.key_hash.0.cast_signed(),
            event_type: row.event_type.clone(),
            bytes: binary(&row.bytes),
            size: row.bytes.len() as i64,
            written_ms,
        };
        let is_new = |(_, row): &(usize, &Row)| !known.contains(&row.id.0);
        let documents: Vec<OutboxDocument> = rows.iter().enumerate().filter(is_new).map(document).collect();
        for some in documents.chunks(INSERT_ROWS_MAX) {
            self.rows::<OutboxDocument>(OUTBOX).insert_many(some).session(&mut *session).await?;
        }
        Ok(())
    }

    /// The consequences among `ids` that are on the bus already.
    pub(super) async fn on_bus_already(
        &self,
        session: &mut ClientSession,
        ids: &[Uuid],
    ) -> Result<Vec<Uuid>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let these = doc! { "_id": { "$in": rows::ids(ids.iter().copied()) } };
        let known: Vec<KnownRow> = self.all(session, KNOWN, these, doc! {}).await?;
        Ok(known.into_iter().map(|row| row.id).collect())
    }

    /// Moves the marks and removes the rows below them.
    pub(super) async fn remove(&self, session: &mut ClientSession, news: &[Mark]) -> Result<()> {
        if news.is_empty() {
            return Ok(());
        }
        let known: BTreeMap<u32, PartitionRow> =
            self.partitions(session).await?.into_iter().map(|row| (row.partition, row)).collect();
        let (mut gone, mut moved) = (Vec::new(), Vec::new());
        for Mark { partition, sequence, id } in news {
            let reached = known.get(partition).filter(|row| row.numbered >= signed(*sequence));
            let before = reached.ok_or_else(|| fencing::beyond_numbers(news))?.removed_sequence;
            let partition = i64::from(*partition);
            let sequence = signed(*sequence);
            let below = doc! { "partition": partition, "sequence": { "$gt": before, "$lte": sequence } };
            gone.push(doc! { "q": below, "limit": 0 });
            let mark = doc! { "removed_sequence": sequence, "removed_id": event_id(*id) };
            moved.push(doc! { "q": { "_id": partition }, "u": { "$set": mark } });
        }
        self.run(Some(&mut *session), OUTBOX, DELETE, gone).await?;
        self.run(Some(session), PARTITION, UPDATE, moved).await
    }
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct KnownRow {
    #[serde(rename = "_id")]
    pub(super) id: Uuid,
}

/// A number, of whatever width the server computed it.
fn whole(number: Option<&Bson>) -> Option<i64> {
    match number? {
        Bson::Int64(number) => Some(*number),
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

pub(super) fn mark(row: &PartitionRow) -> Mark {
    Mark {
        partition: row.partition,
        sequence: row.removed_sequence.unsigned_abs(),
        id: row.removed_id.map(EventId),
    }
}

/// The relay's document is not there, so nobody prepared the database.
pub(super) fn leader_of(found: Option<LeaderRow>) -> Result<LeaderRow> {
    found.ok_or_else(fencing::nobodys)
}
