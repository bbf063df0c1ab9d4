//! One client's stream of requests that do not wait for each other, at the server: appends, or signals.
//!
//! - takes: requests, in the order in which they come, up to a bound of how many are under way;
//! - writes: hands each to the bus at once, without waiting for the one before it;
//! - commits when: the bus says so (an append is on disk); only then is the reply sent;
//! - if we crash here: the client hears `Unavailable` for what it has no reply to, and repeats;
//! - if it repeats: the log acknowledges what is stored under the same ids.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{generated as wire, identity};
use crate::{Append, Bus, Identity, Result};

/// How many requests of one client are under way before the next is taken from the connection.
pub(super) const UNDER_WAY_MAX: usize = 256;
/// How many bytes of them.
const UNDER_WAY_BYTES_MAX: usize = 16 << 20;

type Replies<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// A request, as the server does it.
pub(super) trait Served: Send + 'static {
    type Reply: Send + 'static;

    /// The bytes that it holds while it is under way.
    fn bytes(&self) -> usize;

    /// Does it. What has to happen in the order of the requests happens before this returns, or at the first poll.
    fn serve(self, bus: Arc<dyn Bus>, caller: &Identity) -> BoxFuture<'static, Self::Reply>;
}

/// Answers `requests` of `caller` until they end, or until `ending` and what is under way is done.
pub(super) fn answer<T: Served>(
    bus: Arc<dyn Bus>,
    caller: Identity,
    requests: Streaming<T>,
    ending: CancellationToken,
) -> Replies<T::Reply> {
    let under_way = FuturesUnordered::new();
    let pump = Pump { bus, caller, requests: Some(requests), ending, under_way, bytes: 0 };
    Box::pin(stream::unfold(pump, |mut pump| async move { Some((Ok(pump.next().await?), pump)) }))
}

struct Pump<T: Served> {
    bus: Arc<dyn Bus>,
    caller: Identity,
    /// `None` once no more are taken.
    requests: Option<Streaming<T>>,
    ending: CancellationToken,
    under_way: FuturesUnordered<BoxFuture<'static, (usize, T::Reply)>>,
    bytes: usize,
}

impl<T: Served> Pump<T> {
    async fn next(&mut self) -> Option<T::Reply> {
        loop {
            let has_room = self.under_way.len() < UNDER_WAY_MAX && self.bytes < UNDER_WAY_BYTES_MAX;
            tokio::select! {
                biased;
                Some((bytes, reply)) = self.under_way.next() => {
                    self.bytes -= bytes;
                    return Some(reply);
                }
                () = self.ending.cancelled(), if self.requests.is_some() => self.requests = None,
                request = next_of(&mut self.requests), if has_room && self.requests.is_some() => match request {
                    Some(request) => self.hand_over(request),
                    None => self.requests = None,
                },
                else => return None,
            }
        }
    }

    fn hand_over(&mut self, request: T) {
        let bytes = request.bytes();
        self.bytes += bytes;
        let served = request.serve(Arc::clone(&self.bus), &self.caller);
        self.under_way.push(served.map(move |reply| (bytes, reply)).boxed());
    }
}

/// A request that cannot be read ends the stream, like its end: the connection is gone or speaks nonsense.
async fn next_of<T>(requests: &mut Option<Streaming<T>>) -> Option<T> {
    match requests.as_mut()?.message().await {
        Ok(request) => request,
        Err(status) => {
            tracing::debug!(%status, "a stream of requests broke off");
            None
        }
    }
}

impl Served for wire::AppendRequest {
    type Reply = wire::AppendReply;

    fn bytes(&self) -> usize {
        self.records.len()
    }

    fn serve(self, bus: Arc<dyn Bus>, caller: &Identity) -> BoxFuture<'static, Self::Reply> {
        use wire::append_reply::Outcome;
        let number = self.number;
        append(bus, caller, self)
            .map(move |outcome| {
                let outcome = outcome.map_or_else(|error| Outcome::Failure((&error).into()), Outcome::Last);
                wire::AppendReply { number, outcome: Some(outcome) }
            })
            .boxed()
    }
}

fn append(
    bus: Arc<dyn Bus>,
    caller: &Identity,
    request: wire::AppendRequest,
) -> impl Future<Output = Result<u64>> + Send + use<> {
    let append = Append::try_from(request)
        .and_then(|append| identity::must_own(caller, &append.topic, "append to it").map(|()| append));
    // An engine may wait for room first. A task that has done much at one go would be made to yield there, and
    // those that yielded go on in reverse: what came in order would be refused as a hole.
    unconstrained(async move { Ok(bus.append(append?).await?.last) })
}

impl Served for wire::SignalsRequest {
    type Reply = wire::SignalsReply;

    fn bytes(&self) -> usize {
        self.signal.as_ref().map_or(0, |signal| signal.payload.len())
    }

    fn serve(self, bus: Arc<dyn Bus>, _caller: &Identity) -> BoxFuture<'static, Self::Reply> {
        use wire::signals_reply::Outcome;
        let Self { number, subject, signal } = self;
        let signal = signal.unwrap_or_default().into();
        async move {
            let outcome = match bus.signal(&subject, signal).await {
                Ok(reach) => Outcome::Reach(wire::Reach::from(reach).into()),
                Err(error) => Outcome::Failure((&error).into()),
            };
            wire::SignalsReply { number, outcome: Some(outcome) }
        }
        .boxed()
    }
}
