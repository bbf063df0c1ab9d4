//! The bus that `tombolo bus` serves, and what the operator's commands see in it.
//!
//! Invariant of what is tested: what was appended is shown as it was, and what is wrong is said, never passed over.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tombolo_bus::{Append, Bus, Identity, Record, Registration, Topic, TopicSpec};
use tombolo_event::{Envelope, EventId, Generations, ServiceName};

use crate::stage::{Stage, signal, until};

/// A bus of the binary, ended by its number when it is dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
    metrics: Option<String>,
}

impl Served {
    pub(crate) fn over(stage: &Stage, folder: &str) -> Self {
        Self::with(stage, folder, &[])
    }

    fn with(stage: &Stage, folder: &str, more: &[&str]) -> Self {
        let data = stage.path(folder);
        let mut command = stage.command(&["bus", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data).args(more).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let url = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
        let metrics = (!more.is_empty()).then(|| lines.next().unwrap());
        let metrics = metrics
            .map(|line| line.strip_prefix("metrics on ").unwrap().strip_suffix("/metrics").unwrap().into());
        Self { child, url, metrics }
    }

    fn end(mut self, with: Signal) -> Option<i32> {
        signal(self.child.id(), with);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The service `orders` as it appends to its topic of two partitions.
pub(crate) struct Orders {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) topic: Topic,
}

impl Orders {
    pub(crate) async fn at(url: &str) -> Self {
        let name = ServiceName::new("orders").unwrap();
        let bus = tombolo_bus::connect(url, &Identity::Service(name.clone())).await.unwrap();
        let topic =
            bus.ensure_topic(&TopicSpec::new(name.clone(), Generations::first(2).unwrap())).await.unwrap();
        bus.raise_epoch(&name, topic.incarnation, 1).await.unwrap();
        Self { bus, topic }
    }

    pub(crate) async fn divide(&self, each: &[u32]) {
        let generations = Generations::try_from(each.to_vec()).unwrap();
        self.bus.divide(&self.topic.name, self.topic.incarnation, 1, &generations).await.unwrap();
    }

    pub(crate) async fn append(&self, partition: u32, records: Vec<Record>) {
        let (topic, incarnation) = (self.topic.name.clone(), self.topic.incarnation);
        self.bus.append(Append { topic, incarnation, epoch: 1, partition, records }).await.unwrap();
    }
}

pub(crate) fn record(sequence: u64, event_type: &str) -> Record {
    let id = EventId::new();
    let envelope = Envelope {
        id,
        source: "orders".into(),
        event_type: event_type.into(),
        key: format!("order-{sequence}"),
        time: "2026-11-20T12:00:00Z".parse().unwrap(),
        content_type: "application/json".into(),
        trace: None,
        correlation: None,
        causation: None,
        extensions: tombolo_event::envelope::Extensions::new(),
        data: format!("{{\"number\":{sequence}}}").into(),
    };
    Record { sequence, id, event_type: event_type.to_owned().into(), bytes: envelope.encode() }
}

/// Sequence and partition of each line.
fn places(lines: &str) -> Vec<(String, u64)> {
    let place = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        (event["sequence"].as_str().unwrap().to_owned(), event["partition"].as_u64().unwrap())
    };
    lines.lines().map(place).collect()
}

fn place(sequence: u64, partition: u64) -> (String, u64) {
    (sequence.to_string(), partition)
}

#[tokio::test]
async fn events_are_read_as_cloudevents_with_their_place() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let orders = Orders::at(&served.url).await;
    orders
        .append(
            0,
            vec![record(1, "orders.placed.v1"), record(2, "orders.paid.v1"), record(3, "orders.placed.v1")],
        )
        .await;
    orders.append(1, vec![record(1, "orders.paid.v1")]).await;
    let read =
        |more: &[&str]| stage.must(&[&["topics", "read", "orders", "--bus", &served.url], more].concat());
    let all = read(&[]);
    assert_eq!(places(&all), [place(1, 0), place(2, 0), place(3, 0), place(1, 1)]);
    let first: Value = serde_json::from_str(all.lines().next().unwrap()).unwrap();
    assert_eq!((&first["specversion"], &first["type"]), (&json!("1.0"), &json!("orders.placed.v1")));
    assert_eq!((&first["subject"], &first["data"]), (&json!("order-1"), &json!({ "number": 1 })));
    assert_eq!(places(&read(&["--partition", "1"])), [place(1, 1)]);
    assert_eq!(places(&read(&["--from", "2"])), [place(2, 0), place(3, 0)]);
    assert_eq!(places(&read(&["--limit", "2"])), [place(1, 0), place(2, 0)]);
    assert_eq!(places(&read(&["--type", "orders.paid.v1"])), [place(2, 0), place(1, 1)]);
    let said = stage.refused(&["topics", "read", "orders", "--partition", "2", "--bus", &served.url], 3);
    assert!(said.contains("orders has no such partition; it has 0 to 1"), "{said}");
    let said = stage.refused(&["topics", "read", "order", "--bus", &served.url], 3);
    assert!(said.contains("there is no topic order; there are: orders"), "{said}");
    orders.bus.close().await;
}

