//! Events that are published over HTTP to a bus which is killed again and again.
//!
//! Invariant of what is tested: what was answered is there, and whatever was tried again is there once, in order per key.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::stage::until_within;

const PUBLISHERS: usize = 6;
const EVENTS_EACH: usize = 120;
const KILLS: usize = 8;
const BOUND: Duration = Duration::from_secs(120);

/// A bus in a process of its own.
pub(crate) struct Bus {
    data: PathBuf,
    pub(crate) port: u16,
    process: Child,
}

impl Bus {
    pub(crate) fn start(data: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { data: data.to_owned(), port, process: Self::spawn(data, port) }
    }

    fn spawn(data: &Path, port: u16) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo"));
        command.args(["bus", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Kills it, as a power button would, lets `meanwhile` at its files, and starts it again.
    fn crash(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        meanwhile(&self.data);
        self.process = Self::spawn(&self.data, self.port);
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Where events are published.
    pub(crate) fn url(&self) -> String {
        self.at("/topics/posts/events")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Publishes one event, again and again until it is answered.
async fn publish(client: &Client, url: &str, publisher: usize, number: usize) {
    let body = json!({"specversion": "1.0", "id": format!("{publisher}-{number}"), "source": "/test", "type": "Numbered",
        "subject": format!("publisher-{publisher}"), "data": number});
    let is_taken = || async {
        let request =
            client.post(url).header("content-type", "application/cloudevents+json").body(body.to_string());
        // While it is away nothing answers; how long a start takes is the machine's affair.
        let Ok(answer) = request.send().await else { return false };
        if !answer.status().is_success() {
            assert_eq!(answer.status(), 503, "{}", answer.text().await.unwrap_or_default());
            return false;
        }
        true
    };
    until_within(BOUND, "an event is taken", is_taken).await;
}

async fn all(client: &Client, url: &str) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let answer = client.get(format!("{url}?after={after}")).send().await.unwrap();
        after = answer.headers()["tombolo-cursor"].to_str().unwrap().to_owned();
        let events: Vec<Value> = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        if events.is_empty() {
            return all;
        }
        all.extend(events);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_killed_while_others_publish_loses_and_doubles_nothing() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let (mut dice, folder) = (StdRng::seed_from_u64(seed), tempfile::tempdir().unwrap());
    let mut bus = Bus::start(folder.path());
    let (client, url, (done, mut doing)) = (Client::new(), bus.url(), watch::channel(0));
    let publishing = futures_util::future::join_all((0..PUBLISHERS).map(async |publisher| {
        for number in 0..EVENTS_EACH {
            publish(&client, &url, publisher, number).await;
            done.send_modify(|done| *done += 1);
        }
    }));
    let killing = async {
        for kill in 1..=KILLS {
            // In the middle of the work, wherever the dice say.
            let at = (kill * PUBLISHERS * EVENTS_EACH) / (KILLS + 1) + dice.random_range(0..20);
            doing.wait_for(|done| *done >= at).await.unwrap();
            let lose_ids = kill % 3 == 0;
            bus.crash(|data| {
                if lose_ids {
                    std::fs::remove_dir_all(data.join("http/ids")).unwrap();
                }
            });
        }
    };
    tokio::time::timeout(BOUND, async { tokio::join!(publishing, killing) }).await.unwrap();
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in all(&client, &url).await {
        numbers.entry(event["subject"].to_string()).or_default().push(event["data"].as_u64().unwrap());
    }
    assert_eq!(numbers.len(), PUBLISHERS);
    for (publisher, numbers) in numbers {
        assert_eq!(numbers, (0..EVENTS_EACH as u64).collect::<Vec<_>>(), "{publisher}");
    }
}
