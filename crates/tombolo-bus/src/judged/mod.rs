//! A log without conditions, used as a bus: for servers that store, in one order, whatever anybody sends, and refuse nothing.
//!
//! Such a server has no fence. What it does have is one total order of a stream, the same for everybody, and never taken
//! back. That is enough:
//!
//! ```text
//! the stream of topic orders
//!   0 birth     incarnation, partitions            every message says under which epoch it was sent, where in its
//!   1 raise     epoch 1                            partition it belongs, and which event it follows;
//!   2 records   epoch 1, partition 0, 1..=40       whether it *counts* depends only on what stands before it (`rule`):
//!   3 raise     epoch 2                            not the present epoch, not the next number, not after the event that
//!   4 records   epoch 1, partition 0, 41..=80      is there, or a sealed partition: void, and passed over by everybody
//!   ┆           ↑ void: its relay reads that here, and is refused
//! ```
//!
//! - An append is one message, acknowledged when its sender has read it back in its place, where it counts. Before that a
//!   reader may see it already; that is no phantom, because it is stored and counts for good.
//! - Who is void has read everything before it, so its refusal is true as of its own message. Nothing is refused or
//!   acknowledged, and no tail is told, from what was read before the call began: then an empty message is sent, a *look*,
//!   and everything up to it is read.
//! - A relay that was replaced can send as late as it likes, from buffers of a dead connection even: it is void.
//! - Opening a topic reads from the last *mark* (`past`), about a thousand messages, not the whole stream. The same marks lead
//!   to a cursor far back, by halving. One follower in each process reads each new message once, for all (`follower`).
//!
//! What such an engine cannot do: types are not filtered; a reader far back is sent the records of all partitions.
//!
//! Invariant: every answer follows from the rule and from messages that were read after the call began; nothing is answered
//! from a confirmation or from memory alone.

mod message;
mod names;
mod rule;
mod past;
mod window;
mod follower;
mod writer;
mod reader;
mod directory;
mod topics;
#[cfg(feature = "mutants")]
mod mutants;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_event::ServiceName;
use uuid::Uuid;

use crate::{Error, Kind, Result};
use message::{Found, Message, Tag};
#[cfg(feature = "mutants")]
pub use mutants::Mutant;
pub(crate) use names::Names;
pub(crate) use topics::Topics;

/// How long one request may take.
pub(crate) const REQUEST_SECONDS_MAX: u64 = 10;

/// Where to begin to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    First,
    /// The last messages that were stored together.
    Last,
    Offset(u64),
}

/// A server and its streams, each of which is one order for everybody.
pub(crate) trait Streams: Send + Sync + 'static {
    type Outlet: Outlet;
    type Feed: Feed;

    fn root(&self) -> &Root;

    /// The stream of a topic.
    fn topic(&self, topic: &ServiceName) -> String;

    /// The stream in which topics and registrations are listed.
    fn directory(&self) -> String;

    /// Makes a stream, or finds it as it would have been made.
    ///
    /// # Errors
    /// `TopicDiffers` if it is not ours, `Unsafe` if it would lose messages.
    fn ensure(&self, stream: &str) -> impl Future<Output = Result<()>> + Send;

    /// Whether there is a stream of this name, and that it is ours.
    fn exists(&self, stream: &str) -> impl Future<Output = Result<bool>> + Send;

    /// The offset of the first message that a stream which is not empty still has: 0, unless the server removes messages.
    fn begins(&self, stream: &str) -> impl Future<Output = Result<u64>> + Send;

    /// A way to send to a stream.
    fn outlet(&self, stream: &str) -> impl Future<Output = Result<Self::Outlet>> + Send;

    /// A place in a stream. From `Last`, there must be a message.
    fn feed(&self, stream: &str, from: From) -> impl Future<Output = Result<Self::Feed>> + Send;

    /// Whether the server failed because a stream was not made to the end yet.
    fn is_half_made(error: &Error) -> bool;
}

