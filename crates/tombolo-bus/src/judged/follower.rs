//! One topic, followed: its stream is read from the last mark on and then as it grows, once in a process, for everybody.
//!
//! Tails are answered from here, readers near the end are fed from here, and here who appends learns what became of it.
//! Costs: at the beginning about a thousand messages are read, and then each message once, of all partitions; it takes
//! [`WINDOW_BYTES_MAX`] of memory. Whoever asks for tails, a topic, or what ends at the tail writes a look, of 200 bytes or so.
//!
//! Invariant: what a follower says is what the rule makes of the stream up to the last message that it read. It ends with
//! its connection, and another is begun.
//!
//! [`WINDOW_BYTES_MAX`]: super::window::WINDOW_BYTES_MAX

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tombolo_event::{EventId, Incarnation, ServiceName};

use super::message::{Message, Says, Tag};
use super::past::{self, MARK_EACH, Past};
use super::rule::{End, State, unknown};
use super::window::Window;
use super::{Feed, From, Outlet, REQUEST_SECONDS_MAX, Streams};
use crate::{Error, Kind, Record, Result};

/// A topic as this process reads it.
pub(super) struct Follower<S: Streams> {
    pub(super) server: Arc<S>,
    pub(super) topic: ServiceName,
    pub(super) stream: String,
    /// For everything that is sent to the stream, so that it is stored in the order of the calls.
    outlet: S::Outlet,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    over: CancellationToken,
    marking: AtomicBool,
    /// Held while an append is decided and sent; the ends of partitions once what is on its way has landed.
    pub(super) ahead: tokio::sync::Mutex<HashMap<u32, End>>,
    #[cfg(feature = "mutants")]
    remembered: std::sync::OnceLock<State>,
}

struct Inner {
    state: State,
    window: Window,
    waiting: HashMap<Tag, oneshot::Sender<Fate>>,
    ended: Option<(Kind, String)>,
}

/// What became of a message.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) counts: bool,
    /// The topic right after it; for appends nobody asks.
    pub(super) state: State,
}

/// What is near the end of a partition.
pub(super) enum Near {
    Records(Vec<Record>),
    /// Nothing after the sequence.
    End,
    /// It is further back than what is in memory.
    Past,
}

impl<S: Streams> Follower<S> {
    /// Begins to follow a topic's stream.
    ///
    /// # Errors
    /// `UnknownTopic`, `TopicDiffers`, `Unsafe`.
    pub(super) async fn begin(server: &Arc<S>, topic: &ServiceName) -> Result<Arc<Self>> {
        let stream = server.topic(topic);
        if !server.exists(&stream).await? {
            return Err(unknown(topic));
        }
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        match tokio::time::timeout(limit, Self::open(server, topic, stream)).await {
            Ok(begun) => begun,
            Err(_) => {
                let message = format!("the stream of topic {topic} was not read in time");
                Err(Error::new(Kind::Unavailable, message))
            }
        }
    }

    async fn open(server: &Arc<S>, topic: &ServiceName, stream: String) -> Result<Arc<Self>> {
        let outlet = server.outlet(&stream).await?;
        outlet.take_writes()?;
        // With this there is at least one message, and the last one is new.
        let look = look(&**server);
        let (tag, body) = (look.tag, look.encode());
        outlet.publish(body).await?;
        let (last, _) = server.feed(&stream, From::Last).await?.next_bytes().await?;
        let state = past::near_the_end(&**server, &stream, last).await?;
        let feed = server.feed(&stream, From::Offset(state.next)).await?;
        let (looked, seen) = oneshot::channel();
        let inner =
            Inner { state, window: Window::default(), waiting: HashMap::from([(tag, looked)]), ended: None };
        let follower = Arc::new(Self {
            server: Arc::clone(server),
            topic: topic.clone(),
            stream,
            outlet,
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
            over: server.root().closed.child_token(),
            marking: AtomicBool::new(false),
            ahead: tokio::sync::Mutex::default(),
            #[cfg(feature = "mutants")]
            remembered: std::sync::OnceLock::new(),
        });
        follower.keep_following(feed);
        let unfinished = follower.over.clone().drop_guard();
        seen.await.map_err(|_| follower.why_ended())?;
        unfinished.disarm();
        Ok(follower)
    }

