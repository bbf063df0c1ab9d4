//! Sends a request to a replica, and to another where that does no harm.
//!
//! Invariant: a request that may have been carried out is not sent again, unless its method is safe; whether it was is known only
//! of one whose connection could not be made. Every repeat is paid for from the budget, and nothing goes on past the deadline.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::Error;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::Budget;

use crate::body::Upload;
use crate::log::Entry;
use crate::mutant::{self, Mutant};
use crate::problem::Refusal;
use crate::table::Lane;
use crate::upstream::{Key, Outcome, Replica};

/// What is left of the time, in milliseconds, for a service of Tombolo.
pub(crate) const DEADLINE: HeaderName = HeaderName::from_static("tombolo-deadline-ms");
/// The most replicas that are tried because nobody listened at the one before.
const UNREACHED_MAX: usize = 8;

/// A request on its way.
pub(crate) struct Errand<'e> {
    pub(crate) lane: &'e Lane,
    pub(crate) parts: &'e Parts,
    pub(crate) path: PathAndQuery,
    pub(crate) upload: Upload,
    pub(crate) key: Option<Key>,
    /// Whether the answer is to change the protocol.
    pub(crate) is_upgrade: bool,
}

/// What one replica made of it.
enum Tried {
    Answer(Response<Incoming>),
    /// It answered that it cannot.
    Declined(Box<Response<Incoming>>),
    /// Nobody listens there: it was not sent.
    Unreached,
    /// It is not known whether it was carried out.
    Broken,
    /// The client's own body ended it.
    Cut(Refusal),
    Late,
}

impl Errand<'_> {
    /// The answer of a replica.
    pub(crate) async fn run(&self, entry: &mut Entry) -> Result<Response<Incoming>, Refusal> {
        let (route, upstream) = (&self.lane.route, &self.lane.upstream);
        let deadline = Instant::now() + route.timeout;
        let mut tried: Vec<Arc<Replica>> = Vec::new();
        let mut repeats = 0;
        upstream.budget.deposit();
        let mut last: Result<Box<Response<Incoming>>, _> = Err(Refusal::Unavailable);
        let mut is_broken = false;
        while let Some(replica) = self.next(&tried, is_broken) {
            if !tried.is_empty() {
                self.lane.counts.retries.inc();
            }
            entry.said().tries += 1;
            entry.said().replica = Some(replica.authority().clone());
            let attempt = self.attempt(&replica, deadline).await;
            is_broken = matches!(attempt, Tried::Broken);
            let (again, answer) = match attempt {
                Tried::Answer(answer) => return Ok(answer),
                Tried::Cut(refusal) => return Err(refusal),
                Tried::Late => return Err(Refusal::Timeout),
                Tried::Unreached => {
                    (tried.len() < UNREACHED_MAX && self.upload.is_whole(), Err(Refusal::Unreachable))
                }
                Tried::Declined(answer) => (self.is_repeatable(repeats), Ok(answer)),
                Tried::Broken => (self.is_repeatable(repeats), Err(Refusal::Unreachable)),
            };
            last = answer;
            repeats += 1;
            tried.push(replica);
            if !again || !upstream.budget.withdraw() {
                break;
            }
        }
        last.map(|declined| *declined)
    }

    /// A replica that was not tried; if there is none, the same again where only its connection broke, as an idle one may at any moment.
    fn next(&self, tried: &[Arc<Replica>], is_broken: bool) -> Option<Arc<Replica>> {
        let upstream = &self.lane.upstream;
        upstream.choose(self.key, tried).or_else(|| upstream.choose(self.key, &[]).filter(|_| is_broken))
    }

    fn is_repeatable(&self, repeats: u32) -> bool {
        let harmless = self.parts.method.is_safe() || mutant::is_on(Mutant::RepeatsUnsafe);
        harmless && self.upload.is_whole() && repeats < self.lane.route.retries
    }

    async fn attempt(&self, replica: &Replica, deadline: Instant) -> Tried {
        let request = self.request(replica, deadline);
        let tried = match timeout_at(deadline, replica.send(request)).await {
            Ok(Ok(answer)) if !self.is_understood(&answer) => Tried::Broken,
            Ok(Ok(answer)) if is_declined(answer.status()) => Tried::Declined(Box::new(answer)),
            Ok(Ok(answer)) => Tried::Answer(answer),
            Ok(Err(error)) => self.broken(&error, replica),
            Err(_) => Tried::Late,
        };
        match &tried {
            Tried::Answer(_) => replica.finished(Outcome::Answered),
            Tried::Unreached => replica.finished(Outcome::Refused),
            Tried::Declined(_) | Tried::Broken | Tried::Late => replica.finished(Outcome::Failed),
            Tried::Cut(_) => {}
        }
        tried
    }

    /// Whether an answer is one to this request, and its body is coded in no way but chunks, which the parser has taken away.
    fn is_understood(&self, answer: &Response<Incoming>) -> bool {
        let mut codings = answer.headers().get_all(header::TRANSFER_ENCODING).iter();
        let is_plain = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        is_plain && codings.next().is_none() && (!switches || self.is_upgrade)
    }

    fn broken(&self, error: &Error, replica: &Replica) -> Tried {
        if let Some(refusal) = self.upload.cut() {
            return Tried::Cut(refusal);
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::debug!(replica = %replica.authority(), %error, cause, "a replica did not answer");
        if error.is_connect() { Tried::Unreached } else { Tried::Broken }
    }

    fn request(&self, replica: &Replica, deadline: Instant) -> Request<Upload> {
        let mut request = Request::new(self.upload.clone());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = replica.uri(self.path.clone());
        *request.version_mut() = replica.version();
        let mut headers = self.parts.headers.clone();
        if replica.version() == Version::HTTP_2 || !self.lane.route.keep_host {
            // The replica's own name takes its place, in the form of its protocol.
            headers.remove(header::HOST);
        }
        if self.is_upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        headers.insert(DEADLINE, HeaderValue::from(left_ms(deadline)));
        *request.headers_mut() = headers;
        request
    }
}

fn left_ms(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

/// A replica that ends, or whose own door has nobody behind it.
fn is_declined(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}
