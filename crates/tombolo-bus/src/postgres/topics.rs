//! Topics: made, found, listed, fenced, divided; and the ends of their partitions.
//!
//! The epoch and the seal of a topic stand in the row of each of its partitions, which every append locks, so that an append
//! needs no lock that it shares with others.
//!
//! Invariant: a change of a topic holds the rows of all its partitions, in their order, until it is on disk: no append is under
//! way in any of them, and the tails that it tells are final for older epochs.

use sqlx::Row;
use sqlx::postgres::PgRow;
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};
use uuid::Uuid;

use super::failure::failed;
use super::link::{Lease, Link, SERVER};
use crate::adapter::refusal::{check_incarnation, older, unknown_topic};
use crate::{Error, Kind, Result, Tail, Topic, TopicSpec};

const TOPIC: &str = "id, name, incarnation, generations, epoch";

/// A topic and its number in the tables.
pub(super) struct Stored {
    id: i32,
    pub(super) topic: Topic,
}

impl Stored {
    fn read(row: &PgRow) -> Result<Self> {
        let name: String = row.try_get(1).map_err(failed)?;
        let generations: Vec<i32> = row.try_get(3).map_err(failed)?;
        let wrong = |error: tombolo_event::Error| {
            let message = format!("the row of topic {name:?} cannot be read: {error}");
            Error::new(Kind::Corrupt, message)
        };
        let each: Vec<u32> = generations.iter().map(|count| u32::try_from(*count).unwrap_or(0)).collect();
        let topic = Topic {
            name: ServiceName::new(name.as_str()).map_err(wrong)?,
            generations: Generations::try_from(each).map_err(wrong)?,
            incarnation: Incarnation(row.try_get(2).map_err(failed)?),
            epoch: unsigned(row.try_get(4).map_err(failed)?),
        };
        Ok(Self { id: row.try_get(0).map_err(failed)?, topic })
    }
}

/// A count as the tables keep it: signed, and never below 0.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// An epoch or sequence as the tables take it; there is no larger one.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The number of a partition as the tables take it.
pub(super) fn partition_number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

fn unknown(topic: &ServiceName) -> Error {
    unknown_topic(topic, SERVER)
}

impl Link {
    /// Makes the topic unless it is there.
    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<Topic> {
        let TopicSpec { name, generations, incarnation } = spec;
        self.make_tables().await?;
        if let Some(found) = self.find(name).await? {
            return found.topic.matching(spec);
        }
        let mut lease = self.lease().await?;
        lease.begin(self).await?;
        let made = sqlx::query(
            "INSERT INTO topic (name, incarnation, generations, epoch) VALUES ($1, $2, $3, 0)
             ON CONFLICT (name) DO NOTHING RETURNING id",
        );
        let made = made.bind(name.as_str()).bind(incarnation.unwrap_or_default().0).bind(counts(generations));
        if let Some(row) = self.answer(made.fetch_optional(&mut *lease)).await? {
            let id: i32 = row.try_get(0).map_err(failed)?;
            self.add_partitions(&mut lease, id, 0, generations).await?;
        }
        lease.commit(self).await?;
        // Somebody else may have been faster, and asked for something else.
        self.stored(name).await?.topic.matching(spec)
    }

    /// Adds rows for the partitions of the generations from number `first` on; all but those of the last are sealed.
    async fn add_partitions(
        &self,
        lease: &mut Lease<'_>,
        id: i32,
        first: u32,
        generations: &Generations,
    ) -> Result<()> {
        let open = generations.partitions() - generations.present();
        let add = sqlx::query(
            "INSERT INTO partition (topic, partition, incarnation, epoch, sealed, last, largest)
             SELECT id, number, incarnation, epoch, number < $4, 0, 0
             FROM topic, generate_series($2, $3) AS number WHERE id = $1",
        );
        let add = add.bind(id).bind(partition_number(first));
        let add = add.bind(partition_number(generations.partitions() - 1)).bind(partition_number(open));
        self.answer(add.execute(&mut **lease)).await.map(drop)
    }

    async fn find(&self, name: &ServiceName) -> Result<Option<Stored>> {
        if !self.has_tables().await? {
            return Ok(None);
        }
        let mut lease = self.lease().await?;
        let asked = format!("SELECT {TOPIC} FROM topic WHERE name = $1");
        let asked = sqlx::query(sqlx::AssertSqlSafe(asked)).bind(name.as_str());
        let row = self.answer(asked.fetch_optional(&mut *lease)).await?;
        lease.keep();
        row.as_ref().map(Stored::read).transpose()
    }

    /// A topic by name.
    pub(super) async fn stored(&self, name: &ServiceName) -> Result<Stored> {
        self.find(name).await?.ok_or_else(|| unknown(name))
    }

