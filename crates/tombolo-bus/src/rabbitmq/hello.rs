//! What a RabbitMQ server says of itself when somebody knocks: its product and its version.
//!
//! The client keeps that to itself, so the first frame of the handshake is read once, before it connects.
//!
//! Invariant: a server that is known to be too old is refused; one that says nothing readable is left to the client.

use std::time::Duration;

use lapin::uri::AMQPScheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::link::unavailable;
use super::names::Address;
use crate::{Error, Kind, Result};

/// The oldest version with everything that is used here.
const VERSION_MIN: (u32, u32) = (3, 10);
/// How long the first frame is waited for.
const HELLO_SECONDS_MAX: u64 = 2;
/// The largest first frame that is read.
const HELLO_BYTES_MAX: u32 = 64 << 10;
/// "AMQP" 0-9-1, which every client begins with.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The bytes of a frame before its content: type, channel, length.
const FRAME_HEADER_BYTES: usize = 7;

/// The version of the server, if it says one.
///
/// # Errors
/// `Unavailable` if it is away; `Configuration` if it is no RabbitMQ, or too old.
pub(super) async fn version(address: &Address) -> Result<Option<String>> {
    let authority = &address.server.authority;
    let server = TcpStream::connect((authority.host.as_str(), authority.port)).await;
    let server = server.map_err(|error| unavailable("the RabbitMQ server cannot be reached", error))?;
    if address.server.scheme == AMQPScheme::AMQPS {
        return Ok(None);
    }
    match tokio::time::timeout(Duration::from_secs(HELLO_SECONDS_MAX), first_frame(server)).await {
        Ok(Ok(frame)) => judge(&frame),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

async fn first_frame(mut server: TcpStream) -> std::io::Result<Vec<u8>> {
    server.write_all(HEADER).await?;
    let mut header = [0; FRAME_HEADER_BYTES];
    server.read_exact(&mut header).await?;
    let [_, _, _, length @ ..] = header;
    let length = u32::from_be_bytes(length).min(HELLO_BYTES_MAX);
    let mut content = vec![0; length as usize];
    server.read_exact(&mut content).await?;
    Ok(content)
}

fn judge(frame: &[u8]) -> Result<Option<String>> {
    let refused = |found: String| {
        let (major, minor) = VERSION_MIN;
        let message =
            format!("the server is {found}; expected RabbitMQ {major}.{minor} or later, which has streams");
        Err(Error::new(Kind::Configuration, message))
    };
    let Some(version) = text(frame, "version") else { return Ok(None) };
    if let Some(product) = text(frame, "product").filter(|product| product != "RabbitMQ") {
        return refused(format!("{product} {version}"));
    }
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < VERSION_MIN {
        return refused(format!("RabbitMQ {version}"));
    }
    Ok(Some(version))
}

/// A text in the table of the server's properties: the length of its name, its name, `S`, its length, itself.
fn text(frame: &[u8], name: &str) -> Option<String> {
    let key = [&[name.len() as u8], name.as_bytes(), b"S"].concat();
    let at = frame.windows(key.len()).position(|window| window == key)? + key.len();
    let length = u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?) as usize;
    String::from_utf8(frame.get(at + 4..(at + 4).checked_add(length)?)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(product: &str, version: &str) -> Vec<u8> {
        let mut frame = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, 0];
        for (name, text) in [("product", product), ("version", version)] {
            frame.push(name.len() as u8);
            frame.extend_from_slice(name.as_bytes());
            frame.push(b'S');
            frame.extend_from_slice(&(text.len() as u32).to_be_bytes());
            frame.extend_from_slice(text.as_bytes());
        }
        frame
    }

    #[test]
    fn a_server_that_is_too_old_is_refused_by_its_version() {
        for (version, good) in [("3.9.29", false), ("3.10.8", true), ("4.1.0", true), ("2.8", false)] {
            match judge(&frame("RabbitMQ", version)) {
                Ok(found) => assert_eq!(good.then_some(version.to_owned()), found),
                Err(error) => assert!(!good && error.to_string().contains(version), "{error}"),
            }
        }
        assert!(judge(&frame("LavinMQ", "3.12.0")).is_err());
        assert_eq!(judge(b"no table").unwrap(), None);
        assert_eq!(judge(&frame("RabbitMQ", "3.10.8")[..40]).unwrap(), None);
    }
}
