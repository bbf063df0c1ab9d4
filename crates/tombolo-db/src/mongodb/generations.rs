//! How the topic is divided into partitions, in MongoDB.
//!
//! takes: what is there and one generation more · writes: the generations, the documents in which partitions are counted, the
//! outcome of the request · commits: under the leader's epoch, in one transaction · if we crash here: the topic is divided as
//! before, and the request waits · if it repeats: it is not the next division any more: refused.
//!
//! Whoever publishes writes the partition that it finds here, without touching anything, so a row may say one of an earlier
//! generation when the relay comes to number it. The relay goes by the row's key alone (`numbering.rs`).
//!
//! Invariant: a number is only ever given in the present generation, because whoever numbers and whoever divides touch the
//! leader's document.

use ::mongodb::ClientSession;
use ::mongodb::bson::doc;
use tombolo_event::Generations;

use super::Mongodb;
use super::rows::{ONE, PARTITION, PartitionRow, SERVICE, ServiceRow, UPDATE, fields};
use crate::{Result, fencing, owner};

impl Mongodb {
    /// Whose database it is.
    pub(super) async fn service(&self, session: &mut ClientSession) -> Result<ServiceRow> {
        self.one(session, SERVICE).await?.ok_or_else(fencing::nobodys)
    }

    /// Makes these the present ones, and the documents in which their partitions are counted.
    pub(super) async fn store_generations(
        &self,
        session: &mut ClientSession,
        generations: &Generations,
    ) -> Result<()> {
        let row = ServiceRow { generations: generations.clone(), ..self.service(session).await? };
        let rows = self.rows::<ServiceRow>(ONE);
        let stored = rows.update_one(doc! { "_id": SERVICE }, doc! { "$set": fields(&row)? });
        stored.session(&mut *session).await?;
        let mut made = Vec::new();
        for partition in 0..generations.partitions() {
            let row =
                PartitionRow { partition, numbered: 0, removed_sequence: 0, removed_id: None, sealed: None };
            let id = doc! { "_id": i64::from(partition) };
            made.push(doc! { "q": id, "u": { "$setOnInsert": fields(&row)? }, "upsert": true });
        }
        self.run(Some(&mut *session), PARTITION, UPDATE, made).await?;
        let beyond = doc! { "_id": { "$gte": i64::from(generations.partitions()) } };
        self.rows::<PartitionRow>(PARTITION).delete_many(beyond).session(session).await?;
        Ok(())
    }

    /// Seals the partitions of earlier generations at their last numbers.
    pub(super) async fn seal(&self, session: &mut ClientSession, generations: &Generations) -> Result<()> {
        let first = generations.partitions() - generations.present();
        let earlier = doc! { "_id": { "$lt": i64::from(first) } };
        let rows = self.rows::<PartitionRow>(PARTITION);
        let seal = rows.update_many(earlier, vec![doc! { "$set": { "sealed": "$numbered" } }]);
        seal.session(session).await?;
        Ok(())
    }

    /// Begins the next generation.
    pub(super) async fn divide(&self, session: &mut ClientSession, next: &Generations) -> Result<()> {
        owner::check_next(&self.service(session).await?.generations, next)?;
        self.store_generations(session, next).await?;
        self.seal(session, next).await
    }

    /// Every partition, in order.
    pub(super) async fn partitions(&self, session: &mut ClientSession) -> Result<Vec<PartitionRow>> {
        self.all(session, PARTITION, doc! {}, doc! { "_id": 1 }).await
    }
}
