//! `tombolo archive` as an operator runs it: between two buses of the binary, killed at any moment, and with real servers trimmed.
//!
//! Invariant of what is tested: what is read from archive and bus together is what was appended, once and in order.

use std::fs::File;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{Stage, get, signal, text, until};
use crate::topics::{Orders, Served, record};

const TYPE: &str = "orders.placed.v1";

async fn append(orders: &Orders, partition: u32, first: u64, count: u64) {
    orders.append(partition, (first..first + count).map(|n| record(n, TYPE)).collect()).await;
}

fn read(stage: &Stage, of: &[&str]) -> String {
    stage.must(&[&["topics", "read", "orders"], of].concat())
}

/// An archiver in the background, its lines in the file `archiver`.
struct Archiving(Child);

impl Archiving {
    fn start(stage: &Stage, more: &[&str]) -> Self {
        let out = File::create(stage.path("archiver")).unwrap();
        let mut command = stage.command(&[&["archive", "--format", "json"], more].concat());
        Self(command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn().unwrap())
    }

    fn end(mut self, with: Signal) -> Option<i32> {
        signal(self.0.id(), with);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Archiving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn once_copies_what_there_is_and_says_how_much() {
    let stage = Stage::with_users();
    let (bus, kept) = (Served::over(&stage, "log"), Served::over(&stage, "kept"));
    let orders = Orders::at(&bus.url).await;
    append(&orders, 0, 1, 30).await;
    orders.divide(&[2, 1]).await;
    append(&orders, 2, 1, 5).await;
    let archive = ["archive", "--once", "--from", &bus.url, "--to", &kept.url, "--format", "json"];
    let said: Value = serde_json::from_str(&stage.must(&archive)).unwrap();
    assert_eq!(
        (&said[0]["topic"], &said[0]["archived"], &said[0]["behind"]),
        (&"orders".into(), &35.into(), &0.into())
    );
    assert_eq!(read(&stage, &["--bus", &kept.url]), read(&stage, &["--bus", &bus.url]));
    let said = stage.refused(&[&archive[..], &["--trim"]].concat(), 2);
    assert!(said.contains("cannot remove events") && said.contains("leave out --trim"), "{said}");
    let said = stage.refused(&[&archive[..], &["--topic", "payments"]].concat(), 3);
    assert!(said.contains("payments"), "{said}");
    let said = stage.refused(&["archive", "--once", "--from", &bus.url, "--to", "memory:", "--trim"], 1);
    assert!(said.contains("power cut"), "{said}");
    orders.bus.close().await;
}

#[tokio::test]
async fn an_archiver_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::with_users();
    let (bus, kept) = (Served::over(&stage, "log"), Served::over(&stage, "kept"));
    let orders = Orders::at(&bus.url).await;
    let mut next = 1;
    for round in 0..8 {
        let archiver = Archiving::start(&stage, &["--from", &bus.url, "--to", &kept.url]);
        // Killed after more or less has been appended, wherever it is by then.
        for _ in 0..=round * 6 {
            append(&orders, 0, next, 40).await;
            next += 40;
        }
        archiver.end(Signal::SIGKILL);
    }
    let archiver =
        Archiving::start(&stage, &["--from", &bus.url, "--to", &kept.url, "--metrics", "127.0.0.1:0"]);
    append(&orders, 1, 1, 40).await;
    let archived = format!("\"archived\":{}", next - 1 + 40);
    let lines = || std::fs::read_to_string(stage.path("archiver")).unwrap();
    until("all of it is archived", || lines().contains(&archived));
    let said: Vec<Value> = lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let metrics = said[0]["metrics"].as_str().unwrap().strip_suffix("/metrics").unwrap();
    let metrics = get(metrics, "/metrics");
    assert!(metrics.contains("tombolo_archive_behind_events{topic=\"orders\"} 0"), "{metrics}");
    assert!(metrics.contains("tombolo_archive_stopped{topic=\"orders\"} 0"), "{metrics}");
    assert_eq!(archiver.end(Signal::SIGTERM), Some(0), "it ends when it is told to");
    assert_eq!(read(&stage, &["--bus", &kept.url]), read(&stage, &["--bus", &bus.url]));
    stage.must(&["topics", "verify", "--bus", &kept.url]);
    orders.bus.close().await;
}

#[tokio::test]
async fn what_was_trimmed_from_redis_is_read_from_postgres() {
    let server = |variable: &str| {
        let url = std::env::var(variable).ok();
        if url.is_none() {
            eprintln!(
                "skipped: archives in PostgreSQL: {variable} is not set; run cargo xtask test --install"
            );
        }
        url
    };
    let (Some(redis), Some(postgres)) = (server("TOMBOLO_TEST_REDIS"), server("TOMBOLO_TEST_POSTGRES"))
    else {
        return;
    };
    let namespace = format!("cli-{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
    let (bus, kept) = (format!("{redis}?namespace={namespace}"), format!("{postgres}?namespace={namespace}"));
    let stage = Stage::with_users();
    let orders = Orders::at(&bus).await;
    append(&orders, 0, 1, 300).await;
    append(&orders, 1, 1, 100).await;
    let before = read(&stage, &["--bus", &bus]);
    let archive = ["archive", "--once", "--from", &bus, "--to", &kept, "--trim", "--format", "json"];
    let said: Value = serde_json::from_str(&stage.must(&archive)).unwrap();
    assert_eq!(said[0]["removed"], 0, "the last 20,000 stay: {said}");
    let more = ["--keep", "1000d", "--keep-events", "7"];
    let said: Value = serde_json::from_str(&stage.must(&[&archive[..], &more].concat())).unwrap();
    assert_eq!(said[0]["removed"], 0, "what is young stays: {said}");
    let more = ["--keep", "0s", "--keep-events", "7"];
    let said: Value = serde_json::from_str(&stage.must(&[&archive[..], &more].concat())).unwrap();
    assert_eq!((&said[0]["removed"], &said[0]["archived"]), (&(293 + 93).into(), &400.into()));

    let said = stage.refused(&["topics", "read", "orders", "--bus", &bus], 1);
    assert!(said.contains("begins at 294") && said.contains("--archive"), "{said}");
    assert_eq!(read(&stage, &["--bus", &bus, "--archive", &kept]), before);
    stage.must(&["topics", "verify", "--bus", &bus, "--archive", &kept]);
    let alone = stage.run(&["doctor", ".", "--bus", &bus]);
    let said = text(&alone.stdout);
    assert!(alone.status.code() == Some(1) && said.contains("begins at 294"), "{said}");
    let said = stage.must(&["doctor", ".", "--bus", &bus, "--archive", &kept]);
    assert!(said.contains("400 events, 0 behind"), "{said}");
    orders.bus.close().await;
}
