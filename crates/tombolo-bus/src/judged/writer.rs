//! Appends to one topic, and the messages that change it: each is sent, read back, and judged by the rule.
//!
//! Takes an append; writes one message; it is committed when the message was read back in its place in the stream, where it
//! counts. If we crash here, it is stored whole or not at all, and the repeat finds out. If it repeats, it is void; what is
//! there is compared by id, and acknowledged only if every id matches.
//!
//! Invariant: nothing is acknowledged that was not read back, and nothing is refused on what may be out of date: who is void
//! has just read everything before it, and who was not sent looks first.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::MutexGuard;
use tombolo_event::{Generations, Incarnation, ServiceName};

use super::Streams;
use super::follower::Follower;
use super::message::{Records, Says};
use super::rule::{Control, Decision, End, State, check_incarnation, decide, older, same_id, unknown};
use crate::{Append, Appended, Error, Kind, Result, Tail, Topic, TopicSpec};

/// How often something is tried again after somebody else was faster.
const TRIES_MAX: u32 = 64;

enum Step {
    Stored(u64),
    /// Everything before a moment after the call was read, and it has to be decided anew.
    Read,
}

pub(super) async fn append<S: Streams>(follower: &Arc<Follower<S>>, append: &Append) -> Result<Appended> {
    let mut is_fresh = false;
    for _ in 0..TRIES_MAX {
        if let Step::Stored(last) = step(follower, append, is_fresh).await? {
            follower.mark_if_due().await;
            return Ok(Appended { last });
        }
        is_fresh = true;
    }
    Err(contended(&follower.topic))
}

/// Decides and sends, in the order in which appends came.
async fn step<S: Streams>(follower: &Follower<S>, append: &Append, is_fresh: bool) -> Result<Step> {
    let mut ahead = follower.ahead.lock().await;
    let on_its_way = ahead.get(&append.partition).copied();
    let decided = follower.with(|state| decide(state, on_its_way, append));
    let (after, first) = match decided {
        Ok((Decision::Send, after)) => (after, 0),
        Ok((Decision::Compare(taken), end)) => match compare(follower, append, taken).await {
            Ok(()) if taken < append.records.len() => (end, taken),
            Ok(()) if is_fresh => return Ok(Step::Stored(end.sequence)),
            Err(error) if is_fresh || error.is_transient() => return Err(error),
            // The ids are what they are for good; the epoch may be an older one by now.
            Ok(()) | Err(_) => return read_on(follower, ahead, append.partition).await,
        },
        Err(refused) if refused.for_good || is_fresh => return Err(refused.error),
        Ok((Decision::Wait, _)) | Err(_) => return read_on(follower, ahead, append.partition).await,
    };
    if let Err(sealed) = follower.with(|state| state.check_open(append)) {
        return if is_fresh { Err(sealed) } else { read_on(follower, ahead, append.partition).await };
    }
    let (message, end) = message(follower, append, after, first);
    let sent = follower.send(&message).await?;
    ahead.insert(append.partition, end);
    drop(ahead);
    landed(follower, append.partition, message.tag, sent, end).await
}

/// Reads everything that was on its way.
async fn read_on<S: Streams>(
    follower: &Follower<S>,
    ahead: MutexGuard<'_, HashMap<u32, End>>,
    partition: u32,
) -> Result<Step> {
    let was_on_its_way = ahead.get(&partition).copied();
    drop(ahead);
    follower.look().await?;
    // It has landed, whether or not its sender waited to see that.
    let mut ahead = follower.ahead.lock().await;
    if ahead.get(&partition).copied() == was_on_its_way {
        ahead.remove(&partition);
    }
    Ok(Step::Read)
}

/// The message for the records from `first` on, and the end of their partition when it counts.
fn message<S: Streams>(
    follower: &Follower<S>,
    append: &Append,
    after: End,
    first: usize,
) -> (super::message::Message, End) {
    let records = append.records[first..].to_vec();
    let end = records.last().map_or(after, End::of);
    let says = Says::Records(Records { partition: append.partition, after: after.id, records });
    (follower.message(append.incarnation, append.epoch, says), end)
}

