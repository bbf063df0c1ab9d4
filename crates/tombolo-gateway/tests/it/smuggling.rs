//! Requests with two readings: refused, closed, and never half passed on.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{Service, gateway, problem, raw, status, to, until, until_end};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Heads that are refused, by the last word of the refusal's type.
const CORPUS: [(&str, &str); 24] = [
    ("framing", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("framing", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
    ("framing", "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"),
    ("framing", "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
    ("framing", "Content-Length: 4, 4\r\n\r\nabcd"),
    ("framing", "Content-Length: +5\r\n\r\nabcde"),
    ("framing", "Content-Length: 5 \t5\r\n\r\nabcde"),
    ("framing", "Content-Length: 0x5\r\n\r\nabcde"),
    ("framing", "Content-Length: -1\r\n\r\n"),
    ("framing", "Content-Length: 18446744073709551621\r\n\r\nabcde"),
    ("framing", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("framing", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("framing", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("framing", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("malformed", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("malformed", "Transfer-Encoding\x0b: chunked\r\n\r\n0\r\n\r\n"),
    ("malformed", "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("malformed", "X: y\nContent-Length: 5\r\n\r\nabcde"),
    ("malformed", "X: y\n\n"),
    ("malformed", "X: y\rContent-Length: 5\r\n\r\nabcde"),
    ("malformed", "X: y\0\r\n\r\n"),
    ("malformed", "Host: b\r\n\r\n"),
    ("malformed", "nothing\r\n\r\n"),
    ("early-upgrade", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nabcde"),
];

#[tokio::test]
async fn a_head_with_two_readings_is_refused_and_the_connection_closed() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    for (word, rest) in CORPUS {
        let answer = raw(gateway.address(), format!("POST /x HTTP/1.1\r\nHost: a\r\n{rest}{SMUGGLED}")).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{rest:?}: {answer}");
        assert_eq!(status(&answer), 400, "{rest:?}");
        let problem = problem(&answer);
        assert_eq!(problem["type"], format!("urn:tombolo:gateway:{word}"), "{rest:?}");
        assert!(answer.contains(problem["request_id"].as_str().unwrap()) && !answer.contains("127.0.0.1"));
    }
    assert_eq!(service.requests(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_line_with_two_readings_is_refused() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    for line in [
        "GET  /x HTTP/1.1",
        "GET /x\tHTTP/1.1",
        "GET /x HTTP/1.1 ",
        "GET /x HTTP/2.0",
        "GET /x",
        "GET /x y HTTP/1.1",
        "G T /x HTTP/1.1",
    ] {
        let answer = raw(gateway.address(), format!("{line}\r\nHost: a\r\n\r\n{SMUGGLED}")).await;
        assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (400, 1), "{line}: {answer}");
    }
    for host in ["a@b", "a b", "a/b", ""] {
        let answer =
            raw(gateway.address(), format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
                .await;
        assert_eq!(status(&answer), 400, "{host:?}: {answer}");
    }
    assert_eq!(service.requests(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_chunk_with_two_readings_ends_the_connection_without_a_second_request() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: y\n\r\n",
    ] {
        let before = service.told.seen.lock().unwrap().len();
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = raw(gateway.address(), format!("{head}{body}{SMUGGLED}")).await;
        assert!(answer.is_empty() || status(&answer) == 400, "{body:?}: {answer}");
        assert!(!answer.contains(" 200 "), "{body:?}: {answer}");
        let seen = service.told.seen.lock().unwrap();
        assert!(seen[before..].iter().all(|seen| seen.target != "/smuggled"), "{body:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_comes_behind_a_request_to_upgrade_is_not_taken_for_a_request() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let upgrade = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    };
    let answer = raw(gateway.address(), format!("{}{SMUGGLED}", upgrade("/ws"))).await;
    assert_eq!(
        (status(&answer), problem(&answer)["type"].as_str()),
        (400, Some("urn:tombolo:gateway:early-upgrade"))
    );
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(upgrade("/declines").as_bytes()).await.unwrap();
    until("the service was asked", async || service.requests() == 1).await;
    stream.write_all(SMUGGLED.as_bytes()).await.unwrap();
    let answer = until_end(&mut stream).await;
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (426, 1), "{answer}");
    assert_eq!(service.requests(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn another_protocol_than_websocket_is_not_changed_to() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = raw(gateway.address(), head).await;
    assert_eq!(status(&answer), 200);
    let seen = service.last().headers;
    assert!(!seen.contains_key("upgrade") && !seen.contains_key("http2-settings"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_websocket_carries_bytes_in_both_directions_until_it_ends() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..count]).to_lowercase();
    assert!(text.starts_with("http/1.1 101") && text.contains("upgrade: websocket"), "{text}");
    for word in ["hello", "GET / HTTP/1.1\r\n\r\n"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = vec![0; word.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_refusal_takes_its_turn_behind_the_answers_before_it() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let answer =
        raw(gateway.address(), "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\nHost: a\n\n").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("HTTP/1.1 400") && answer.matches("HTTP/1.1 ").count() == 2, "{answer}");
    assert_eq!(service.requests(), 1);
    gateway.stop().await;
}
