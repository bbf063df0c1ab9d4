//! A connection whose protocol was changed: bytes in both directions, until either end has enough.
//!
//! Invariant: a tunnel begins only when the replica has answered 101, and ends with the gateway at the latest.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::body::Download;
use crate::guard::Shared;
use crate::headers;
use crate::upstream::Ground;

/// Answers a request to change the protocol with what the replica says to it.
pub(crate) fn answer(
    client: Option<OnUpgrade>,
    mut answer: Response<Incoming>,
    connection: &Arc<Shared>,
    ground: &Ground,
) -> Response<Download> {
    let is_changed = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let replica = hyper::upgrade::on(&mut answer);
    let (mut parts, body) = answer.into_parts();
    let accepted = parts.headers.get(header::UPGRADE).cloned();
    headers::clean_response(&mut parts.headers);
    let (true, Some(client), Some(protocol)) = (is_changed, client, accepted) else {
        // What the client sent meanwhile in the other protocol must not be read as a request.
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if is_changed {
            parts.status = StatusCode::BAD_GATEWAY;
        }
        return Response::from_parts(parts, Download::live(body));
    };
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, protocol);
    connection.switch();
    let stop = ground.stop.clone();
    ground.tasks.spawn(async move { stop.run_until_cancelled(join(client, replica)).await });
    Response::from_parts(parts, Download::empty())
}

async fn join(client: OnUpgrade, replica: OnUpgrade) {
    let (Ok(client), Ok(replica)) = tokio::join!(client, replica) else {
        tracing::debug!("one end was gone before the protocol was changed");
        return;
    };
    let (mut client, mut replica) = (TokioIo::new(client), TokioIo::new(replica));
    if let Err(error) = copy_bidirectional(&mut client, &mut replica).await {
        tracing::debug!(%error, "a connection of another protocol broke off");
    }
}
