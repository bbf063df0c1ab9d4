//! One connection to a subscriber, kept between deliveries; and what became of a request that went over it.
//!
//! A subscriber closes a kept connection when it likes, also just as it is used again. What was certainly not sent is sent at once
//! over a new connection; what may have been sent is too, with a mark. A request over a new connection is sent once.
//!
//! Invariant: "not reached" is said only of what was certainly not sent; a connection goes only to an address that was checked.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::Either;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::addresses::Reach;
use super::event::{REDELIVERY, possible};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The most of an answer's body that is read so that the connection can be kept, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest that `Retry-After` is followed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

type Body = Full<Bytes>;

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered with success.
    Delivered,
    /// Nothing was sent: nobody is there.
    NotReached(String),
    /// The subscriber asks for time.
    NotNow(Duration, String),
    /// It was sent, and no success came back.
    Failed(Failure, String),
    /// The subscriber does not want any more.
    Gone(String),
}

/// How a delivery that was sent failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was answered with something else than success.
    Refused,
    /// No answer came in time.
    Unanswered,
    /// The connection was closed in the middle of it.
    Broken,
}

/// A way to a subscriber, used by one delivery at a time.
pub(crate) struct Lane {
    target: Uri,
    reach: Reach,
    kept: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Body>,
    // Ends the connection when it is dropped.
    _task: AbortOnDropHandle<()>,
}

/// What became of a request.
enum Ending {
    Answer(http::Response<Incoming>),
    /// It was not sent, and is here.
    Kept(Request<Body>, String),
    Broken(String),
    Unanswered,
}

impl Lane {
    pub(crate) fn new(target: Uri, reach: Reach) -> Self {
        Self { target, reach, kept: None }
    }

    /// Makes a connection, unless there is one.
    pub(crate) async fn connect(&mut self) -> Result<(), String> {
        if self.kept.as_ref().is_none_or(|it| it.sender.is_closed()) {
            self.kept = Some(connect(&self.target, &self.reach).await?);
        }
        Ok(())
    }

    /// Sends `request`, and waits for the answer up to `patience`. Where `is_retried`, what a kept connection broke on is sent
    /// again at once over a new one.
    pub(crate) async fn deliver(
        &mut self,
        mut request: Request<Body>,
        patience: Duration,
        is_retried: bool,
    ) -> Outcome {
        if let Some(mut connection) = self.kept.take() {
            let again = request.clone();
            match connection.send(request, patience).await {
                Ending::Kept(unsent, _) => request = unsent,
                Ending::Broken(_) if is_retried => {
                    request = again;
                    request.headers_mut().insert(REDELIVERY, possible());
                }
                sent => return self.ended(connection, sent).await,
            }
        }
        let mut connection = match connect(&self.target, &self.reach).await {
            Ok(connection) => connection,
            Err(cause) => return Outcome::NotReached(cause),
        };
        let sent = connection.send(request, patience).await;
        self.ended(connection, sent).await
    }

    /// Sends a request that is no delivery, and gives the head of the answer.
    pub(crate) async fn ask(
        &mut self,
        request: Request<Body>,
        patience: Duration,
    ) -> Result<(StatusCode, HeaderMap), String> {
        self.kept = None;
        let mut connection = connect(&self.target, &self.reach).await?;
        match connection.send(request, patience).await {
            Ending::Answer(answer) => Ok((answer.status(), answer.headers().clone())),
            Ending::Kept(_, cause) | Ending::Broken(cause) => Err(cause),
            Ending::Unanswered => Err("no answer came in time".into()),
        }
    }

    async fn ended(&mut self, connection: Connection, sent: Ending) -> Outcome {
        match sent {
            Ending::Kept(_, cause) => Outcome::NotReached(cause),
            Ending::Broken(cause) => Outcome::Failed(Failure::Broken, cause),
            Ending::Unanswered => Outcome::Failed(Failure::Unanswered, "no answer came in time".into()),
            Ending::Answer(answer) => {
                let outcome = judged(answer.status(), answer.headers().get(RETRY_AFTER));
                if is_read(answer.into_body()).await {
                    self.kept = Some(connection);
                }
                outcome
            }
        }
    }
}

impl Connection {
    async fn send(&mut self, request: Request<Body>, patience: Duration) -> Ending {
        let until = Instant::now() + patience;
        match timeout_at(until, self.sender.ready()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Ending::Kept(request, said(&error)),
            Err(_) => return Ending::Kept(request, "the connection did not become free in time".into()),
        }
        match timeout_at(until, self.sender.try_send_request(request)).await {
            Err(_) => Ending::Unanswered,
            Ok(Ok(answer)) => Ending::Answer(answer),
            Ok(Err(mut error)) => match error.take_message() {
                Some(unsent) => Ending::Kept(unsent, said(error.error())),
                None => Ending::Broken(said(error.error())),
            },
        }
    }
}

