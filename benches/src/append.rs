//! How fast the log takes events: in process and through the server.
//!
//! Invariant: yardstick and log write the same number of events' bytes, on the same disk, into files that were filled
//! with zeros ahead, each batch synced before it counts.

use crate::error::Result;
use crate::quantiles::Latencies;
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::{Scratch, THIS, quiet, written_bytes};
use crate::server;
use crate::table::{Bar, Row, micros, rate};
use crate::topic::{BATCH_EVENTS, EVENT_BYTES, Target};
use crate::yardstick::BareFile;

/// Batches of one round: 64 MiB, a whole segment of the log, so that each round pays for preparing one.
const BATCHES: usize = 1_024;
/// Partitions of the pipelined runs, each with one append under way.
const PARTITIONS: u32 = 8;
const ROUNDS: usize = 7;
/// Single appends of one round.
const SINGLES: usize = 1_500;

fn rate_of(ns: u64) -> f64 {
    (BATCHES * BATCH_EVENTS) as f64 * 1e9 / ns as f64
}

async fn bare_loop(file: &BareFile) -> Result<f64> {
    Ok(rate_of(file.write_loop_ns(BATCHES, BATCH_EVENTS * EVENT_BYTES).await?))
}

async fn one_by_one(target: &mut Target) -> Result<f64> {
    let mut total = 0;
    target.one_by_one(BATCHES, BATCH_EVENTS, |ns| total += ns).await?;
    quiet(THIS).await?;
    Ok(rate_of(total))
}

/// The log in process, batch after batch.
pub(crate) async fn in_process(scratch: &Scratch) -> Result<Vec<Row>> {
    let log = server::in_process(&scratch.path("append-in-process")).await?;
    let mut target = Target::new(log.clone(), 1).await?;
    one_by_one(&mut target).await?;
    let bytes = BATCHES * BATCH_EVENTS * EVENT_BYTES;
    let bare = BareFile::prepare(scratch.path("append-yardstick"), bytes).await?;
    let rounds =
        Rounds::measure(ROUNDS, async || bare_loop(&bare).await, async || one_by_one(&mut target).await)
            .await?;
    log.close().await;
    let what = "append in process, 256-byte events, batches of 256, one under way, synced / bare write + fdatasync of the same bytes";
    Ok(vec![Row::of(what, &rounds, Bar::AtLeast(0.5), rate)])
}

/// One event at a time, in process.
pub(crate) async fn single(scratch: &Scratch) -> Result<Vec<Row>> {
    let log = server::in_process(&scratch.path("append-single")).await?;
    let mut target = Target::new(log.clone(), 1).await?;
    let bytes = written_by_one(&mut target).await?;
    let bare = BareFile::prepare(scratch.path("single-yardstick"), SINGLES * bytes).await?;
    let (mut slowest, mut slowest_bare) = (Vec::new(), Vec::new());
    let yardstick = async || {
        let latencies = bare.latencies(SINGLES, bytes).await?;
        slowest_bare.push(latencies.us(0.99));
        Ok(latencies.p50_us())
    };
    let subject = async || {
        let mut latencies = Latencies::new();
        target.one_by_one(SINGLES, 1, |ns| latencies.record(ns)).await?;
        quiet(THIS).await?;
        slowest.push(latencies.us(0.99));
        Ok(latencies.p50_us())
    };
    let rounds = Rounds::measure(ROUNDS, yardstick, subject).await?;
    log.close().await;
    let what = format!(
        "one append of one event acknowledged, in process, one writer, p50 / bare write + fdatasync of as many bytes ({bytes}), p50"
    );
    let p99 = |all: Vec<f64>| micros(crate::rounds::median(all.into_iter()));
    let mut row = Row::of(&what, &rounds, Bar::AtMost(1.5), micros).noting(&format!("p99 {}", p99(slowest)));
    row.yardstick = format!("{} (p99 {})", row.yardstick, p99(slowest_bare));
    Ok(vec![row])
}

/// The bytes that the log writes for an append of one event, as the system counts them.
async fn written_by_one(target: &mut Target) -> Result<usize> {
    const LOOKS: usize = 65;
    quiet(THIS).await?;
    let mut written = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let before = written_bytes(THIS)?;
        target.one_by_one(1, 1, |_| {}).await?;
        written.push((written_bytes(THIS)? - before) as f64);
    }
    Ok(crate::rounds::median(written.into_iter()) as usize)
}

/// Through the server, beside the log in process: each batch after batch and pipelined.
pub(crate) async fn through_server(scratch: &Scratch) -> Result<Vec<Row>> {
    let log = server::in_process(&scratch.path("append-beside-server")).await?;
    let mut local = Target::new(log.clone(), PARTITIONS).await?;
    let socket = scratch.path("append.sock");
    let process = server::start(&scratch.path("append-server"), &socket, None).await?;
    let client = server::client(&socket, crate::topic::OWNER).await?;
    let mut remote = Target::new(client.clone(), PARTITIONS).await?;
    one_by_one(&mut local).await?;
    remote.pipelined(BATCHES, BATCH_EVENTS).await?;
    let (mut by_one, mut by_all) = (Rounds::default(), Rounds::default());
    let mut turns = Turns::new(ROUNDS);
    while turns.next() {
        let single = one_by_one(&mut local).await?;
        let pipelined = rate_of(local.pipelined(BATCHES, BATCH_EVENTS).await?);
        quiet(THIS).await?;
        let subject = rate_of(remote.pipelined(BATCHES, BATCH_EVENTS).await?);
        quiet(&process.number()).await?;
        by_one.0.push(Round { yardstick: single, subject });
        by_all.0.push(Round { yardstick: pipelined, subject });
    }
    client.close().await;
    process.end().await?;
    log.close().await;
    let what = "append through the server (Unix socket), batches of 256, one under way in each of 8 partitions / in process, one under way";
    let strict = "the same / in process, also one under way in each of 8 partitions";
    Ok(vec![Row::of(what, &by_one, Bar::AtLeast(0.5), rate), Row::of(strict, &by_all, Bar::None, rate)])
}
