//! What MongoDB does when its database and the bus do not agree.
//!
//! takes: an operator's decision · writes: numbers, marks, what was published before, the end of the halt · commits:
//! all of it in one transaction · if we crash here: the database is halted as before · if it repeats: the
//! halt is over, and the repeat is refused.
//!
//! Whoever publishes meanwhile is not held up: what it writes has no number, and the next leader drops it if it is on the bus.
//!
//! Invariant: while the bus's word is taken nobody leads, and nobody numbers.

use ::mongodb::ClientSession;
use ::mongodb::bson::{Bson, Document, doc};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use tombolo_event::{EventId, Generations};
use uuid::{Uuid, Version};

use super::outbox::{KnownRow, leader_of, mark};
use super::rows::{
    self, HALT, HaltRow, KNOWN, LATER, LEADER, LeaderRow, ONE, OUTBOX, OutboxDocument, PARTITION,
    PartitionRow, SERVICE, UPDATE, event_id, now_ms,
};
use super::session::Tries;
use super::{Mongodb, limit, signed};
use crate::mutant::Mutant;
use crate::port::recovery::{Adopted, Adoption, Counted, Decision, Halt, Halted, Standing};
use crate::{Mark, Recovery, Result, fencing, owner};

/// The ids that go into one statement.
const IDS_PER_STATEMENT: usize = 10_000;

#[async_trait]
impl Recovery for Mongodb {
    async fn standing(&self, holder: Uuid) -> Result<Standing> {
        let now_ms = self.server_ms().await?;
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let looked = self.standing_now(&mut session, holder, now_ms).await;
            if let Some(standing) = tries.end(&mut session, looked).await? {
                return Ok(standing);
            }
        }
    }

    async fn numbered(&self, partition: u32, sequence: u64) -> Result<Option<EventId>> {
        let its = doc! { "partition": i64::from(partition), "sequence": signed(sequence) };
        let found = self.rows::<OutboxDocument>(OUTBOX).find_one(its).await?;
        Ok(found.map(|row| EventId(row.id)))
    }

    async fn waiting(&self) -> Result<Vec<(u32, EventId)>> {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Waiting {
            partition: u32,
            id: Uuid,
        }
        let rows = self.rows::<Waiting>(OUTBOX);
        let rows = rows.find(doc! {}).sort(doc! { "at": 1, "nth": 1 });
        let rows = rows.projection(doc! { "partition": 1, "id": 1 }).allow_disk_use(true).await?;
        Ok(rows.map_ok(|row| (row.partition, EventId(row.id))).try_collect().await?)
    }

    async fn halt(&self, halt: &Halt, epoch: u64, holder: Uuid) -> Result<bool> {
        let mut tries = Tries::new();
        loop {
            let now_ms = self.server_ms().await?;
            let mut session = self.session().await?;
            let halted = self.halt_now(&mut session, halt, (epoch, holder, now_ms)).await;
            if let Some(is_halted) = tries.end(&mut session, halted).await? {
                return Ok(is_halted);
            }
        }
    }

    async fn adopt(&self, decision: &Decision, adoption: &Adoption) -> Result<Adopted> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let adopted = self.adopt_now(&mut session, decision, adoption).await;
            if let Some(adopted) = tries.end(&mut session, adopted).await? {
                return Ok(adopted);
            }
        }
    }

    async fn resume(&self, decision: &Decision) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let ended = self.end_halt(&mut session, decision, None).await;
            if let Some(()) = tries.end(&mut session, ended).await? {
                return Ok(());
            }
        }
    }

    async fn halts(&self, most: usize) -> Result<Vec<Halted>> {
        let rows = self.rows::<HaltRow>(HALT);
        let rows = rows.find(doc! {}).sort(doc! { "found_ms": -1 }).limit(limit(most));
        Ok(rows.await?.map_ok(halted).try_collect().await?)
    }
}

impl Mongodb {
    async fn standing_now(&self, session: &mut ClientSession, holder: Uuid, now_ms: i64) -> Result<Standing> {
        let service = self.service(session).await?;
        let leader = leader_of(self.one::<LeaderRow>(session, LEADER).await?)?;
        let halt = match leader.halt {
            Some(id) => {
                let rows = self.rows::<HaltRow>(HALT);
                let found = rows.find_one(doc! { "_id": rows::id(id) });
                found.session(&mut *session).await?.map(|row| halted(row).halt)
            }
            None => None,
        };
        let counted =
            |row: &PartitionRow| Counted { removed: mark(row), numbered: row.numbered.unsigned_abs() };
        Ok(Standing {
            epoch: leader.epoch.unsigned_abs(),
            is_free: leader.is_free_for(holder, now_ms),
            lease: leader.until_ms.to_string(),
            incarnation: service.incarnation,
            halt,
            generations: service.generations,
            partitions: self.partitions(session).await?.iter().map(counted).collect(),
        })
    }

    async fn halt_now(
        &self,
        session: &mut ClientSession,
        halt: &Halt,
        (epoch, holder, now_ms): (u64, Uuid, i64),
    ) -> Result<bool> {
        let leader = leader_of(self.one::<LeaderRow>(session, LEADER).await?)?;
        let is_ours = leader.is_free_for(holder, now_ms) && leader.epoch == signed(epoch);
        if !is_ours || leader.halt.is_some() {
            return Ok(false);
        }
        let set = doc! { "halt": rows::id(halt.id), "holder": Bson::Null, "until_ms": 0_i64 };
        let rows = self.rows::<Document>(ONE);
        let set = rows.update_one(doc! { "_id": LEADER }, doc! { "$set": set });
        set.session(&mut *session).await?;
        let row = HaltRow {
            id: halt.id,
            found_ms: halt.found_at.as_millisecond(),
            finding: halt.finding.clone(),
            decided_ms: None,
            decided_by: None,
            choice: None,
            outcome: None,
        };
        self.rows::<HaltRow>(HALT).insert_one(row).session(session).await?;
        Ok(true)
    }

