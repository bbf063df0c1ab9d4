//! Signals: words in a topic of Kafka's of their own, which everybody of a namespace reads from the moment it needs it.
//!
//! Kafka hands each message to everybody, or to one of a group that is rearranged for seconds whenever a member comes. So there
//! is a rule here too (`heard`): who hears what is said in the same stream, and one order says the same to all. A process that
//! dies is passed over after [`TRUE_FOR_MS`]; until then what would have been its turn is lost, as signals may be.
//!
//! Invariant: a listener is heard, and a reach is told, from the word that was read back in its place.
//!
//! [`TRUE_FOR_MS`]: super::heard::TRUE_FOR_MS

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::heard::{Head, Heard, Hears, TRUE_FOR_MS, Word};
use super::link::{ASK, Link, Used, ask, ends, unavailable};
use super::settings::Settings;
use super::stream::{Feed, Found, Outlet, PARTITION};
use crate::adapter::hearing::{Hearing, Name};
use crate::judged::{Outlet as _, REQUEST_SECONDS_MAX, Streams};
use crate::signal::{check_size, check_subject};
use crate::{Error, Kind, Reach, Result, Signal, SignalStream};

/// How often a process says what it hears, in milliseconds: several times before it is not believed any more.
const SAID_EACH_MS: u64 = TRUE_FOR_MS.unsigned_abs() / 4;
/// How long it is waited before the stream of signals is begun again.
const AGAIN: Duration = Duration::from_millis(500);

/// The signals of one bus.
pub(super) struct Signals {
    process: u64,
    counter: AtomicU64,
    hearing: Arc<Hearing>,
    begun: AtomicBool,
    /// Whether the stream is read at the moment, or why not.
    reads: watch::Sender<Reads>,
    inner: Mutex<Inner>,
}

/// How the stream is read; none before it was tried.
type Reads = Option<std::result::Result<(), (Kind, String)>>;
type Waiting = HashMap<u64, oneshot::Sender<Reach>>;

#[derive(Default)]
struct Inner {
    heard: Heard,
    /// Who waits for a word of this process to be read back.
    waiting: Waiting,
    /// Where words go; none while the stream is not read.
    outlet: Option<Arc<Outlet>>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            process: Uuid::new_v4().as_u64_pair().0,
            counter: AtomicU64::default(),
            hearing: Arc::default(),
            begun: AtomicBool::default(),
            reads: watch::Sender::new(None),
            inner: Mutex::default(),
        }
    }
}

pub(super) async fn send(link: &Arc<Link>, subject: &str, signal: Signal) -> Result<Reach> {
    check_subject(subject)?;
    signal.reply_to.as_deref().map_or(Ok(()), check_subject)?;
    check_size(subject, &signal)?;
    let signals = &link.signals;
    signals.begun(link).await?;
    let (process, number) = (signals.process, signals.number());
    let head = Head { process, number, subject: subject.to_owned() };
    signals.tell(number, &Word::Signal { head, signal }).await
}

pub(super) async fn listen(used: &Arc<Used>, subject: &str, group: Option<&str>) -> Result<SignalStream> {
    check_subject(subject)?;
    group.map_or(Ok(()), check_subject)?;
    let link = &used.0;
    let signals = &link.signals;
    signals.begun(link).await?;
    let stream = signals.hearing.join(subject, group);
    let word = signals.hears();
    signals.tell(word.number, &Word::Hears(word.clone())).await?;
    let (closed, used) = (link.root().closed.clone(), Arc::clone(used));
    let kept = stream.map(move |signal| {
        let _kept = &used;
        signal
    });
    Ok(kept.take_until(closed.cancelled_owned()).boxed())
}

