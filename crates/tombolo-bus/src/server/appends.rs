//! One client's stream of appends, at the server.
//!
//! - takes: requests, in the order in which they come, up to a bound of how many are under way;
//! - writes: hands each to the log at once, without waiting for the one before it;
//! - commits when: the log says that it is on disk; only then is the reply sent;
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

use super::generated::append_reply::Outcome;
use super::generated::{AppendReply, AppendRequest, Failure};
use super::identity;
use crate::{Append, Bus, Identity, Result};

/// How many appends of one client are under way before the next is taken from the connection.
pub(super) const UNDER_WAY_MAX: usize = 256;
/// How many bytes of them.
const UNDER_WAY_BYTES_MAX: usize = 16 << 20;

type Replies = Pin<Box<dyn Stream<Item = std::result::Result<AppendReply, Status>> + Send>>;
type UnderWay = FuturesUnordered<BoxFuture<'static, (usize, AppendReply)>>;

/// Answers `requests` of `caller` until they end, or until `ending` and what is under way is done.
pub(super) fn answer(
    bus: Arc<dyn Bus>,
    caller: Identity,
    requests: Streaming<AppendRequest>,
    ending: CancellationToken,
) -> Replies {
    let pump = Pump { bus, caller, requests: Some(requests), ending, under_way: UnderWay::new(), bytes: 0 };
    Box::pin(stream::unfold(pump, |mut pump| async move { Some((Ok(pump.next().await?), pump)) }))
}

struct Pump {
    bus: Arc<dyn Bus>,
    caller: Identity,
    /// `None` once no more are taken.
    requests: Option<Streaming<AppendRequest>>,
    ending: CancellationToken,
    under_way: UnderWay,
    bytes: usize,
}

impl Pump {
    async fn next(&mut self) -> Option<AppendReply> {
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

    fn hand_over(&mut self, request: AppendRequest) {
        let (number, bytes) = (request.number, request.records.len());
        self.bytes += bytes;
        let appended = append(Arc::clone(&self.bus), &self.caller, request);
        let replied = appended.map(move |outcome| (bytes, reply(number, outcome)));
        self.under_way.push(replied.boxed());
    }
}

/// A request that cannot be read ends the stream, like its end: the connection is gone or speaks nonsense.
async fn next_of(requests: &mut Option<Streaming<AppendRequest>>) -> Option<AppendRequest> {
    match requests.as_mut()?.message().await {
        Ok(request) => request,
        Err(status) => {
            tracing::debug!(%status, "a stream of appends broke off");
            None
        }
    }
}

fn append(
    bus: Arc<dyn Bus>,
    caller: &Identity,
    request: AppendRequest,
) -> impl Future<Output = Result<u64>> + Send + use<> {
    let append = Append::try_from(request)
        .and_then(|append| identity::must_own(caller, &append.topic, "append to it").map(|()| append));
    // An engine may wait for room first. A task that has done much at one go would be made to yield there, and
    // those that yielded go on in reverse: what came in order would be refused as a hole.
    unconstrained(async move { Ok(bus.append(append?).await?.last) })
}

fn reply(number: u64, outcome: Result<u64>) -> AppendReply {
    let outcome = match outcome {
        Ok(last) => Outcome::Last(last),
        Err(error) => Outcome::Failure(Failure::from(&error)),
    };
    AppendReply { number, outcome: Some(outcome) }
}
