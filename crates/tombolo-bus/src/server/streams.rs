//! Streams that end when their owner does.
//!
//! Invariant: an item that is an error is the last one, and nothing runs unless the stream is polled.

use futures_util::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// `items` until `ended`; then `last`, if there is one, and the end.
pub(super) fn until<S, T>(
    items: S,
    ended: CancellationToken,
    last: fn() -> Option<Error>,
) -> impl Stream<Item = Result<T>> + Send
where
    S: Stream<Item = Result<T>> + Send + Unpin,
    T: Send,
{
    stream::unfold(Some((items, ended)), move |state| async move {
        let (mut items, ended) = state?;
        tokio::select! {
            biased;
            () = ended.cancelled() => last().map(|error| (Err(error), None)),
            item = items.next() => match item? {
                Ok(item) => Some((Ok(item), Some((items, ended)))),
                Err(error) => Some((Err(error), None)),
            },
        }
    })
}
