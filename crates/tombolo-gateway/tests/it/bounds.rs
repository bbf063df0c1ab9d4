//! Bounds: what is over them is refused by name, and nobody else notices.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::frames::{END_HEADERS, END_STREAM, HEADERS, became, beginning, block, frame, next};
use crate::stage::{BOUND, Service, gateway, get, problem, raw, status, to, until_end};

#[tokio::test]
async fn a_body_of_the_bound_passes_and_a_byte_more_does_not() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}body_max = 1000\n", to(&service))).await;
    let post = |bytes: usize| {
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n{}",
            "x".repeat(bytes)
        )
    };
    assert_eq!(status(&raw(gateway.address(), post(1000)).await), 200);
    assert_eq!(service.last().bytes, 1000);
    let answer = raw(gateway.address(), post(1001)).await;
    assert_eq!(
        (status(&answer), problem(&answer)["type"].as_str()),
        (413, Some("urn:tombolo:gateway:body-too-large"))
    );
    assert_eq!(service.requests(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn chunks_without_end_are_ended_at_the_bound() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}body_max = \"64 KiB\"\n", to(&service))).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let mut sent = 0;
    while sent < 10_000 && stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 10_000, "40 MB were taken of a body of 64 KiB");
    let answer = until_end(&mut stream).await;
    assert!(answer.is_empty() || status(&answer) == 413, "{answer}");
    assert!(service.told.seen.lock().unwrap().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_head_over_the_bound_is_refused() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    for headers in [
        format!("X: {}\r\n", "y".repeat(64 << 10)),
        (0..64).map(|number| format!("X-{number}: {}\r\n", "y".repeat(1 << 10))).collect(),
        "X: y\r\n".repeat(101),
    ] {
        let answer = get(&gateway, "/", &headers).await;
        assert_eq!(
            (status(&answer), problem(&answer)["type"].as_str()),
            (431, Some("urn:tombolo:gateway:head-too-large"))
        );
    }
    assert_eq!(service.requests(), 0);
    assert_eq!(status(&get(&gateway, "/", &format!("X: {}\r\n", "y".repeat(16 << 10))).await), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_head_that_drips_is_refused_in_time() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("head_timeout_ms = 200\n{}", to(&service))).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let began = tokio::time::Instant::now();
    stream.write_all(b"GET / HT").await.unwrap();
    let answer = until_end(&mut stream).await;
    assert_eq!((status(&answer), problem(&answer)["type"].as_str()), (408, Some("urn:tombolo:gateway:slow")));
    assert!(began.elapsed().as_millis() >= 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_and_one_with_a_request_under_way_is_not() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("idle_ms = 150\n{}", to(&service))).await;
    let mut busy = TcpStream::connect(gateway.address()).await.unwrap();
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut silent = TcpStream::connect(gateway.address()).await.unwrap();
    let mut used = TcpStream::connect(gateway.address()).await.unwrap();
    used.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(until_end(&mut silent).await, "");
    assert_eq!(status(&until_end(&mut used).await), 200);
    service.told.gate.add_permits(1);
    assert_eq!(status(&until_end(&mut busy).await), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_of_http_2_that_rests_is_closed_and_one_with_a_request_under_way_is_not() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("idle_ms = 150\n{}", to(&service))).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/held")];
    let asked = |flags: u8| [beginning(), frame(HEADERS, END_STREAM | flags, 1, &block(&fields))].concat();
    let mut busy = TcpStream::connect(gateway.address()).await.unwrap();
    busy.write_all(&asked(END_HEADERS)).await.unwrap();
    let (mut silent, mut unfinished) = (
        TcpStream::connect(gateway.address()).await.unwrap(),
        TcpStream::connect(gateway.address()).await.unwrap(),
    );
    silent.write_all(&beginning()).await.unwrap();
    unfinished.write_all(&asked(0)).await.unwrap();
    for resting in [&mut silent, &mut unfinished] {
        let ended = tokio::time::timeout(BOUND, async { while next(resting).await.is_some() {} }).await;
        assert!(ended.is_ok(), "it was left open");
    }
    service.told.gate.add_permits(1);
    assert!(became(&mut busy, 1).await.is_ok());
    gateway.stop().await;
}

#[tokio::test]
async fn two_thousand_slow_clients_harm_nobody_else() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let before = resident_kib();
    let mut slow = Vec::new();
    for number in 0..2000 {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let beginning: &[u8] = match number % 3 {
            0 => b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
            1 => b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx",
            _ => b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        };
        stream.write_all(beginning).await.unwrap();
        slow.push(stream);
    }
    for _ in 0..100 {
        assert_eq!(status(&get(&gateway, "/", "").await), 200);
    }
    let grown = resident_kib().saturating_sub(before);
    // Both ends and the service are in this process: four sockets and their buffers for each of them.
    assert!(grown < 200 << 10, "{grown} KiB for 2,000 connections");
    for stream in &mut slow {
        stream.write_all(b"h").await.unwrap();
    }
    drop(slow);
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    gateway.stop().await;
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_a_timeout() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}timeout_ms = 100\n", to(&service))).await;
    let answer = get(&gateway, "/held", "").await;
    assert_eq!(
        (status(&answer), problem(&answer)["type"].as_str()),
        (504, Some("urn:tombolo:gateway:timeout"))
    );
    gateway.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let service = Service::start("a").await;
    let gateway =
        gateway(&format!("{}rate = {{ by = \"address\", per_s = 1, burst = 3 }}\n", to(&service))).await;
    let mut statuses = Vec::new();
    let mut last = String::new();
    for _ in 0..6 {
        last = get(&gateway, "/", "").await;
        statuses.push(status(&last));
    }
    assert!(statuses.starts_with(&[200, 200, 200]) && statuses.ends_with(&[429]), "{statuses:?}");
    assert!(last.contains("retry-after: 1"), "{last}");
    assert_eq!(problem(&last)["type"], "urn:tombolo:gateway:rate");
    gateway.stop().await;
}

#[tokio::test]
async fn no_more_connections_than_the_bound_are_served_at_once() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("connections_max = 1\n{}", to(&service))).await;
    let mut first = TcpStream::connect(gateway.address()).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 16];
    first.read_exact(&mut some).await.unwrap();
    let mut second = TcpStream::connect(gateway.address()).await.unwrap();
    second.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let wait = tokio::time::timeout(std::time::Duration::from_millis(100), second.read(&mut some)).await;
    assert!(wait.is_err(), "two were served");
    drop(first);
    assert_eq!(second.read(&mut some).await.unwrap(), 16);
    gateway.stop().await;
}
