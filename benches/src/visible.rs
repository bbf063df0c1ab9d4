//! From a commit in one process to the same fact being visible in another process's database.
//!
//! Three processes, as in production: a producer that commits at open-loop arrivals, the bus behind a Unix socket,
//! a consumer with a view. The clock starts when the producer calls `commit` (its own sync counts) and stops when the
//! consumer's commit has returned: from then on every other connection to the consumer's database finds the row,
//! and a power cut does not take it back. Nothing looks for it; the commit itself stops the clock.
//!
//! Two yardsticks: syncs one after the other, and syncs that begin at the same arrivals, where the processor has gone
//! to sleep in between as it has for the events. On a virtual machine the second takes up to twice as long.
//!
//! Invariant: every event that was committed is seen, which a connection of this process counts at the end.

mod consumer;
mod producer;

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use tombolo_event::Event;

use crate::clock::now_ns;
use crate::error::{Error, Result};
use crate::hops::{Hop, Ways};
use crate::rounds::{Round, Rounds, Turns, median};
use crate::scratch::Scratch;
use crate::server::{self, Process};
use crate::table::{Bar, Row, micros};
use crate::yardstick::BareFile;

pub(crate) use consumer::run as consumer;
pub(crate) use producer::run as producer;

/// Commits per second.
const RATE: f64 = 200.0;
const ROUNDS: usize = 7;
/// How long the commits of one round arrive.
const ROUND_SECONDS: f64 = 3.0;
/// The writes of the yardstick in one round, one after the other.
const SYNCS: usize = 1_500;
/// The bytes of each.
const SYNC_BYTES: usize = 512;
const SEED: u64 = 20_261_120;

/// Something happened.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ticked {
    number: u64,
    /// As long as an order's.
    text: String,
}

impl Event for Ticked {
    const TYPE: &'static str = "bench-source.ticked.v1";

    fn key(&self) -> String {
        self.number.to_string()
    }
}

/// The nanoseconds after which each commit of a round begins: independent arrivals, so that some come close together.
pub(crate) fn arrivals(round: u64, rate: f64, seconds: f64) -> Vec<u64> {
    use rand::Rng;
    let mut random = StdRng::seed_from_u64(SEED + round);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        (at < seconds).then_some((at * 1e9) as u64)
    })
    .collect()
}

/// The figure and, where asked for, the way hop by hop.
pub(crate) async fn measure(scratch: &Scratch) -> Result<(Vec<Row>, String)> {
    let socket = scratch.path("visible.sock");
    let (sources, sights) = (scratch.path("source.db"), scratch.path("sight.db"));
    let stamps = ["bus", "producer", "consumer"].map(|who| scratch.path(&format!("{who}.hops")));
    let [bus_hops, producer_hops, consumer_hops] = &stamps;
    let bus = server::start(&scratch.path("visible-log"), &socket, Some(bus_hops)).await?;
    let role = |database, hops| [("--socket", &*socket), ("--database", database), ("--hops", hops)];
    let mut producer = Process::start("role-producer", &role(&*sources, &**producer_hops)).await?;
    let mut consumer = Process::start("role-consumer", &role(&*sights, &**consumer_hops)).await?;
    let measured = rounds(scratch, &mut producer, &mut consumer).await;
    producer.end().await?;
    consumer.end().await?;
    bus.end().await?;
    let (spans, committed) = measured?;
    let mut ways = Ways::default();
    stamps.iter().try_for_each(|path| ways.add(path))?;
    check(&sights, committed, &ways).await?;
    Ok((rows(&spans, &ways), ways.markdown()))
}

/// The yardsticks of one round, and when the round began and ended.
struct Span {
    syncs_us: f64,
    paced_us: f64,
    began: u64,
    ended: u64,
}

async fn rounds(
    scratch: &Scratch,
    producer: &mut Process,
    consumer: &mut Process,
) -> Result<(Vec<Span>, usize)> {
    let bare = BareFile::prepare(scratch.path("visible-yardstick"), SYNCS * SYNC_BYTES).await?;
    let (mut spans, mut committed) = (Vec::new(), 0);
    // The first round warms everything up, and does not count.
    let mut turns = Turns::new(ROUNDS + 1);
    for round in (0..).take_while(|_| turns.next()) {
        let syncs = bare.latencies(SYNCS, SYNC_BYTES).await?;
        let arrivals = arrivals(round, RATE, ROUND_SECONDS);
        let paced = bare.paced_latencies(arrivals.clone(), SYNC_BYTES).await?;
        let began = now_ns();
        committed += arrivals.len();
        producer.tell(&round.to_string()).await?;
        consumer.tell(&committed.to_string()).await?;
        spans.push(Span { syncs_us: syncs.p50_us(), paced_us: paced.p50_us(), began, ended: now_ns() });
    }
    spans.remove(0);
    Ok((spans, committed))
}

/// Counts what the consumer has, through a connection of this process.
async fn check(database: &Path, committed: usize, ways: &Ways) -> Result<()> {
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", database.display())).await?;
    let found: i64 = sqlx::query("SELECT count(*) FROM seen").fetch_one(&pool).await?.try_get(0)?;
    pool.close().await;
    if found != committed as i64 || ways.passed(Hop::Visible) != committed {
        let passed = ways.passed(Hop::Visible);
        return Err(Error::new(format!(
            "found {found} rows and {passed} stamps at the consumer; expected {committed}, one for each commit"
        )));
    }
    Ok(())
}

fn rows(spans: &[Span], ways: &Ways) -> Vec<Row> {
    let during = |span: &Span| span.began..span.ended;
    let p50 = |from, span: &Span| ways.between(from, Hop::Visible, during(span)).p50_us();
    let of = |yardstick: fn(&Span) -> f64, from| {
        let rounds = spans.iter().map(|span| Round { yardstick: yardstick(span), subject: p50(from, span) });
        Rounds(rounds.collect())
    };
    let p99 = spans.iter().map(|span| ways.between(Hop::CommitCalled, Hop::Visible, during(span)).us(0.99));
    let p99 = format!("p99 {}", micros(median(p99)));
    let call =
        "commit called in one process to visible in another's database (SQLite, Unix socket, 200/s), p50";
    let back = "the same from the commit's return in the producer, p50";
    let tight = "bare write + fdatasync, one after the other, p50";
    let paced = "bare write + fdatasync at the same arrivals, p50";
    let row = |what: &str, beside: &str, yardstick: fn(&Span) -> f64, from| {
        Row::of(&format!("{what} / {beside}"), &of(yardstick, from), Bar::AtMost(8.0), micros)
    };
    vec![
        row(call, paced, |span| span.paced_us, Hop::CommitCalled).noting(&p99),
        row(call, tight, |span| span.syncs_us, Hop::CommitCalled),
        row(back, paced, |span| span.paced_us, Hop::Committed),
        row(back, tight, |span| span.syncs_us, Hop::Committed),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_the_same_each_time_and_as_many_as_the_rate_says() {
        let all = arrivals(1, 200.0, 10.0);
        assert_eq!(all, arrivals(1, 200.0, 10.0));
        assert!((1_700..2_300).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted());
    }
}
