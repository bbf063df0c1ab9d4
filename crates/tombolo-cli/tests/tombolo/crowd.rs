//! A bus with thousands of connections that do nothing, or almost nothing.
//!
//! Invariant of what is tested: others are served meanwhile, and memory stays flat.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Client;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::publishing::Bus;
use crate::stage::{BOUND, until_within};

/// Connections that say nothing at all.
const IDLE: usize = 10_000;
/// Connections that send a large body, a little at a time.
const SLOW_WRITERS: usize = 1_000;
/// Connections that ask for everything and read nothing. The system itself takes some megabytes for each before it makes the bus wait.
const SLOW_READERS: usize = 50;
/// How much more memory the bus may have for all of them, in KiB: about what the buffers of their sockets' owners take.
const MORE_KIB_MAX: u64 = 200 << 10;
/// How long one event may take among them.
const SOON: Duration = Duration::from_secs(20);

/// The resident memory of a process, in KiB.
fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn connect(port: u16, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    all
}

async fn publish(client: &Client, bus: &Bus, id: usize) {
    let body = json!({"specversion": "1.0", "id": id.to_string(), "source": "/test", "type": "T", "data": "x".repeat(10_000)});
    let request =
        client.post(bus.url()).header("content-type", "application/cloudevents+json").body(body.to_string());
    let answer = tokio::time::timeout(SOON, request.send()).await.unwrap().unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: opens thousands of sockets, and talks to each"]
async fn thousands_that_do_nothing_cost_little_and_disturb_nobody() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = (IDLE + SLOW_WRITERS + SLOW_READERS + 500) as u64;
    assert!(
        most >= wanted,
        "a process may have {most} open files here; this test needs {wanted}: raise `ulimit -Hn`"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (bus, client) = (Bus::start(folder.path()), Client::new());
    let is_there = || async { client.get(bus.at("/health")).send().await.is_ok() };
    until_within(BOUND, "the bus answers", is_there).await;
    for id in 0..500 {
        publish(&client, &bus, id).await;
    }
    let before = memory_kib(bus.pid());
    let idle = connect(bus.port, IDLE).await;
    let (mut writers, mut readers) =
        (connect(bus.port, SLOW_WRITERS).await, connect(bus.port, SLOW_READERS).await);
    for writer in &mut writers {
        let head = "POST /topics/posts/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/cloudevents+json\r\ncontent-length: 1000000\r\n\r\n";
        writer.write_all(head.as_bytes()).await.unwrap();
    }
    for reader in &mut readers {
        let head = "GET /topics/posts/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
        reader.write_all(head.as_bytes()).await.unwrap();
    }
    for round in 0..20 {
        for writer in &mut writers {
            writer.write_all(b"{\"id\":\"x").await.unwrap();
        }
        for id in 0..10 {
            publish(&client, &bus, 1_000 + round * 10 + id).await;
        }
    }
    let more = memory_kib(bus.pid()).saturating_sub(before);
    assert!(more < MORE_KIB_MAX, "{more} KiB more, of {before} KiB before");
    // Those that asked for much and read nothing have it all once they read.
    let mut text = Vec::new();
    let mut reader = readers.pop().unwrap();
    while !String::from_utf8_lossy(&text).contains("\"id\":\"1199\"") {
        let read = tokio::time::timeout(SOON, reader.read_buf(&mut text)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the stream ended early");
    }
    drop(idle);
}
