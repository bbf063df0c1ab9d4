//! What a case acts with: a database, an event, a relay that only counts. Invariant: nothing here knows which database it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo_event::{Event, EventId, Generations, Incarnation, ServiceName, barrier};
use uuid::Uuid;

use super::{Abilities, Fixture, Tx};
use crate::{
    Claim, Claimed, Committed, Cursors, Database, Depth, Holder, Leader, Leases, Mark, Outbox, OutboxRow,
    Owner, Publisher, RoundLimit, Schema, Share, StartAt, Transaction,
};

/// A lease that no case outlives.
pub(super) const LONG: Duration = Duration::from_secs(300);
/// A lease that a case waits for the end of.
pub(super) const SHORT: Duration = Duration::from_millis(800);
/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The event of the suite.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Noted {
    pub(super) key: String,
    pub(super) value: i64,
    pub(super) padding: String,
}

impl Event for Noted {
    const TYPE: &'static str = "notes.noted.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

/// An event that the service did not declare.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Undeclared {}

impl Event for Undeclared {
    const TYPE: &'static str = "notes.undeclared.v1";
    fn key(&self) -> String {
        "key".into()
    }
}

/// An event of `key`.
pub(super) fn noted(key: &str, value: i64) -> Noted {
    Noted { key: key.into(), value, padding: String::new() }
}

/// The service of the suite, also the topic that its subscriptions read.
pub(super) fn service() -> ServiceName {
    ServiceName::new("notes").expect("a valid name")
}

/// Everything that a case needs.
pub struct Stage<F: Fixture> {
    pub(super) fixture: Arc<F>,
    pub(super) abilities: Abilities,
    woken: Arc<AtomicU64>,
}

impl<F: Fixture> Clone for Stage<F> {
    fn clone(&self) -> Self {
        Self { fixture: self.fixture.clone(), abilities: self.abilities, woken: self.woken.clone() }
    }
}

impl<F: Fixture> Stage<F> {
    pub(super) fn new(fixture: Arc<F>, abilities: Abilities) -> Self {
        Self { fixture, abilities, woken: Arc::default() }
    }

    /// A database that is ready for a service with `partitions`.
    pub(super) async fn prepared(&self, partitions: u32) -> Ready<F> {
        let database = self.fixture.fresh().await;
        database.prepare(&owner(partitions), Schema::Apply).await.expect("a fresh database is prepared");
        Ready { stage: self.clone(), database, partitions }
    }
}

/// The owner of the suite's databases.
pub(super) fn owner(partitions: u32) -> Owner {
    Owner { service: service(), partitions }
}

/// A prepared database.
pub(super) struct Ready<F: Fixture> {
    stage: Stage<F>,
    pub(super) database: F::Database,
    partitions: u32,
}

impl<F: Fixture> Clone for Ready<F> {
    fn clone(&self) -> Self {
        Self { stage: self.stage.clone(), database: self.database.clone(), partitions: self.partitions }
    }
}

impl<F: Fixture> Ready<F> {
    pub(super) fn fixture(&self) -> &F {
        &self.stage.fixture
    }

    /// How often a relay was woken.
    pub(super) fn woken(&self) -> u64 {
        self.stage.woken.load(Ordering::SeqCst)
    }

    /// The same database through connections of its own.
    pub(super) async fn reopened(&self) -> Self {
        let database = self.stage.fixture.reopen(&self.database).await;
        database.prepare(&owner(self.partitions), Schema::Check).await.expect("it was prepared before");
        Self { database, ..self.clone() }
    }

    pub(super) fn publisher(&self) -> Publisher {
        let woken = self.stage.woken.clone();
        Publisher {
            service: service(),
            declared: Arc::new([Noted::TYPE.to_owned()].into()),
            full: Arc::default(),
            wake: Arc::new(move || {
                woken.fetch_add(1, Ordering::SeqCst);
            }),
        }
    }

