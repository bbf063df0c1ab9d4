//! One topic's stream: made, found, checked, and read record by record.
//!
//! Everything here asks the stream's leader (`STREAM.MSG.GET`), never a replica that may be behind. But where a stream has
//! replicas, who leads may have begun to a moment ago, and not have applied all that was acknowledged by the one before; or
//! somebody else leads by now, and it has not heard. [`Log::settle`] is the barrier against both.
//!
//! Invariant: a stream that is not marked as ours is never touched, and one whose settings would lose events is refused.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{Config, Info, LastRawMessageErrorKind, Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use tombolo_event::{Backoff, EventId, ServiceName};

use super::link::{Link, unavailable};
use super::made::{check, make};
use super::message::{self, Control, Stored};
use crate::{Error, Kind, Result, Tail, Topic, TopicSpec};

/// How often something is tried again after somebody else was faster.
pub(super) const TRIES_MAX: u32 = 64;
/// How many single reads are on their way at once.
const READS_AT_ONCE: usize = 32;
/// How often a topic is ensured again whose stream nobody leads yet; a few seconds in all.
const HALF_MADE_TRIES_MAX: u32 = 8;
const AGAIN: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// A topic's stream.
pub(super) struct Log {
    pub(super) link: Arc<Link>,
    pub(super) topic: ServiceName,
    pub(super) stream: Stream<()>,
    pub(super) sending: Sending,
}

/// How an append is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// All messages at once, each of which names the one before it: to one server.
    Chained,
    /// One after the other: to servers that must agree.
    OneByOne,
    /// The same, many at once as one batch that is stored whole: from NATS 2.12 on.
    Batched,
}

impl Sending {
    fn to(config: &Config) -> Self {
        match config {
            Config { num_replicas: 0 | 1, .. } => Self::Chained,
            Config { allow_atomic_publish: true, .. } => Self::Batched,
            _ => Self::OneByOne,
        }
    }
}

/// The end of a partition, and where in the stream it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct End {
    pub(super) sequence: u64,
    pub(super) id: Option<EventId>,
    pub(super) at: u64,
}

/// All that a writer has to know of a stream: true as of its message `last`.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) control: Control,
    pub(super) control_at: u64,
    pub(super) ends: Vec<End>,
    pub(super) last: u64,
    /// The message id of `last`.
    pub(super) last_id: Option<String>,
    pub(super) sending: Sending,
}

impl Known {
    pub(super) fn tails(&self) -> Vec<Tail> {
        let tail = |(partition, end): (u32, &End)| Tail { partition, sequence: end.sequence, id: end.id };
        (0..).zip(&self.ends).map(tail).collect()
    }

    fn apply(&mut self, log: &Log, message: StreamMessage) -> Result<()> {
        self.last = message.sequence;
        self.last_id = message_id(&message);
        if message.subject.as_str() == log.link.names.control(&log.topic) {
            self.control = message::control(&message)?;
            self.control_at = message.sequence;
            self.ends.resize(self.control.generations.partitions() as usize, End::default());
            return Ok(());
        }
        let token = message.subject.rsplit('.').next().and_then(|token| token.parse::<usize>().ok());
        let stored = message::stored(message)?;
        match token.and_then(|partition| self.ends.get_mut(partition)) {
            Some(end) => *end = end_at(&stored),
            None => return Err(foreign(&log.topic, stored.at)),
        }
        Ok(())
    }
}

fn end_at(stored: &Stored) -> End {
    End { sequence: stored.record.sequence, id: Some(stored.record.id), at: stored.at }
}

fn message_id(message: &StreamMessage) -> Option<String> {
    message.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str().to_owned())
}

/// Whether a message was refused because its condition did not hold. A server says so in one of three ways.
pub(super) fn did_not_hold(error: &PublishError) -> bool {
    match error.kind() {
        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => true,
        _ => refused_by(error) == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT),
    }
}

/// The code by which the server refused a message, if it did.
pub(super) fn refused_by(error: &PublishError) -> Option<ErrorCode> {
    let source = std::error::Error::source(error);
    let refused = source.and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    refused.map(async_nats::jetstream::Error::error_code)
}

fn foreign(topic: &ServiceName, at: u64) -> Error {
    let message = format!(
        "message {at} of topic {topic}'s stream is in no partition; expected only what Tombolo wrote: find out who publishes there"
    );
    Error::new(Kind::Corrupt, message)
}

fn unknown(topic: &ServiceName) -> Error {
    Error::new(Kind::UnknownTopic, format!("there is no topic {topic} on this NATS server"))
}

impl Log {
    /// Finds a topic's stream and checks its settings.
    pub(super) async fn open(link: &Arc<Link>, topic: &ServiceName) -> Result<Self> {
        Self::find(link, topic).await?.ok_or_else(|| unknown(topic))
    }