/// A way to send to one stream.
pub(crate) trait Outlet: Send + Sync + 'static {
    /// What tells that a message is stored.
    type Confirm: Send + 'static;

    /// Refuses what would only wait until somebody makes room on the server.
    fn take_writes(&self) -> Result<()>;

    /// Sends a message; the order is that of the calls.
    fn send(&self, body: Bytes) -> impl Future<Output = Result<Self::Confirm>> + Send;

    /// Waits until what was sent is stored.
    fn confirmed(&self, sent: Self::Confirm) -> impl Future<Output = Result<()>> + Send;

    /// Whether it can still be sent on.
    fn lives(&self) -> bool;

    /// Sends a message and returns when it is stored.
    fn publish(&self, body: Bytes) -> impl Future<Output = Result<()>> + Send {
        async {
            let sent = self.send(body).await?;
            self.confirmed(sent).await
        }
    }
}

/// A place in a stream that moves on.
pub(crate) trait Feed: Send + 'static {
    /// The name of the stream, for people.
    fn stream(&self) -> &str;

    /// The bytes of the next message, as soon as there is one, and their offset.
    fn next_bytes(&mut self) -> impl Future<Output = Result<(u64, Bytes)>> + Send;

    /// The bytes of the next message if it has already arrived.
    fn next_bytes_ready(&mut self) -> impl Future<Output = Result<Option<(u64, Bytes)>>> + Send;

    /// Returns when everything has arrived that the server had when it was asked.
    fn settle(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// What is said of a stream whose beginning is needed and gone.
fn forgotten(kind: Kind, stream: &str, begins: u64) -> Error {
    let message = format!(
        "stream {stream} begins at message {begins}: a policy of its server (of RabbitMQ max-age or max-length-bytes, of Kafka a \
         retention) has removed what was before; take it off and restore the stream, or name an archive that has it \
         (TOMBOLO_ARCHIVE, --archive)"
    );
    Error::new(kind, message)
}

/// Checks that nothing was removed from a stream that is not empty.
///
/// # Errors
/// `Unsafe` if its first message is not the very first that there was.
async fn check_beginning<S: Streams>(server: &S, stream: &str) -> Result<()> {
    match server.begins(stream).await? {
        0 => Ok(()),
        begins => Err(forgotten(Kind::Unsafe, stream, begins)),
    }
}

/// The next of our messages. What others wrote is passed over, and said.
async fn next(feed: &mut impl Feed) -> Result<(u64, Message)> {
    loop {
        let (at, bytes) = feed.next_bytes().await?;
        if let Some(message) = ours(feed.stream(), at, bytes)? {
            return Ok((at, message));
        }
    }
}

/// The next of our messages if it has already arrived.
async fn next_ready(feed: &mut impl Feed) -> Result<Option<(u64, Message)>> {
    while let Some((at, bytes)) = feed.next_bytes_ready().await? {
        if let Some(message) = ours(feed.stream(), at, bytes)? {
            return Ok(Some((at, message)));
        }
    }
    Ok(None)
}

fn ours(stream: &str, at: u64, bytes: Bytes) -> Result<Option<Message>> {
    match Message::decode(bytes, at)? {
        Found::Ours(message) => Ok(Some(message)),
        Found::Foreign => {
            tracing::warn!(
                "message {at} of {stream} is passed over: Tombolo did not write it; find out who did"
            );
            Ok(None)
        }
    }
}

/// What everything of one bus shares.
pub(crate) struct Root {
    /// Ends every stream.
    pub(crate) closed: CancellationToken,
    pub(crate) tasks: TaskTracker,
    sender: u64,
    counter: AtomicU64,
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<Mutant>,
}

impl Root {
    pub(crate) fn new() -> Self {
        Self {
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            sender: Uuid::new_v4().as_u64_pair().0,
            counter: AtomicU64::new(0),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// A tag that no other message has.
    fn tag(&self) -> Tag {
        Tag { sender: self.sender, number: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// Whether a message was sent by this bus.
    fn sent(&self, tag: Tag) -> bool {
        tag.sender == self.sender
    }

    pub(crate) async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Ends a connection when nobody is left who uses it: the bus, its readers, its listeners.
pub(crate) struct Used<S: Streams>(pub(crate) Arc<S>);

impl<S: Streams> Drop for Used<S> {
    fn drop(&mut self) {
        self.0.root().closed.cancel();
    }
}
