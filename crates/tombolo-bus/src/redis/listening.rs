//! The one listening connection: channels of followed topics, a channel of its own for signals, and the slow poll that makes up for
//! what was lost on the way.
//!
//! Who hears a subject stands in a hash of that subject, with a time until which that is true, said again as long as it is.
//!
//! Invariant: who asked to be heard is answered after the channels and hashes are there, or is told that they cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Msg, Value, cmd};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use uuid::Uuid;

use super::link::{ANSWER_MAX, CONNECT_MAX, Link, within};
use super::values::{list, number, odd};
use crate::adapter::following::Following;
use crate::adapter::gate::RECONNECT;
use crate::adapter::hearing::{self, Hearing, Name};
use crate::adapter::refusal::closed;
use crate::{Error, Kind, Result};

/// How long a lost message is missed at most, and when a dead connection is found out.
const POLL_EVERY: Duration = Duration::from_secs(3);
/// How often it is said again who hears what, in polls, and how long that is true.
const SAID_EVERY: u32 = 4;
const SAID_SECONDS: u64 = 40;
/// How long a hash is kept that nobody says anything in.
const KEPT_SECONDS: u64 = 120;
/// How many wait to be heard at once.
const ASKING_MAX: usize = 64;

type Asked = oneshot::Sender<Result<()>>;

/// The way to the listening connection.
pub(super) struct Listening {
    asks: mpsc::Sender<Asked>,
}

impl Listening {
    /// Starts the connection's task, which ends when the link is closed.
    pub(super) fn start(
        link: &Arc<Link>,
        hearing: &Arc<Hearing>,
        following: &Arc<Following<String>>,
    ) -> Self {
        let (asks, asked) = mpsc::channel(ASKING_MAX);
        let (link, hearing, following) = (Arc::clone(link), Arc::clone(hearing), Arc::clone(following));
        let task = Task { link: Arc::clone(&link), hearing, following, asked };
        link.tasks.spawn(task.work());
        Self { asks }
    }

