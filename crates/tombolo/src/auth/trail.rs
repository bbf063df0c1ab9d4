//! Where the reading of blocks begins: a cursor in the service's own database, which trails by as long as blocks are kept; or, in a
//! program that has none, the start of the topic.
//!
//! Invariant: a place is kept only once nothing before it can matter any more.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tombolo_bus::Topic;
use tombolo_db::{Claim, Database, Holder, Share, StartAt, Transaction};
use tombolo_event::{Cursor, ServiceName};
use uuid::Uuid;

use super::feed::{LEASE, SUBSCRIPTION};
use crate::{App, Error, Result};

/// Where places are kept between two lives of a process.
#[async_trait]
pub(crate) trait Trail: Send + Sync {
    /// The kept places of a topic, of the partitions that have one.
    async fn places(&self, topic: &Topic, types: &[String]) -> Result<BTreeMap<u32, Cursor>>;

    /// Keeps later places.
    async fn advance(&self, topic: &ServiceName, moves: &BTreeMap<u32, Cursor>) -> Result<()>;
}

/// Nothing is kept: each life reads from the start.
pub(crate) struct NoTrail;

#[async_trait]
impl Trail for NoTrail {
    async fn places(&self, _topic: &Topic, _types: &[String]) -> Result<BTreeMap<u32, Cursor>> {
        Ok(BTreeMap::new())
    }

    async fn advance(&self, _topic: &ServiceName, _moves: &BTreeMap<u32, Cursor>) -> Result<()> {
        Ok(())
    }
}

/// Places in the service's own database.
pub(crate) struct InDatabase<D: Database> {
    app: App<D>,
    holder: Holder,
}

impl<D: Database> InDatabase<D> {
    pub(crate) fn new(app: App<D>) -> Self {
        Self { app, holder: Holder::new(Uuid::new_v4()) }
    }

    async fn advance_claimed(
        &self,
        topic: &ServiceName,
        claims: Vec<Claim>,
        moves: &BTreeMap<u32, Cursor>,
    ) -> Result<()> {
        let mut tx = self.app.begin().await?;
        for claim in claims.iter().filter(|claim| claim.topic == *topic) {
            let Some(to) = moves.get(&claim.partition) else { continue };
            let is_another = to.incarnation != claim.cursor.incarnation;
            if is_another || to.sequence > claim.cursor.sequence {
                tx.advance(claim, to).await.map_err(Error::from)?;
            }
        }
        tx.commit().await?;
        Ok(())
    }
}

#[async_trait]
impl<D: Database> Trail for InDatabase<D> {
    async fn places(&self, topic: &Topic, types: &[String]) -> Result<BTreeMap<u32, Cursor>> {
        let start = Cursor::start(topic.incarnation);
        let at = |partition| StartAt { topic: topic.name.clone(), partition, cursor: start };
        let starts: Vec<StartAt> = (0..topic.partitions()).map(at).collect();
        let database = self.app.database();
        database.open(SUBSCRIPTION, types, &starts, true).await?;
        let mut places = BTreeMap::new();
        for partition in 0..topic.partitions() {
            if let Some(stored) = database.cursor(SUBSCRIPTION, &topic.name, partition).await? {
                places.insert(partition, stored);
            }
        }
        Ok(places)
    }

    async fn advance(&self, topic: &ServiceName, moves: &BTreeMap<u32, Cursor>) -> Result<()> {
        let database = self.app.database();
        let claimed = database.claim(SUBSCRIPTION, self.holder, Share::Whole, LEASE).await?;
        let moved = self.advance_claimed(topic, claimed.claims, moves).await;
        database.release(SUBSCRIPTION, self.holder).await?;
        moved
    }
}
