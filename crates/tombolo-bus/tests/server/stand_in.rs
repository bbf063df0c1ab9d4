//! A bus whose every step a test decides: appends wait at a gate, reading never ends.
//!
//! It keeps no log; what is tested with it is what lies between a client and a bus. That the pair is a whole bus
//! is what the conformance suite is for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, broadcast, watch};
use tombolo_bus::{
    Append, Appended, Batch, Bus, Error, Guarantee, Kind, Reach, Read, Record, RecordStream, Registration,
    Result, Signal, SignalStream, Tail, Topic, TopicSpec,
};
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

pub(crate) const BATCH_BYTES: usize = 256 << 10;

pub(crate) struct StandIn {
    topics: Mutex<BTreeMap<ServiceName, Topic>>,
    registrations: Mutex<Vec<Registration>>,
    /// An append is answered once it got a permit.
    pub(crate) gate: Semaphore,
    /// Passed by each append, always open: an engine may wait for room before it takes an append.
    room: Semaphore,
    /// The first sequences of the appends that came, in order.
    pub(crate) came: watch::Sender<Vec<u64>>,
    /// How many batches were read by all readers.
    pub(crate) batches_read: Arc<AtomicUsize>,
    signals: broadcast::Sender<(String, Signal)>,
}

impl StandIn {
    pub(crate) fn new(permits: usize) -> Self {
        Self {
            topics: Mutex::default(),
            registrations: Mutex::default(),
            gate: Semaphore::new(permits),
            room: Semaphore::new(1),
            came: watch::Sender::default(),
            batches_read: Arc::default(),
            signals: broadcast::Sender::new(64),
        }
    }
}

#[async_trait]
impl Bus for StandIn {
    fn guarantee(&self) -> Guarantee {
        Guarantee { engine: "stand-in".into(), survives_power_cut: true, detail: "a test's".into() }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        let mut topics = self.topics.lock().unwrap();
        let new = || Topic {
            name: spec.name.clone(),
            generations: spec.generations.clone(),
            incarnation: Incarnation::new(),
            epoch: 0,
        };
        Ok(topics.entry(spec.name.clone()).or_insert_with(new).clone())
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let found = self.topics.lock().unwrap().get(name).cloned();
        found.ok_or_else(|| Error::new(Kind::UnknownTopic, format!("the stand-in has no topic „{name}“")))
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.topics.lock().unwrap().values().cloned().collect())
    }

    async fn raise_epoch(&self, _: &ServiceName, _: Incarnation, _: u64) -> Result<Vec<Tail>> {
        Ok(vec![])
    }

    async fn divide(&self, topic: &ServiceName, _: Incarnation, _: u64, _: &Generations) -> Result<Topic> {
        self.topic(topic).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        drop(self.room.acquire().await.unwrap());
        self.came.send_modify(|came| came.push(append.records[0].sequence));
        self.gate.acquire().await.unwrap().forget();
        Ok(Appended { last: append.records[append.records.len() - 1].sequence })
    }

    async fn tails(&self, _: &ServiceName) -> Result<Vec<Tail>> {
        Ok(vec![])
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        let count = Arc::clone(&self.batches_read);
        let batches = stream::iter(read.after.sequence + 1..).map(move |sequence| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(batch(sequence))
        });
        Ok(Box::pin(batches))
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        match self.signals.send((subject.to_owned(), signal)) {
            Ok(_) => Ok(Reach::Somebody),
            Err(_) => Ok(Reach::Nobody),
        }
    }

    async fn listen(&self, subject: &str, _group: Option<&str>) -> Result<SignalStream> {
        let subject = subject.to_owned();
        let heard = stream::unfold(self.signals.subscribe(), |mut signals| async move {
            Some((signals.recv().await.ok()?, signals))
        });
        Ok(Box::pin(heard.filter_map(move |(sent_to, signal)| {
            let is_for_us = sent_to == subject;
            async move { is_for_us.then_some(signal) }
        })))
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.registrations.lock().unwrap().push(registration.clone());
        Ok(())
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        Ok(self.registrations.lock().unwrap().clone())
    }

    async fn close(&self) {}
}

fn batch(sequence: u64) -> Batch {
    let record = Record {
        sequence,
        id: EventId::new(),
        event_type: Bytes::from_static(b"orders.placed.v1"),
        bytes: vec![7; BATCH_BYTES].into(),
    };
    Batch { first: sequence, last: sequence, last_id: record.id, records: vec![record], tail: u64::MAX }
}