    /// Lets somebody lead again, from `epoch` on if it is a higher one, and writes down who decided it.
    async fn end_halt(
        &self,
        session: &mut ClientSession,
        decision: &Decision,
        epoch: Option<u64>,
    ) -> Result<()> {
        let change = doc! {
            "$set": { "halt": Bson::Null },
            "$max": { "epoch": signed(epoch.unwrap_or(0)) },
        };
        let halted = doc! { "_id": LEADER, "halt": rows::id(decision.halt) };
        let ended = self.rows::<Document>(ONE).update_one(halted, change).session(&mut *session).await?;
        if ended.matched_count == 0 {
            return Err(fencing::not_halted(decision.halt));
        }
        let said = doc! { "decided_ms": now_ms(), "decided_by": &decision.by, "choice": &decision.choice };
        self.say(session, decision.halt, said).await
    }

    async fn say(&self, session: &mut ClientSession, halt: Uuid, said: Document) -> Result<()> {
        let rows = self.rows::<Document>(HALT);
        let say = rows.update_one(doc! { "_id": rows::id(halt) }, doc! { "$set": said });
        say.session(session).await?;
        Ok(())
    }

    async fn adopt_now(
        &self,
        session: &mut ClientSession,
        decision: &Decision,
        adoption: &Adoption,
    ) -> Result<Adopted> {
        self.end_halt(session, decision, Some(adoption.epoch)).await?;
        let pin = doc! { "$set": { "incarnation": rows::id(adoption.incarnation.0) } };
        self.rows::<Document>(ONE).update_one(doc! { "_id": SERVICE }, pin).session(&mut *session).await?;
        let mut dropped = 0;
        if !self.mutation.is(Mutant::NoMemoryOfTheBus) {
            dropped = self.drop_waiting(session, &adoption.on_bus).await?;
            self.remember(session, &adoption.on_bus).await?;
        }
        let known = self.service(session).await?.generations;
        let generations = owner::adopted(&known, &adoption.generations);
        self.unnumber(session, &generations, &adoption.tails).await?;
        let kept = self.rows::<Document>(OUTBOX).count_documents(doc! {}).session(&mut *session).await?;
        let adopted = Adopted { dropped, kept };
        self.say(session, decision.halt, doc! { "outcome": adopted.to_string() }).await?;
        Ok(adopted)
    }

    /// Drops the rows that are on the bus, those that were kept for later included; returns how many.
    async fn drop_waiting(&self, session: &mut ClientSession, on_bus: &[EventId]) -> Result<u64> {
        let mut dropped = 0;
        for some in on_bus.chunks(IDS_PER_STATEMENT) {
            let these = rows::ids(some.iter().map(|id| id.0));
            let rows = self.rows::<Document>(OUTBOX);
            let gone = rows.delete_many(doc! { "id": { "$in": these.clone() } });
            dropped += gone.session(&mut *session).await?.deleted_count;
            let rows = self.rows::<Document>(LATER);
            let gone = rows.delete_many(doc! { "_id": { "$in": these } });
            dropped += gone.session(&mut *session).await?.deleted_count;
        }
        Ok(dropped)
    }

    /// Remembers the consequences on the bus: only they come again under the same id; a request's event never does.
    async fn remember(&self, session: &mut ClientSession, on_bus: &[EventId]) -> Result<()> {
        let again = on_bus.iter().filter(|id| id.0.get_version() == Some(Version::Sha1));
        let again: Vec<KnownRow> = again.map(|id| KnownRow { id: id.0 }).collect();
        for some in again.chunks(IDS_PER_STATEMENT) {
            let each = some.iter().map(|row| {
                let id = doc! { "_id": rows::id(row.id) };
                doc! { "q": id, "u": { "$setOnInsert": { "on_bus": true } }, "upsert": true }
            });
            self.run(Some(&mut *session), KNOWN, UPDATE, each.collect()).await?;
        }
        Ok(())
    }

    /// Takes the numbers of what waits away: the next leader gives them new ones, after the tails.
    async fn unnumber(
        &self,
        session: &mut ClientSession,
        generations: &Generations,
        tails: &[Mark],
    ) -> Result<()> {
        self.rows::<PartitionRow>(PARTITION).delete_many(doc! {}).session(&mut *session).await?;
        self.store_generations(session, generations).await?;
        let none = doc! { "$set": { "sequence": Bson::Null } };
        let numbered = doc! { "sequence": { "$ne": Bson::Null } };
        self.rows::<Document>(OUTBOX).update_many(numbered, none).session(&mut *session).await?;
        let each = tails.iter().map(|tail| {
            let sequence = signed(tail.sequence);
            let set =
                doc! { "numbered": sequence, "removed_sequence": sequence, "removed_id": event_id(tail.id) };
            doc! { "q": { "_id": i64::from(tail.partition) }, "u": { "$set": set } }
        });
        self.run(Some(&mut *session), PARTITION, UPDATE, each.collect()).await?;
        self.seal(session, generations).await
    }
}

fn halted(row: HaltRow) -> Halted {
    let found_at = Timestamp::from_millisecond(row.found_ms).unwrap_or_default();
    let decision = row.decided_by.zip(row.choice).map(|(by, choice)| Decision { halt: row.id, by, choice });
    Halted { halt: Halt { id: row.id, found_at, finding: row.finding }, decision, outcome: row.outcome }
}