    async fn find(link: &Arc<Link>, topic: &ServiceName) -> Result<Option<Self>> {
        link.ready().await?;
        let name = link.names.topic_stream(topic);
        match link.jetstream.get_stream(&name).await {
            Ok(found) => {
                check(link, topic, &found.cached_info().config)?;
                let sending = Sending::to(&found.cached_info().config);
                let stream = without_info(link, &name).await?;
                Ok(Some(Self { link: Arc::clone(link), topic: topic.clone(), stream, sending }))
            }
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Ok(None)
                }
                _ => Err(unavailable("the topic's stream cannot be found", error)),
            },
        }
    }

    /// Makes the topic unless it is there. Whoever writes the first control record gives the incarnation.
    pub(super) async fn ensure(link: &Arc<Link>, spec: &TopicSpec) -> Result<Topic> {
        for attempt in 0..TRIES_MAX {
            match Self::ensure_once(link, spec).await {
                Ok(Some(topic)) => return topic.matching(spec),
                Ok(None) => {}
                // On several servers a stream is there before they have agreed on who leads it.
                Err(error) if link.replicas > 1 && error.is_transient() && attempt < HALF_MADE_TRIES_MAX => {
                    tokio::time::sleep(AGAIN.jittered(attempt)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(contended(&spec.name))
    }

    /// The topic; none if somebody has to look again.
    async fn ensure_once(link: &Arc<Link>, spec: &TopicSpec) -> Result<Option<Topic>> {
        let Some(log) = Self::find(link, &spec.name).await? else {
            return make(link, &spec.name).await.map(|()| None);
        };
        if let Some((control, _)) = log.last_control().await? {
            return Ok(Some(control.topic(&spec.name)));
        }
        let generations = spec.generations.clone();
        let control = Control { incarnation: spec.incarnation.unwrap_or_default(), generations, epoch: 0 };
        log.write_control(&control, |message| message.expected_last_sequence(0)).await?;
        Ok(None)
    }

    /// Writes a control record on a condition; `false` if the condition did not hold.
    pub(super) async fn write_control(
        &self,
        control: &Control,
        on: impl FnOnce(PublishMessage) -> PublishMessage,
    ) -> Result<bool> {
        let payload = serde_json::to_vec(control).map_err(|error| {
            Error::new(Kind::Corrupt, "a control record cannot be written").because(error)
        })?;
        let message = PublishMessage::build().payload(payload.into()).message_id(self.link.message_id());
        let subject = self.link.names.control(&self.topic);
        let ack = self.link.jetstream.send_publish(subject, on(message)).await;
        let ack = match ack {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match ack {
            Ok(_) => Ok(true),
            Err(error) if did_not_hold(&error) => Ok(false),
            Err(error) => Err(super::writer::refusal(&self.topic, error)),
        }
    }

    pub(super) async fn control(&self) -> Result<Control> {
        Ok(self.last_control().await?.ok_or_else(|| unknown(&self.topic))?.0)
    }

    async fn last_control(&self) -> Result<Option<(Control, StreamMessage)>> {
        let Some(message) = self.last_on(self.link.names.control(&self.topic)).await? else {
            return Ok(None);
        };
        Ok(Some((message::control(&message)?, message)))
    }

    /// Whether it is kept on several servers.
    pub(super) fn has_replicas(&self) -> bool {
        self.sending != Sending::Chained
    }

    /// Returns when whoever leads the stream has applied all that was acknowledged before the call: the removal of what is not there
    /// goes through the order of the majority, and is answered in its place there. Nothing is stored. (A message that cannot hold
    /// is not enough: from NATS 2.11 on the leader refuses it by itself, also one that leads nobody any more.)
    pub(super) async fn settle(&self) -> Result<()> {
        if !self.has_replicas() {
            return Ok(());
        }
        let removed = self.stream.purge().filter(self.link.names.barrier(&self.topic)).await;
        removed.map(drop).map_err(|error| unavailable("the topic's stream does not settle", error))
    }

    /// The last record of a partition.
    pub(super) async fn end_of(&self, partition: u32) -> Result<End> {
        let found = self.last_on(self.link.names.partition(&self.topic, partition)).await?;
        found.map_or(Ok(End::default()), |message| Ok(end_at(&message::stored(message)?)))
    }

    async fn last_on(&self, subject: String) -> Result<Option<StreamMessage>> {
        let found = self.stream.raw_message_builder().last_by_subject(subject).send().await;
        self.found(found.map_err(|error| error.kind()))
    }

    /// The first record of a partition at or after a place in the stream.
    pub(super) async fn next_of(&self, partition: u32, from: u64) -> Result<Option<Stored>> {
        let subject = self.link.names.partition(&self.topic, partition);
        let found = self.stream.get_first_raw_message_by_subject(subject, from).await;
        self.found(found.map_err(|error| error.kind()))?.map(message::stored).transpose()
    }

    async fn at(&self, at: u64) -> Result<Option<StreamMessage>> {
        let found = self.stream.get_raw_message(at).await;
        self.found(found.map_err(|error| error.kind()))
    }

    fn found(
        &self,
        found: std::result::Result<StreamMessage, LastRawMessageErrorKind>,
    ) -> Result<Option<StreamMessage>> {
        match found {
            Ok(message) => Ok(Some(message)),
            Err(LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(LastRawMessageErrorKind::JetStream(why))
                if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Err(unknown(&self.topic))
            }
            Err(kind) => Err(unavailable("the topic's stream cannot be read", kind)),
        }
    }

    /// The last sequence of the stream, and which server says so.
    async fn last(&self) -> Result<(u64, Option<String>)> {
        self.link.ready().await?;
        let info: Info = self
            .stream
            .get_info()
            .await
            .map_err(|error| unavailable("the stream's end is unknown", error))?;
        check(&self.link, &self.topic, &info.config)?;
        Ok((info.state.last_sequence, info.cluster.and_then(|cluster| cluster.leader)))
    }

    /// Reads the ends of all partitions without reading the stream, then what came meanwhile, one by one, so that
    /// the whole is true of one moment.
    pub(super) async fn known(&self) -> Result<Known> {
        let (last, leader) = self.last().await?;
        self.settle().await?;
        let (control, message) = self.last_control().await?.ok_or_else(|| unknown(&self.topic))?;
        let ends = stream::iter(0..control.generations.partitions()).map(|partition| self.end_of(partition));
        let ends = ends.buffered(READS_AT_ONCE).try_collect().await?;
        let (control_at, sending) = (message.sequence, self.sending);
        let mut known = Known { control, control_at, ends, last, last_id: None, sending };
        if let Some(message) = self.at(last).await? {
            known.last_id = message_id(&message);
        }
        if self.catch_up(&mut known).await? != leader {
            let message = format!("topic {} is led by another NATS server than a moment ago", self.topic);
            return Err(Error::new(Kind::Unavailable, message));
        }
        Ok(known)
    }

    /// Reads what came meanwhile; which server has said so.
    async fn catch_up(&self, known: &mut Known) -> Result<Option<String>> {
        let (last, leader) = self.last().await?;
        let mut new = stream::iter(known.last + 1..=last).map(|at| self.at(at)).buffered(READS_AT_ONCE);
        while let Some(message) = new.try_next().await? {
            if let Some(message) = message {
                known.apply(self, message)?;
            }
        }
        known.last = last;
        Ok(leader)
    }

    /// The ids of `count` records of a partition from a place in the stream on, with their sequences. Without a consumer,
    /// which might be put on a replica that is away.
    pub(super) async fn ids_from(
        &self,
        partition: u32,
        from: u64,
        count: usize,
    ) -> Result<Vec<(u64, EventId)>> {
        let last = self.last().await?.0;
        let subject = self.link.names.partition(&self.topic, partition);
        let mut found = Vec::with_capacity(count);
        let mut messages = stream::iter(from..=last).map(|at| self.at(at)).buffered(READS_AT_ONCE);
        while found.len() < count
            && let Some(message) = messages.try_next().await?
        {
            if let Some(message) = message.filter(|message| message.subject.as_str() == subject) {
                let record = message::stored(message)?.record;
                found.push((record.sequence, record.id));
            }
        }
        Ok(found)
    }

    /// Where in the stream a sequence of a partition is, by halving: there is no index, and none is needed to start
    /// reading once.
    pub(super) async fn find_sequence(
        &self,
        partition: u32,
        sequence: u64,
        end: &End,
    ) -> Result<Option<Stored>> {
        // Each record of the partition takes a place in the stream, which bounds the place from both sides.
        let (mut low, mut high) = (sequence, end.at.saturating_sub(end.sequence.saturating_sub(sequence)));
        let mut probe = high;
        while low <= high {
            match self.next_of(partition, probe).await? {
                Some(stored) if stored.record.sequence == sequence => return Ok(Some(stored)),
                Some(stored) if stored.record.sequence < sequence => low = stored.at + 1,
                _ => high = probe - 1,
            }
            probe = low + high.saturating_sub(low) / 2;
        }
        Ok(None)
    }
}

/// All topics of the link's namespace.
pub(super) async fn topics(link: &Arc<Link>) -> Result<Vec<Topic>> {
    link.ready().await?;
    let streams: Vec<Info> = link
        .jetstream
        .streams()
        .try_collect()
        .await
        .map_err(|error| unavailable("the streams cannot be listed", error))?;
    let mut topics = Vec::new();
    for name in streams.iter().filter_map(|info| link.names.topic_of_stream(&info.config.name)) {
        let log = match Log::find(link, &name).await {
            Ok(Some(log)) => log,
            Ok(None) => continue,
            Err(error) if error.kind() == Kind::TopicDiffers => {
                tracing::warn!(%error, "a stream is left out of the list of topics");
                continue;
            }
            Err(error) => return Err(error),
        };
        log.settle().await?;
        if let Some((control, _)) = log.last_control().await? {
            topics.push(control.topic(&name));
        }
    }
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(topics)
}

async fn without_info(link: &Link, name: &str) -> Result<Stream<()>> {
    let stream = link.jetstream.get_stream_no_info(name).await;
    stream.map_err(|error| unavailable("the topic's stream cannot be found", error))
}

pub(super) fn contended(topic: &ServiceName) -> Error {
    let message = format!("others changed topic {topic} {TRIES_MAX} times in a row while this was tried");
    Error::new(Kind::Unavailable, message)
}
