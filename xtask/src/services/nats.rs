//! A private nats-server with JetStream, its store in the scratch folder. Invariant: it is reachable
//! over 127.0.0.1 alone, and ready only once it says that JetStream is on.

use super::address::{START_TRIES, free_port};
use super::install::Programs;
use super::process::{Process, ended, wait_until};
use super::record::Record;
use crate::error::Error;
use crate::interrupt::Interrupt;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

const READY_BOUND: Duration = Duration::from_secs(30);
const GREETING_BOUND: Duration = Duration::from_secs(1);

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
            Ok(port) => return Ok(format!("nats://127.0.0.1:{port}")),
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

fn start_once(record: &mut Record, programs: &Programs, interrupt: &Interrupt) -> Result<u16, Error> {
    let port = free_port()?;
    let log = record.scratch.join("nats.log");
    let mut command = Command::new(&programs.nats);
    command.current_dir(&record.scratch);
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"]);
    command.arg(record.scratch.join("nats"));
    let process = Process::spawn("nats-server", &mut command, &log)?;
    record.add(process.clone())?;
    wait_until(READY_BOUND, || !process.runs() || interrupt.check().is_err() || greets(port));
    if process.runs() && greets(port) { Ok(port) } else { Err(ended("nats-server", &log)) }
}

/// Whether a server on this port says that it has JetStream.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(stream) = TcpStream::connect_timeout(&address, GREETING_BOUND) else { return false };
    let mut greeting = String::new();
    let read = stream
        .set_read_timeout(Some(GREETING_BOUND))
        .and_then(|()| BufReader::new(stream).read_line(&mut greeting));
    read.is_ok() && greeting.starts_with("INFO ") && greeting.contains(r#""jetstream":true"#)
}
