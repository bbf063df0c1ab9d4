//! The topics of one bus: found, made, listed, each followed once in this process.
//!
//! Invariant: a topic has at most one living follower here, and who asks for it waits until it is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tombolo_event::envelope::EVENT_BYTES_MAX;
use tombolo_event::{Backoff, Generations, Incarnation, ServiceName};

use super::directory::Directory;
use super::follower::Follower;
use super::{Streams, Used, reader, rule, writer};
use crate::{
    Append, Appended, Error, Kind, Read, RecordStream, Registration, Result, Tail, Topic, TopicSpec,
};

/// How many topics are opened at once to list them.
const TOPICS_AT_ONCE: usize = 8;
/// How often a topic is ensured again whose stream somebody else is making at this moment; a few seconds in all.
const HALF_MADE_TRIES_MAX: u32 = 8;
const AGAIN: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(4));

/// Where a topic's follower is, once there is one; held while it is begun.
type Place<S> = Arc<tokio::sync::Mutex<Option<Arc<Follower<S>>>>>;

/// The topics of one bus.
pub(crate) struct Topics<S: Streams> {
    pub(crate) used: Arc<Used<S>>,
    directory: Directory,
    /// One for each topic that this process uses; topics are as many as services.
    followers: Mutex<HashMap<ServiceName, Place<S>>>,
}

fn living<S: Streams>(place: &Option<Arc<Follower<S>>>) -> Option<Arc<Follower<S>>> {
    place.as_ref().filter(|follower| follower.lives()).map(Arc::clone)
}

impl<S: Streams> Topics<S> {
    pub(crate) fn of(server: Arc<S>) -> Self {
        Self { used: Arc::new(Used(server)), directory: Directory::default(), followers: Mutex::default() }
    }

    pub(crate) fn server(&self) -> &Arc<S> {
        &self.used.0
    }

    /// The follower of a topic, if there is such a topic.
    async fn follower(&self, topic: &ServiceName) -> Result<Arc<Follower<S>>> {
        let place = self.place(topic);
        let mut place = place.lock().await;
        if let Some(follower) = living(&place) {
            return Ok(follower);
        }
        // Asked first, because asking for a stream that is not there is an error that a client writes into the log.
        if !self.directory.lists(self.server(), topic).await? {
            return Err(rule::unknown(topic));
        }
        Ok(Arc::clone(place.insert(Follower::begin(self.server(), topic).await?)))
    }

    /// The follower of a topic that is being made.
    async fn follower_of_new(&self, topic: &ServiceName) -> Result<Arc<Follower<S>>> {
        let place = self.place(topic);
        let mut place = place.lock().await;
        if let Some(follower) = living(&place) {
            return Ok(follower);
        }
        self.server().ensure(&self.server().topic(topic)).await?;
        Ok(Arc::clone(place.insert(Follower::begin(self.server(), topic).await?)))
    }

    fn place(&self, topic: &ServiceName) -> Place<S> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(followers.entry(topic.clone()).or_default())
    }

    async fn ensure_once(&self, spec: &TopicSpec) -> Result<Topic> {
        let follower = self.follower_of_new(&spec.name).await?;
        let state = writer::begin(&follower, spec).await?;
        self.directory.add_topic(self.server(), &spec.name).await?;
        state.topic(&spec.name).ok_or_else(|| rule::unknown(&spec.name))?.matching(spec)
    }

    pub(crate) async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        let mut attempt = 0;
        loop {
            match self.ensure_once(spec).await {
                // The connection went with it, and comes back.
                Err(error) if S::is_half_made(&error) || (attempt > 0 && error.is_transient()) => {
                    if attempt == HALF_MADE_TRIES_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(AGAIN.jittered(attempt)).await;
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    }

    pub(crate) async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let state = self.follower(name).await?.look().await?;
        state.topic(name).ok_or_else(|| rule::unknown(name))
    }

    pub(crate) async fn topics(&self) -> Result<Vec<Topic>> {
        let names = self.directory.topics(self.server()).await?;
        let found = futures_util::stream::iter(names).map(|name| async move { self.topic(&name).await });
        let mut found = found.buffered(TOPICS_AT_ONCE);
        let mut topics = Vec::new();
        while let Some(topic) = found.next().await {
            match topic {
                Ok(topic) => topics.push(topic),
                Err(error) if matches!(error.kind(), Kind::UnknownTopic | Kind::TopicDiffers) => {
                    tracing::warn!("a topic is left out of the list: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(topics)
    }

    pub(crate) async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        writer::raise(&*self.follower(topic).await?, incarnation, epoch).await
    }

    pub(crate) async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        writer::divide(&*self.follower(topic).await?, incarnation, epoch, generations).await
    }

    pub(crate) async fn append(&self, append: Append) -> Result<Appended> {
        crate::port::check_append(&append)?;
        if let Some(record) = append.records.iter().find(|record| record.bytes.len() > EVENT_BYTES_MAX) {
            let (id, found) = (record.id, record.bytes.len());
            let message = format!("event {id} is {found} bytes; expected at most {EVENT_BYTES_MAX}");
            return Err(Error::new(Kind::TooLarge, message));
        }
        writer::append(&self.follower(&append.topic).await?, &append).await
    }

    pub(crate) async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        let state = self.follower(topic).await?.look().await?;
        if state.control.is_none() {
            return Err(rule::unknown(topic));
        }
        Ok(state.tails())
    }

    pub(crate) async fn read(&self, read: Read) -> Result<RecordStream> {
        let follower = self.follower(&read.topic).await?;
        reader::open(&self.used, follower, read).await
    }

    pub(crate) async fn register(&self, registration: &Registration) -> Result<()> {
        self.directory.register(self.server(), registration).await
    }

    pub(crate) async fn registrations(&self) -> Result<Vec<Registration>> {
        self.directory.registrations(self.server()).await
    }
}
