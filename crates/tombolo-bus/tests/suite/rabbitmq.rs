//! The suite on real RabbitMQ servers: the one that `TOMBOLO_TEST_RABBITMQ` names, and one of our own that is killed with
//! SIGKILL whenever a case reopens the bus. And what this engine alone can get wrong.
//! Invariant: only servers that this test started are killed.

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use node::Node;
use tokio::sync::watch;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::rabbitmq::{self, RabbitMq};
use tombolo_bus::{Append, Bus, Kind, Read, Record, Signal, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations};

const TRIMS: Ability = Ability::Cannot("a stream forgets by a policy of the server, whoever reads it");
const FILTERS: Ability =
    Ability::Cannot("RabbitMQ 3.10 does not filter streams, and later ones only by a guess");

/// The server that the environment names; says so if there is none.
fn shared(what: &str) -> Option<String> {
    let url = std::env::var("TOMBOLO_TEST_RABBITMQ").ok();
    if url.is_none() {
        eprintln!("skipped: {what}: TOMBOLO_TEST_RABBITMQ is not set; run cargo xtask test --install");
    }
    url.map(|url| url.trim_end_matches('/').to_owned())
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

async fn connect(url: &str, namespace: &str) -> RabbitMq {
    let url = format!("{url}?namespace={namespace}&accept=unsynced");
    rabbitmq::connect(&url).await.unwrap_or_else(|error| panic!("failed to connect: {error}"))
}

fn orders() -> TopicSpec {
    TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap())
}

