//! A Redis that syncs its append-only file before it answers. Invariant: it is ready only once it has read its files.

use std::path::Path;
use std::process::Command;

use super::address::{free_port, greeted};
use super::programs::Programs;
use super::scratch;
use crate::{Error, Server};

const PING: &[u8] = b"PING\r\n";
const PONG: [u8; 5] = *b"+PONG";

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    scratch::owned(folder, None)?;
    let port = free_port()?;
    let (program, folder) = (programs.redis.clone(), folder.to_owned());
    let command = move || {
        let mut command = Command::new(&program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(&folder);
        command
    };
    let answers = move || {
        let mut answer = [0; PONG.len()];
        greeted(port, PING, &mut answer) && answer == PONG
    };
    Ok(vec![Server::new("redis-server", format!("redis://127.0.0.1:{port}"), command, answers)])
}
