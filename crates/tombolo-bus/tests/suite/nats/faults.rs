//! A relay and a reader on a stream with three replicas, while its servers are killed, stopped and cut off from each other.
//!
//! Invariant: what the relay was told is stored is on each of the three at the end, once and in order, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::watch;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::nats::Nats;
use tombolo_bus::{Append, Bus, Kind, Read, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations};

use super::cluster::{self, Cluster, Silence};
use super::{FILTERS, ROUND, record};

/// How long anything may take that goes on by itself.
const BOUND: Duration = Duration::from_secs(90);
/// How often a round is appended, at most: everything is read again at the end, from each of the servers.
const ROUND_EACH: Duration = Duration::from_millis(50);
/// How many rounds are appended after a fault before the next one.
const ROUNDS_BETWEEN: u64 = 20;

/// Whether somebody wants all that takes minutes on a cluster; else there is one fault.
fn asked_for_all() -> bool {
    std::env::var_os("TOMBOLO_TEST_NATS_CLUSTER").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_passes_the_suite_on_a_cluster_with_replicas() {
    if !asked_for_all() {
        eprintln!(
            "skipped: the suite on a NATS cluster: takes minutes; TOMBOLO_TEST_NATS_CLUSTER=1 asks for it"
        );
        return;
    }
    let Some(program) = cluster::program("the suite on a NATS cluster") else { return };
    let cluster = Arc::new(Cluster::start(program).await);
    cluster.connected().await.close().await;
    let reopens = Ability::Cannot("servers of the cluster are killed one by one in a test of their own");
    let reach = Ability::Cannot("a server may not have heard yet of a listener on another one");
    let abilities = Abilities { filters: FILTERS, reopens, reach, ..Abilities::all() };
    conformance::run("nats, 3 replicas", abilities, Arc::new(OnCluster(cluster))).await;
}

struct OnCluster(cluster::Shared);

#[async_trait]
impl Factory for OnCluster {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(self.0.connected().await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

/// What is done to a server.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Stopped,
    CutOff,
}

impl Fault {
    async fn begin(self, cluster: &Cluster, server: usize) {
        match self {
            Self::Killed => cluster.kill(server).await,
            Self::Stopped => cluster.pause(server, true).await,
            Self::CutOff => cluster.cut_off(server, true),
        }
    }

    async fn end(self, cluster: &Cluster, server: usize) {
        match self {
            Self::Killed => cluster.run(server).await,
            Self::Stopped => cluster.pause(server, false).await,
            Self::CutOff => cluster.cut_off(server, false),
        }
    }
}

/// A relay and a reader at work.
struct Load {
    told: watch::Receiver<u64>,
    silence: Arc<Silence>,
    stop: Arc<AtomicBool>,
    relay: tokio::task::JoinHandle<Vec<EventId>>,
    reader: tokio::task::JoinHandle<Vec<EventId>>,
}

impl Load {
    async fn begin(cluster: &Cluster, topic: &Topic) -> Self {
        let (tell, told) = watch::channel(0_u64);
        let (silence, stop) = (Arc::new(Silence::default()), Arc::new(AtomicBool::new(false)));
        let bus = cluster.connected().await;
        let relay = tokio::spawn(relay(bus, topic.clone(), tell, Arc::clone(&silence), Arc::clone(&stop)));
        let reader = tokio::spawn(reader(cluster.connected().await, topic.clone(), told.clone()));
        Self { told, silence, stop, relay, reader }
    }

    /// Waits until the relay was told so many rounds more.
    async fn goes_on(&mut self) {
        let more = *self.told.borrow() + ROUNDS_BETWEEN * ROUND;
        let appended = self.told.wait_for(|told| *told >= more);
        tokio::time::timeout(BOUND, appended).await.expect("publishing goes on by itself").unwrap();
    }

    /// What was sent, and what the reader has read.
    async fn end(self) -> (Vec<EventId>, Vec<EventId>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = tokio::time::timeout(BOUND, self.relay).await.unwrap().unwrap();
        (sent, tokio::time::timeout(BOUND, self.reader).await.unwrap().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_loses_nothing_while_its_servers_are_killed_stopped_and_cut_off() {
    let Some(program) = cluster::program("a NATS cluster under faults") else { return };
    let cluster = Cluster::start(program).await;
    let bus = cluster.connected().await;
    let spec = TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap());
    let topic = bus.ensure_topic(&spec).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let stream = "tombolo_cluster_topic_orders";
    let mut load = Load::begin(&cluster, &topic).await;
    load.goes_on().await;
    let all = [Fault::Killed, Fault::Stopped, Fault::CutOff, Fault::Killed, Fault::CutOff];
    for fault in &all[..if asked_for_all() { all.len() } else { 1 }] {
        let leader = cluster.leader(stream).await;
        load.silence.longest();
        fault.begin(&cluster, leader).await;
        load.goes_on().await;
        let silence = load.silence.longest();
        fault.end(&cluster, leader).await;
        load.goes_on().await;
        let after = load.silence.longest();
        eprintln!(
            "the leader was {fault:?}: {silence:.1?} without an acknowledgement, {after:.1?} when it was back"
        );
    }
    let (sent, read) = load.end().await;
    assert!(read == sent, "a reader reads what was acknowledged, once and in order");
    each_server_holds(&cluster, stream, &sent).await;
    eprintln!(
        "{} events were acknowledged and are on each of the three servers, once and in order",
        sent.len()
    );
}

/// Checks what each server holds, by making it lead.
async fn each_server_holds(cluster: &Cluster, stream: &str, sent: &[EventId]) {
    let expected: Vec<String> = sent.iter().map(EventId::to_string).collect();
    let mut led = std::collections::BTreeSet::new();
    let checked = async {
        while led.len() < 3 {
            if led.insert(cluster.leader(stream).await) {
                let (found, messages) = cluster.held(stream).await;
                assert!(found == expected, "each server holds what was acknowledged, once and in order");
                // Two more: the birth of the topic, and the raise.
                assert_eq!(messages, sent.len() as u64 + 2, "nothing else is stored");
            }
            cluster.step_down(stream).await;
        }
    };
    tokio::time::timeout(2 * BOUND, checked).await.expect("each server leads once");
}

/// What somebody was told last, which is not printed again.
#[derive(Default)]
struct Said(String);

impl Said {
    fn away(&mut self, who: &str, error: &tombolo_bus::Error) {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        let text = error.to_string();
        if self.0 != text {
            eprintln!("{who} is told: {text}");
            self.0 = text;
        }
    }
}

/// Appends rounds, each again until it is acknowledged, as a relay with its outbox does.
async fn relay(
    bus: Nats,
    topic: Topic,
    tell: watch::Sender<u64>,
    silence: Arc<Silence>,
    stop: Arc<AtomicBool>,
) -> Vec<EventId> {
    let (mut sent, mut said) = (Vec::new(), Said::default());
    let mut pace = tokio::time::interval(ROUND_EACH);
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let first = sent.len() as u64 + 1;
        let records: Vec<_> = (first..first + ROUND).map(record).collect();
        sent.extend(records.iter().map(|record| record.id));
        let (incarnation, name) = (topic.incarnation, topic.name.clone());
        let append = Append { topic: name, incarnation, epoch: 1, partition: 0, records };
        loop {
            match bus.append(append.clone()).await {
                Ok(appended) => break assert_eq!(appended.last, first + ROUND - 1),
                Err(error) => said.away("the relay", &error),
            }
            tokio::task::yield_now().await;
        }
        silence.told();
        tell.send_replace(sent.len() as u64);
    }
    sent
}

/// Reads as long as the relay works, and to the end of what it was told.
async fn reader(bus: Nats, topic: Topic, mut told: watch::Receiver<u64>) -> Vec<EventId> {
    let (mut found, mut at) = (Vec::new(), Cursor::start(topic.incarnation));
    let mut said = Said::default();
    loop {
        let until = usize::try_from(*told.borrow_and_update()).unwrap();
        while found.len() < until {
            match read_on(&bus, &topic, &mut at, until - found.len()).await {
                Ok(more) => found.extend(more),
                Err((more, error)) => {
                    said.away("the reader", &error);
                    found.extend(more);
                    tokio::task::yield_now().await;
                }
            }
        }
        if told.changed().await.is_err() && found.len() as u64 >= *told.borrow() {
            return found;
        }
    }
}

/// Reads at least `count` events after a cursor, which moves on.
async fn read_on(
    bus: &Nats,
    topic: &Topic,
    at: &mut Cursor,
    count: usize,
) -> Result<Vec<EventId>, (Vec<EventId>, tombolo_bus::Error)> {
    let mut found = Vec::new();
    let batches = bus.read(Read::following(&topic.name, 0, *at)).await;
    let mut batches = batches.map_err(|error| (Vec::new(), error))?;
    while found.len() < count {
        let batch = match batches.next().await.expect("a reader that follows does not end") {
            Ok(batch) => batch,
            Err(error) => return Err((found, error)),
        };
        assert_eq!(batch.first, at.sequence + 1, "batches follow each other");
        found.extend(batch.records.iter().map(|record| record.id));
        *at = Cursor::at(at.incarnation, batch.last, batch.last_id);
    }
    Ok(found)
}