    pub(super) async fn begin(&self) -> Tx<F> {
        self.database.begin(&self.publisher()).await.expect("a transaction begins")
    }

    /// A transaction that published these and is not yet committed.
    pub(super) async fn publishing(&self, events: &[Noted]) -> Tx<F> {
        let mut tx = self.begin().await;
        for event in events {
            tx.outgoing().publish(event).expect("the event may be published");
        }
        tx
    }

    /// Commits these events in one transaction.
    pub(super) async fn commit(&self, events: &[Noted]) -> Committed {
        self.publishing(events).await.commit().await.expect("the transaction commits")
    }

    pub(super) async fn read(&self, key: &str) -> Option<i64> {
        self.stage.fixture.read(&self.database, key).await
    }

    pub(super) async fn depth(&self) -> Depth {
        self.database.depth().await.expect("the depth can be read")
    }

    /// Leads as `holder`, which nobody hinders.
    pub(super) async fn lead(&self, holder: Uuid) -> Box<dyn Leader> {
        self.database.lead(holder, LONG).await.expect("leading works").expect("nobody else leads")
    }

    /// Removes everything that waits, and returns it in the order in which it was handed out.
    pub(super) async fn drain(&self, leader: &mut dyn Leader) -> Vec<OutboxRow> {
        let (mut all, mut done) = (Vec::new(), Vec::new());
        loop {
            let rows = leader.round(&done, RoundLimit::default()).await.expect("a round works");
            if rows.is_empty() {
                return all;
            }
            done = marks_of(&rows);
            all.extend(rows);
        }
    }

    /// Has the leader divide the topic anew, into so many partitions.
    pub(super) async fn divide(&self, leader: &mut dyn Leader, partitions: u32) -> Generations {
        let next = leader.generations().and(partitions).expect("a topic can be divided so");
        leader.divide(&next, None).await.expect("the topic is divided");
        assert_eq!(*leader.generations(), next);
        next
    }

    /// A subscription with a cursor at the start of each partition.
    pub(super) async fn open(&self, subscription: &str) -> Incarnation {
        let incarnation = Incarnation::new();
        let start = |partition| StartAt {
            topic: service(),
            partition,
            cursor: tombolo_event::Cursor::start(incarnation),
        };
        let starts: Vec<StartAt> = (0..self.partitions).map(start).collect();
        let types = [Noted::TYPE.to_owned()];
        self.database.open(subscription, &types, &starts, true).await.expect("a subscription opens");
        incarnation
    }

    pub(super) async fn claim(&self, subscription: &str, holder: Uuid, lease: Duration) -> Vec<Claim> {
        self.share(subscription, once(holder), Share::Whole, lease).await.claims
    }