impl Signals {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.hearing.close();
    }

    /// What this process hears now.
    fn hears(&self) -> Hears {
        let places: std::collections::BTreeMap<u32, Name> = self.hearing.places();
        Hears { process: self.process, number: self.number(), places }
    }

    /// Begins to read the stream of signals, and waits until it is read.
    async fn begun(&self, link: &Arc<Link>) -> Result<()> {
        link.ready()?;
        if !self.begun.swap(true, Ordering::AcqRel) {
            let keeper = Arc::clone(link);
            link.root().tasks.spawn(async move {
                let closed = keeper.root().closed.clone();
                closed.run_until_cancelled(keeper.signals.keep_reading(&keeper)).await;
                keeper.signals.close();
            });
        }
        let mut reads = self.reads.subscribe();
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        let read = tokio::time::timeout(limit, reads.wait_for(Option::is_some)).await;
        match read {
            Ok(Ok(reads)) => match &*reads {
                Some(Err((kind, why))) => Err(Error::new(*kind, why.clone())),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Error::new(Kind::Closed, "the bus was closed by this process")),
            Err(_) => Err(unavailable("signals are not read yet", "it took too long")),
        }
    }

    async fn keep_reading(&self, link: &Arc<Link>) {
        loop {
            let error = self.read(link).await;
            tracing::debug!("signals are not read at the moment: {error}");
            {
                let mut inner = self.lock();
                inner.outlet = None;
                inner.waiting.clear();
            }
            self.reads.send_replace(Some(Err((error.kind(), error.to_string()))));
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Reads the stream until it is lost.
    async fn read(&self, link: &Arc<Link>) -> Error {
        let (outlet, mut feed) = match self.open(link).await {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        let mut said = interval(Duration::from_millis(SAID_EACH_MS));
        said.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.lock().outlet = Some(Arc::clone(&outlet));
        self.reads.send_replace(Some(Ok(())));
        loop {
            let went = tokio::select! {
                found = feed.next_found() => found.map(|found| self.take(&found)),
                () = self.hearing.changed.notified() => self.say(&outlet).await,
                _ = said.tick() => self.say(&outlet).await,
            };
            if let Err(error) = went {
                return error;
            }
        }
    }

    /// Begins where everybody who is believed has said what it hears, and reads up to the present.
    async fn open(&self, link: &Arc<Link>) -> Result<(Arc<Outlet>, Feed)> {
        let stream = link.names.signals();
        link.ensure_as(&stream, Settings::of_signals, |found| found.check_ours(&stream)).await?;
        let outlet = Arc::new(link.outlet(&stream).await?);
        let lines = link.ready()?;
        let word = Word::Hears(self.hears());
        let sent = outlet.send(encoded(&word)?).await?;
        let own = outlet.stored(sent).await?;
        let since_ms = own.timestamp.to_millis().unwrap_or(0) - TRUE_FOR_MS;
        let topic = stream.clone();
        let from = ask(&lines.asker, move |asker| {
            let mut place = TopicPartitionList::new();
            place.add_partition_offset(&topic, PARTITION, Offset::Offset(since_ms.max(0)))?;
            asker.offsets_for_times(place, ASK)
        });
        let from = from.await?.find_partition(&stream, PARTITION).map(|found| found.offset());
        let from = match from {
            Some(Offset::Offset(offset)) => u64::try_from(offset).unwrap_or(0),
            // The cluster of tests does not know times.
            _ => ends(&lines, &stream).await?.0,
        };
        self.lock().heard = Heard::default();
        let mut feed = Feed::open(lines, link.server(), &stream, from).await?;
        let own = u64::try_from(own.offset).unwrap_or(0);
        loop {
            let found = feed.next_found().await?;
            match Word::decode(&found.bytes) {
                Some(Word::Hears(hears)) => self.lock().heard.say(found.stored_ms, &hears),
                Some(Word::Signal { .. }) | None => {}
            }
            if found.at >= own {
                return Ok((outlet, feed));
            }
        }
    }

    /// Says what this process hears, and does not wait for it.
    async fn say(&self, outlet: &Outlet) -> Result<()> {
        let word = self.hears();
        outlet.send(encoded(&Word::Hears(word))?).await.map(drop)
    }

    /// Sends a word and waits until it is read back.
    async fn tell(&self, number: u64, word: &Word) -> Result<Reach> {
        let (told, answer) = oneshot::channel();
        let outlet = {
            let mut inner = self.lock();
            let Some(outlet) = inner.outlet.clone() else {
                return Err(unavailable("signals are not read at the moment", "Kafka was away"));
            };
            inner.waiting.insert(number, told);
            outlet
        };
        let telling = async {
            let sent = outlet.send(encoded(word)?).await?;
            outlet.confirmed(sent).await?;
            answer.await.map_err(|_| unavailable("a word was not read back", "Kafka was away"))
        };
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        let told = tokio::time::timeout(limit, telling).await;
        let told = told.unwrap_or_else(|_| Err(unavailable("a word was not read back", "it took too long")));
        if told.is_err() {
            self.lock().waiting.remove(&number);
        }
        told
    }

    fn take(&self, found: &Found) {
        let mut inner = self.lock();
        let (process, number, reach) = match Word::decode(&found.bytes) {
            Some(Word::Hears(hears)) => {
                inner.heard.say(found.stored_ms, &hears);
                (hears.process, hears.number, Reach::Unknown)
            }
            Some(Word::Signal { head, signal }) => {
                let places = inner.heard.places(self.process, &head.subject, found.at, found.stored_ms);
                self.hearing.deliver(&places, &signal);
                let reaches = inner.heard.reaches(&head.subject, found.stored_ms);
                (head.process, head.number, if reaches { Reach::Somebody } else { Reach::Nobody })
            }
            None => {
                tracing::warn!("word {} of the signals is passed over: Tombolo did not write it", found.at);
                return;
            }
        };
        if process == self.process
            && let Some(waiting) = inner.waiting.remove(&number)
        {
            // Who gave up waiting needs no answer.
            waiting.send(reach).ok();
        }
    }
}

fn encoded(word: &Word) -> Result<bytes::Bytes> {
    word.encode().map_err(|error| Error::new(Kind::Corrupt, "a signal cannot be written").because(error))
}
