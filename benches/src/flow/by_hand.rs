//! The path as a team would write it by hand: an outbox table, a task that carries 100 rows at a time, a cursor.
//!
//! Invariant: a row is removed only when its copy has committed, so that it loses nothing either.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::TRANSACTION_EVENTS;
use super::ground::{Ground, Store, until_count};
use crate::error::Result;

/// Rows that are carried in one transaction of the consumer.
const CARRIED_ROWS: i64 = 100;

pub(crate) struct Path<D: Store> {
    pub(crate) producer: D,
    pub(crate) consumer: D,
}

impl<D: Store> Path<D> {
    pub(crate) async fn start<G: Ground<Database = D>>(ground: &G) -> Result<Self> {
        Ok(Self { producer: ground.fresh("hand-source").await?, consumer: ground.fresh("hand-sight").await? })
    }

    /// Events per second from the first commit until the last copy.
    pub(crate) async fn carry(&self, numbers: Range<i64>) -> Result<f64> {
        let woken = Arc::new(Notify::new());
        let began = Instant::now();
        let relay =
            tokio::spawn(relay(self.producer.clone(), self.consumer.clone(), woken.clone(), numbers.end));
        for first in numbers.clone().step_by(TRANSACTION_EVENTS as usize) {
            self.producer.hand_commit(first..first + TRANSACTION_EVENTS).await?;
            woken.notify_one();
        }
        until_count(&self.consumer, numbers.end).await?;
        let took = began.elapsed();
        relay.await??;
        Ok((numbers.end - numbers.start) as f64 / took.as_secs_f64())
    }
}

async fn relay<D: Store>(producer: D, consumer: D, woken: Arc<Notify>, end: i64) -> Result<()> {
    loop {
        let rows = producer.hand_take(CARRIED_ROWS).await?;
        let Some((last, _)) = rows.last() else {
            woken.notified().await;
            continue;
        };
        consumer.hand_apply(&rows).await?;
        producer.hand_remove(*last).await?;
        if *last + 1 == end {
            return Ok(());
        }
    }
}
