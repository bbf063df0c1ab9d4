//! The task that appends: one stream to the server, on which appends do not wait for each other.
//!
//! - takes: appends, in the order in which the caller made them, up to a bound of how many are under way;
//! - writes: each under a number, on one stream;
//! - commits when: the server's reply under that number says so;
//! - if the connection breaks here: everything under way is answered `Unavailable`, its outcome unknown;
//! - if it repeats: only the caller repeats; the log acknowledges what is stored under the same ids.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connection::Connection;
use crate::server::appends::UNDER_WAY_MAX;
use crate::server::generated::append_reply::Outcome;
use crate::server::generated::{AppendReply, AppendRequest};
use crate::{Appended, Error, Kind, Result};

/// An append whose caller waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: AppendRequest,
    pub(super) answer: oneshot::Sender<Result<Appended>>,
}

/// Appends what comes on `waiting` until the client is closed or dropped. Streams are opened when there is
/// something to append, so an idle client costs the server nothing.
pub(super) async fn run(connection: Connection, mut waiting: mpsc::Receiver<Waiting>) {
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
fn refuse_all(connection: &Connection, waiting: &mut mpsc::Receiver<Waiting>, next: Option<Waiting>) {
    waiting.close();
    let late = next.into_iter().chain(std::iter::from_fn(|| waiting.try_recv().ok()));
    late.for_each(|late| settle(late.answer, Err(connection.closed_error())));
}

/// One stream and what is under way on it.
#[derive(Debug, Default)]
struct Pipeline {
    last_number: u64,
    under_way: HashMap<u64, oneshot::Sender<Result<Appended>>>,
}

impl Pipeline {
    /// Opens a stream and appends until it breaks or the client is closed; every append that was handed to the
    /// stream is answered. Returns one that was not, if there is one.
    async fn run(
        mut self,
        connection: &Connection,
        waiting: &mut mpsc::Receiver<Waiting>,
        first: Waiting,
    ) -> Option<Waiting> {
        let (requests, outgoing) = mpsc::channel(UNDER_WAY_MAX);
        self.send(&requests, first);
        let replies = match connection.appends(ReceiverStream::new(outgoing)).await {
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
        waiting: &mut mpsc::Receiver<Waiting>,
        requests: &mpsc::Sender<AppendRequest>,
        mut replies: Streaming<AppendReply>,
    ) -> Option<Waiting> {
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

    /// Hands an append to the stream. There is room: the channel holds as many as may be under way.
    fn send(&mut self, requests: &mpsc::Sender<AppendRequest>, waiting: Waiting) {
        self.last_number += 1;
        let number = self.last_number;
        self.under_way.insert(number, waiting.answer);
        if requests.try_send(AppendRequest { number, ..waiting.request }).is_err() {
            tracing::debug!(number, "the stream of appends ended before this one was sent");
        }
    }

    fn settle(&mut self, reply: AppendReply) {
        let outcome = match reply.outcome {
            Some(Outcome::Last(last)) => Ok(Appended { last }),
            Some(Outcome::Failure(failure)) => Err(failure.into()),
            None => Err(Error::new(
                Kind::Configuration,
                "the bus answered an append with an outcome that this version does not know; expected the same version on both sides",
            )),
        };
        match self.under_way.remove(&reply.number) {
            Some(answer) => settle(answer, outcome),
            None => tracing::warn!(number = reply.number, "the bus answered an append that nobody made"),
        }
    }

    fn broken(
        &mut self,
        connection: &Connection,
        waiting: &mut mpsc::Receiver<Waiting>,
        status: &Status,
    ) -> Option<Waiting> {
        if self.under_way.is_empty() {
            tracing::debug!(bus = connection.address(), "the stream of appends ended while idle");
            return None;
        }
        self.fail(&connection.lost(status), waiting);
        None
    }

    /// Answers what is under way, and what waits behind it: sent alone, it could only be refused as a hole.
    fn fail(&mut self, error: &Error, waiting: &mut mpsc::Receiver<Waiting>) {
        self.under_way.drain().for_each(|(_, answer)| settle(answer, Err(copy(error))));
        while let Ok(behind) = waiting.try_recv() {
            settle(behind.answer, Err(copy(error)));
        }
    }
}

/// Answers whoever waits; a caller that does not wait any more knows that the outcome is open.
fn settle(answer: oneshot::Sender<Result<Appended>>, outcome: Result<Appended>) {
    if answer.send(outcome).is_err() {
        tracing::trace!("nobody waits for an append's answer");
    }
}

fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
