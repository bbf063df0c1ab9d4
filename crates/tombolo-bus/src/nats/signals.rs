//! Signals as core NATS messages.
//!
//! Invariant: a reach is what the server said about this very signal. The signal is sent with an inbox of ours as its reply
//! subject, and then a marker to that inbox: the server puts "no responders" before the marker, or nobody was missing. A server of
//! a cluster may not have heard yet of a listener on another one, so there nobody is never said, and a listener that has just
//! begun may miss what is sent through another server at that moment.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;

use super::link::{Link, REQUEST_SECONDS_MAX, unavailable};
use crate::signal::{SIGNAL_BYTES_MAX, check_subject};
use crate::{Error, Kind, Reach, Result, Signal, SignalStream};

const REPLY_TO: &str = "Tombolo-Reply-To";

pub(super) async fn send(link: &Arc<Link>, subject: &str, signal: Signal) -> Result<Reach> {
    check_subject(subject)?;
    signal.reply_to.as_deref().map_or(Ok(()), check_subject)?;
    check_size(link, &signal)?;
    link.ready().await?;
    let inbox = link.client.new_inbox();
    let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|error| away(&error))?;
    let mut headers = HeaderMap::new();
    if let Some(reply_to) = &signal.reply_to {
        headers.insert(REPLY_TO, reply_to.as_str());
    }
    let named = link.names.signal(subject);
    let sent = match headers.is_empty() {
        true => link.client.publish_with_reply(named, inbox.clone(), signal.payload).await,
        false => {
            link.client.publish_with_reply_and_headers(named, inbox.clone(), headers, signal.payload).await
        }
    };
    sent.map_err(|error| away(&error))?;
    link.client.publish(inbox, Bytes::new()).await.map_err(|error| away(&error))?;
    let first = tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), answers.next()).await;
    match first {
        Ok(Some(answer)) if answer.status == Some(StatusCode::NO_RESPONDERS) => {
            Ok(if link.replicas > 1 { Reach::Unknown } else { Reach::Nobody })
        }
        Ok(Some(_)) => Ok(Reach::Somebody),
        Ok(None) => Err(Error::new(Kind::Closed, "the bus was closed while a signal was sent")),
        Err(_) => Err(Error::new(Kind::Unavailable, "the NATS server did not take a signal in time")),
    }
}

pub(super) async fn listen(link: &Arc<Link>, subject: &str, group: Option<&str>) -> Result<SignalStream> {
    check_subject(subject)?;
    group.map_or(Ok(()), check_subject)?;
    link.ready().await?;
    let named = link.names.signal(subject);
    let heard = match group {
        Some(group) => link.client.queue_subscribe(named, group.to_owned()).await,
        None => link.client.subscribe(named).await,
    };
    let heard = heard.map_err(|error| away(&error))?;
    known_to_the_server(link).await?;
    let signals = heard.map(|message| {
        let reply_to = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO));
        Signal { reply_to: reply_to.map(|subject| subject.as_str().to_owned()), payload: message.payload }
    });
    Ok(signals.take_until(link.closed.clone().cancelled_owned()).boxed())
}

/// Returns when the server has dealt with everything that this connection sent before.
async fn known_to_the_server(link: &Link) -> Result<()> {
    let inbox = link.client.new_inbox();
    let mut echo = link.client.subscribe(inbox.clone()).await.map_err(|error| away(&error))?;
    link.client.publish(inbox, Bytes::new()).await.map_err(|error| away(&error))?;
    match tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), echo.next()).await {
        Ok(Some(_)) => Ok(()),
        _ => Err(Error::new(Kind::Unavailable, "the NATS server did not take a listener in time")),
    }
}

fn check_size(link: &Link, signal: &Signal) -> Result<()> {
    let found = signal.payload.len();
    let headers = signal.reply_to.as_ref().map_or(0, |subject| subject.len() + 64);
    let room = link.client.max_payload().saturating_sub(headers);
    let bound = room.min(SIGNAL_BYTES_MAX);
    if found <= bound {
        return Ok(());
    }
    let message = format!(
        "signal holds {found} bytes; expected at most {bound}, of {SIGNAL_BYTES_MAX} and the NATS server's `max_payload`"
    );
    Err(Error::new(Kind::TooLarge, message))
}

fn away(error: &dyn std::error::Error) -> Error {
    unavailable("the NATS server does not take signals", error)
}
