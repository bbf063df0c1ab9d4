//! The task behind requests that do not wait for each other: one stream to the server, each under a number of its own.
//!
//! - takes: appends, or signals, in the order in which the caller made them, up to a bound of how many are under way;
//! - writes: each under a number, on one stream;
//! - commits when: the server's reply under that number says so;
//! - if the connection breaks here: everything under way is answered `Unavailable`, its outcome unknown;
//! - if it repeats: only the caller repeats; the log acknowledges what is stored under the same ids.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, unconstrained};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connection::Connection;
use crate::server::exchange::UNDER_WAY_MAX;
use crate::server::generated as wire;
use crate::{Appended, Error, Kind, Reach, Result};

/// One kind of requests and their replies.
pub(super) trait Exchange: Sized + Send + 'static {
    /// What is answered.
    type Reply: Send + 'static;
    /// What the caller gets.
    type Done: Send + 'static;
    /// What it is called, for people.
    const WHAT: &'static str;

    fn numbered(self, number: u64) -> Self;

    /// Opens the stream.
    fn open(
        connection: &Connection,
        requests: ReceiverStream<Self>,
    ) -> impl Future<Output = Result<Streaming<Self::Reply>>> + Send;

    /// The number of a reply, and what it says; none if this version does not know it.
    fn read(reply: Self::Reply) -> (u64, Option<Result<Self::Done>>);
}

impl Exchange for wire::AppendRequest {
    type Reply = wire::AppendReply;
    type Done = Appended;
    const WHAT: &'static str = "append";

    fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    async fn open(connection: &Connection, requests: ReceiverStream<Self>) -> Result<Streaming<Self::Reply>> {
        connection.appends(requests).await
    }

    fn read(reply: Self::Reply) -> (u64, Option<Result<Appended>>) {
        use wire::append_reply::Outcome;
        let outcome = reply.outcome.map(|outcome| match outcome {
            Outcome::Last(last) => Ok(Appended { last }),
            Outcome::Failure(failure) => Err(failure.into()),
        });
        (reply.number, outcome)
    }
}

impl Exchange for wire::SignalsRequest {
    type Reply = wire::SignalsReply;
    type Done = Reach;
    const WHAT: &'static str = "signal";

    fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    async fn open(connection: &Connection, requests: ReceiverStream<Self>) -> Result<Streaming<Self::Reply>> {
        connection.signals(requests).await
    }

    fn read(reply: Self::Reply) -> (u64, Option<Result<Reach>>) {
        use wire::signals_reply::Outcome;
        let outcome = reply.outcome.map(|outcome| match outcome {
            Outcome::Reach(reach) => Ok(wire::Reach::try_from(reach).unwrap_or_default().into()),
            Outcome::Failure(failure) => Err(failure.into()),
        });
        (reply.number, outcome)
    }
}

/// A request whose caller waits.
struct Waiting<E: Exchange> {
    request: E,
    answer: oneshot::Sender<Result<E::Done>>,
}

/// The way to the task of one kind of requests.
pub(super) struct Lane<E: Exchange> {
    waiting: mpsc::Sender<Waiting<E>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl<E: Exchange> Lane<E> {
    pub(super) fn new(connection: Connection) -> Self {
        let (waiting, taken) = mpsc::channel(UNDER_WAY_MAX);
        let task = tokio::spawn(run(connection, taken));
        Self { waiting, task: Mutex::new(Some(task)) }
    }

    /// Hands a request over, in the order of the calls, and waits for what becomes of it.
    pub(super) async fn send(&self, connection: &Connection, request: E) -> Result<E::Done> {
        let (answer, answered) = oneshot::channel();
        let closed = || connection.closed_error();
        let waiting = Waiting { request, answer };
        // A task that has done much at one go is made to yield here, and those that yielded go on in reverse.
        unconstrained(self.waiting.send(waiting)).await.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Waits for the end of the task, which comes when the connection is closed.
    pub(super) async fn ended(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task of {}s ended with a panic", E::WHAT);
        }
    }
}

impl<E: Exchange> std::fmt::Debug for Lane<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(E::WHAT)
    }
}

/// Sends what comes on `waiting` until the client is closed or dropped. Streams are opened when there is
/// something to send, so an idle client costs the server nothing.
async fn run<E: Exchange>(connection: Connection, mut waiting: mpsc::Receiver<Waiting<E>>) {
    let closed = connection.closed().clone();
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => tokio::select! {
                biased;
                () = closed.cancelled() => break,
                first = waiting.recv() => match first {
                    Some(first) => first,
                    None => break,
                },
            },
        };
        next = Pipeline::default().run(&connection, &mut waiting, first).await;
        if closed.is_cancelled() {
            break;
        }
    }
    refuse_all(&connection, &mut waiting, next);
}