async fn landed<S: Streams>(
    follower: &Follower<S>,
    partition: u32,
    tag: super::message::Tag,
    sent: super::follower::Sent<S>,
    end: End,
) -> Result<Step> {
    let fate = follower.fate(tag, sent).await;
    if matches!(&fate, Ok(fate) if fate.counts) {
        return Ok(Step::Stored(end.sequence));
    }
    // What was sent behind it is void as well, or was not sent at all.
    follower.ahead.lock().await.remove(&partition);
    fate.map(|_| Step::Read)
}

/// Compares the ids of the first `taken` records with those in the stream.
async fn compare<S: Streams>(follower: &Follower<S>, append: &Append, taken: usize) -> Result<()> {
    let mut repeated = append.records[..taken].iter().peekable();
    let mut past = None;
    let mut found = Vec::new().into_iter();
    while let Some(record) = repeated.peek() {
        if let Some(id) = follower.near_id(append.partition, record.sequence) {
            same_id(append, record, Some(id))?;
            repeated.next();
            continue;
        }
        let past = match &mut past {
            Some(past) => past,
            None => past.insert(follower.past(append.partition, record.sequence).await?),
        };
        let next: crate::Record = match found.next() {
            Some(next) => next,
            None => {
                found = past.next().await?.into_iter();
                continue;
            }
        };
        if next.sequence == record.sequence {
            same_id(append, record, Some(next.id))?;
            repeated.next();
        }
    }
    Ok(())
}

/// What is known of a topic that is there and is the one that is meant.
fn known<'a>(topic: &ServiceName, state: &'a State, incarnation: Incarnation) -> Result<&'a Control> {
    let control = state.control.as_ref().ok_or_else(|| unknown(topic))?;
    check_incarnation(topic, control, incarnation)?;
    Ok(control)
}

pub(super) async fn raise<S: Streams>(
    follower: &Follower<S>,
    incarnation: Incarnation,
    epoch: u64,
) -> Result<Vec<Tail>> {
    let name = &follower.topic;
    let state = follower.look().await?;
    let mut found = known(name, &state, incarnation)?.epoch;
    if found == epoch {
        return Ok(state.tails());
    }
    if found < epoch {
        let message = follower.message(incarnation, epoch, Says::Raise);
        let state = follower.tell(message).await?.state;
        found = known(name, &state, incarnation)?.epoch;
        if found == epoch {
            return Ok(state.tails());
        }
    }
    Err(older(name, epoch, found))
}

pub(super) async fn divide<S: Streams>(
    follower: &Follower<S>,
    incarnation: Incarnation,
    epoch: u64,
    generations: &Generations,
) -> Result<Topic> {
    let name = &follower.topic;
    let state = follower.look().await?;
    let present = |state: &State| {
        let control = known(name, state, incarnation)?;
        match control.epoch == epoch {
            true => state.topic(name).ok_or_else(|| unknown(name)),
            false => Err(older(name, epoch, control.epoch)),
        }
    };
    let topic = present(&state)?;
    if !topic.is_to_be_divided(generations)? {
        return Ok(topic);
    }
    let message = follower.message(incarnation, epoch, Says::Divide(generations.clone()));
    let topic = present(&follower.tell(message).await?.state)?;
    match topic.is_to_be_divided(generations)? {
        false => Ok(topic),
        true => Err(contended(name)),
    }
}

/// The topic, which begins now unless it has begun; the first birth in its stream counts.
pub(super) async fn begin<S: Streams>(follower: &Follower<S>, spec: &TopicSpec) -> Result<State> {
    let state = follower.look().await?;
    if state.control.is_some() {
        return Ok(state);
    }
    let incarnation = spec.incarnation.unwrap_or_default();
    let message = follower.message(incarnation, 0, Says::Birth(spec.generations.clone()));
    Ok(follower.tell(message).await?.state)
}

pub(super) fn contended(topic: &ServiceName) -> Error {
    let message = format!("others changed topic {topic} {TRIES_MAX} times in a row while this was tried");
    Error::new(Kind::Unavailable, message)
}