    /// Follows in a task of the link's, until it is over.
    fn keep_following(self: &Arc<Self>, feed: S::Feed) {
        let (following, over) = (Arc::clone(self), self.over.clone());
        self.server.root().tasks.spawn(async move {
            let ended = over.run_until_cancelled(following.follow(feed)).await;
            let error =
                ended.unwrap_or_else(|| Error::new(Kind::Closed, "the bus was closed by this process"));
            following.end(&error);
        });
    }

    async fn follow(&self, mut feed: S::Feed) -> Error {
        loop {
            match super::next(&mut feed).await {
                Ok((at, message)) => self.take(at, message),
                Err(error) => return error,
            }
        }
    }

    fn take(&self, at: u64, message: Message) {
        let mut inner = self.lock();
        if at < inner.state.next {
            return;
        }
        let counts = inner.state.apply(at, &message);
        let tag = message.tag;
        if let Some(waiting) = self.server.root().sent(tag).then(|| inner.waiting.remove(&tag)).flatten() {
            let state = match &message.says {
                Says::Records(_) => State::default(),
                _ => inner.state.clone(),
            };
            // Who gave up waiting needs no answer.
            drop(waiting.send(Fate { counts, state }));
        }
        if let Says::Records(says) = message.says
            && counts
        {
            inner.window.push(says.partition, says.records);
        }
        drop(inner);
        self.changed.send_replace(at);
    }

    fn end(&self, error: &Error) {
        let mut inner = self.lock();
        inner.ended = Some((error.kind(), error.to_string()));
        inner.waiting.clear();
        drop(inner);
        self.over.cancel();
        self.changed.send_modify(|_| {});
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it still follows.
    pub(super) fn lives(&self) -> bool {
        !self.over.is_cancelled() && self.outlet.lives()
    }

    pub(super) fn why_ended(&self) -> Error {
        match &self.lock().ended {
            Some((kind, why)) => Error::new(*kind, why.clone()),
            None => {
                Error::new(Kind::Unavailable, format!("topic {} is not followed at the moment", self.topic))
            }
        }
    }

    /// Changes with each message that is read, and when the follower ends.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Answers from the state that was read last, which may be old.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(&self.lock().state)
    }

    /// The records of a partition after a sequence, and the end of the partition.
    pub(super) fn near(&self, partition: u32, after: u64, bytes_max: usize) -> (Near, u64) {
        let inner = self.lock();
        let end = inner.state.end(partition).unwrap_or_default().sequence;
        if after >= end {
            return (Near::End, end);
        }
        let found = inner.window.after(partition, after, bytes_max);
        (found.map_or(Near::Past, Near::Records), end)
    }

    /// The id under a sequence that is at most the end of its partition, if it is in memory.
    pub(super) fn near_id(&self, partition: u32, sequence: u64) -> Option<EventId> {
        let inner = self.lock();
        let end = inner.state.end(partition)?;
        if end.sequence == sequence { end.id } else { inner.window.id(partition, sequence) }
    }

    /// Goes back to a place before a sequence that is at most the end of its partition.
    pub(super) async fn past(&self, partition: u32, sequence: u64) -> Result<Past<S>> {
        let end = self.with(|state| state.next.saturating_sub(1));
        Past::before(&self.server, &self.stream, partition, sequence, end).await
    }