/// Those who came too late are told so.
fn refuse_all<E: Exchange>(
    connection: &Connection,
    waiting: &mut mpsc::Receiver<Waiting<E>>,
    next: Option<Waiting<E>>,
) {
    waiting.close();
    let late = next.into_iter().chain(std::iter::from_fn(|| waiting.try_recv().ok()));
    late.for_each(|late| settle(late.answer, Err(connection.closed_error())));
}

/// One stream and what is under way on it.
struct Pipeline<E: Exchange> {
    last_number: u64,
    under_way: HashMap<u64, oneshot::Sender<Result<E::Done>>>,
}

impl<E: Exchange> Default for Pipeline<E> {
    fn default() -> Self {
        Self { last_number: 0, under_way: HashMap::new() }
    }
}

impl<E: Exchange> Pipeline<E> {
    /// Opens a stream and sends until it breaks or the client is closed; everything that was handed to the
    /// stream is answered. Returns one that was not, if there is one.
    async fn run(
        mut self,
        connection: &Connection,
        waiting: &mut mpsc::Receiver<Waiting<E>>,
        first: Waiting<E>,
    ) -> Option<Waiting<E>> {
        let (requests, outgoing) = mpsc::channel(UNDER_WAY_MAX);
        self.send(&requests, first);
        let replies = match E::open(connection, ReceiverStream::new(outgoing)).await {
            Ok(replies) => replies,
            Err(error) => {
                self.fail(&error, waiting);
                return None;
            }
        };
        self.pump(connection, waiting, &requests, replies).await
    }

    async fn pump(
        &mut self,
        connection: &Connection,
        waiting: &mut mpsc::Receiver<Waiting<E>>,
        requests: &mpsc::Sender<E>,
        mut replies: Streaming<E::Reply>,
    ) -> Option<Waiting<E>> {
        loop {
            tokio::select! {
                            biased;
                            reply = replies.message() => match reply {
                                Ok(Some(reply)) => self.settle(reply),
                                Ok(None) => {
             let ended = Status::unavailable("the server ended the stream");
             return self.broken(connection, waiting, &ended);
            }
                                Err(status) => return self.broken(connection, waiting, &status),
                            },
                            () = connection.closed().cancelled() => {
                                self.fail(&connection.closed_error(), waiting);
                                return None;
                            }
                            next = waiting.recv(), if self.under_way.len() < UNDER_WAY_MAX => match next {
                                Some(next) if requests.is_closed() => return Some(next),
                                Some(next) => self.send(requests, next),
                                None => return None,
                            },
                        }
        }
    }

    /// Hands a request to the stream. There is room: the channel holds as many as may be under way.
    fn send(&mut self, requests: &mpsc::Sender<E>, waiting: Waiting<E>) {
        self.last_number += 1;
        let number = self.last_number;
        self.under_way.insert(number, waiting.answer);
        if requests.try_send(waiting.request.numbered(number)).is_err() {
            tracing::debug!(number, "the stream of {}s ended before this one was sent", E::WHAT);
        }
    }

    fn settle(&mut self, reply: E::Reply) {
        let (number, outcome) = E::read(reply);
        let outcome = outcome.unwrap_or_else(|| {
            let what = E::WHAT;
            Err(Error::new(
                Kind::Configuration,
                format!("the bus answered {what} {number} with an outcome that this version does not know; expected the same version on both sides"),
            ))
        });
        match self.under_way.remove(&number) {
            Some(answer) => settle(answer, outcome),
            None => tracing::warn!(number, "the bus answered a {} that nobody made", E::WHAT),
        }
    }

    fn broken(
        &mut self,
        connection: &Connection,
        waiting: &mut mpsc::Receiver<Waiting<E>>,
        status: &Status,
    ) -> Option<Waiting<E>> {
        if self.under_way.is_empty() {
            tracing::debug!(bus = connection.address(), "the stream of {}s ended while idle", E::WHAT);
            return None;
        }
        self.fail(&connection.lost(status), waiting);
        None
    }

    /// Answers what is under way, and what waits behind it: sent alone, it could only be refused as a hole.
    fn fail(&mut self, error: &Error, waiting: &mut mpsc::Receiver<Waiting<E>>) {
        self.under_way.drain().for_each(|(_, answer)| settle(answer, Err(copy(error))));
        while let Ok(behind) = waiting.try_recv() {
            settle(behind.answer, Err(copy(error)));
        }
    }
}

/// Answers whoever waits; a caller that does not wait any more knows that the outcome is open.
fn settle<T>(answer: oneshot::Sender<Result<T>>, outcome: Result<T>) {
    if answer.send(outcome).is_err() {
        tracing::trace!("nobody waits for an answer any more");
    }
}

fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
