//! A nats-server with JetStream. Invariant: it is ready only once it says that JetStream is on.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::address::free_port;
use super::programs::Programs;
use super::scratch;
use crate::{Error, Server};

const GREETING_BOUND: Duration = Duration::from_secs(1);

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    scratch::owned(folder, None)?;
    let port = free_port()?;
    let (program, folder) = (programs.nats.clone(), folder.to_owned());
    let command = move || {
        let mut command = Command::new(&program);
        command.current_dir(&folder);
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"]);
        command.arg(folder.join("store"));
        command
    };
    let url = format!("nats://127.0.0.1:{port}");
    Ok(vec![Server::new("nats-server", url, command, move || greets(port))])
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