    /// The same as a member that shares.
    pub(super) async fn share(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Claimed {
        self.database.claim(subscription, holder, share, lease).await.expect("claiming works")
    }
}

/// A replica with one life.
pub(super) fn once(replica: Uuid) -> Holder {
    Holder { replica, life: replica }
}

/// The last row of each partition, as the bus would acknowledge it.
pub(super) fn marks_of(rows: &[OutboxRow]) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    for row in rows {
        let mark = Mark { partition: row.partition, sequence: row.sequence, id: Some(row.id) };
        match marks.iter_mut().find(|mark| mark.partition == row.partition) {
            Some(found) => *found = mark,
            None => marks.push(mark),
        }
    }
    marks
}

/// What a row is known by.
pub(super) fn names(rows: &[OutboxRow]) -> Vec<(u32, u64, EventId)> {
    rows.iter().map(|row| (row.partition, row.sequence, row.id)).collect()
}

/// Drains the outbox while `writers` write, and fails unless the values of each key are 1, 2, 3, … in the order of its rows, up to the
/// value that its state has.
pub(super) async fn assert_each_key_is_in_order<F: Fixture>(
    ready: &Ready<F>,
    mut writers: tokio::task::JoinSet<()>,
) {
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut rows = Vec::new();
    while let Some(writer) = writers.try_join_next().or(writers.join_next().await) {
        writer.expect("no writer fails");
        rows.extend(ready.drain(&mut *leader).await);
    }
    assert_contiguous(&rows, 0);
    let mut counts: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
    for event in rows.iter().map(event_of) {
        let count = counts.entry(event.key.clone()).or_default();
        *count += 1;
        assert_eq!(event.value, *count, "key {} is out of order, or an event is missing", event.key);
    }
    for (key, count) in counts {
        assert_eq!(ready.read(&key).await, Some(count), "an event of key {key} is missing");
    }
}

/// Fails unless each partition's sequences follow each other from `after + 1`, in the order of `rows`.
pub(super) fn assert_contiguous(rows: &[OutboxRow], after: u64) {
    let mut last = std::collections::BTreeMap::new();
    for row in rows {
        let last = last.entry(row.partition).or_insert(after);
        assert_eq!(row.sequence, *last + 1, "partition {} has a hole or a repeat", row.partition);
        *last = row.sequence;
    }
}

/// The event of a row.
pub(super) fn event_of(row: &OutboxRow) -> Noted {
    let envelope = tombolo_event::Envelope::decode(row.bytes.clone()).expect("stored bytes are an event");
    tombolo_event::event::read(&envelope).expect("it is a Noted")
}

/// A bounded wait: looks again at a condition until it holds.
pub(super) struct Wait {
    what: &'static str,
    began: Instant,
    looks: tokio::time::Interval,
}

impl Wait {
    /// Begins to wait for `what`.
    pub(super) fn until(what: &'static str) -> Self {
        Self { what, began: Instant::now(), looks: tokio::time::interval(LOOK) }
    }

    /// Before the next look.
    pub(super) async fn again(&mut self) {
        assert!(self.began.elapsed() < WAIT_MAX, "waited {} s until {}", WAIT_MAX.as_secs(), self.what);
        self.looks.tick().await;
    }
}

tokio::task_local! {
    static HELD: Held;
}

/// Stops one task at a barrier of the path until it is let go.
#[derive(Clone)]
struct Held {
    at: &'static str,
    reached: Arc<tokio::sync::Notify>,
    go: Arc<std::sync::Mutex<std::sync::mpsc::Receiver<()>>>,
}

/// A task that stands at a barrier.
pub(super) struct Standing<T> {
    task: tokio::task::JoinHandle<T>,
    go: std::sync::mpsc::Sender<()>,
}

impl<T> Standing<T> {
    /// Ends the task where it stands, as a crash would: nothing that it would have to wait for happens any more.
    pub(super) async fn crash(self) {
        self.task.abort();
        drop(self.go);
        drop(self.task.await);
    }

    /// Lets the task go on, and waits for its end.
    pub(super) async fn finish(self) -> T {
        self.go.send(()).expect("the task stands at its barrier");
        self.task.await.expect("the task does not panic")
    }
}

/// Runs `work` until it stands at the barrier `at`.
pub(super) async fn stand_at<T: Send + 'static>(
    at: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> Standing<T> {
    barrier::install(stand);
    let (go, wait) = std::sync::mpsc::channel();
    let reached = Arc::new(tokio::sync::Notify::new());
    let held = Held { at, reached: reached.clone(), go: Arc::new(std::sync::Mutex::new(wait)) };
    let task = tokio::spawn(HELD.scope(held, work));
    let waited = tokio::time::timeout(WAIT_MAX, reached.notified()).await;
    assert!(waited.is_ok(), "the barrier {at} was not reached");
    Standing { task, go }
}

fn stand(at: &'static str) {
    let Ok(held) = HELD.try_with(Clone::clone) else { return };
    if held.at == at {
        held.reached.notify_one();
        let go = held.go.lock().expect("one task stands here");
        // An ended case lets everybody go: the sender is gone then.
        tokio::task::block_in_place(|| go.recv()).ok();
    }
}
