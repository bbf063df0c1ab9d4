//! Listening to signals across restarts of the server.
//!
//! Invariant: once [`listen`] has returned, the listener subscribes again by itself, as long as it is polled,
//! until the bus is closed at either end. What is sent while the server is away is lost: signals are hints.

use std::time::Duration;

use futures_util::stream;
use tombolo_event::Backoff;
use tonic::Streaming;

use super::connection::Connection;
use crate::server::generated::{Heard, ListenRequest};
use crate::{Error, Kind, Result, Signal, SignalStream};

/// How fast a lost subscription is tried again.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));

/// Listens on `subject`; the server has said that it hears when this returns.
pub(super) async fn listen(
    connection: Connection,
    subject: &str,
    group: Option<&str>,
) -> Result<SignalStream> {
    let request = ListenRequest { subject: subject.to_owned(), group: group.map(str::to_owned) };
    let heard = subscribe(&connection, &request).await?;
    let listener = Listener { connection, request, heard: Some(heard) };
    Ok(Box::pin(stream::unfold(
        listener,
        |mut listener| async move { Some((listener.next().await?, listener)) },
    )))
}

async fn subscribe(connection: &Connection, request: &ListenRequest) -> Result<Streaming<Heard>> {
    let mut heard = connection.hear(request.clone()).await?;
    let first = connection.closed().run_until_cancelled(heard.message()).await;
    match first.ok_or_else(|| connection.closed_error())? {
        Ok(Some(Heard { signal: None })) => Ok(heard),
        Ok(_) => Err(Error::new(Kind::Unavailable, "the bus did not say that it listens")),
        Err(status) => Err(connection.lost(&status)),
    }
}

struct Listener {
    connection: Connection,
    request: ListenRequest,
    heard: Option<Streaming<Heard>>,
}

impl Listener {
    async fn next(&mut self) -> Option<Signal> {
        let closed = self.connection.closed().clone();
        closed.run_until_cancelled(self.next_signal()).await.flatten()
    }

    async fn next_signal(&mut self) -> Option<Signal> {
        loop {
            let heard = match &mut self.heard {
                Some(heard) => heard,
                none => none.insert(subscribe_again(&self.connection, &self.request).await?),
            };
            match heard.message().await {
                Ok(Some(Heard { signal: Some(signal) })) => return Some(signal.into()),
                Ok(Some(Heard { signal: None })) => {}
                Ok(None) => self.heard = None,
                Err(status) => {
                    self.connection.lost(&status);
                    self.heard = None;
                }
            }
        }
    }
}

/// Tries until the server hears again; gives up, by name, only on what no retry can change.
async fn subscribe_again(connection: &Connection, request: &ListenRequest) -> Option<Streaming<Heard>> {
    for attempt in 0.. {
        match subscribe(connection, request).await {
            Ok(heard) => return Some(heard),
            Err(error) if error.is_transient() => tokio::time::sleep(AGAIN.jittered(attempt)).await,
            Err(error) if error.kind() == Kind::Closed => return None,
            Err(error) => {
                let subject = &request.subject;
                tracing::error!(bus = connection.address(), %subject, %error, "the bus refuses to listen again");
                return None;
            }
        }
    }
    None
}
