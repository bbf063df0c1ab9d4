//! The access log: a line of JSON for each request, when its answer has gone.
//!
//! Invariant: a request never waits for the log; lines that nobody takes are dropped and counted. No line holds a query, a token or a
//! cookie.

use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, StatusCode, Version};
use serde::Serialize;
use tombolo_event::TraceContext;

use crate::guard::Shared;
use crate::metrics::{Counts, Metrics};

/// The most lines that wait.
const WAITING_MAX: usize = 8 << 10;

/// The status of a request whose client went before the answer, as logs commonly have it.
const CLIENT_GONE: u16 = 499;

/// Where lines go.
pub type Sink = Box<dyn Write + Send>;

/// The log's writer.
pub(crate) struct Log {
    lines: SyncSender<Vec<u8>>,
}

impl Log {
    /// Starts to write to `sink`; the thread ends when the log is dropped.
    pub(crate) fn start(sink: Sink) -> (Self, JoinHandle<()>) {
        let (lines, incoming) = sync_channel(WAITING_MAX);
        (Self { lines }, std::thread::spawn(move || write(&incoming, sink)))
    }
}

fn write(lines: &Receiver<Vec<u8>>, sink: Sink) {
    let mut sink = BufWriter::new(sink);
    while let Ok(line) = lines.recv() {
        let mut written = sink.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            written = written.and_then(|()| sink.write_all(&line));
        }
        if let Err(error) = written.and_then(|()| sink.flush()) {
            tracing::warn!(%error, "the access log cannot be written; it ends");
            return;
        }
    }
}

/// Who takes note of requests.
pub(crate) struct Observer {
    pub(crate) metrics: Metrics,
    pub(crate) log: Option<Log>,
}

#[derive(Serialize)]
struct Line<'l> {
    time: String,
    id: &'l str,
    trace: String,
    method: &'l str,
    host: &'l str,
    path: &'l str,
    protocol: &'static str,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<&'l str>,
    tries: u32,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
    bytes: u64,
    wait_ms: f64,
    total_ms: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    broke_off: bool,
}

/// What is known of a request so far.
pub(crate) struct Entry(Box<Known>);

struct Known {
    began: Instant,
    answered: Option<Instant>,
    said: Said,
    broke_off: bool,
    bytes: u64,
    observer: Arc<Observer>,
    connection: Arc<Shared>,
}

/// What is said of a request.
pub(crate) struct Said {
    pub(crate) id: HeaderValue,
    pub(crate) trace: TraceContext,
    pub(crate) method: Method,
    pub(crate) host: Option<Authority>,
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) version: Version,
    pub(crate) address: IpAddr,
    pub(crate) user: Option<Arc<str>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) counts: Option<Counts>,
    pub(crate) replica: Option<Authority>,
    pub(crate) tries: u32,
    pub(crate) status: StatusCode,
    pub(crate) refusal: Option<&'static str>,
}

impl Entry {
    /// Begins with a request; the connection does not rest before the end.
    pub(crate) fn begin(said: Said, observer: &Arc<Observer>, connection: &Arc<Shared>) -> Self {
        connection.begin();
        observer.metrics.under_way.inc();
        Self(Box::new(Known {
            began: Instant::now(),
            answered: None,
            said,
            broke_off: false,
            bytes: 0,
            observer: observer.clone(),
            connection: connection.clone(),
        }))
    }

    /// What is said.
    pub(crate) fn said(&mut self) -> &mut Said {
        &mut self.0.said
    }

    /// The answer begins.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        let now = Instant::now();
        self.0.said.status = status;
        self.0.answered = Some(now);
        let known = &self.0;
        if let Some(counts) = &known.said.counts {
            counts.count(status.as_u16(), now - known.began);
        }
        if let Some(kind) = known.said.refusal {
            known.observer.metrics.refused(kind);
        }
    }

    /// The answer ended before its end.
    pub(crate) fn broke_off(&mut self) {
        self.0.broke_off = true;
    }

    /// The answer has gone.
    pub(crate) fn end(mut self, bytes: u64) {
        self.0.bytes = bytes;
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if self.answered.is_none() {
            self.said.status = StatusCode::from_u16(CLIENT_GONE).unwrap_or(StatusCode::BAD_REQUEST);
            self.broke_off = true;
        }
        if let Some(log) = &self.observer.log
            && log.lines.try_send(self.line()).is_err()
        {
            self.observer.metrics.lines_dropped.inc();
        }
        self.connection.end();
        self.observer.metrics.under_way.dec();
    }
}

impl Known {
    fn line(&self) -> Vec<u8> {
        let said = &self.said;
        let host = said.host.as_ref().map(|host| host.host().to_ascii_lowercase());
        let ms = |until: Option<Instant>| {
            let micros = until.map_or(0, |until| (until - self.began).as_micros());
            micros as f64 / 1000.0
        };
        let line = Line {
            time: jiff::Timestamp::now().to_string(),
            id: said.id.to_str().unwrap_or_default(),
            trace: said.trace.trace_id(),
            method: said.method.as_str(),
            host: host.as_deref().unwrap_or_default(),
            path: said.path.as_ref().map_or("", PathAndQuery::path),
            protocol: protocol(said.version),
            address: said.address,
            user: said.user.as_deref(),
            route: said.route.as_deref(),
            replica: said.replica.as_ref().map(Authority::as_str),
            tries: said.tries,
            status: said.status.as_u16(),
            refusal: said.refusal,
            bytes: self.bytes,
            wait_ms: ms(self.answered),
            total_ms: ms(Some(Instant::now())),
            broke_off: self.broke_off,
        };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}
