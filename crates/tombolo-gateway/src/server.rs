//! Connections of clients: accepted, sealed, told apart by protocol, and ended gently.
//!
//! Invariant: a connection holds a place from its first to its last byte, and there are only so many; when the gateway drains, each
//! finishes what it has begun and nothing else.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_bus::server::Seal;

use crate::config::Limits;
use crate::core::Core;
use crate::guard::{Guard, Patience, Shared};
use crate::metrics::Counted;
use crate::proxy::Visit;
use crate::resets::Resets;
use crate::upstream::Spawner;
use crate::workers::{Guest, Workers};

/// How long before accepting is tried again when the machine has no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// What a connection of HTTP/2 begins with; no method of HTTP/1 begins so.
const PREFACE: [u8; 3] = *b"PRI";
/// The most requests at once on a connection of HTTP/2.
const STREAMS_MAX: u32 = 128;
/// The most of them that their client has reset before they were looked at.
const RESETS_WAITING_MAX: usize = 20;
/// The most streams that are reset because they are wrong.
const MISTAKES_MAX: usize = 128;
/// How long a client of HTTP/2 has to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often a connection of HTTP/2 is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What is needed to take connections.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) core: Arc<Core>,
    pub(crate) seal: Option<Seal>,
    pub(crate) drain: CancellationToken,
    pub(crate) visits: TaskTracker,
}

impl Entrance {
    /// Serves a connection, on this thread.
    pub(crate) fn welcome(&self, guest: Guest) {
        self.visits.spawn(visit(self.clone(), guest));
    }
}

/// Takes connections until the gateway drains.
pub(crate) async fn accept(entrance: Entrance, workers: Workers, listener: TcpListener, limits: Limits) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let next = async || {
        let place = places.clone().acquire_owned().await;
        let (stream, peer) = listener.accept().await?;
        Ok::<_, std::io::Error>((place, stream.into_std()?, peer))
    };
    while let Some(accepted) = entrance.drain.run_until_cancelled(next()).await {
        match accepted {
            Ok((Ok(place), stream, peer)) => workers.give(stream, peer, place),
            Ok((Err(_), ..)) => return,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn visit(entrance: Entrance, guest: Guest) {
    let _counted = Counted::new(&entrance.core.observer.metrics.connections);
    let Guest { stream, peer, place: _place, seat: _seat } = guest;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "a connection cannot be served"),
    };
    // If it fails, answers are a little late.
    stream.set_nodelay(true).ok();
    let limits = entrance.core.table().settings.limits;
    let Some(seal) = &entrance.seal else {
        let first = protocol(&stream, limits.idle);
        if let Some(Some(is_two)) = entrance.drain.run_until_cancelled(first).await {
            serve(&entrance, stream, peer, is_two, limits).await;
        }
        return;
    };
    match entrance.drain.run_until_cancelled(seal_within(seal, stream, limits.head)).await {
        Some(Ok(stream)) => {
            let is_two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            serve(&entrance, stream, peer, is_two, limits).await;
        }
        Some(Err(error)) => tracing::debug!(%peer, %error, "a connection could not be sealed"),
        None => {}
    }
}

/// What a connection comes to. In a box, made in a function of its own, so that a connection takes room for nothing else.
type Stage<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;

fn seal_within(
    seal: &Seal,
    stream: TcpStream,
    bound: Duration,
) -> Stage<'_, std::io::Result<Box<TlsStream<TcpStream>>>> {
    let accept = seal.acceptor().accept(stream);
    Box::pin(async move { Ok(Box::new(timeout(bound, accept).await??)) })
}

/// Whether a connection begins as HTTP/2 does; nothing if it has ended, or rests too long. Until its first byte it costs next to nothing.
fn protocol(stream: &TcpStream, bound: Duration) -> Stage<'_, Option<bool>> {
    Box::pin(async move {
        let mut first = [0; PREFACE.len()];
        match timeout(bound, stream.peek(&mut first)).await {
            Ok(Ok(0) | Err(_)) | Err(_) => None,
            Ok(Ok(count)) => Some(count == PREFACE.len() && first == PREFACE),
        }
    })
}

fn serve<C>(entrance: &Entrance, stream: C, peer: SocketAddr, is_two: bool, limits: Limits) -> Stage<'_, ()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::new(Shared::default());
    let visit = Arc::new(Visit {
        core: entrance.core.clone(),
        connection: connection.clone(),
        peer: peer.ip(),
        is_sealed: entrance.seal.is_some(),
    });
    let note = move |ended: hyper::Result<()>| {
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection broke off");
        }
    };
    if is_two {
        return Box::pin(serve_two(entrance, stream, visit, limits).map(note));
    }
    let patience = Patience { head_bytes_max: limits.head_bytes_max, head: limits.head, idle: limits.idle };
    Box::pin(serve_one(entrance, Guard::new(stream, connection, patience), visit).map(note))
}

async fn serve_one<C>(entrance: &Entrance, stream: C, visit: Arc<Visit>) -> hyper::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // In a box, so that a connection that rests holds no room for a request.
    let service = service_fn(move |request| Box::pin(visit.clone().answer(request)));
    let connection = {
        let mut builder = http1::Builder::new();
        // The guard has patience of its own.
        builder.timer(TokioTimer::new()).header_read_timeout(None);
        builder.serve_connection(TokioIo::new(stream), service).with_upgrades()
    };
    let mut connection = std::pin::pin!(connection);
    if let Some(ended) = entrance.drain.run_until_cancelled(connection.as_mut()).await {
        return ended;
    }
    connection.as_mut().graceful_shutdown();
    entrance.core.ground.stop.run_until_cancelled(connection).await.unwrap_or(Ok(()))
}

async fn serve_two<C>(entrance: &Entrance, stream: C, visit: Arc<Visit>, limits: Limits) -> hyper::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (resets, shared) = (Resets::default(), visit.connection.clone());
    let counts = resets.clone();
    let service = service_fn(move |request| {
        let (answer, resets) = (visit.clone().answer(request), counts.clone());
        Box::pin(async move { resets.count(answer).await })
    });
    let connection = builder_two(entrance, limits).serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = resets.too_many.cancelled() => {
            tracing::debug!("a client resets more requests than it waits for, and is cut");
            return Ok(());
        }
        () = entrance.drain.cancelled() => {}
        // Between requests, and for those that never come whole, there is no other bound.
        () = shared.rested(limits.idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    let farewell = async {
        loop {
            match timeout(FAREWELL, connection.as_mut()).await {
                Ok(ended) => return ended,
                // Nobody waits for anything, and the client does not say goodbye.
                Err(_) if shared.rests() => return Ok(()),
                Err(_) => {}
            }
        }
    };
    entrance.core.ground.stop.run_until_cancelled(farewell).await.unwrap_or(Ok(()))
}

fn builder_two(entrance: &Entrance, limits: Limits) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(entrance.core.ground.spawner());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
        .max_local_error_reset_streams(MISTAKES_MAX)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY);
    builder
}