    /// Sends a message; its fate is told when it was read back.
    pub(super) async fn send(&self, message: &Message) -> Result<Sent<S>> {
        self.outlet.take_writes()?;
        let (waiting, fate) = oneshot::channel();
        #[cfg(feature = "mutants")]
        let waiting = self.told_already(message, waiting);
        self.wait_for(message.tag, waiting)?;
        match self.outlet.send(message.encode()).await {
            Ok(confirm) => Ok(Sent { confirm, fate }),
            Err(error) => {
                self.lock().waiting.remove(&message.tag);
                Err(error)
            }
        }
    }

    #[cfg(feature = "mutants")]
    fn told_already(&self, message: &Message, waiting: oneshot::Sender<Fate>) -> oneshot::Sender<Fate> {
        let is_append = matches!(message.says, Says::Records(_));
        if is_append && self.server.root().mutant == Some(super::Mutant::AcknowledgeAtTheConfirm) {
            drop(waiting.send(Fate { counts: true, state: State::default() }));
            return oneshot::channel().0;
        }
        waiting
    }

    fn wait_for(&self, tag: Tag, waiting: oneshot::Sender<Fate>) -> Result<()> {
        let mut inner = self.lock();
        if inner.ended.is_some() {
            drop(inner);
            return Err(self.why_ended());
        }
        inner.waiting.insert(tag, waiting);
        Ok(())
    }

    /// Waits until what was sent is stored and read back.
    pub(super) async fn fate(&self, tag: Tag, sent: Sent<S>) -> Result<Fate> {
        let fate = async {
            self.outlet.confirmed(sent.confirm).await?;
            sent.fate.await.map_err(|_| self.why_ended())
        };
        let fate = match tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS_MAX), fate).await {
            Ok(fate) => fate,
            Err(_) => {
                let message = format!("what was sent to topic {} was not read back in time", self.topic);
                Err(Error::new(Kind::Unavailable, message))
            }
        };
        if fate.is_err() {
            self.lock().waiting.remove(&tag);
        }
        fate
    }

    /// Sends a message and waits for its fate.
    pub(super) async fn tell(&self, message: Message) -> Result<Fate> {
        let sent = self.send(&message).await?;
        self.fate(message.tag, sent).await
    }

    /// The topic as of a moment after this was called, so that nothing is missing that was acknowledged before.
    pub(super) async fn look(&self) -> Result<State> {
        #[cfg(feature = "mutants")]
        if self.server.root().mutant == Some(super::Mutant::AnswerFromMemory)
            && let Some(state) = self.remembered.get()
        {
            return Ok(state.clone());
        }
        let state = self.tell(look(&*self.server)).await?.state;
        #[cfg(feature = "mutants")]
        if state.control.is_some() {
            self.remembered.get_or_init(|| state.clone());
        }
        Ok(state)
    }

    /// A message in the name of what is known of the topic.
    pub(super) fn message(&self, incarnation: Incarnation, epoch: u64, says: Says) -> Message {
        Message { tag: self.server.root().tag(), incarnation, epoch, says }
    }

    /// Writes a mark if it is time for one. Nothing depends on it but how much has to be read later.
    pub(super) async fn mark_if_due(&self) {
        let due = |state: &State| state.next.saturating_sub(state.marked) >= MARK_EACH;
        if !self.with(due) || self.marking.swap(true, Ordering::AcqRel) {
            return;
        }
        let state = self.with(State::clone);
        if let (Some(mark), Some(control)) = (state.mark(), state.control) {
            let message = self.message(control.incarnation, control.epoch, Says::Mark(mark));
            if let Err(error) = self.tell(message).await {
                tracing::debug!(topic = %self.topic, "a mark was not written: {error}");
            }
        }
        self.marking.store(false, Ordering::Release);
    }
}

/// A message on its way.
pub(super) struct Sent<S: Streams> {
    confirm: <S::Outlet as Outlet>::Confirm,
    fate: oneshot::Receiver<Fate>,
}

fn look(server: &impl Streams) -> Message {
    Message {
        tag: server.root().tag(),
        incarnation: Incarnation(uuid::Uuid::nil()),
        epoch: 0,
        says: Says::Look,
    }
}