#[tokio::test]
async fn tail_shows_what_comes_and_not_what_was() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let orders = Orders::at(&served.url).await;
    orders.append(0, vec![record(1, "orders.placed.v1")]).await;
    let shown = stage.path("shown");
    let out = std::fs::File::create(&shown).unwrap();
    let mut command = stage.command(&["topics", "tail", "orders", "--bus", &served.url]);
    let mut tail = command.stdout(out).spawn().unwrap();
    // Where it began cannot be seen from outside, so events are appended until one is shown.
    let mut appended = 1;
    while std::fs::read(&shown).unwrap().is_empty() {
        appended += 1;
        assert!(appended < 10_000, "nothing is shown");
        orders.append(0, vec![record(appended, "orders.placed.v1")]).await;
        tokio::task::yield_now().await;
    }
    orders.append(1, vec![record(1, "orders.placed.v1")]).await;
    let last = [place(appended, 0), place(1, 1)];
    let lines = || {
        let text = std::fs::read_to_string(&shown).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        places(&text[..whole])
    };
    until("both last events are shown", || last.iter().all(|place| lines().contains(place)));
    orders.divide(&[2, 3]).await;
    orders.append(4, vec![record(1, "orders.placed.v1")]).await;
    until("an event of the new generation is shown", || lines().contains(&place(1, 4)));
    tail.kill().unwrap();
    tail.wait().unwrap();
    let lines = lines();
    assert!(!lines.contains(&place(1, 0)), "what was there before is shown");
    let of_0: Vec<u64> =
        lines.iter().filter(|(_, at)| *at == 0).map(|(number, _)| number.parse().unwrap()).collect();
    assert!(of_0.windows(2).all(|pair| pair[1] == pair[0] + 1), "{of_0:?}");
    orders.bus.close().await;
}

#[tokio::test]
async fn a_topic_that_was_divided_is_shown_with_its_generations() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let orders = Orders::at(&served.url).await;
    orders.append(1, vec![record(1, "orders.placed.v1")]).await;
    orders.divide(&[2, 3]).await;
    orders.append(3, vec![record(1, "orders.placed.v1")]).await;
    let shown = |more: &[&str]| stage.must(&[&["topics"], more, &["--bus", &served.url]].concat());
    assert!(shown(&["list"]).contains("2 → 3"), "{}", shown(&["list"]));
    let list: Value = serde_json::from_str(&shown(&["list", "--format", "json"])).unwrap();
    assert_eq!((&list[0]["generations"], &list[0]["partitions"]), (&json!([2, 3]), &json!(5)));
    let read = shown(&["read", "orders"]);
    assert_eq!(places(&read), [place(1, 1), place(1, 3)]);
    assert!(read.contains("\"generation\":1") && read.contains("\"generation\":2"), "{read}");
    assert_eq!(shown(&["verify"]).matches("whole, sealed (generation 1 of 2)").count(), 2);
    let said = stage.refused(&["topics", "read", "orders", "--partition", "5", "--bus", &served.url], 3);
    assert!(said.contains("it has 0 to 4, in generations of 2 → 3"), "{said}");
    orders.bus.close().await;
    served.end(Signal::SIGTERM);
    let folder = stage.path("log");
    let verified = stage.must(&["topics", "verify", "--format", "json", "--data", folder.to_str().unwrap()]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    let sealed: Vec<_> =
        verified["partitions"].as_array().unwrap().iter().map(|it| it["sealed"].as_bool().unwrap()).collect();
    assert_eq!(sealed, [true, true, false, false, false]);
}

