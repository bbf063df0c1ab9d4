//! The gateway beside nginx: the same backend, the same load, by turns.
//!
//! nginx passes requests on over kept connections, as the gateway does, and neither writes an access log. Processor time is what the
//! kernel counted for each proxy's processes while `wrk` pressed as hard as it could.
//!
//! Invariant: both proxies run from the first round to the last; a request that failed ends the measurement.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::dev;
use crate::error::{Error, Result};
use crate::quantiles::Latencies;
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::Scratch;
use crate::table::{Bar, Row, micros, rate};

const ROUNDS: usize = 5;
const PRESSED: &str = "4s";
const CONNECTIONS: &str = "64";
/// How long what was started may take to listen.
const START_MAX: Duration = Duration::from_secs(10);
const IDLE: u64 = 10_000;
/// Connections by which the paced requests come.
const PACED_CONNECTIONS: u32 = 16;
const PACED: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

const RATE: &str = "requests through the gateway, as many as it takes, beside nginx";
const PROCESSOR: &str = "processor time of a request in the gateway, beside nginx";
const ADDED: &str = "p99 that the gateway adds at half of that load";
const MEMORY: &str = "memory of the gateway with 10,000 connections that rest";

/// The four figures.
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
        None => return beside(scratch, &runner).await,
    };
    Ok(vec![Row::absent(RATE, why, Bar::AtLeast(0.6))])
}

async fn beside(scratch: &Scratch, runner: &Path) -> Result<Vec<Row>> {
    let backend =
        nginx(scratch, "backend", "return 200 \"hello, this is what a service answers\";", "").await?;
    let upstream = format!("upstream service {{ server 127.0.0.1:{}; keepalive 64; }}", backend.port);
    let pass = "proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let other = nginx(scratch, "proxy", pass, &upstream).await?;
    let own = gateway(scratch, runner, backend.port).await?;
    let (rates, costs) = pressed(&other, &own).await?;
    let half = rates.subject() / 2.0;
    let direct = paced(backend.port, half).await?;
    let through = paced(own.port, half).await?;
    let added = (through.us(0.99) - direct.us(0.99)) / 1e3;
    let note = format!("{:.0} µs direct, {:.0} µs through", direct.us(0.99), through.us(0.99));
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
        let (yardstick, subject) = (other.press().await?, own.press().await?);
        rates.0.push(Round { yardstick: yardstick.0, subject: subject.0 });
        costs.0.push(Round { yardstick: yardstick.1, subject: subject.1 });
    }
    Ok((rates, costs))
}

/// A program that listens. It ends with this.
struct Started {
    child: Child,
    port: u16,
}

impl Started {
    /// Presses as hard as `wrk` can: requests per second, and microseconds of processor time for each.
    async fn press(&self) -> Result<(f64, f64)> {
        let before = self.processor_seconds()?;
        let url = format!("http://127.0.0.1:{}/", self.port);
        let arguments = ["-t", "1", "-c", CONNECTIONS, "-d", PRESSED, &url];
        let output = Command::new("wrk").args(arguments).stdin(Stdio::null()).output().await?;
        let used = self.processor_seconds()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            return Err(Error::new(format!("requests failed: {text}")));
        }
        let rate = figure(&text, "Requests/sec:")?;
        let requests = text.lines().find(|line| line.contains(" requests in ")).unwrap_or_default();
        let requests: f64 = requests.split_whitespace().next().unwrap_or_default().parse()?;
        Ok((rate, used * 1e6 / requests))
    }

    /// What the process and its children have used.
    fn processor_seconds(&self) -> Result<f64> {
        let own = self.pid()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        let mut ticks = 0.0;
        for entry in fs::read_dir("/proc")? {
            let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
            // The fields behind the name, which may itself hold blanks: the parent is the fourth of all, utime and stime the 14th and 15th.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let is_one = stat.starts_with(&format!("{own} ")) || fields.get(1) == Some(&&*own.to_string());
            if let (true, [user, system]) = (is_one, fields.get(11..13).unwrap_or_default()) {
                ticks += user.parse::<f64>()? + system.parse::<f64>()?;
            }
        }
        Ok(ticks / per_second)
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| Error::new("a proxy has ended"))
    }
}

fn figure(text: &str, label: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
    Ok(line.ok_or_else(|| Error::new(format!("wrk said no {label} {text}")))?.trim().parse()?)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|it| it.join(program))
        .find(|file| file.is_file())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn start(mut command: Command, port: u16) -> Result<Started> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let listens = async {
        let mut clock = interval(Duration::from_millis(20));
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            clock.tick().await;
        }
    };
    timeout(START_MAX, listens).await.map_err(|_| Error::new(format!("{command:?} does not listen")))?;
    Ok(Started { child, port })
}

async fn nginx(scratch: &Scratch, name: &str, location: &str, upstream: &str) -> Result<Started> {
    let (port, folder) = (free_port()?, scratch.path(name));
    fs::create_dir_all(&folder)?;
    let config = format!(
        "daemon off; worker_processes 2; pid {0}/pid; error_log stderr crit; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; {upstream}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }} }}\n",
        folder.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let program = in_path("nginx").unwrap_or_else(|| "nginx".into());
    let mut command = Command::new(program);
    command.arg("-c").arg(&file).arg("-p").arg(&folder);
    start(command, port).await
}

async fn gateway(scratch: &Scratch, runner: &Path, backend: u16) -> Result<Started> {
    let port = free_port()?;
    let config = scratch.path("gateway.toml");
    let text = format!(
        "[gateway]\nport = {port}\naccess_log = false\n[[gateway.route]]\nupstreams = [\"http://127.0.0.1:{backend}\"]\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(runner);
    command.arg("gateway").arg("--config").arg(&config).env("RUST_LOG", "warn");
    start(command, port).await
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
