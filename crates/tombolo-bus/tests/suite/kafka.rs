//! The suite on Kafka: on the cluster that librdkafka brings for tests, in this process, and on a real one where
//! `TOMBOLO_TEST_KAFKA` names it. And what this engine alone can get wrong.
//! Invariant: the cluster of tests ends with its test.

mod mock;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use mock::Mock;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::kafka::{self, Kafka};
use tombolo_bus::{Append, Bus, Kind, Read, Record, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations};

const TRIMS: Ability = Ability::Cannot("a topic of Kafka is one log of all partitions");
const FILTERS: Ability = Ability::Cannot("Kafka does not filter");

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

fn orders() -> TopicSpec {
    TopicSpec::new("orders".parse().unwrap(), Generations::first(1).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_passes_the_suite_on_the_cluster_of_tests() {
    let reopens = Ability::Cannot("the cluster of tests keeps nothing when it ends");
    let history = Ability::Cannot("the cluster of tests keeps the last 5 MiB of a partition");
    let abilities = Abilities { filters: FILTERS, trims: TRIMS, reopens, history, ..Abilities::all() };
    conformance::run("kafka, mock", abilities, Arc::new(OnMock::start("suite"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_passes_the_suite_on_real_brokers() {
    let Ok(url) = std::env::var("TOMBOLO_TEST_KAFKA") else {
        eprintln!(
            "skipped: the suite on real Kafka brokers: there are none, unless TOMBOLO_TEST_KAFKA names them"
        );
        return;
    };
    let url = format!("{url}?namespace={}&accept=unsynced,one-copy", unique("suite"));
    let reopens = Ability::Cannot("the brokers are shared, and nobody stops them here");
    let abilities = Abilities { filters: FILTERS, trims: TRIMS, reopens, ..Abilities::all() };
    conformance::run("kafka", abilities, Arc::new(OnBrokers(url))).await;
}

struct OnBrokers(String);

#[async_trait]
impl Factory for OnBrokers {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(kafka::connect(&self.0).await.unwrap())
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

/// A cluster of tests, and a namespace on it.
struct OnMock {
    mock: Mock,
    namespace: String,
}

impl OnMock {
    fn start(what: &str) -> Self {
        Self { mock: Mock::start(3), namespace: unique(what) }
    }

    fn url(&self) -> String {
        format!("kafka://{}?namespace={}&accept=unsynced,one-copy", self.mock.brokers(), self.namespace)
    }

    async fn connected(&self) -> Kafka {
        Kafka::connect_with(&self.url(), self.mock.maker()).await.unwrap()
    }
}

#[async_trait]
impl Factory for OnMock {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(self.connected().await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

#[tokio::test]
async fn an_odd_address_or_name_is_refused_at_once() {
    for (url, says) in [
        ("kafka://127.0.0.1:1?accept=typo", "unsynced, one-copy"),
        ("kafka://user:secret@127.0.0.1:1", "SASL"),
        ("kafka://127.0.0.1", "host:port"),
    ] {
        let refused = kafka::connect(url).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
        assert!(refused.to_string().contains(says) && !refused.to_string().contains("secret"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_several_partitions_is_not_ours_and_not_touched() {
    let on = OnMock::start("foreign");
    let topic = format!("tombolo.{}.topic.orders", on.namespace);
    on.mock.make(&topic, 4, 3);
    let bus = on.connected().await;
    let error = bus.ensure_topic(&orders()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TopicDiffers, "{error}");
    assert!(error.to_string().contains("4 partitions"), "{error}");
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_not_there_are_no_error_and_are_said_at_once() {
    let bus = kafka::connect("kafka://127.0.0.1:1").await.unwrap();
    let error = bus.topics().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(bus.guarantee().detail.contains("unverified"));
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_the_brokers_went_is_there_once_and_in_order_after() {
    let on = OnMock::start("away");
    let bus = Arc::new(on.connected().await);
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let mut sent = Vec::new();
    for round in 0..3 {
        append(&bus, &topic, &mut sent).await;
        on.mock.down(true);
        let working = async {
            append(&bus, &topic, &mut sent).await;
            append(&bus, &topic, &mut sent).await;
        };
        let back = async {
            eventually_away(&bus).await;
            on.mock.down(false);
        };
        let both = futures_util::future::join(working, back);
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap_or_else(|_| panic!("round {round}"));
    }
    let mut batches =
        bus.read(Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation))).await.unwrap();
    let mut found = Vec::new();
    while let Some(batch) = batches.next().await {
        found.extend(batch.unwrap().records.iter().map(|record| record.id));
    }
    assert!(found == sent, "the log holds what was acknowledged, once and in order");
    bus.close().await;
}

/// Appends a round, again until it is acknowledged, as a relay with its outbox does.
async fn append(bus: &Kafka, topic: &Topic, sent: &mut Vec<EventId>) {
    let first = sent.len() as u64 + 1;
    let records: Vec<Record> = (first..first + 50).map(record).collect();
    sent.extend(records.iter().map(|record| record.id));
    let (name, incarnation) = (topic.name.clone(), topic.incarnation);
    let append = Append { topic: name, incarnation, epoch: 1, partition: 0, records };
    loop {
        match bus.append(append.clone()).await {
            Ok(appended) => break assert_eq!(appended.last, first + 49),
            Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

fn record(sequence: u64) -> Record {
    let id = EventId::new();
    Record { sequence, id, event_type: "suite.happened.v1".into(), bytes: vec![1; 200].into() }
}

async fn eventually_away(bus: &Kafka) {
    while bus.topics().await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[cfg(feature = "mutants")]
mod broken {
    //! Connections that are broken on purpose. Invariant: each fault fails a case that passes without it.

    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::kafka::Mutant;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_suite_catches_every_mutant_of_kafka() {
        let caught_by = [
            (Mutant::TakeOlderEpochs, "an_append_that_was_prepared_before_a_raise_is_refused"),
            (Mutant::TakeAnyPlace, "different_appends_from_two_relays_are_not_both_acknowledged"),
            (Mutant::AcknowledgeAtTheConfirm, "different_appends_from_two_relays_are_not_both_acknowledged"),
            (Mutant::AnswerFromMemory, "a_raise_is_seen_by_everybody"),
            (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
        ];
        for (mutant, case) in caught_by {
            let whole = play(case, Arc::new(OnMock::start("whole"))).await;
            assert_eq!(whole, Outcome::Ok, "{case} without {mutant:?}");
            let broken = play(case, Arc::new(Broken(OnMock::start("mutant"), mutant))).await;
            assert!(matches!(broken, Outcome::Failed(_)), "{mutant:?} is not caught by {case}");
        }
    }

    async fn play(case: &str, factory: Arc<dyn Factory>) -> Outcome {
        let abilities = Abilities { filters: FILTERS, trims: TRIMS, ..Abilities::all() };
        let mut report =
            conformance::report("kafka, broken?", abilities, factory, &|name| name == case).await;
        report.remove(0).1
    }

    struct Broken(OnMock, Mutant);

    #[async_trait]
    impl Factory for Broken {
        async fn handle(&self) -> Arc<dyn Bus> {
            let made = Kafka::connect_broken(&self.0.url(), self.0.mock.maker(), self.1).await;
            Arc::new(made.unwrap())
        }

        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }
}