    /// Returns when everything that is followed and heard by now is known to the server.
    pub(super) async fn settle(&self) -> Result<()> {
        let (told, answer) = oneshot::channel();
        self.asks.send(told).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

struct Task {
    link: Arc<Link>,
    hearing: Arc<Hearing>,
    following: Arc<Following<String>>,
    asked: mpsc::Receiver<Asked>,
}

impl Task {
    async fn work(mut self) {
        let mut failures = 0;
        while !self.link.closed.is_cancelled() {
            let closed = self.link.closed.clone();
            let session = tokio::select! {
                session = Session::begin(&self.link) => session,
                () = closed.cancelled() => break,
            };
            match session {
                Ok((session, messages)) => {
                    failures = 0;
                    self.attend(session, messages).await;
                }
                Err(error) => {
                    failures += 1;
                    self.wait(&error, RECONNECT.jittered(failures)).await;
                }
            }
        }
        self.hearing.close();
    }

    /// Waits before the next try; whoever asks meanwhile is told why.
    async fn wait(&mut self, why: &Error, delay: Duration) {
        let delay = sleep(delay);
        tokio::pin!(delay);
        loop {
            tokio::select! {
                () = &mut delay => return,
                () = self.link.closed.cancelled() => return,
                Some(told) = self.asked.recv() => {
                    told.send(Err(Error::new(why.kind(), why.to_string()))).ok();
                }
            }
        }
    }

    /// Takes what the server tells, until the connection is lost or the link is closed.
    async fn attend(&mut self, mut session: Session, mut messages: PubSubStream) {
        let mut poll = interval_at(Instant::now(), POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let closed = self.link.closed.clone();
        loop {
            let went = tokio::select! {
                () = closed.cancelled() => break,
                message = messages.next() => self.take(&session, message),
                Some(told) = self.asked.recv() => self.answer(&mut session, told).await,
                () = self.hearing.changed.notified() => self.settle(&mut session).await,
                _ = poll.tick() => self.poll(&mut session).await,
            };
            if let Err(error) = went {
                tracing::debug!(%error, "the listening connection to Redis was lost; making it again");
                return;
            }
        }
        // What is not taken back runs out by itself.
        session.settle_places(&self.link, BTreeMap::new()).await.ok();
    }

    fn take(&self, session: &Session, message: Option<Msg>) -> Result<()> {
        let message = message.ok_or_else(|| Error::new(Kind::Unavailable, "the connection ended"))?;
        let content = bytes::Bytes::copy_from_slice(message.get_payload_bytes());
        if message.get_channel_name() == session.channel {
            if let Some((numbers, signal)) = signal(&content) {
                self.hearing.deliver(&numbers, &signal);
            }
        } else if let Some((topic, partition, end)) = moved(&content) {
            self.following.moved(topic, partition, end);
        }
        Ok(())
    }

    async fn answer(&mut self, session: &mut Session, told: Asked) -> Result<()> {
        let settled = self.settle(session).await;
        let answer = match &settled {
            Ok(()) => Ok(()),
            Err(error) => Err(Error::new(error.kind(), error.to_string())),
        };
        told.send(answer).ok();
        match settled {
            Err(error) if !error.is_transient() => Ok(()),
            settled => settled,
        }
    }

    /// Makes channels and hashes what they have to be.
    async fn settle(&self, session: &mut Session) -> Result<()> {
        let channels = self.following.topics().into_iter().map(|topic| self.link.keys.appended(&topic));
        session.settle_channels(channels.collect()).await?;
        session.settle_places(&self.link, self.hearing.places()).await
    }

    /// Looks for what messages may not have told, and whether the connection is alive.
    async fn poll(&self, session: &mut Session) -> Result<()> {
        self.settle(session).await?;
        session.polls = session.polls.wrapping_add(1);
        if session.polls.is_multiple_of(SAID_EVERY) {
            let places: Vec<(u32, Name)> =
                session.places.iter().map(|(number, name)| (*number, name.clone())).collect();
            session.say(&self.link, &places).await?;
        }
        within(ANSWER_MAX, session.sink.ping::<Value>()).await?;
        let topics: Vec<String> = self.following.topics().into_iter().collect();
        if topics.is_empty() {
            return Ok(());
        }
        for (topic, partition, end) in self.link.ends(&topics).await? {
            self.following.moved(topic, partition, end);
        }
        Ok(())
    }
}

/// One life of the connection.
struct Session {
    sink: PubSubSink,
    handle: String,
    channel: String,
    channels: BTreeSet<String>,
    places: BTreeMap<u32, Name>,
    polls: u32,
}

impl Session {
    async fn begin(link: &Link) -> Result<(Self, PubSubStream)> {
        // Says whether the server is there and fit, and is quick to say no.
        link.line().await?;
        let (mut sink, messages) = within(CONNECT_MAX, link.client.get_async_pubsub()).await?.split();
        let handle = Uuid::new_v4().simple().to_string();
        let channel = format!("{}{handle}", link.keys.handle());
        within(ANSWER_MAX, sink.subscribe(&channel)).await?;
        let (channels, places) = (BTreeSet::new(), BTreeMap::new());
        Ok((Self { sink, handle, channel, channels, places, polls: 0 }, messages))
    }

    async fn settle_channels(&mut self, wanted: BTreeSet<String>) -> Result<()> {
        for gone in self.channels.difference(&wanted).cloned().collect::<Vec<_>>() {
            within(ANSWER_MAX, self.sink.unsubscribe(&gone)).await?;
            self.channels.remove(&gone);
        }
        for new in wanted.difference(&self.channels).cloned().collect::<Vec<_>>() {
            within(ANSWER_MAX, self.sink.subscribe(&new)).await?;
            self.channels.insert(new);
        }
        Ok(())
    }

    async fn settle_places(&mut self, link: &Link, wanted: BTreeMap<u32, Name>) -> Result<()> {
        if wanted == self.places {
            return Ok(());
        }
        let mut leaves = redis::pipe();
        let gone: Vec<_> = self.places.iter().filter(|(number, _)| !wanted.contains_key(number)).collect();
        for (number, name) in &gone {
            leaves.cmd("HDEL").arg(link.keys.heard(&name.0)).arg(self.field(**number)).ignore();
        }
        if !gone.is_empty() {
            link.line().await?.ask_all(&leaves).await?;
        }
        let new: Vec<(u32, Name)> = wanted
            .iter()
            .filter(|(number, _)| !self.places.contains_key(number))
            .map(|(number, name)| (*number, name.clone()))
            .collect();
        self.say(link, &new).await?;
        self.places = wanted;
        Ok(())
    }

    /// Says who hears what, and until when, by the server's clock.
    async fn say(&self, link: &Link, places: &[(u32, Name)]) -> Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let mut line = link.line().await?;
        let now = number(list(line.ask(&cmd("TIME")).await?).first()).ok_or_else(|| odd("the time"))?;
        let mut words = redis::pipe();
        for (number, (subject, group)) in places {
            let word = format!("{} {}", now + SAID_SECONDS, group.as_deref().unwrap_or_default());
            let heard = link.keys.heard(subject);
            words.cmd("HSET").arg(&heard).arg(self.field(*number)).arg(word).ignore();
            words.cmd("EXPIRE").arg(&heard).arg(KEPT_SECONDS).ignore();
        }
        line.ask_all(&words).await.map(drop)
    }

    fn field(&self, number: u32) -> String {
        format!("{} {number}", self.handle)
    }
}

/// The places and the signal of a message: numbers with commas, a space, the signal.
fn signal(content: &bytes::Bytes) -> Option<(Vec<u32>, crate::Signal)> {
    let end = content.iter().position(|byte| *byte == b' ')?;
    let numbers = std::str::from_utf8(&content[..end]).ok()?;
    let numbers = numbers.split(',').filter_map(|number| number.parse().ok()).collect();
    Some((numbers, hearing::decode(&content.slice(end + 1..))?))
}

/// The topic, the partition and its end, of a message: `orders 3:17`.
fn moved(content: &[u8]) -> Option<(String, u32, u64)> {
    let (topic, place) = std::str::from_utf8(content).ok()?.split_once(' ')?;
    let (partition, end) = place.split_once(':')?;
    Some((topic.to_owned(), partition.parse().ok()?, end.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn messages_are_read_as_the_scripts_write_them() {
        assert_eq!(moved(b"orders 3:17"), Some(("orders".into(), 3, 17)));
        assert_eq!(moved(b"orders 3"), None);
        let sent = crate::Signal { reply_to: None, payload: Bytes::from_static(b"a b\n") };
        let mut content = b"3,9 ".to_vec();
        content.extend_from_slice(&hearing::encode(&sent));
        assert_eq!(signal(&content.into()), Some((vec![3, 9], sent)));
    }
}