/// What an answer says.
fn judged(status: StatusCode, retry_after: Option<&HeaderValue>) -> Outcome {
    let said = format!("the subscriber answered {status}");
    match status {
        _ if status.is_success() => Outcome::Delivered,
        StatusCode::GONE => Outcome::Gone(said),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => match retry_after.and_then(wait) {
            Some(wait) => Outcome::NotNow(wait.min(RETRY_AFTER_MAX), said),
            None => Outcome::Failed(Failure::Refused, said),
        },
        _ => Outcome::Failed(Failure::Refused, said),
    }
}

/// `Retry-After`: seconds, or a date.
fn wait(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// Reads an answer to its end, so that the connection can be used again; false if it is longer than that is worth.
async fn is_read(body: Incoming) -> bool {
    let mut frames = body.into_data_stream();
    let mut left = ANSWER_BYTES_MAX;
    let whole = async {
        while let Some(frame) = frames.next().await {
            match frame {
                Ok(bytes) if bytes.len() <= left => left -= bytes.len(),
                _ => return false,
            }
        }
        true
    };
    timeout(CONNECT_MAX, whole).await.unwrap_or(false)
}

async fn connect(target: &Uri, reach: &Reach) -> Result<Connection, String> {
    let made = timeout(CONNECT_MAX, async {
        let stream = reached(target, reach).await?;
        handshake(target, stream).await
    });
    made.await.unwrap_or_else(|_| Err("no connection could be made in time".into()))
}

/// A connection to the first address of the target that may be reached and answers. The address that is checked is the one connected to.
async fn reached(target: &Uri, reach: &Reach) -> Result<TcpStream, String> {
    let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = target.port_u16().unwrap_or(if target.scheme_str() == Some("https") { 443 } else { 80 });
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| format!("the name {host} could not be resolved: {error}"))?;
    let mut last = format!("the name {host} has no address");
    for address in found {
        if !reach.allows(address.ip()) {
            last = format!(
                "the address {} of {host} is not public; the operator allows its network in [bus.webhooks] allow",
                address.ip()
            );
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) => last = format!("{address} could not be reached: {error}"),
        }
    }
    Err(last)
}

async fn handshake(target: &Uri, stream: TcpStream) -> Result<Connection, String> {
    let stream = super::tls::wrapped(target, stream).await?;
    let failed = |error: hyper::Error| said(&error);
    let (sender, task) = match stream {
        Either::Left(plain) => {
            let (sender, connection) = http1::handshake(TokioIo::new(plain)).await.map_err(failed)?;
            (sender, tokio::spawn(async { drop(connection.await) }))
        }
        Either::Right(sealed) => {
            let (sender, connection) = http1::handshake(TokioIo::new(sealed)).await.map_err(failed)?;
            (sender, tokio::spawn(async { drop(connection.await) }))
        }
    };
    Ok(Connection { sender, _task: AbortOnDropHandle::new(task) })
}

/// An error with what is behind it.
fn said(error: &hyper::Error) -> String {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            said = format!("{said}: {error}");
        }
        source = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(status: u16, retry_after: Option<&'static str>) -> Outcome {
        judged(StatusCode::from_u16(status).unwrap(), retry_after.map(HeaderValue::from_static).as_ref())
    }

    #[test]
    fn an_answer_is_judged_by_its_status() {
        assert_eq!(after(204, None), Outcome::Delivered);
        assert!(matches!(after(302, None), Outcome::Failed(Failure::Refused, _)));
        assert!(matches!(after(410, None), Outcome::Gone(_)));
        assert!(matches!(after(503, None), Outcome::Failed(Failure::Refused, _)));
    }

    #[test]
    fn a_subscriber_that_asks_for_time_gets_it_within_a_bound() {
        assert!(matches!(after(503, Some("7")), Outcome::NotNow(wait, _) if wait.as_secs() == 7));
        assert!(matches!(after(429, Some("99999999")), Outcome::NotNow(wait, _) if wait == RETRY_AFTER_MAX));
        let past = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        assert!(matches!(after(429, past), Outcome::NotNow(wait, _) if wait.is_zero()));
        assert!(matches!(after(429, Some("soon")), Outcome::Failed(..)));
    }
}
