//! How fast events are taken over HTTP: one in each request, many requests under way on connections that are kept; and batches.
//!
//! Invariant: yardstick and subject are the same server, asked by the same client with the same bytes; only what the server does
//! with the body differs.

use std::time::Instant;

use axum::Router;
use axum::routing::post;
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::{Scratch, quiet};
use crate::server;
use crate::table::{Bar, Row, rate};
use crate::topic::{BATCH_EVENTS, Target};

/// Connections of the client, and the requests that each sends before it reads answers.
const PIPELINED: (usize, usize) = (32, 16);
const ONE_BY_ONE: (usize, usize) = (256, 1);
/// Requests of one round, with one event each.
const SINGLES: usize = 40_960;
/// Batches of one round, and on how many connections.
const BATCHES: usize = 512;
const BATCH_CONNECTIONS: usize = 8;
const ROUNDS: usize = 5;

/// A route that takes a body, does nothing with it, and answers as publishing does.
pub(crate) fn nothing() -> Router {
    const ANSWER: &str = r#"{"id":"84aec1a2-a228-5a49-8f9a-176a5f566575","partition":4,"repeated":false,"sequence":100000,"topic":"http"}"#;
    Router::new()
        .route("/nothing", post(async |_: axum::body::Bytes| (axum::http::StatusCode::CREATED, ANSWER)))
}

/// The figures.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let socket = scratch.path("http.sock");
    let process = server::start(&scratch.path("http"), &socket, None).await?;
    let address = format!("127.0.0.1:{}", std::fs::read_to_string(server::port_file(&socket))?);
    let client = server::client(&socket, crate::topic::OWNER).await?;
    let mut target = Target::new(client.clone(), 8).await?;
    let (mut pipelined, mut singles, mut batches) = (Rounds::default(), Rounds::default(), Rounds::default());
    let mut turns = Turns::new(ROUNDS);
    while turns.next() {
        for (rounds, how) in [(&mut pipelined, PIPELINED), (&mut singles, ONE_BY_ONE)] {
            let yardstick = single_rate(&address, "/nothing", how).await?;
            let subject = single_rate(&address, "/topics/http/events", how).await?;
            quiet(&process.number()).await?;
            rounds.0.push(Round { yardstick, subject });
        }
        let by_protocol = target.pipelined(BATCHES, BATCH_EVENTS).await?;
        let yardstick = (BATCHES * BATCH_EVENTS) as f64 * 1e9 / by_protocol as f64;
        quiet(&process.number()).await?;
        let subject = batch_rate(&address).await?;
        quiet(&process.number()).await?;
        batches.0.push(Round { yardstick, subject });
    }
    client.close().await;
    process.end().await?;
    let one = "single events over HTTP, 16 pipelined on each of 32 connections / the same server doing nothing with the body";
    let each = "the same, one request at a time on each of 256 connections";
    let many = "batches of 256 over HTTP, one under way on each of 8 connections / batches by the streaming protocol";
    Ok(vec![
        Row::of(one, &pipelined, Bar::AtLeast(0.7), rate),
        Row::of(each, &singles, Bar::None, rate),
        Row::of(many, &batches, Bar::AtLeast(0.5), rate),
    ])
}

/// An event of about 256 bytes, with an id of its own.
fn event() -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{}","source":"/bench","type":"bench.written.v1","subject":"key-{}","data":"{}"}}"#,
        Uuid::now_v7(),
        Uuid::new_v4().as_u128() % 1_000,
        "e".repeat(110)
    )
}

/// A request as it goes over a connection that is kept.
pub(crate) fn request(path: &str, content_type: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

async fn single_rate(address: &str, path: &str, (connections, under_way): (usize, usize)) -> Result<f64> {
    let each = SINGLES / connections / under_way;
    let piece =
        || (0..under_way).flat_map(|_| request(path, "application/cloudevents+json", &event())).collect();
    let lanes: Vec<Vec<Vec<u8>>> = (0..connections).map(|_| (0..each).map(|_| piece()).collect()).collect();
    let seconds = send(address, lanes, under_way).await?;
    Ok(SINGLES as f64 / seconds)
}

async fn batch_rate(address: &str) -> Result<f64> {
    let batch = || format!("[{}]", (0..BATCH_EVENTS).map(|_| event()).collect::<Vec<_>>().join(","));
    let lane = || {
        (0..BATCHES / BATCH_CONNECTIONS)
            .map(|_| request("/topics/http/events", "application/cloudevents-batch+json", &batch()))
            .collect()
    };
    let lanes: Vec<Vec<Vec<u8>>> = (0..BATCH_CONNECTIONS).map(|_| lane()).collect();
    let seconds = send(address, lanes, 1).await?;
    Ok((BATCHES * BATCH_EVENTS) as f64 / seconds)
}

/// Sends what each lane holds, piece after piece, each of which is `answers` requests; returns the seconds that it took.
pub(crate) async fn send(address: &str, lanes: Vec<Vec<Vec<u8>>>, answers: usize) -> Result<f64> {
    let mut streams = Vec::new();
    for _ in &lanes {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let began = Instant::now();
    let sending =
        streams.into_iter().zip(lanes).map(|(stream, lane)| tokio::spawn(send_lane(stream, lane, answers)));
    for sent in try_join_all(sending).await.map_err(|error| Error::new(error.to_string()))? {
        sent?;
    }
    Ok(began.elapsed().as_secs_f64())
}

async fn send_lane(mut stream: TcpStream, lane: Vec<Vec<u8>>, answers: usize) -> Result<()> {
    let mut unread = Vec::with_capacity(64 << 10);
    for piece in lane {
        stream.write_all(&piece).await?;
        for _ in 0..answers {
            answer(&mut stream, &mut unread).await?;
        }
    }
    Ok(())
}

/// Reads one answer, which must be a success.
async fn answer(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Result<()> {
    loop {
        if let Some(head) = unread.windows(4).position(|it| it == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&unread[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|it| it.parse::<usize>().ok());
            let whole =
                head + 4 + length.ok_or_else(|| Error::new(format!("an answer without a length: {text}")))?;
            if !text.starts_with("http/1.1 2") {
                return Err(Error::new(format!("not taken: {}", String::from_utf8_lossy(unread))));
            }
            if unread.len() >= whole {
                unread.drain(..whole);
                return Ok(());
            }
        }
        if stream.read_buf(unread).await? == 0 {
            return Err(Error::new("the server closed a connection"));
        }
    }
}