/// The client itself, for what Tombolo never does.
async fn stranger(url: &str) -> Channel {
    let connection =
        Connection::connect(&format!("{url}/%2f"), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn declare(channel: &Channel, queue: &str, arguments: &[(&str, AMQPValue)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, table).await.unwrap();
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) {
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish("".into(), queue.into(), options, body, BasicProperties::default());
    sent.await.unwrap().await.unwrap();
}

async fn waiting(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

#[tokio::test]
async fn a_server_that_never_syncs_is_refused_unless_that_is_accepted_by_name() {
    let refused = rabbitmq::connect("amqp://127.0.0.1:1").await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsafe);
    assert!(refused.to_string().contains("accept=unsynced"), "{refused}");
}

#[tokio::test]
async fn rabbitmq_passes_the_suite() {
    let Some(url) = shared("the suite on RabbitMQ") else { return };
    let reopens = Ability::Cannot("the server is shared with other tests; the private one is killed instead");
    let abilities = Abilities { filters: FILTERS, trims: TRIMS, reopens, ..Abilities::all() };
    conformance::run("rabbitmq", abilities, Arc::new(Shared { url, namespace: unique("suite") })).await;
}

#[tokio::test]
async fn rabbitmq_passes_the_suite_while_its_server_is_killed() {
    if shared("the suite on a RabbitMQ server that is killed").is_none() {
        return;
    }
    let abilities = Abilities { filters: FILTERS, trims: TRIMS, ..Abilities::all() };
    conformance::run("rabbitmq, killed", abilities, Arc::new(Private(Node::start().await))).await;
}

#[tokio::test]
async fn a_wrong_password_or_vhost_is_refused_without_being_repeated() {
    let Some(url) = shared("wrong passwords on RabbitMQ") else { return };
    let (user, place) = url.trim_start_matches("amqp://").split_once('@').unwrap();
    let (user, password) = user.split_once(':').unwrap();
    let wrong = [
        (format!("amqp://{user}:not-{password}@{place}?accept=unsynced"), "ACCESS_REFUSED"),
        (format!("{url}/no-such-place?accept=unsynced"), "no-such-place"),
    ];
    for (url, says) in wrong {
        let refused = rabbitmq::connect(&url).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
        let shown = format!("{refused} {refused:?}");
        assert!(shown.contains(says) && !shown.contains(password), "{shown}");
    }
}

#[tokio::test]
async fn a_queue_that_is_not_ours_is_not_touched() {
    let Some(url) = shared("foreign queues on RabbitMQ") else { return };
    let namespace = unique("foreign");
    let queue = format!("tombolo.{namespace}.topic.orders");
    let channel = stranger(&url).await;
    declare(&channel, &queue, &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    publish(&channel, &queue, b"theirs").await;
    let bus = connect(&url, &namespace).await;
    let error = bus.ensure_topic(&orders()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TopicDiffers, "{error}");
    assert!(error.to_string().contains(&queue), "{error}");
    assert_eq!(bus.topic(&orders().name).await.unwrap_err().kind(), Kind::UnknownTopic);
    assert_eq!(waiting(&channel, &queue).await, 1, "nothing was written to it");
}

#[tokio::test]
async fn a_stream_that_was_declared_to_forget_is_refused_by_name() {
    let Some(url) = shared("retention of streams on RabbitMQ") else { return };
    let channel = stranger(&url).await;
    let limits = [
        ("x-max-age", AMQPValue::LongString("1D".into())),
        ("x-max-length-bytes", AMQPValue::LongLongInt(1 << 40)),
    ];
    for (argument, value) in limits {
        let namespace = unique("forgets");
        let queue = format!("tombolo.{namespace}.topic.orders");
        let ours = ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(500_000_107));
        let stream = ("x-queue-type", AMQPValue::LongString("stream".into()));
        declare(&channel, &queue, &[stream, ours, (argument, value)]).await;
        let error = connect(&url, &namespace).await.ensure_topic(&orders()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe, "{error}");
        assert!(error.to_string().contains(argument), "{error}");
    }
}

#[tokio::test]
async fn what_a_policy_has_removed_is_missed_by_name_and_the_rest_goes_on() {
    if shared("retention policies on RabbitMQ").is_none() {
        return;
    }
    let node = Node::start().await;
    let bus = node.connected().await;
    let limits = r#"{"max-length-bytes": 2000000, "stream-max-segment-size-bytes": 1000000}"#;
    node.control(&["set_policy", "--apply-to", "queues", "forget", "^tombolo", limits]).await;
    let line = Line::new(bus, &orders()).await;
    let (mut all, mut sequence) = (Vec::new(), 0);
    let trimmed = async {
        loop {
            sequence += 1;
            let record = record(sequence, 1_000);
            all.push(record.id);
            line.append(vec![record]).await.unwrap();
            let start = Read::to_tail(&orders().name, 0, Cursor::start(line.topic.incarnation));
            if sequence % 500 != 0 {
                continue;
            }
            let other = connect(&node.url(), "suite").await;
            let found = other.read(start).await;
            other.close().await;
            if let Err(error) = found {
                break error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(90), trimmed).await.unwrap();
    assert_eq!(error.kind(), Kind::Trimmed, "{error}");
    assert!(error.to_string().contains("policy"), "{error}");
    let other = connect(&node.url(), "suite").await;
    assert_eq!(other.tails(&orders().name).await.unwrap()[0].sequence, sequence);
    let near = sequence - 400;
    let after = Cursor::at(line.topic.incarnation, near, all[near as usize - 1]);
    let batches = other.read(Read::to_tail(&orders().name, 0, after)).await.unwrap();
    let batches: Vec<_> = batches.map(|batch| batch.unwrap().records).collect().await;
    let found: Vec<_> = batches.into_iter().flatten().map(|record| record.id).collect();
    assert!(found == all[near as usize..], "what is kept is read as before");
    line.append(vec![record(sequence + 1, 10)]).await.unwrap();
    node.kill().await;
}

#[tokio::test]
async fn what_a_stranger_wrote_into_a_stream_is_passed_over() {
    let Some(url) = shared("strangers in streams on RabbitMQ") else { return };
    let namespace = unique("stranger");
    let line = Line::new(connect(&url, &namespace).await, &orders()).await;
    line.append(vec![record(1, 10)]).await.unwrap();
    publish(&stranger(&url).await, &format!("tombolo.{namespace}.topic.orders"), b"hello").await;
    line.append(vec![record(2, 10)]).await.unwrap();
    let other = connect(&url, &namespace).await;
    let found = read(&other, &line.topic, 2).await;
    assert_eq!(found.len(), 2);
}

/// Whether it is void or not, and however far it was on its way.
#[tokio::test]
async fn an_append_that_was_given_up_holds_up_nobody() {
    /// An append takes about three.
    const MILLISECONDS_MAX: u64 = 6;
    let Some(url) = shared("appends that are given up on RabbitMQ") else { return };
    let namespace = unique("given-up");
    let mine = Line::new(connect(&url, &namespace).await, &orders()).await;
    let theirs = Line::new(connect(&url, &namespace).await, &orders()).await;
    let mut next = 1;
    for round in 0..60 {
        let given_up = tokio::time::timeout(
            Duration::from_millis(round % MILLISECONDS_MAX),
            mine.append(vec![record(next, 10)]),
        );
        drop(tokio::join!(theirs.append(vec![record(next, 10)]), given_up));
        next = mine.bus.tails(&orders().name).await.unwrap()[0].sequence + 1;
        let appended = mine.append(vec![record(next, 10)]);
        let appended = tokio::time::timeout(Duration::from_secs(5), appended).await.unwrap();
        assert_eq!(appended.unwrap(), next);
        next += 1;
    }
}

/// More messages than two marks need, so that a topic is opened at a mark and a cursor far back is found by halving.
#[tokio::test]
async fn a_long_stream_is_entered_anywhere() {
    const APPENDS: u64 = 4_000;
    let Some(url) = shared("long streams on RabbitMQ") else { return };
    let namespace = unique("long");
    let line = Line::new(connect(&url, &namespace).await, &orders()).await;
    let all: Vec<Record> = (1..=APPENDS).map(|sequence| record(sequence, 3_000)).collect();
    for chunk in all.chunks(200) {
        let appends = chunk.iter().map(|record| line.append(vec![record.clone()]));
        for appended in futures_util::future::join_all(appends).await {
            appended.unwrap();
        }
    }
    let other = connect(&url, &namespace).await;
    let began = Instant::now();
    let tails = other.tails(&line.topic.name).await.unwrap();
    let opened = began.elapsed();
    assert_eq!((tails[0].sequence, tails[0].id), (APPENDS, all.last().map(|record| record.id)));
    for sequence in [1, 7, 513, 1_999, 3_000, APPENDS - 1] {
        let at = &all[sequence as usize - 1];
        let began = Instant::now();
        let cursor = Cursor::at(line.topic.incarnation, sequence, at.id);
        let mut batches = other.read(Read::to_tail(&line.topic.name, 0, cursor)).await.unwrap();
        let entered = began.elapsed();
        let mut next = sequence;
        while let Some(batch) = batches.next().await {
            for record in batch.unwrap().records {
                assert_eq!((record.sequence, record.id), (next + 1, all[next as usize].id));
                next += 1;
            }
        }
        assert_eq!(next, APPENDS);
        eprintln!(
            "entered after {sequence} in {entered:?}, opened in {opened:?}, read in {:?}",
            began.elapsed()
        );
        let elsewhere = Cursor::at(line.topic.incarnation, sequence, EventId::new());
        let refused = other.read(Read::to_tail(&line.topic.name, 0, elsewhere)).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::OtherId, "{refused}");
        line.append(vec![at.clone()]).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_said_at_once_and_found_again() {
    if shared("a RabbitMQ server that goes away").is_none() {
        return;
    }
    let node = Node::start().await;
    let bus = node.connected().await;
    bus.ensure_topic(&orders()).await.unwrap();
    let mut listener = bus.listen("a.b", Some("g")).await.unwrap();
    node.kill().await;
    let away = async {
        loop {
            match bus.topic(&orders().name).await {
                Err(error) => break error,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), away).await.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    let (heard, ()) = tokio::join!(listener.next(), async {
        node.run().await;
        eventually(&bus).await;
        while let Err(error) = bus.topic(&orders().name).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        }
        let again = Signal { reply_to: None, payload: Bytes::from_static(b"again") };
        while bus.signal("a.b", again.clone()).await.unwrap() != tombolo_bus::Reach::Somebody {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(heard.unwrap().payload, "again", "a listener goes on by itself");
    node.kill().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_no_error() {
    if shared("a RabbitMQ server that starts late").is_none() {
        return;
    }
    let node = Node::start().await;
    node.kill().await;
    let bus = connect(&node.url(), "suite").await;
    assert_eq!(bus.topics().await.unwrap_err().kind(), Kind::Unavailable);
    node.run().await;
    eventually(&bus).await;
    node.kill().await;
}

/// Waits until the bus answers again.
async fn eventually(bus: &RabbitMq) {
    let back = async {
        while let Err(error) = bus.topics().await {
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), back).await.expect("the bus answers again within 60 s");
}

const KILLS: usize = 2;
const ROUND: u64 = 50;

/// One relay appends without end; the server is killed while it is at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_kill_is_there_once_and_in_order() {
    if shared("a RabbitMQ server that is killed under load").is_none() {
        return;
    }
    let node = Node::start().await;
    let line = Arc::new(Line::new(node.connected().await, &orders()).await);
    let (told, mut heard) = watch::channel(0_u64);
    let stop = Arc::new(AtomicBool::new(false));
    let relay = tokio::spawn(relay(Arc::clone(&line), told, Arc::clone(&stop)));
    for _ in 0..KILLS {
        let more = *heard.borrow() + 10 * ROUND;
        let appended = heard.wait_for(|acknowledged| *acknowledged >= more);
        tokio::time::timeout(Duration::from_secs(90), appended).await.unwrap().unwrap();
        node.kill().await;
        node.run().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = tokio::time::timeout(Duration::from_secs(60), relay).await.unwrap().unwrap();
    let bus = node.connected().await;
    let found = tokio::time::timeout(Duration::from_secs(60), read(&bus, &line.topic, sent.len())).await;
    assert!(found.unwrap() == sent, "the log holds what was acknowledged, once and in order");
    node.kill().await;
}

/// Appends rounds, each again until it is acknowledged, as a relay with its outbox does.
async fn relay(line: Arc<Line>, told: watch::Sender<u64>, stop: Arc<AtomicBool>) -> Vec<EventId> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let first = sent.len() as u64 + 1;
        let records: Vec<_> = (first..first + ROUND).map(|sequence| record(sequence, 200)).collect();
        sent.extend(records.iter().map(|record| record.id));
        loop {
            match line.append(records.clone()).await {
                Ok(last) => break assert_eq!(last, first + ROUND - 1),
                Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
            }
            tokio::task::yield_now().await;
        }
        told.send_replace(sent.len() as u64);
    }
    sent
}

/// The first partition of a topic, as its relay of epoch 1.
struct Line {
    bus: RabbitMq,
    topic: Topic,
}

impl Line {
    async fn new(bus: RabbitMq, spec: &TopicSpec) -> Self {
        let topic = bus.ensure_topic(spec).await.unwrap();
        bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
        Self { bus, topic }
    }

    async fn append(&self, records: Vec<Record>) -> tombolo_bus::Result<u64> {
        let (topic, incarnation) = (self.topic.name.clone(), self.topic.incarnation);
        let append = Append { topic, incarnation, epoch: 1, partition: 0, records };
        self.bus.append(append).await.map(|appended| appended.last)
    }
}

fn record(sequence: u64, bytes: usize) -> Record {
    let (id, event_type) = (EventId::new(), Bytes::from_static(b"suite.happened.v1"));
    Record { sequence, id, event_type, bytes: vec![1; bytes].into() }
}

async fn read(bus: &RabbitMq, topic: &Topic, count: usize) -> Vec<EventId> {
    let mut batches =
        bus.read(Read::following(&topic.name, 0, Cursor::start(topic.incarnation))).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let batch = batches.next().await.unwrap().unwrap();
        assert_eq!(batch.first, found.len() as u64 + 1);
        found.extend(batch.records.iter().map(|record| record.id));
    }
    found
}

/// A server that other tests use too; each handle is a bus of its own.
struct Shared {
    url: String,
    namespace: String,
}

#[async_trait]
impl Factory for Shared {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(connect(&self.url, &self.namespace).await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

struct Private(Node);

#[async_trait]
impl Factory for Private {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(self.0.connected().await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.0.kill().await;
        self.0.run().await;
        self.handle().await
    }
}

#[cfg(feature = "mutants")]
mod broken {
    //! Connections that are broken on purpose. Invariant: each fault fails a case that passes without it.

    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::rabbitmq::Mutant;

    use super::*;

    /// How often a case is played: some are races, which a slow machine may let the right one win.
    const RACES_MAX: u32 = 5;

    #[tokio::test]
    async fn the_suite_catches_every_mutant_of_rabbitmq() {
        let Some(url) = shared("the mutants of RabbitMQ") else { return };
        let caught_by = [
            (Mutant::TakeOlderEpochs, "an_append_that_was_prepared_before_a_raise_is_refused"),
            (Mutant::TakeOlderEpochs, "the_tails_of_a_raise_are_final_for_older_epochs"),
            (Mutant::TakeAnyPlace, "the_same_append_from_two_relays_is_stored_once"),
            (Mutant::AcknowledgeAtTheConfirm, "different_appends_from_two_relays_are_not_both_acknowledged"),
            (Mutant::AnswerFromMemory, "what_is_appended_is_readable_through_another_handle"),
            (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
        ];
        for (mutant, case) in caught_by {
            let namespace = unique("mutant");
            let whole = Shared { url: url.clone(), namespace: namespace.clone() };
            assert_eq!(play(case, Arc::new(whole)).await, Outcome::Ok, "{case} without {mutant:?}");
            let mut caught = false;
            for _ in 0..RACES_MAX {
                let (url, namespace) = (url.clone(), namespace.clone());
                let broken = play(case, Arc::new(Broken { url, namespace, mutant })).await;
                caught |= matches!(broken, Outcome::Failed(_));
                if caught {
                    break;
                }
            }
            assert!(caught, "{mutant:?} is not caught by {case}");
        }
    }

    async fn play(case: &str, factory: Arc<dyn Factory>) -> Outcome {
        let abilities = Abilities { filters: FILTERS, trims: TRIMS, ..Abilities::all() };
        let mut report =
            conformance::report("rabbitmq, broken?", abilities, factory, &|name| name == case).await;
        report.remove(0).1
    }

    struct Broken {
        url: String,
        namespace: String,
        mutant: Mutant,
    }

    #[async_trait]
    impl Factory for Broken {
        async fn handle(&self) -> Arc<dyn Bus> {
            let url = format!("{}?namespace={}", self.url, self.namespace);
            Arc::new(RabbitMq::connect_broken(&url, self.mutant).await.unwrap())
        }

        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }
}
