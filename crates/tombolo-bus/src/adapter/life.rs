//! The life of a connection: it goes on for its bus and for each of its streams.
//!
//! Invariant: what works for a connection in the background is told to end when the last of them is gone, or the bus is closed.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;

/// Held by a bus and by each of its streams.
#[derive(Clone)]
pub(crate) struct Life {
    _end: Arc<End>,
}

struct End(CancellationToken);

impl Drop for End {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Life {
    /// `closed` is told when the last clone of this is gone.
    pub(crate) fn of(closed: &CancellationToken) -> Self {
        Self { _end: Arc::new(End(closed.clone())) }
    }

    /// A stream that keeps what it needs of its bus.
    pub(crate) fn keep<T: Send + 'static>(
        &self,
        stream: Pin<Box<dyn Stream<Item = T> + Send>>,
    ) -> Pin<Box<dyn Stream<Item = T> + Send>> {
        let kept = stream::unfold((stream, self.clone()), |(mut stream, life)| async {
            let item = stream.next().await?;
            Some((item, (stream, life)))
        });
        kept.boxed()
    }
}
