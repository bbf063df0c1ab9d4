//! One partition on its way to the program: one event at a time, the next one only when the cursor has moved over it.
//!
//! Invariant: what comes next is read off the cursor in the program's database, never off what the program answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Read, Record, Topic};
use tombolo_db::{Database, Goal};
use tombolo_event::{Backoff, Cursor};

use super::post::{Answer, Receiver};
use super::words;

/// How long to wait after a failure.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

/// What delivers a partition.
pub(super) struct Lane<D> {
    pub(super) database: D,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) receiver: Arc<Receiver>,
    pub(super) subscription: String,
    pub(super) topic: Topic,
    pub(super) partition: u32,
    pub(super) stop: CancellationToken,
}

/// Why a lane begins anew.
enum Pause {
    /// It was told to end.
    Stopped,
    /// The same again after a while: it is said, if it was not said before.
    Retry(String),
}

impl<D: Database> Lane<D> {
    /// Delivers until it is told to end.
    pub(super) async fn run(self) {
        let (mut attempt, mut said) = (0, String::new());
        while !self.stop.is_cancelled() {
            let mut progress = false;
            let Err(Pause::Retry(why)) = self.follow(&mut progress).await else { return };
            attempt = if progress { 0 } else { attempt + 1 };
            if progress || said != why {
                tracing::warn!(subscription = self.subscription, "{}: {why}", self.place());
                said = why;
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(AGAIN.jittered(attempt)) => {}
            }
        }
    }

    fn place(&self) -> String {
        format!("{}/{}", self.topic.name, self.partition)
    }

    /// Reads after the cursor, and delivers what comes. `progress` is set when the cursor has moved.
    async fn follow(&self, progress: &mut bool) -> Result<(), Pause> {
        let cursor = self.cursor().await?;
        self.await_turn().await?;
        let read = Read::following(&self.topic.name, self.partition, cursor);
        let retry = |error: tombolo_bus::Error| Pause::Retry(words(&error));
        let mut stream = self.bus.read(read).await.map_err(retry)?;
        loop {
            let batch = tokio::select! {
                () = self.stop.cancelled() => return Err(Pause::Stopped),
                batch = stream.next() => batch,
            };
            let Some(batch) = batch else {
                return Err(Pause::Retry("the bus ended the stream; reads on from the cursor".into()));
            };
            for record in batch.map_err(retry)?.records {
                if self.stop.is_cancelled() {
                    return Err(Pause::Stopped);
                }
                self.deliver(&record).await?;
                *progress = true;
            }
        }
    }

    /// Brings one event, and looks whether the cursor has moved over it.
    async fn deliver(&self, record: &Record) -> Result<(), Pause> {
        let answer = self.receiver.post(&self.subscription, &self.topic.name, self.partition, record).await;
        let (sequence, place) = (record.sequence, self.place());
        if self.cursor().await?.sequence >= sequence {
            if let Answer::Refused(said) = answer {
                tracing::info!("{place}/{sequence} is applied, although {} {said}", self.receiver.url());
            }
            return Ok(());
        }
        let why = match answer {
            Answer::Taken(status) => format!(
                "{} answered {status} to event {sequence} ({}), but the cursor of subscription {} is still before it: the program has to call the procedure `apply` in the transaction of its effect, and commit it, before it answers",
                self.receiver.url(),
                record.type_name(),
                self.subscription
            ),
            Answer::Refused(said) => {
                format!("{} {said} to event {sequence} ({})", self.receiver.url(), record.type_name())
            }
        };
        Err(Pause::Retry(why))
    }

    async fn cursor(&self) -> Result<Cursor, Pause> {
        let found = self.database.cursor(&self.subscription, &self.topic.name, self.partition).await;
        let found = found.map_err(|error| Pause::Retry(words(&error)))?;
        found.ok_or_else(|| Pause::Retry("its cursor is gone from the database; it is made again".into()))
    }

    /// A partition of a later generation has its turn when everything before it is applied.
    async fn await_turn(&self) -> Result<(), Pause> {
        let generations = &self.topic.generations;
        let first = generations.beside(self.partition).map_or(0, |beside| beside.start);
        if first == 0 {
            return Ok(());
        }
        let tails = self.bus.tails(&self.topic.name).await.map_err(|error| Pause::Retry(words(&error)))?;
        let earlier = tails.iter().filter(|tail| tail.partition < first);
        let goal = |tail: &tombolo_bus::Tail| Goal {
            topic: self.topic.name.clone(),
            partition: tail.partition,
            incarnation: self.topic.incarnation,
            sequence: tail.sequence,
        };
        let goals: Vec<Goal> = earlier.map(goal).collect();
        let open = self.database.not_reached(&self.subscription, &goals).await;
        match open.map_err(|error| Pause::Retry(words(&error)))?.len() {
            0 => Ok(()),
            open => Err(Pause::Retry(format!(
                "waits for its turn: {open} of the topic's earlier partitions are not applied to their ends yet"
            ))),
        }
    }
}
