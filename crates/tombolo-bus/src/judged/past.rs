//! Reading a topic's stream from a place in the past: found by marks, by halving.
//!
//! Every [`MARK_EACH`] messages somebody who appends writes a mark, which is the state of the topic as of an offset. So what
//! counts at some place is known without reading all that was before it: the last mark before the place is found, and at
//! most a few hundred messages from there are read.
//!
//! Where the server has removed the beginning of a stream, what lies before the first mark of the rest cannot be judged any more,
//! and is trimmed.
//!
//! Invariant: a mark is a function of what lies before it, so any of them will do, whoever wrote it; nothing is judged from a
//! mark whose own place is gone.

use std::sync::Arc;

use super::message::Says;
use super::rule::State;
use super::{From, Streams, forgotten};
use crate::{Kind, Record, Result};

/// After how many messages a mark is written.
pub(super) const MARK_EACH: u64 = 512;
/// Where reading on is cheaper than looking for a nearer mark, in messages.
const NEAR: u64 = 2 * MARK_EACH;

/// A place in one partition that moves on.
pub(super) struct Past<S: Streams> {
    server: Arc<S>,
    stream: String,
    feed: S::Feed,
    state: State,
    partition: u32,
}

/// The state before the first message.
pub(super) fn beginning(server: &impl Streams) -> State {
    let state = State::default();
    #[cfg(feature = "mutants")]
    let state = State { mutant: server.root().mutant, ..state };
    #[cfg(not(feature = "mutants"))]
    let _ = server;
    state
}

impl<S: Streams> Past<S> {
    /// Goes to a place before a sequence of a partition, which must be there before the offset `end`, where there is a message.
    pub(super) async fn before(
        server: &Arc<S>,
        stream: &str,
        partition: u32,
        sequence: u64,
        end: u64,
    ) -> Result<Self> {
        let begins = server.begins(stream).await?;
        let (mut low, mut high) = (first(&**server, stream, begins, end).await?, end);
        // What counts before a partition is there is not in it.
        if begins > 0 && low.end(partition).is_some_and(|end| end.sequence >= sequence) {
            return Err(forgotten(Kind::Trimmed, stream, begins));
        }
        while sequence > 1 && high.saturating_sub(low.next) > NEAR {
            let middle = low.next + (high - low.next) / 2;
            match mark(&**server, stream, middle, high, begins).await? {
                Some(state) if state.end(partition).is_none_or(|end| end.sequence < sequence) => {
                    if state.next <= low.next {
                        break;
                    }
                    low = state;
                }
                _ => high = middle,
            }
        }
        let feed = server.feed(stream, From::Offset(low.next)).await?;
        Ok(Self { server: Arc::clone(server), stream: stream.to_owned(), feed, state: low, partition })
    }

    /// The records of the next append that counts, as soon as there is one.
    pub(super) async fn next(&mut self) -> Result<Vec<Record>> {
        loop {
            let (at, message) = super::next(&mut self.feed).await?;
            follows(&*self.server, &self.stream, self.state.next, at).await?;
            if let Some(records) = self.counts(at, message) {
                return Ok(records);
            }
        }
    }

    /// The same if it has already arrived.
    pub(super) async fn next_ready(&mut self) -> Result<Option<Vec<Record>>> {
        while let Some((at, message)) = super::next_ready(&mut self.feed).await? {
            follows(&*self.server, &self.stream, self.state.next, at).await?;
            if let Some(records) = self.counts(at, message) {
                return Ok(Some(records));
            }
        }
        Ok(None)
    }

    fn counts(&mut self, at: u64, message: super::message::Message) -> Option<Vec<Record>> {
        if at < self.state.next || !self.state.apply(at, &message) {
            return None;
        }
        match message.says {
            Says::Records(says) if says.partition == self.partition => Some(says.records),
            _ => None,
        }
    }
}

/// Whether nothing was removed between what was judged, up to the offset `next`, and the message at `at`; others' messages are
/// passed over.
async fn follows<S: Streams>(server: &S, stream: &str, next: u64, at: u64) -> Result<()> {
    if at <= next {
        return Ok(());
    }
    match server.begins(stream).await? {
        begins if begins > next => Err(forgotten(Kind::Trimmed, stream, begins)),
        _ => Ok(()),
    }
}

/// The state with which judging can begin in a stream that begins at an offset.
async fn first<S: Streams>(server: &S, stream: &str, begins: u64, end: u64) -> Result<State> {
    if begins == 0 {
        return Ok(beginning(server));
    }
    let state = mark(server, stream, begins, end, begins).await?;
    state.ok_or_else(|| forgotten(Kind::Trimmed, stream, begins))
}

/// The state of the first mark from an offset on, before the offset `end`, where there is a message; `begins` is where the
/// stream does.
pub(super) async fn mark<S: Streams>(
    server: &S,
    stream: &str,
    from: u64,
    end: u64,
    begins: u64,
) -> Result<Option<State>> {
    let mut feed = server.feed(stream, From::Offset(from)).await?;
    loop {
        let (at, message) = super::next(&mut feed).await?;
        if at >= end {
            return Ok(None);
        }
        if let Says::Mark(mark) = &message.says
            && mark.at + 1 >= begins
        {
            return Ok(Some(State::at_mark(beginning(server), &message, mark)));
        }
    }
}

/// The state at a mark near the end of a stream, of which `last` is the offset of a message.
pub(super) async fn near_the_end<S: Streams>(server: &S, stream: &str, last: u64) -> Result<State> {
    let begins = server.begins(stream).await?;
    let (mut back, mut end) = (NEAR, last);
    while last > back + begins {
        let from = last - back;
        if let Some(state) = mark(server, stream, from, end, begins).await? {
            return Ok(state);
        }
        (back, end) = (back * 2, from);
    }
    if begins == 0 {
        return Ok(beginning(server));
    }
    let state = mark(server, stream, begins, end, begins).await?;
    state.ok_or_else(|| forgotten(Kind::Unsafe, stream, begins))
}
