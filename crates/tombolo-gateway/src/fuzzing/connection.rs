//! A whole connection through the guard and hyper, beside the strict reading of the same bytes.
//!
//! Invariant: what the guard lets through is exactly what the strict reading takes, and hyper reads the same requests in it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use super::strict::{self, End, Strict};
use crate::guard::{Guard, Patience, REFUSED_PATH, Shared};

/// For the timers of the guard, of which none runs here.
static RUNTIME: LazyLock<Option<Runtime>> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().ok());

/// The first two bytes say in what pieces the rest comes.
pub fn guard(bytes: &[u8]) {
    let Some((&[first, second], input)) = bytes.split_first_chunk::<2>() else { return };
    let _entered = RUNTIME.as_ref().map(Runtime::enter);
    let reading = strict::read(input);
    let sizes = [usize::from(first), usize::from(second)];
    let (passed, is_refused) = passed(Pieces::new(input, sizes));
    assert!(passed.len() <= reading.sound, "{} bytes passed, {} are sound", passed.len(), reading.sound);
    assert_eq!(passed, &input[..passed.len()], "other bytes passed than came");
    match reading.end {
        End::Refused => assert!(is_refused, "what has two readings was not refused"),
        End::Open => assert!(!is_refused && passed.len() == input.len(), "what has one reading did not pass"),
        End::InHead | End::Switched => {}
    }
    compare(&seen(Pieces::new(input, sizes)), &reading.requests);
}

fn compare(seen: &[Strict], expected: &[Strict]) {
    assert!(seen.len() <= expected.len(), "hyper saw {} requests of {}", seen.len(), expected.len());
    for (seen, expected) in seen.iter().zip(expected) {
        assert_eq!(seen.method, expected.method);
        if expected.target.starts_with('/') {
            // A fragment is no part of what is asked for; hyper drops it.
            assert_eq!(Some(&*seen.target), expected.target.split('#').next());
        }
        assert_eq!(seen.headers, expected.headers);
        match seen.is_whole {
            true => assert_eq!((&seen.body, expected.is_whole), (&expected.body, true)),
            false => assert!(expected.body.starts_with(&seen.body)),
        }
    }
}

/// What the guard lets through, without what it puts in the place of what it refuses; and whether it refused.
fn passed(pieces: Pieces) -> (Vec<u8>, bool) {
    let shared = Arc::new(Shared::default());
    let mut guard = Guard::new(pieces, shared.clone(), patience());
    let mut context = Context::from_waker(Waker::noop());
    let (mut all, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let mut into = ReadBuf::new(&mut buffer);
        match Pin::new(&mut guard).poll_read(&mut context, &mut into) {
            Poll::Ready(Ok(())) if !into.filled().is_empty() => all.extend_from_slice(into.filled()),
            _ => break,
        }
    }
    let refused = format!("GET {REFUSED_PATH} HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n");
    let is_refused = shared.refused().is_some();
    if is_refused && all.ends_with(refused.as_bytes()) {
        all.truncate(all.len() - refused.len());
    }
    (all, is_refused)
}

fn patience() -> Patience {
    let long = Duration::from_secs(3600);
    Patience { head_bytes_max: 32 << 10, head: long, idle: long }
}

/// The requests that hyper reads behind the guard, without the one that stands for a refusal.
fn seen(pieces: Pieces) -> Vec<Strict> {
    let shared = Arc::new(Shared::default());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request| answer(request, requests.clone()));
    let guard = Guard::new(pieces, shared.clone(), patience());
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None);
    let connection = builder.serve_connection(TokioIo::new(guard), service).with_upgrades();
    let mut connection = pin!(connection);
    let again = Arc::new(Again(AtomicBool::new(true)));
    let waker = again.clone().into();
    let mut context = Context::from_waker(&waker);
    while again.0.swap(false, Ordering::SeqCst) {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
    let mut requests = std::mem::take(&mut *requests.lock().unwrap_or_else(PoisonError::into_inner));
    if shared.refused().is_some() && requests.last().is_some_and(|it: &Strict| it.target == REFUSED_PATH) {
        requests.pop();
    }
    requests
}

async fn answer(
    request: Request<Incoming>,
    requests: Arc<Mutex<Vec<Strict>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let lock = || requests.lock().unwrap_or_else(PoisonError::into_inner);
    let (parts, mut body) = request.into_parts();
    let mut headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    headers.sort();
    let number = lock().len();
    let (method, target) = (parts.method.to_string(), parts.uri.to_string());
    lock().push(Strict { method, target, headers, body: Vec::new(), is_whole: false });
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Ok(Response::default()) };
        if let Some(data) = frame.data_ref() {
            lock()[number].body.extend_from_slice(data);
        }
    }
    lock()[number].is_whole = true;
    Ok(Response::default())
}

/// Notes that polling again leads somewhere.
struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A connection that brings bytes in pieces, takes everything, and ends.
struct Pieces(VecDeque<Vec<u8>>);

impl Pieces {
    /// Pieces of these sizes in turn; 0 is all that is left.
    fn new(mut input: &[u8], sizes: [usize; 2]) -> Self {
        let mut pieces = VecDeque::new();
        for size in sizes.into_iter().cycle() {
            if input.is_empty() {
                break;
            }
            let (piece, rest) = input.split_at(if size == 0 { input.len() } else { size.min(input.len()) });
            pieces.push_back(piece.to_vec());
            input = rest;
        }
        Self(pieces)
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let rest = piece.split_off(piece.len().min(into.remaining()));
            into.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
