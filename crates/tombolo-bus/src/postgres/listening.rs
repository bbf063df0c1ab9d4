//! The one listening connection: channels of followed topics, a channel of its own for signals, and the slow poll that makes
//! up for notices that were lost.
//!
//! Its channel and its rows in `listener` carry a number whose advisory lock it holds: as long as the server holds that lock
//! for somebody, somebody listens; when the connection is gone, so is the lock, and the rows mean nothing.
//!
//! Invariant: who asked to be heard is answered after the channels and rows are there, or is told that they cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use sqlx::{Executor, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use uuid::Uuid;

use super::address::handle_channel;
use super::failure::failed;
use super::link::{CONNECT_MAX, Link, connected};
use super::signals::Parts;
use super::topics::unsigned;
use super::wakes::Wakes;
use crate::adapter::gate::RECONNECT;
use crate::adapter::hearing::{Hearing, Name};
use crate::adapter::refusal::closed;
use crate::{Error, Kind, Result};

/// How long a lost notice is missed at most. One statement each, which also finds out whether the connection is alive.
const POLL_EVERY: Duration = Duration::from_secs(3);
/// How many wait to be heard at once.
const ASKING_MAX: usize = 64;

type Asked = oneshot::Sender<Result<()>>;

/// The way to the listening connection.
pub(super) struct Listening {
    asks: mpsc::Sender<Asked>,
}

