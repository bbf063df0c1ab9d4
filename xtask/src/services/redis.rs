//! A private Redis that syncs its append-only file before it answers, with its files in the scratch folder. Invariant: it is
//! reachable over 127.0.0.1 alone, and ready only once it has read its files and answers.

use super::address::{START_TRIES, free_port};
use super::install::Programs;
use super::process::{Process, ended, wait_until};
use super::record::Record;
use super::scratch;
use crate::error::Error;
use crate::interrupt::Interrupt;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

const READY_BOUND: Duration = Duration::from_secs(30);
const ANSWER_BOUND: Duration = Duration::from_secs(1);

/// Starts a server and gives its URL.
pub(super) fn start(
    record: &mut Record,
    programs: &Programs,
    interrupt: &Interrupt,
) -> Result<String, Error> {
    let mut tries = 1;
    loop {
        interrupt.check()?;
        match start_once(record, programs, interrupt) {
            Ok(port) => return Ok(format!("redis://127.0.0.1:{port}")),
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

fn start_once(record: &mut Record, programs: &Programs, interrupt: &Interrupt) -> Result<u16, Error> {
    let port = free_port()?;
    let log = record.scratch.join("redis.log");
    let folder = record.scratch.join(format!("redis-{port}"));
    scratch::owned(&folder, None)?;
    let mut command = Command::new(&programs.redis);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"]);
    command.args(["--appendfsync", "always", "--dir"]).arg(&folder);
    let process = Process::spawn("redis-server", &mut command, &log)?;
    record.add(process.clone())?;
    wait_until(READY_BOUND, || !process.runs() || interrupt.check().is_err() || answers(port));
    if process.runs() && answers(port) { Ok(port) } else { Err(ended("redis-server", &log)) }
}

/// Whether a server on this port answers a ping.
fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, ANSWER_BOUND) else { return false };
    let mut answer = String::new();
    let read = stream
        .set_read_timeout(Some(ANSWER_BOUND))
        .and_then(|()| stream.write_all(b"PING\r\n"))
        .and_then(|()| BufReader::new(stream).read_line(&mut answer));
    read.is_ok() && answer.starts_with("+PONG")
}