    /// All topics, by name.
    pub(super) async fn all_topics(&self) -> Result<Vec<Topic>> {
        if !self.has_tables().await? {
            return Ok(Vec::new());
        }
        let mut lease = self.lease().await?;
        let asked = format!("SELECT {TOPIC} FROM topic ORDER BY name COLLATE \"C\"");
        let rows = self.answer(sqlx::query(sqlx::AssertSqlSafe(asked)).fetch_all(&mut *lease)).await?;
        lease.keep();
        rows.iter().map(|row| Ok(Stored::read(row)?.topic)).collect()
    }

    pub(super) async fn tails(&self, name: &ServiceName) -> Result<Vec<Tail>> {
        if !self.has_tables().await? {
            return Err(unknown(name));
        }
        let mut lease = self.lease().await?;
        let asked = sqlx::query(
            "SELECT p.partition, p.last, p.last_id FROM topic AS t JOIN partition AS p ON p.topic = t.id
             WHERE t.name = $1 ORDER BY p.partition",
        );
        let rows = self.answer(asked.bind(name.as_str()).fetch_all(&mut *lease)).await?;
        lease.keep();
        if rows.is_empty() {
            return Err(unknown(name));
        }
        rows.iter().map(tail).collect()
    }

    /// Locks the rows of a topic and of all its partitions, in their order, in the lease's transaction.
    async fn hold(&self, lease: &mut Lease<'_>, name: &ServiceName) -> Result<(Stored, Vec<Tail>)> {
        let asked = format!("SELECT {TOPIC} FROM topic WHERE name = $1 FOR UPDATE");
        let asked = sqlx::query(sqlx::AssertSqlSafe(asked)).bind(name.as_str());
        let row = self.answer(asked.fetch_optional(&mut **lease)).await?;
        let found = row.as_ref().map(Stored::read).transpose()?.ok_or_else(|| unknown(name))?;
        let rows = sqlx::query(
            "SELECT partition, last, last_id FROM partition WHERE topic = $1 ORDER BY partition FOR UPDATE",
        );
        let rows = self.answer(rows.bind(found.id).fetch_all(&mut **lease)).await?;
        let tails = rows.iter().map(tail).collect::<Result<_>>()?;
        Ok((found, tails))
    }

    pub(super) async fn raise(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        if !self.has_tables().await? {
            return Err(unknown(name));
        }
        let mut lease = self.lease().await?;
        lease.begin(self).await?;
        let (found, tails) = self.hold(&mut lease, name).await?;
        check_incarnation(name, found.topic.incarnation, incarnation)?;
        if epoch < found.topic.epoch {
            return Err(older(name, epoch, found.topic.epoch));
        }
        if epoch > found.topic.epoch {
            for table in [
                "UPDATE topic SET epoch = $2 WHERE id = $1",
                "UPDATE partition SET epoch = $2 WHERE topic = $1",
            ] {
                let raised = sqlx::query(table).bind(found.id).bind(signed(epoch));
                self.answer(raised.execute(&mut *lease)).await?;
            }
        }
        lease.commit(self).await?;
        Ok(tails)
    }

    /// Seals every partition of the present generation and begins the next one.
    pub(super) async fn divide(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        if !self.has_tables().await? {
            return Err(unknown(name));
        }
        let mut lease = self.lease().await?;
        lease.begin(self).await?;
        let (found, _) = self.hold(&mut lease, name).await?;
        check_incarnation(name, found.topic.incarnation, incarnation)?;
        if epoch != found.topic.epoch {
            return Err(older(name, epoch, found.topic.epoch));
        }
        if found.topic.is_to_be_divided(generations)? {
            let seal = sqlx::query("UPDATE partition SET sealed = $2 WHERE topic = $1").bind(found.id);
            self.answer(seal.bind(self.seals()).execute(&mut *lease)).await?;
            let next = sqlx::query("UPDATE topic SET generations = $2 WHERE id = $1").bind(found.id);
            self.answer(next.bind(counts(generations)).execute(&mut *lease)).await?;
            self.add_partitions(&mut lease, found.id, found.topic.partitions(), generations).await?;
        }
        lease.commit(self).await?;
        Ok(Topic { generations: generations.clone(), ..found.topic })
    }
}

fn counts(generations: &Generations) -> Vec<i32> {
    generations.each().iter().map(|count| partition_number(*count)).collect()
}

fn tail(row: &PgRow) -> Result<Tail> {
    let partition: i32 = row.try_get(0).map_err(failed)?;
    let id: Option<Uuid> = row.try_get(2).map_err(failed)?;
    Ok(Tail {
        partition: u32::try_from(partition).unwrap_or(u32::MAX),
        sequence: unsigned(row.try_get(1).map_err(failed)?),
        id: id.map(EventId),
    })
}

#[cfg(feature = "mutants")]
impl Link {
    fn seals(&self) -> bool {
        self.mutant != Some(super::Mutant::DivideWithoutSeals)
    }
}

#[cfg(not(feature = "mutants"))]
#[expect(clippy::unused_self, reason = "a switch of the test build asks the connection")]
impl Link {
    fn seals(&self) -> bool {
        true
    }
}
