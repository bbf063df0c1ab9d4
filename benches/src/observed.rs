//! The two ports with a stamp at each call: a bus and a database that do what the ones inside them do.
//!
//! Invariant: nothing is changed, delayed or answered here; the calls go through, and the clock is read.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::watch;
use tombolo_bus::{
    Append, Appended, Bus, Guarantee, Read, RecordStream, Registration, Signal, SignalStream, Tail, Topic,
    TopicSpec,
};
use tombolo_db::sqlite::{Sqlite, Tx};
use tombolo_db::{
    Claim, Committed, CursorState, Cursors, Database, Depth, Leader, Mark, Outbox, OutboxRow, Outgoing,
    Owner, Publisher, RoundLimit, Schema, StartAt, Transaction,
};
use tombolo_event::{Cursor, EventId, Incarnation, ServiceName};
use uuid::Uuid;

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

/// A SQLite database whose rounds and transactions are stamped.
#[derive(Clone)]
pub(crate) struct ObservedDatabase {
    inner: Sqlite,
    hops: Arc<Hops>,
    /// How many events became visible.
    pub(crate) visible: Arc<watch::Sender<usize>>,
}

impl ObservedDatabase {
    pub(crate) fn new(inner: Sqlite, hops: Arc<Hops>) -> Self {
        Self { inner, hops, visible: Arc::new(watch::Sender::new(0)) }
    }

    /// The database itself.
    pub(crate) fn inner(&self) -> &Sqlite {
        &self.inner
    }
}

#[async_trait]
impl Database for ObservedDatabase {
    type Tx = ObservedTx;
    type Connection = SqliteConnection;

    async fn write_outgoing(
        &self,
        connection: &mut SqliteConnection,
        outgoing: Outgoing,
    ) -> tombolo_db::Result<Committed> {
        self.inner.write_outgoing(connection, outgoing).await
    }

    async fn begin(&self, publisher: &Publisher) -> tombolo_db::Result<ObservedTx> {
        let called = now_ns();
        let inner = self.inner.begin(publisher).await?;
        let (database, handled) = (self.clone(), Vec::new());
        Ok(ObservedTx { inner, database, called, begun: now_ns(), cursor: None, handled })
    }
}

#[async_trait]
impl Outbox for ObservedDatabase {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn prepare(&self, owner: &Owner, schema: Schema) -> tombolo_db::Result<()> {
        self.inner.prepare(owner, schema).await
    }

    async fn lead(&self, holder: Uuid, lease: Duration) -> tombolo_db::Result<Option<Box<dyn Leader>>> {
        let leader = self.inner.lead(holder, lease).await?;
        let hops = self.hops.clone();
        Ok(leader.map(|inner| Box::new(ObservedLeader { inner, hops }) as Box<dyn Leader>))
    }

    async fn depth(&self) -> tombolo_db::Result<Depth> {
        self.inner.depth().await
    }
}

#[async_trait]
impl Cursors for ObservedDatabase {
    async fn open(
        &self,
        subscription: &str,
        types: &[String],
        starts: &[StartAt],
        accept: bool,
    ) -> tombolo_db::Result<Vec<String>> {
        self.inner.open(subscription, types, starts, accept).await
    }

    async fn claim(
        &self,
        subscription: &str,
        holder: Uuid,
        lease: Duration,
        most: usize,
    ) -> tombolo_db::Result<Vec<Claim>> {
        self.inner.claim(subscription, holder, lease, most).await
    }

    async fn renew(&self, subscription: &str, holder: Uuid, lease: Duration) -> tombolo_db::Result<usize> {
        self.inner.renew(subscription, holder, lease).await
    }

    async fn release(&self, subscription: &str, holder: Uuid) -> tombolo_db::Result<()> {
        self.inner.release(subscription, holder).await
    }

    async fn record_attempt(&self, claim: &Claim, event: EventId, error: &str) -> tombolo_db::Result<u32> {
        self.inner.record_attempt(claim, event, error).await
    }

    async fn cursors(&self) -> tombolo_db::Result<Vec<CursorState>> {
        self.inner.cursors().await
    }
}

struct ObservedLeader {
    inner: Box<dyn Leader>,
    hops: Arc<Hops>,
}

#[async_trait]
impl Leader for ObservedLeader {
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    fn marks(&self) -> &[Mark] {
        self.inner.marks()
    }

    async fn pin(&mut self, found: Incarnation) -> tombolo_db::Result<()> {
        self.inner.pin(found).await
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> tombolo_db::Result<Vec<OutboxRow>> {
        let called = now_ns();
        let rows = self.inner.round(done, limit).await?;
        let taken = now_ns();
        for row in &rows {
            self.hops.at(row.id, Hop::RoundCalled, called);
            self.hops.at(row.id, Hop::RoundTaken, taken);
        }
        Ok(rows)
    }

    async fn renew(&mut self) -> tombolo_db::Result<()> {
        self.inner.renew().await
    }

    async fn resign(self: Box<Self>, done: &[Mark]) -> tombolo_db::Result<()> {
        self.inner.resign(done).await
    }
}

/// A transaction whose steps are stamped.
pub(crate) struct ObservedTx {
    inner: Tx,
    database: ObservedDatabase,
    called: u64,
    begun: u64,
    cursor: Option<u64>,
    handled: Vec<EventId>,
}

impl ObservedTx {
    /// The handler of `id` runs.
    pub(crate) fn handles(&mut self, id: EventId) {
        let hops = &self.database.hops;
        hops.at(id, Hop::BeginCalled, self.called);
        hops.at(id, Hop::Begun, self.begun);
        hops.now(id, Hop::Handler);
        self.handled.push(id);
    }
}

impl Deref for ObservedTx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.inner
    }
}

impl DerefMut for ObservedTx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.inner
    }
}

#[async_trait]
impl Transaction for ObservedTx {
    fn outgoing(&mut self) -> &mut Outgoing {
        self.inner.outgoing()
    }

    fn is_used(&self) -> bool {
        self.inner.is_used()
    }

    async fn advance(&mut self, claim: &Claim, to: &Cursor) -> tombolo_db::Result<()> {
        self.cursor.get_or_insert_with(now_ns);
        Transaction::advance(&mut self.inner, claim, to).await
    }

    async fn commit(self) -> tombolo_db::Result<Committed> {
        let Self { inner, database, cursor, handled, .. } = self;
        let called = now_ns();
        let committed = Transaction::commit(inner).await?;
        let visible = now_ns();
        for id in &handled {
            database.hops.at(*id, Hop::CursorCalled, cursor.unwrap_or(called));
            database.hops.at(*id, Hop::ApplyCalled, called);
            database.hops.at(*id, Hop::Visible, visible);
        }
        database.visible.send_modify(|count| *count += handled.len());
        Ok(committed)
    }

    async fn rollback(self) -> tombolo_db::Result<()> {
        Transaction::rollback(self.inner).await
    }
}