impl Listening {
    /// Starts the connection's task, which ends when the link is closed.
    pub(super) fn start(link: &Arc<Link>, hearing: &Arc<Hearing>, wakes: &Arc<Wakes>) -> Self {
        let (asks, asked) = mpsc::channel(ASKING_MAX);
        let task =
            Task { link: Arc::clone(link), hearing: Arc::clone(hearing), wakes: Arc::clone(wakes), asked };
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
    wakes: Arc<Wakes>,
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
                Ok(session) => {
                    failures = 0;
                    self.attend(session).await;
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
    async fn attend(&mut self, mut session: Session) {
        let mut poll = interval_at(Instant::now(), POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let closed = self.link.closed.clone();
        loop {
            let went = tokio::select! {
                () = closed.cancelled() => return,
                told = session.listener.try_recv() => self.take(&mut session, told),
                Some(told) = self.asked.recv() => self.answer(&mut session, told).await,
                () = self.hearing.changed.notified() => self.settle(&mut session).await,
                _ = poll.tick() => self.poll(&mut session).await,
            };
            if let Err(error) = went {
                tracing::debug!(%error, "the listening connection to PostgreSQL was lost; making it again");
                return;
            }
        }
    }

    fn take(&self, session: &mut Session, told: sqlx::Result<Option<PgNotification>>) -> Result<()> {
        let told = told.map_err(failed)?;
        let told = told.ok_or_else(|| Error::new(Kind::Unavailable, "the connection ended"))?;
        if told.channel() != session.channel {
            self.wakes.notice(told.payload());
        } else if let Some((numbers, signal)) = session.parts.take(told.payload()) {
            self.hearing.deliver(&numbers, &signal);
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

    /// Makes channels and rows what they have to be.
    async fn settle(&self, session: &mut Session) -> Result<()> {
        let channels =
            self.wakes.following.topics().into_iter().map(|topic| self.link.address.topic_channel(topic));
        session.settle_channels(&self.link, channels.collect()).await?;
        let places = self.hearing.places();
        if !places.is_empty() {
            self.link.make_tables().await?;
        }
        session.settle_places(&self.link, places).await
    }

    /// Looks for what notices may not have told.
    async fn poll(&self, session: &mut Session) -> Result<()> {
        self.settle(session).await?;
        let topics: Vec<i32> = self.wakes.following.topics().into_iter().collect();
        if topics.is_empty() {
            return self.link.answer(async { session.listener.execute("SELECT 1").await.map(drop) }).await;
        }
        let asked = sqlx::query("SELECT topic, partition, last FROM partition WHERE topic = ANY ($1)");
        let rows = self.link.answer(asked.bind(topics).fetch_all(&mut session.listener)).await?;
        for row in rows {
            let (topic, partition): (i32, i32) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let partition = u32::try_from(partition).unwrap_or(u32::MAX);
            self.wakes.following.moved(topic, partition, unsigned(row.try_get(2).map_err(failed)?));
        }
        Ok(())
    }
}

/// One life of the connection.
struct Session {
    listener: PgListener,
    /// The number whose lock it holds.
    handle: i64,
    channel: String,
    channels: BTreeSet<String>,
    places: BTreeMap<u32, Name>,
    parts: Parts,
}

impl Session {
    async fn begin(link: &Link) -> Result<Self> {
        // Says whether the server is there and fit, and is quick to say no.
        link.lease().await?.keep();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(CONNECT_MAX)
            .connect_lazy_with(link.address.options.clone());
        let mut listener = connected(PgListener::connect_with(&pool)).await?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        let handle = i64::from_le_bytes(Uuid::new_v4().as_bytes()[..8].try_into().unwrap_or_default());
        let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(handle);
        link.answer(lock.execute(&mut listener)).await?;
        let channel = handle_channel(handle);
        link.answer(listener.listen(&channel)).await?;
        let mut session = Self {
            listener,
            handle,
            channel,
            channels: BTreeSet::new(),
            places: BTreeMap::new(),
            parts: Parts::default(),
        };
        session.forget_the_gone(link).await?;
        Ok(session)
    }

    /// Removes the rows of connections that are gone.
    async fn forget_the_gone(&mut self, link: &Link) -> Result<()> {
        if !link.has_tables().await? {
            return Ok(());
        }
        let gone = sqlx::query(
            "DELETE FROM listener WHERE handle <> $1 AND pg_try_advisory_xact_lock_shared(handle)",
        );
        link.answer(gone.bind(self.handle).execute(&mut self.listener)).await.map(drop)
    }

    async fn settle_channels(&mut self, link: &Link, wanted: BTreeSet<String>) -> Result<()> {
        for gone in self.channels.difference(&wanted).cloned().collect::<Vec<_>>() {
            link.answer(self.listener.unlisten(&gone)).await?;
            self.channels.remove(&gone);
        }
        for new in wanted.difference(&self.channels).cloned().collect::<Vec<_>>() {
            link.answer(self.listener.listen(&new)).await?;
            self.channels.insert(new);
        }
        Ok(())
    }

    async fn settle_places(&mut self, link: &Link, wanted: BTreeMap<u32, Name>) -> Result<()> {
        if wanted == self.places {
            return Ok(());
        }
        let gone: Vec<i32> =
            self.places.keys().filter(|at| !wanted.contains_key(at)).copied().map(row).collect();
        if !gone.is_empty() {
            let leave = sqlx::query("DELETE FROM listener WHERE handle = $1 AND number = ANY ($2)");
            link.answer(leave.bind(self.handle).bind(gone).execute(&mut self.listener)).await?;
        }
        let new: Vec<(&u32, &Name)> = wanted.iter().filter(|(at, _)| !self.places.contains_key(at)).collect();
        if !new.is_empty() {
            let numbers: Vec<i32> = new.iter().map(|(at, _)| row(**at)).collect();
            let subjects: Vec<&str> = new.iter().map(|(_, name)| name.0.as_str()).collect();
            let groups: Vec<Option<&str>> = new.iter().map(|(_, name)| name.1.as_deref()).collect();
            let join = sqlx::query(
                "INSERT INTO listener (handle, number, subject, member_of)
                 SELECT $1, l.* FROM unnest($2::integer[], $3::text[], $4::text[]) AS l ON CONFLICT DO NOTHING",
            );
            let join = join.bind(self.handle).bind(numbers).bind(subjects).bind(groups);
            link.answer(join.execute(&mut self.listener)).await?;
        }
        self.places = wanted;
        Ok(())
    }
}

fn row(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