#[tokio::test]
async fn topics_and_services_are_listed_for_scripts() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let orders = Orders::at(&served.url).await;
    orders.append(1, vec![record(1, "orders.placed.v1"), record(2, "orders.placed.v1")]).await;
    let descriptor = json!({
        "service": "orders", "partitions": 2, "database": "sqlite", "asks": [],
        "publishes": [{ "type": "orders.placed.v1", "schema": true }],
        "subscriptions": [{ "name": "customers", "kind": "view", "handles": [
            { "topic": "users", "types": ["users.registered.v1"], "schema": true }] }],
        "answers": [{ "question": "orders.of-user.v1", "schema": true, "answer": true }],
    });
    let registration = Registration {
        service: orders.topic.name.clone(),
        replica: 1,
        url: "http://127.0.0.1:7103".into(),
        descriptor: descriptor.to_string(),
    };
    orders.bus.register(&registration).await.unwrap();
    let list = |what: &str| -> Value {
        serde_json::from_str(&stage.must(&[what, "list", "--format", "json", "--bus", &served.url])).unwrap()
    };
    let topics = list("topics");
    assert_eq!(
        (&topics[0]["name"], &topics[0]["events"], &topics[0]["epoch"]),
        (&json!("orders"), &json!(2), &json!(1))
    );
    assert_eq!(topics[0]["tails"][1]["sequence"], json!(2));
    let services = list("services");
    assert_eq!(services[0]["descriptor"], descriptor);
    let table = stage.must(&["services", "list", "--bus", &served.url]);
    assert!(
        table.contains("orders.placed.v1") && table.contains("customers: users.registered.v1"),
        "{table}"
    );
    let subscriptions = list("subscriptions");
    assert_eq!(
        (&subscriptions[0]["service"], subscriptions[0]["error"].is_string()),
        (&json!("orders"), true)
    );
    orders.bus.close().await;
}

#[tokio::test]
async fn verify_finds_what_is_wrong_over_the_bus_and_in_the_files() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let orders = Orders::at(&served.url).await;
    orders.append(0, vec![record(1, "orders.placed.v1"), record(2, "orders.placed.v1")]).await;
    let whole = json!([
        { "topic": "orders", "partition": 0, "generation": 1, "sealed": false, "events": 2, "faults": [] },
        { "topic": "orders", "partition": 1, "generation": 1, "sealed": false, "events": 0, "faults": [] },
    ]);
    let folder = stage.path("log");
    let in_files = ["--data", folder.to_str().unwrap()];
    let verify = |more: [&str; 2]| -> Value {
        let arguments = [&["topics", "verify", "--format", "json"][..], &more].concat();
        serde_json::from_str(&stage.must(&arguments)).unwrap()
    };
    assert_eq!(verify(["--bus", &served.url]), json!({ "partitions": whole, "log": null }));
    let inspected = verify(in_files);
    assert_eq!(inspected["partitions"], whole);
    assert_eq!(inspected["log"]["in_use_by"], json!(served.child.id().to_string()));
    let odd = Record {
        bytes: "no envelope, which the bus does not look into".into(),
        ..record(3, "orders.placed.v1")
    };
    orders.append(0, vec![odd]).await;
    let said = stage.refused(&["topics", "verify", "--bus", &served.url], 1);
    assert!(said.contains("1 of 2 partitions have faults"), "{said}");
    orders.bus.close().await;
    served.end(Signal::SIGKILL);
    assert_eq!(verify(in_files)["log"]["in_use_by"], Value::Null);
    damage(&folder, b"orders.placed.v1");
    let said = stage.refused(&["topics", "verify", in_files[0], in_files[1]], 1);
    assert!(said.contains("the log is damaged in") && said.contains("00000001.segment at byte"), "{said}");
}

