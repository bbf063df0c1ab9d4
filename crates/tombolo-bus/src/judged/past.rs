//! Reading a topic's stream from a place in the past: found by marks, by halving.
//!
//! Every [`MARK_EACH`] messages somebody who appends writes a mark, which is the state of the topic as of an offset. So what
//! counts at some place is known without reading all that was before it: the last mark before the place is found, and at
//! most a few hundred messages from there are read.
//!
//! Invariant: a mark is a function of what lies before it, so any of them will do, whoever wrote it.

use std::sync::Arc;

use super::message::Says;
use super::rule::State;
use super::{From, Streams};
use crate::{Record, Result};

/// After how many messages a mark is written.
pub(super) const MARK_EACH: u64 = 512;
/// Where reading on is cheaper than looking for a nearer mark, in messages.
const NEAR: u64 = 2 * MARK_EACH;

/// A place in one partition that moves on.
pub(super) struct Past<S: Streams> {
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
        let (mut low, mut high) = (beginning(&**server), end);
        while sequence > 1 && high.saturating_sub(low.next) > NEAR {
            let middle = low.next + (high - low.next) / 2;
            match mark(&**server, stream, middle, high).await? {
                // What counts before a partition is there is not in it.
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
        Ok(Self { feed, state: low, partition })
    }

    /// The records of the next append that counts, as soon as there is one.
    pub(super) async fn next(&mut self) -> Result<Vec<Record>> {
        loop {
            let (at, message) = super::next(&mut self.feed).await?;
            if let Some(records) = self.counts(at, message) {
                return Ok(records);
            }
        }
    }

    /// The same if it has already arrived.
    pub(super) async fn next_ready(&mut self) -> Result<Option<Vec<Record>>> {
        while let Some((at, message)) = super::next_ready(&mut self.feed).await? {
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

/// The state of the first mark from an offset on, before the offset `end`, where there is a message.
pub(super) async fn mark<S: Streams>(server: &S, stream: &str, from: u64, end: u64) -> Result<Option<State>> {
    let mut feed = server.feed(stream, From::Offset(from)).await?;
    loop {
        let (at, message) = super::next(&mut feed).await?;
        if at >= end {
            return Ok(None);
        }
        if let Says::Mark(mark) = &message.says {
            return Ok(Some(State::at_mark(beginning(server), &message, mark)));
        }
    }
}

/// The state at a mark near the end of a stream, of which `last` is the offset of a message.
pub(super) async fn near_the_end<S: Streams>(server: &S, stream: &str, last: u64) -> Result<State> {
    let (mut back, mut end) = (NEAR, last);
    while last > back {
        let from = last - back;
        if let Some(state) = mark(server, stream, from, end).await? {
            return Ok(state);
        }
        (back, end) = (back * 2, from);
    }
    Ok(beginning(server))
}
