//! A MongoDB: a replica set of one member, whose commits are in its journal before they are acknowledged.
//!
//! A member becomes a set only once somebody tells it so, over its own protocol. That is done here, byte by byte, by whoever
//! asks whether it is ready: two commands are no reason for a driver.
//!
//! Invariant: it is ready only once it is the primary of its set.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::address::free_port;
use super::programs::Programs;
use super::scratch;
use crate::{Context, Error, Server};

/// The name of the set.
const SET: &str = "tombolo";
/// How long a transaction may be open, in seconds: so long what a killed process had written in one stays out of reach.
const TRANSACTION_SECONDS: &str = "transactionLifetimeLimitSeconds=15";
/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(1);
/// The largest answer to these commands.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The kind of message that everything is, since 3.6.
const OP_MSG: i32 = 2013;
/// The bytes of a message before its document: the header of four numbers, the flags, the kind of the section.
const BEFORE: usize = 16 + 4 + 1;

/// What begins an element of a document.
const TEXT: u8 = 2;
const DOCUMENT: u8 = 3;
const LIST: u8 = 4;
const BOOLEAN: u8 = 8;
const NUMBER: u8 = 16;

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    scratch::owned(folder, None)?;
    let data = folder.join("data");
    std::fs::create_dir_all(&data).context(|| format!("create {}", data.display()))?;
    let port = free_port()?;
    let program = programs.mongodb.clone();
    let command = move || {
        let mut command = Command::new(&program);
        command.args(["--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--replSet", SET, "--dbpath"]);
        command.arg(&data).args(["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]);
        command.args(["--setParameter", TRANSACTION_SECONDS]);
        command
    };
    let url = format!("mongodb://127.0.0.1:{port}/?replicaSet={SET}");
    Ok(vec![Server::new("mongod", url, command, move || is_primary(port)).terminated()])
}

/// Whether it is the primary. One that belongs to no set yet is made one.
fn is_primary(port: u16) -> bool {
    let Some(answer) = ask(port, &[number("hello", 1)]) else { return false };
    if has(&answer, "isWritablePrimary", 1) {
        return true;
    }
    let member = [number("_id", 0), text("host", &format!("127.0.0.1:{port}"))];
    let members = nested(LIST, "members", &[nested(DOCUMENT, "0", &member)]);
    let set = nested(DOCUMENT, "replSetInitiate", &[text("_id", SET), members]);
    // One that has become a set already refuses it, and becomes primary by itself.
    ask(port, &[set]);
    false
}

/// The document that answers a command; nothing if there is none.
fn ask(port: u16, command: &[Vec<u8>]) -> Option<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_BOUND).ok()?;
    stream.set_read_timeout(Some(ANSWER_BOUND)).ok()?;
    stream.write_all(&message(command)).ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let length = usize::try_from(i32::from_le_bytes(length)).ok()?;
    let mut rest = vec![0; length.checked_sub(4).filter(|rest| *rest <= ANSWER_BYTES_MAX)?];
    stream.read_exact(&mut rest).ok()?;
    rest.get(BEFORE - 4..).map(<[u8]>::to_vec)
}

fn message(command: &[Vec<u8>]) -> Vec<u8> {
    let document = document(&[command, &[text("$db", "admin")]].concat());
    let length = i32::try_from(BEFORE + document.len()).unwrap_or(i32::MAX);
    let mut message = Vec::new();
    for number in [length, 1, 0, OP_MSG, 0] {
        message.extend(number.to_le_bytes());
    }
    message.push(0);
    message.extend(document);
    message
}

fn document(elements: &[Vec<u8>]) -> Vec<u8> {
    let elements = elements.concat();
    let length = i32::try_from(4 + elements.len() + 1).unwrap_or(i32::MAX);
    [&length.to_le_bytes()[..], &elements, &[0]].concat()
}

fn element(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
    [&[kind], name.as_bytes(), &[0], value].concat()
}

fn text(name: &str, value: &str) -> Vec<u8> {
    let length = i32::try_from(value.len() + 1).unwrap_or(i32::MAX);
    element(TEXT, name, &[&length.to_le_bytes()[..], value.as_bytes(), &[0]].concat())
}

fn number(name: &str, value: i32) -> Vec<u8> {
    element(NUMBER, name, &value.to_le_bytes())
}

fn nested(kind: u8, name: &str, elements: &[Vec<u8>]) -> Vec<u8> {
    element(kind, name, &document(elements))
}

/// Whether a document has this boolean.
fn has(document: &[u8], name: &str, value: u8) -> bool {
    let wanted = element(BOOLEAN, name, &[value]);
    document.windows(wanted.len()).any(|some| some == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the specification of the protocol spells it.
    #[test]
    fn a_command_is_one_message_of_the_protocol() {
        let hello = message(&[number("hello", 1)]);
        let body = b"\x1f\0\0\0\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0";
        assert_eq!(&hello[..4], (21 + body.len() as i32).to_le_bytes());
        assert_eq!(&hello[4..21], b"\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0");
        assert_eq!(&hello[21..], body);
    }

    #[test]
    fn only_a_primary_is_one() {
        let answer = |value| document(&[element(BOOLEAN, "isWritablePrimary", &[value]), number("ok", 1)]);
        assert!(has(&answer(1), "isWritablePrimary", 1) && !has(&answer(0), "isWritablePrimary", 1));
    }
}