/// Flips one bit of the first `place` in the log's files.
fn damage(folder: &std::path::Path, place: &[u8]) {
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(place.len()).position(|window| window == place) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("{} holds no {:?}", folder.display(), String::from_utf8_lossy(place));
}

#[tokio::test]
async fn metrics_count_what_each_partition_holds() {
    let stage = Stage::with_users();
    let served = Served::with(&stage, "log", &["--metrics", "127.0.0.1:0"]);
    let orders = Orders::at(&served.url).await;
    orders.append(1, vec![record(1, "orders.placed.v1"), record(2, "orders.placed.v1")]).await;
    let metrics = crate::stage::get(served.metrics.as_deref().unwrap(), "/metrics");
    assert!(metrics.contains("tombolo_bus_events_total{topic=\"orders\",partition=\"1\"} 2"), "{metrics}");
    assert!(metrics.contains("tombolo_bus_topic_epoch{topic=\"orders\"} 1"), "{metrics}");
    orders.bus.close().await;
    assert_eq!(served.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_bus_ends_cleanly_and_says_who_has_its_port_or_folder() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    let folder = stage.path("log");
    let said = stage.refused(&["bus", "--data", folder.to_str().unwrap(), "--listen", "127.0.0.1:0"], 4);
    assert!(said.contains(&format!("process {}", served.child.id())), "{said}");
    let listen = served.url.strip_prefix("tombolo://").unwrap().to_owned();
    let said = stage.refused(&["bus", "--data", "other", "--listen", &listen], 1);
    assert!(said.contains(&format!("in use by tombolo (pid {})", served.child.id())), "{said}");
    assert_eq!(served.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_bus_that_is_away_or_no_url_is_said_so() {
    let stage = Stage::with_users();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(
        stage
            .refused(&["topics", "list", "--bus", &format!("tombolo://{free}")], 4)
            .contains(&free.to_string())
    );
    assert!(stage.refused(&["topics", "list", "--bus", "somewhere"], 2).contains("has no scheme"));
}

#[tokio::test]
async fn topics_are_moved_to_another_bus_only_when_that_is_told() {
    let stage = Stage::with_users();
    let (old, new) = (Served::over(&stage, "old"), Served::over(&stage, "new"));
    let orders = Orders::at(&old.url).await;
    orders.append(0, (1..=3).map(|n| record(n, "orders.placed.v1")).collect()).await;
    orders.append(1, vec![record(1, "orders.placed.v1")]).await;
    let copy = ["topics", "copy", "--from", &old.url, "--to", &new.url];
    let preview = stage.refused(&copy, 2);
    assert!(preview.contains("--yes"), "{preview}");
    assert_eq!(stage.must(&["topics", "list", "--bus", &new.url, "--format", "json"]).trim(), "[]");

    let read = |url: &str| stage.must(&["topics", "read", "orders", "--bus", url]);
    let before = read(&old.url);
    let said = stage.must(&[&copy[..], &["--yes", "--format", "json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said, json!([{ "topic": "orders", "events": 4, "copied": 4 }]));
    assert_eq!(read(&new.url), before, "same ids, sequences and partitions");
    let late = Append {
        topic: orders.topic.name.clone(),
        incarnation: orders.topic.incarnation,
        epoch: 2,
        partition: 0,
        records: vec![record(4, "orders.placed.v1")],
    };
    assert_eq!(orders.bus.append(late).await.unwrap_err().kind(), tombolo_bus::Kind::OlderEpoch);
    let again = stage.must(&[&copy[..], &["--yes", "--format", "json"]].concat());
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap()[0]["copied"], 0);
    let unknown = stage.refused(&[&copy[..], &["payments"]].concat(), 3);
    assert!(unknown.contains("payments") && unknown.contains("orders"), "{unknown}");
}
