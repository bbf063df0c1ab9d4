//! The least that `tombolo dev` asks of a service, with the standard library alone: it listens where
//! `TOMBOLO_LISTEN` says, and `GET /ready` answers 200. Any other path shows what the runner told it.
//!
//! The tests of the runner run it. Invariant: it knows nothing of Tombolo but its environment.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    let listen = std::env::var("TOMBOLO_LISTEN").map_err(std::io::Error::other)?;
    println!("{} listens on {listen}", std::env::var("TOMBOLO_SERVICE").map_err(std::io::Error::other)?);
    for stream in TcpListener::bind(listen)?.incoming() {
        if let Err(error) = answer(stream?) {
            eprintln!("a caller went away: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let told = std::env::vars().filter(|(key, _)| key.starts_with("TOMBOLO_"));
    let body = match request.split(' ').nth(1) {
        Some("/ready") => "ready\n".to_owned(),
        _ => told.map(|(key, value)| format!("{key}={value}\n")).collect(),
    };
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}
