//! Bodies on their way through: bounded and watched in one direction, counted in the other, never kept whole.
//!
//! Invariant: a request's body of which nothing was read yet can be sent to another replica; one byte later it cannot.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use crate::headers;
use crate::log::Entry;
use crate::problem::Refusal;

/// An error of a body, as hyper takes it.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// The body of a request on its way to a replica.
#[derive(Clone)]
pub(crate) struct Upload(Option<Arc<Mutex<Live>>>);

/// What all who hold a request's body share.
struct Live {
    incoming: Incoming,
    left: u64,
    pause_max: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    is_touched: bool,
    cut: Option<Refusal>,
}

/// Why a body ended early.
#[derive(Debug)]
pub(crate) struct Cut(&'static str);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Cut {}

impl Upload {
    /// A body of at most so many bytes, that may pause for so long.
    pub(crate) fn new(incoming: Incoming, bytes_max: u64, pause_max: Duration) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        let live = Live { incoming, left: bytes_max, pause_max, pause: None, is_touched: false, cut: None };
        Self(Some(Arc::new(Mutex::new(live))))
    }

    /// No body.
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    /// Whether it can be sent from its beginning.
    pub(crate) fn is_whole(&self) -> bool {
        self.live().is_none_or(|live| !live.is_touched)
    }

    /// Why it was cut short here, if it was.
    pub(crate) fn cut(&self) -> Option<Refusal> {
        self.live().and_then(|live| live.cut)
    }

    fn live(&self) -> Option<MutexGuard<'_, Live>> {
        self.0.as_ref().map(|live| live.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Live {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.is_touched = true;
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.pause = None;
                Poll::Ready(Some(self.take(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(self.end(Refusal::Malformed, "it broke off")))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let pause_max = self.pause_max;
                let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(pause_max)));
                match pause.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(self.end(Refusal::Slow, "it stands still")))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Cut> {
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::clean_trailers(&mut trailers);
                return Ok(Frame::trailers(trailers));
            }
            Err(frame) => frame,
        };
        let size = frame.data_ref().map_or(0, |bytes| bytes.remaining() as u64);
        match self.left.checked_sub(size) {
            Some(left) => self.left = left,
            None => return Err(self.end(Refusal::BodyTooLarge, "it is too long")),
        }
        Ok(frame)
    }

    fn end(&mut self, refusal: Refusal, words: &'static str) -> Cut {
        self.cut = Some(refusal);
        Cut(words)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.live() {
            Some(mut live) => live.poll(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.live().is_none_or(|live| live.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.live().map_or_else(|| SizeHint::with_exact(0), |live| live.incoming.size_hint())
    }
}

/// The body of an answer on its way to the client. When it is dropped, the request is over.
pub(crate) struct Download {
    content: Content,
    sent: u64,
    entry: Option<Entry>,
}

enum Content {
    Full(Option<Bytes>),
    Live(Incoming),
    Boxed(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

impl Download {
    /// All of it at once.
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::of(Content::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// None.
    pub(crate) fn empty() -> Self {
        Self::of(Content::Full(None))
    }

    /// What a replica sends.
    pub(crate) fn live(incoming: Incoming) -> Self {
        Self::of(Content::Live(incoming))
    }

    /// What something made of it.
    pub(crate) fn boxed(body: impl Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self::of(Content::Boxed(Box::pin(body)))
    }

    fn of(content: Content) -> Self {
        Self { content, sent: 0, entry: None }
    }

    /// Has `entry` end with this body.
    #[must_use]
    pub(crate) fn recorded_by(mut self, entry: Entry) -> Self {
        self.entry = Some(entry);
        self
    }
}

impl Default for Download {
    fn default() -> Self {
        Self::empty()
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = match &mut self.content {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Live(incoming) => Pin::new(incoming).poll_frame(context).map_err(Into::into),
            Content::Boxed(body) => body.as_mut().poll_frame(context),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            }
            Poll::Ready(Some(Err(_))) => {
                if let Some(entry) = &mut self.entry {
                    entry.broke_off();
                }
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_none(),
            Content::Live(incoming) => incoming.is_end_stream(),
            Content::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Live(incoming) => incoming.size_hint(),
            Content::Boxed(body) => body.size_hint(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.end(self.sent);
        }
    }
}
