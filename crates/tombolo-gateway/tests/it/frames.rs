//! HTTP/2 frame by frame, for requests that no client would send; and a service that keeps every byte that it is sent.
//!
//! Invariant: fields are literals without an index, so that what is written here is what comes. Source:
//! <https://www.rfc-editor.org/rfc/rfc9113>, section 4, and <https://www.rfc-editor.org/rfc/rfc7541>, section 6.2.2.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::stage::BOUND;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// What a client begins with: the preface and its settings.
pub(crate) fn beginning() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of fields.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    fields.iter().flat_map(literal).collect()
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // An integer with a prefix of seven bits.
    match text.len() {
        short @ 0..127 => bytes.push(short as u8),
        long => {
            let mut rest = long - 127;
            bytes.push(127);
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Became {
    /// An answer that begins with this byte of HPACK (0x88 is 200, 0x8c is 400), and its body.
    Answer(u8, String),
    /// The stream was reset, for this reason.
    Reset(u32),
    /// The connection was ended, for this reason.
    GoneAway(u32),
    /// The connection was closed without a word.
    Closed,
}

impl Became {
    pub(crate) fn is_ok(&self) -> bool {
        matches!(self, Self::Answer(0x88, _))
    }

    /// Whether it was refused, by a problem or by the protocol.
    pub(crate) fn is_refused(&self) -> bool {
        match self {
            // An answer to what h2 itself refuses has no body.
            Self::Answer(first, body) if body.is_empty() => *first != 0x88,
            Self::Answer(_, body) => body.contains("urn:tombolo:gateway:") && body.contains("request_id"),
            Self::Reset(_) | Self::GoneAway(_) | Self::Closed => true,
        }
    }
}

/// Sends frames on a connection of their own; what became of the first stream.
pub(crate) async fn sent(address: SocketAddr, frames: &[u8]) -> Became {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other end may have had enough before all is sent.
    stream.write_all(&[&beginning(), frames].concat()).await.ok();
    let became = timeout(BOUND, became(&mut stream, 1)).await;
    became.unwrap_or_else(|_| panic!("neither answered nor refused: {frames:?}"))
}

/// Reads until a stream is done.
pub(crate) async fn became(stream: &mut TcpStream, number: u32) -> Became {
    let (mut first, mut body) = (0, Vec::new());
    while let Some((kind, flags, on, payload)) = next(stream).await {
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            GOAWAY if code(4) != 0 => return Became::GoneAway(code(4)),
            RST_STREAM if on == number => return Became::Reset(code(0)),
            // A change of the table's size may come first.
            HEADERS if on == number && first == 0 => {
                first = *payload.iter().find(|byte| **byte & 0xe0 != 0x20).unwrap();
            }
            DATA if on == number => body.extend_from_slice(&payload),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && on == number && flags & END_STREAM != 0 {
            return Became::Answer(first, String::from_utf8_lossy(&body).into_owned());
        }
    }
    Became::Closed
}

/// Asks for the same again and again, and resets each once the gateway has seen it; how many, until it is cut or did so `most` times.
pub(crate) async fn resets_until_cut(address: SocketAddr, path: &str, most: u32) -> u32 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&beginning()).await.unwrap();
    let fields = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)]);
    for count in 0..most {
        let number = 2 * count + 1;
        // The answer to the question behind it says that it was seen. What cannot be written will not be answered.
        let asked = frame(HEADERS, END_HEADERS | END_STREAM, number, &fields);
        stream.write_all(&[asked, frame(PING, 0, 0, &[0; 8])].concat()).await.ok();
        loop {
            match timeout(BOUND, next(&mut stream)).await.expect("it says nothing any more") {
                Some((PING, ..)) => break,
                Some((GOAWAY, ..)) | None => return count,
                Some(_) => {}
            }
        }
        stream.write_all(&frame(RST_STREAM, 0, number, &8_u32.to_be_bytes())).await.ok();
    }
    most
}

/// The next frame: kind, flags, stream, payload.
pub(crate) async fn next(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, on @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(on) & 0x7fff_ffff, payload))
}

/// A service that keeps every byte, connection by connection, and answers each whole request with the same bytes.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    told: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Recorder {
    pub(crate) async fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let all = told.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(record(stream, all.clone(), answer));
            }
        });
        Self { address, told, _tasks: tasks }
    }

    /// A route for everything to it.
    pub(crate) fn route(&self) -> String {
        format!("[[gateway.route]]\nname = \"all\"\nupstreams = [\"http://{}\"]\n", self.address)
    }

    /// What came on each connection since the last look.
    pub(crate) fn take(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.told.lock().unwrap());
        all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

async fn record(mut stream: TcpStream, told: Arc<Mutex<Vec<Vec<u8>>>>, answer: &'static [u8]) {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        all.extend_from_slice(&piece[..count]);
        if is_whole(&String::from_utf8_lossy(&all)) {
            // Before the answer, so that who has it finds it here.
            told.lock().unwrap().push(std::mem::take(&mut all));
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
    if !all.is_empty() {
        told.lock().unwrap().push(all);
    }
}

/// Whether a text is one request with its body.
pub(crate) fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length {
        Some(length) => body.len() == length.parse::<usize>().unwrap_or_else(|_| panic!("{head}")),
        None if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        None => true,
    }
}
