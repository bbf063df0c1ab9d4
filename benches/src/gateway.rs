//! The gateway beside nginx: the same backend, the same load, by turns. Then its checks of tokens, beside HAProxy's (`checked.rs`).
//!
//! nginx passes requests on over kept connections, as the gateway does, and neither writes an access log. Processor time is what the
//! kernel counted for each proxy's processes while `wrk` pressed as hard as it could.
//!
//! Invariant: both proxies run from the first round to the last; a request that failed ends the measurement.

mod checked;
mod issuer;
mod proxies;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use crate::dev;
use crate::error::{Error, Result};
use crate::quantiles::Latencies;
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::Scratch;
use crate::table::{Bar, Row, micros, rate};

use proxies::{Started, gateway, in_path, nginx};

const ROUNDS: usize = 5;
const IDLE: u64 = 10_000;
/// Connections by which the paced requests come: as many as press, so that each pauses longer than a timer is exact to (1 ms).
const PACED_CONNECTIONS: u32 = 64;
const PACED: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

const RATE: &str = "requests through the gateway, as many as it takes, beside nginx";
const PROCESSOR: &str = "processor time of a request in the gateway, beside nginx";
const ADDED: &str = "p99 that the gateway adds at half of that load";
const MEMORY: &str = "memory of the gateway with 10,000 connections that rest";

/// The four figures beside nginx, and those of checks.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let missing = ["nginx", "wrk"].into_iter().find(|program| in_path(program).is_none());
    let runner = dev::runner()?;
    let why = match missing {
        Some(program) => {
            format!("not measured: there is no {program}; `apt-get install {program}` installs it")
        }
        None if !runner.is_file() => {
            format!("not measured: {} is not built; `cargo xtask bench` builds it", runner.display())
        }
        None => {
            let mut rows = beside(scratch, &runner).await?;
            rows.extend(checked::measure(scratch, &runner).await?);
            return Ok(rows);
        }
    };
    Ok(vec![Row::absent(RATE, why, Bar::AtLeast(0.6))])
}

async fn beside(scratch: &Scratch, runner: &Path) -> Result<Vec<Row>> {
    let backend = proxies::backend(scratch, "backend").await?;
    let upstream = format!("upstream service {{ server 127.0.0.1:{}; keepalive 64; }}", backend.port);
    let pass = "proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let other = nginx(scratch, "proxy", pass, &upstream).await?;
    let routes = format!("[[gateway.route]]\nupstreams = [\"http://127.0.0.1:{}\"]\n", backend.port);
    let own = gateway(scratch, runner, "plain", &routes, None).await?;
    let (rates, costs) = pressed(&other, &own).await?;
    let half = rates.subject() / 2.0;
    let direct = paced(backend.port, half).await?;
    let through = paced(own.port, half).await?;
    let beside = paced(other.port, half).await?;
    let added = (through.us(0.99) - direct.us(0.99)) / 1e3;
    let p99 = [&direct, &through, &beside].map(|latencies| latencies.us(0.99));
    let note = format!("{:.0} µs direct, {:.0} µs through, {:.0} µs through nginx", p99[0], p99[1], p99[2]);
    let resting = resting(&own).await?;
    Ok(vec![
        Row::of(RATE, &rates, Bar::AtLeast(0.6), rate),
        Row::of(PROCESSOR, &costs, Bar::AtMost(1.6), micros),
        Row::of_value(ADDED, added, "ms", Bar::Under(1.0)).noting(&note),
        Row::of_value(MEMORY, resting, "MB", Bar::Under(150.0)),
    ])
}

/// Requests per second, and microseconds of processor time for each, by turns.
async fn pressed(other: &Started, own: &Started) -> Result<(Rounds, Rounds)> {
    let (mut rates, mut costs) = (Rounds::default(), Rounds::default());
    let mut turns = Turns::new(ROUNDS);
    while turns.next() {
        let (yardstick, subject) = (other.press(None).await?, own.press(None).await?);
        rates.0.push(Round { yardstick: yardstick.rate, subject: subject.rate });
        costs.0.push(Round { yardstick: yardstick.cost_us, subject: subject.cost_us });
    }
    Ok((rates, costs))
}

/// Latencies of requests that come at an even pace, whatever the answers do.
async fn paced(port: u16, per_second: f64) -> Result<Latencies> {
    let pause = Duration::from_secs_f64(f64::from(PACED_CONNECTIONS) / per_second.max(1.0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..PACED_CONNECTIONS {
        clients.spawn(one_paced(port, pause));
    }
    let mut all = Latencies::new();
    while let Some(client) = clients.join_next().await {
        client??.into_iter().for_each(|ns| all.record(ns));
    }
    Ok(all)
}

async fn one_paced(port: u16, pause: Duration) -> Result<Vec<u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (began, mut all) = (Instant::now(), Vec::new());
    let mut clock = interval(pause);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while began.elapsed() < PACED {
        // From when it was due, so that a late answer counts for those behind it, too.
        let due = clock.tick().await;
        ask(&mut stream).await?;
        all.push(u64::try_from(due.elapsed().as_nanos())?);
    }
    Ok(all)
}

/// One request and its answer, which comes in one piece.
async fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(REQUEST).await?;
    let (mut answer, mut length) = ([0; 2048], 0);
    while !answer[..length].ends_with(b"answers") {
        match stream.read(&mut answer[length..]).await? {
            0 => return Err(Error::new("a proxy closed a connection")),
            count => length += count,
        }
    }
    Ok(())
}

/// The memory of a proxy in MB while connections rest that each have had an answer.
async fn resting(own: &Started) -> Result<f64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut open = Vec::new();
    for _ in 0..IDLE {
        let mut stream = TcpStream::connect(("127.0.0.1", own.port)).await?;
        ask(&mut stream).await?;
        open.push(stream);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", own.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kb| kb.parse::<f64>().ok());
    drop(open);
    Ok(kb.ok_or_else(|| Error::new("the gateway's memory is not known"))? / 1024.0)
}
