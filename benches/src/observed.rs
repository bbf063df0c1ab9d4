//! A bus with a stamp at each call, and a worker with a stamp at each barrier of the path.
//!
//! Invariant: nothing is changed, delayed or answered here; the calls go through, and the clock is read.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::watch;
use tombolo_bus::{
    Append, Appended, Bus, Guarantee, Read, RecordStream, Registration, Signal, SignalStream, Tail, Topic,
    TopicSpec,
};
use tombolo_event::{EventId, Generations, Incarnation, ServiceName, barrier};

use crate::clock::now_ns;
use crate::hops::{Hop, Hops};

/// A bus whose appends and batches are stamped.
pub(crate) struct ObservedBus {
    inner: Arc<dyn Bus>,
    hops: Arc<Hops>,
    sent: Hop,
    stored: Hop,
    read: Hop,
}

impl ObservedBus {
    /// As the services see it.
    pub(crate) fn at_client(inner: Arc<dyn Bus>, hops: Arc<Hops>) -> Self {
        Self { inner, hops, sent: Hop::AppendSent, stored: Hop::Acknowledged, read: Hop::Delivered }
    }

    /// As the server sees its log.
    pub(crate) fn at_server(inner: Arc<dyn Bus>, hops: Arc<Hops>) -> Self {
        Self { inner, hops, sent: Hop::AppendArrived, stored: Hop::AppendSynced, read: Hop::ReadAtServer }
    }
}

#[async_trait]
impl Bus for ObservedBus {
    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> tombolo_bus::Result<Topic> {
        self.inner.ensure_topic(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> tombolo_bus::Result<Topic> {
        self.inner.topic(name).await
    }

    async fn topics(&self) -> tombolo_bus::Result<Vec<Topic>> {
        self.inner.topics().await
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> tombolo_bus::Result<Vec<Tail>> {
        self.inner.raise_epoch(topic, incarnation, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> tombolo_bus::Result<Topic> {
        self.inner.divide(topic, incarnation, epoch, generations).await
    }

    async fn append(&self, append: Append) -> tombolo_bus::Result<Appended> {
        let ids: Vec<EventId> = append.records.iter().map(|record| record.id).collect();
        ids.iter().for_each(|id| self.hops.now(*id, self.sent));
        let appended = self.inner.append(append).await?;
        ids.iter().for_each(|id| self.hops.now(*id, self.stored));
        Ok(appended)
    }

    async fn tails(&self, topic: &ServiceName) -> tombolo_bus::Result<Vec<Tail>> {
        self.inner.tails(topic).await
    }

    async fn read(&self, read: Read) -> tombolo_bus::Result<RecordStream> {
        let (hops, hop) = (self.hops.clone(), self.read);
        let batches = self.inner.read(read).await?;
        Ok(Box::pin(batches.inspect(move |batch| {
            for record in batch.iter().flat_map(|batch| &batch.records) {
                hops.now(record.id, hop);
            }
        })))
    }

    async fn signal(&self, subject: &str, signal: Signal) -> tombolo_bus::Result<tombolo_bus::Reach> {
        self.inner.signal(subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> tombolo_bus::Result<SignalStream> {
        self.inner.listen(subject, group).await
    }

    async fn register(&self, registration: &Registration) -> tombolo_bus::Result<()> {
        self.inner.register(registration).await
    }

    async fn registrations(&self) -> tombolo_bus::Result<Vec<Registration>> {
        self.inner.registrations().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// The consumer's worker, which is stamped at the barriers of the path: what its transaction has handled is visible once it
/// stands behind the commit. One for a process, because the barriers are.
pub(crate) struct Sight {
    hops: Arc<Hops>,
    /// What the open transaction has handled, and when its handlers and its cursors were done.
    open: Mutex<(Vec<EventId>, u64, u64)>,
    /// How many events became visible.
    pub(crate) visible: watch::Sender<usize>,
}

static SIGHT: OnceLock<Sight> = OnceLock::new();

impl Sight {
    /// Begins to stamp what this process's worker does.
    pub(crate) fn install(hops: Arc<Hops>) -> &'static Self {
        barrier::install(|name| {
            if let Some(sight) = SIGHT.get() {
                sight.reached(name, now_ns());
            }
        });
        SIGHT.get_or_init(|| Self { hops, open: Mutex::default(), visible: watch::Sender::new(0) })
    }

    /// The handler of `id` runs.
    pub(crate) fn handles(&self, id: EventId) {
        self.hops.now(id, Hop::Handler);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0.push(id);
    }

    fn reached(&self, name: &str, now: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            "subscription.after-effect" => open.1 = now,
            "subscription.after-cursor" => open.2 = now,
            "subscription.after-commit" => {
                let (handled, cursor, commit) = std::mem::take(&mut *open);
                for id in &handled {
                    self.hops.at(*id, Hop::CursorCalled, cursor);
                    self.hops.at(*id, Hop::ApplyCalled, commit);
                    self.hops.at(*id, Hop::Visible, now);
                }
                self.visible.send_modify(|count| *count += handled.len());
            }
            _ => {}
        }
    }
}
