//! `GET /events`: all events, oldest first, as a bare array; and how it moves the cursor of a subscriber that rebuilds itself by it.
//!
//! Invariant: a snapshot moves the cursor of the subscriber that asked for it while it was recovering, after all of it was sent and the
//! delivery under way has ended; anybody else's moves nothing.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::header;
use tokio::sync::oneshot;
use tombolo_bus::{Batch, Read, RecordStream};
use tombolo_event::envelope::JSON;
use tombolo_event::{Cursor, Envelope};

use super::{Caller, Inside, Place, Recovers};
use crate::door::streamed;
use crate::problem::Problem;
use crate::push::Handle;

/// An answer while it is written.
struct Writing {
    batches: RecordStream,
    reached: Cursor,
    is_first: bool,
    end: Option<oneshot::Sender<Cursor>>,
    is_closed: bool,
}

pub(super) async fn all(State(place): State<Place>, caller: Caller) -> Result<Response, Problem> {
    // Deliveries pause before it is known how far the snapshot goes.
    let end = match place.recovering(&caller) {
        Some(handle) => handle.begins_snapshot().await,
        None => None,
    };
    let topic = place.door.bus.topic(&place.settings.topic).await?;
    let reached = Cursor::start(topic.incarnation);
    let batches = place.door.bus.read(Read::to_tail(&topic.name, 0, reached)).await?;
    let writing = Writing { batches, reached, is_first: true, end, is_closed: false };
    let body: Body = streamed(stream::unfold(writing, next));
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

/// The next piece of the answer. When the last one was taken, the whole body was sent.
async fn next(mut writing: Writing) -> Option<(Result<Bytes, Problem>, Writing)> {
    if writing.is_closed {
        if let Some(end) = writing.end.take() {
            // A subscription that has ended meanwhile begins anew.
            let _ = end.send(writing.reached);
        }
        return None;
    }
    match writing.batches.next().await {
        Some(Ok(batch)) => {
            let piece = writing.piece(batch);
            Some((piece, writing))
        }
        Some(Err(error)) => Some((Err(error.into()), writing)),
        None => {
            writing.is_closed = true;
            let rest = if writing.is_first { "[]" } else { "]" };
            Some((Ok(Bytes::from_static(rest.as_bytes())), writing))
        }
    }
}

impl Writing {
    fn piece(&mut self, batch: Batch) -> Result<Bytes, Problem> {
        let size: usize = batch.records.iter().map(|record| record.bytes.len()).sum();
        let mut piece = BytesMut::with_capacity(size);
        for record in batch.records {
            piece.put_u8(if std::mem::take(&mut self.is_first) { b'[' } else { b',' });
            piece.put(Envelope::decode(record.bytes)?.data);
        }
        self.reached = Cursor::at(self.reached.incarnation, batch.last, batch.last_id);
        Ok(piece.freeze())
    }
}

impl Inside {
    /// The subscriber that asks, if it is one that is recovering.
    fn recovering(&self, caller: &Caller) -> Option<&Handle> {
        let is_meant = |recovers| self.subscribers.iter().filter(move |it| it.0.recovers == recovers);
        let by_credential = is_meant(Recovers::ByCredential)
            .find(|(subscriber, _)| caller.service.as_deref() == Some(subscriber.credential()));
        let by_address = || {
            let address = caller.address?;
            is_meant(Recovers::ByAddress)
                .find(|(it, _)| it.addresses.iter().any(|known| known.to_canonical() == address))
        };
        if let Some((_, handle)) = by_credential.or_else(by_address) {
            return handle.is_recovering().then_some(handle);
        }
        let mut recovering = is_meant(Recovers::OnlyOne).filter(|(_, handle)| handle.is_recovering());
        match (recovering.next(), recovering.next()) {
            (Some((_, handle)), None) => Some(handle),
            _ => None,
        }
    }
}
