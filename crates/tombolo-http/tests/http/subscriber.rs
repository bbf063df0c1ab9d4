//! A subscriber on a real socket that does what a test says: answers, keeps silent, or breaks the connection.
//!
//! Invariant: what it says that it got is what stood in the bytes of a request.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::stage::SOON;

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Got {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Which of the subscriber's connections, and the how-manieth request there, from 1.
    pub(crate) connection: usize,
    pub(crate) turn: usize,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn n(&self) -> u64 {
        self.json()["n"].as_u64().unwrap()
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.header("tombolo-redelivery") == Some("possible")
    }
}

/// What is done with a request.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Answers with a status and more headers.
    Answers(u16, &'static str),
    /// Says nothing, and keeps the connection.
    Nothing,
    /// Breaks the connection.
    Breaks,
    /// Answers when the test lets it.
    Waits(Arc<tokio::sync::Semaphore>),
}

type Behaviour = Arc<dyn Fn(&Got, usize) -> Does + Send + Sync>;

/// A subscriber.
pub(crate) struct Subscriber {
    pub(crate) address: SocketAddr,
    got: watch::Receiver<Vec<Got>>,
    _task: AbortOnDropHandle<()>,
}

impl Subscriber {
    /// One that answers at once.
    pub(crate) async fn well() -> Self {
        Self::that(|_, _| Does::Answers(200, "")).await
    }

    /// One that does with each request, given how many came before, what is said.
    pub(crate) async fn that(does: impl Fn(&Got, usize) -> Does + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), does).await
    }

    pub(crate) async fn at(
        address: SocketAddr,
        does: impl Fn(&Got, usize) -> Does + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, got) = watch::channel(Vec::new());
        let task = tokio::spawn(serve(listener, Arc::new(does), told));
        Self { address, got, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.borrow().clone()
    }

    /// The numbers of the plain events that it got.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.got().iter().map(Got::n).collect()
    }

    /// Waits until it got so many.
    pub(crate) async fn gets(&self, count: usize) -> Vec<Got> {
        self.gets_when(|got| got.len() >= count).await
    }

    pub(crate) async fn gets_when(&self, is_so: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let mut got = self.got.clone();
        let found = tokio::time::timeout(SOON, got.wait_for(|got| is_so(got))).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("it got only {:#?}", self.got()),
        }
    }
}

/// An address at which nobody listens, yet.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn serve(listener: TcpListener, does: Behaviour, told: watch::Sender<Vec<Got>>) {
    let (mut connections, told) = (JoinSet::new(), Arc::new(told));
    for connection in 1.. {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(talk(stream, connection, does.clone(), told.clone()));
    }
}

async fn talk(mut stream: TcpStream, connection: usize, does: Behaviour, told: Arc<watch::Sender<Vec<Got>>>) {
    let mut bytes = Vec::new();
    for turn in 1.. {
        let Some(mut got) = request(&mut stream, &mut bytes).await else { return };
        (got.connection, got.turn) = (connection, turn);
        let mut before = 0;
        told.send_modify(|all| {
            before = all.len();
            all.push(got.clone());
        });
        let answer = match does(&got, before) {
            Does::Answers(status, headers) => {
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: 0\r\n\r\n")
            }
            Does::Nothing => std::future::pending().await,
            Does::Breaks => return,
            Does::Waits(gate) => {
                gate.acquire().await.unwrap().forget();
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The next request; none when the other side has closed.
async fn request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Got> {
    loop {
        if let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut got = parsed(&head);
            let length = got.header("content-length").map_or(0, |it| it.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                got.body = String::from_utf8(bytes[end + 4..end + 4 + length].to_vec()).unwrap();
                bytes.drain(..end + 4 + length);
                return Some(got);
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn parsed(head: &str) -> Got {
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Got {
        method: first.next().unwrap().into(),
        path: first.next().unwrap().into(),
        headers: lines.map(header).collect(),
        body: String::new(),
        connection: 0,
        turn: 0,
    }
}
