//! Reading one's own writes: a write says where its events went, and a reader waits until a view has applied them.
//!
//! ```text
//! POST /orders                        → Tombolo-Position: orders/3/…/…/41
//! GET /users/u1/orders
//!     Tombolo-Position: orders/3/…/…/41  → Tombolo-Freshness: current
//! ```
//!
//! Invariant: `current` is only said of what is committed in the reader's database; whatever else is found, and
//! whoever cannot tell, says so within the bound.

use std::fmt;
use std::time::Duration;

use futures_util::future::{select, select_all, try_join_all};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tombolo_db::{Database, Outbox};
use tombolo_event::position::POSITION_HEADER;
use tombolo_event::{Backoff, Position, Positions};

use crate::current::Current;
use crate::progress::covers;
use crate::{App, Error, Kind, Result};

/// The header in which a reader says whether it has applied what it was asked for.
pub const FRESHNESS_HEADER: &str = "tombolo-freshness";
/// How long [`App::fresh`] waits for a view, unless the request has a shorter deadline.
pub const FRESH_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a response waits for the numbers of its events, where the relay gives them.
pub const NUMBER_WAIT_MAX: Duration = Duration::from_millis(8);
/// How often it looks for them.
const NUMBER_LOOK: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(4));
/// How often a reader that does not find an event without a number looks whether the topic was divided anew.
const ELSEWHERE_LOOK: Duration = Duration::from_millis(250);
/// How often a reader looks at a cursor that another process moves.
const CURSOR_LOOK: Backoff = Backoff::new(Duration::from_millis(4), Duration::from_millis(100));

/// What a view can say of a write: the later, the worse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// The request did not name any write, so nothing was waited for.
    Unasked,
    /// Everything is applied.
    Current,
    /// Within the bound it was not applied, or nobody could tell: what is read may lack it.
    Stale(Option<Position>),
    /// The event, or an earlier one of its key, could not be handled: it waits for an operator, and what is read lacks it.
    Parked(Position),
}

impl Freshness {
    fn badness(&self) -> u8 {
        match self {
            Self::Unasked => 0,
            Self::Current => 1,
            Self::Stale(_) => 2,
            Self::Parked(_) => 3,
        }
    }

    /// The worse of two.
    pub(crate) fn and(self, other: Self) -> Self {
        if other.badness() > self.badness() { other } else { self }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, position) = match self {
            Self::Unasked => return f.write_str("unasked"),
            Self::Current => return f.write_str("current"),
            Self::Stale(None) => return f.write_str("stale; more"),
            Self::Stale(Some(position)) => ("stale", position),
            Self::Parked(position) => ("parked", position),
        };
        write!(f, "{word}; topic={}; partition={}", position.topic, position.partition)
    }
}

impl<D: Database> App<D> {
    /// Waits until `view` has applied the writes that the request names in the header `Tombolo-Position`, at most
    /// [`FRESH_WAIT_MAX`], and has the response say how it went in `Tombolo-Freshness`. A request without the header
    /// waits for nothing.
    ///
    /// # Errors
    /// As [`App::wait_for`]; `Token` also for a header that does not parse.
    pub async fn fresh(&self, view: &str) -> Result<Freshness> {
        let current = Current::get();
        let Some(asked) = &current.positions else { return Ok(Freshness::Unasked) };
        let positions: Positions = asked.parse().map_err(wrong_token)?;
        let freshness = self.wait_for(view, &positions, current.left(FRESH_WAIT_MAX)).await?;
        current.note_freshness(freshness.clone());
        Ok(freshness)
    }

    /// Waits until `view` (or another subscription of this service, by its name) has applied the events at
    /// `positions`, at most `bound`. Any replica can tell, whoever holds the partitions.
    ///
    /// # Errors
    /// `Token` for a position in a topic that the view does not read; `Wiring` for a view that this service does not have;
    /// `DatabaseAway` and `Database`.
    pub async fn wait_for(&self, view: &str, positions: &Positions, bound: Duration) -> Result<Freshness> {
        let reader = self.reader(view).await?;
        let until = Instant::now() + bound;
        for position in positions.each() {
            reader.check(position)?;
        }
        let each = positions.each().iter().map(|position| self.reached(&reader, position, until));
        let cut = if positions.is_cut() { Freshness::Stale(None) } else { Freshness::Unasked };
        Ok(try_join_all(each).await?.into_iter().fold(cut, Freshness::and))
    }

    async fn reached(&self, reader: &Reader, position: &Position, until: Instant) -> Result<Freshness> {
        match timeout_at(until, self.passed(reader, position)).await {
            Ok(passed) => passed?,
            Err(_) => return Ok(Freshness::Stale(Some(position.clone()))),
        }
        let is_parked = self.database().is_parked(&reader.subscription, &position.topic, position.key_hash);
        Ok(if is_parked.await? { Freshness::Parked(position.clone()) } else { Freshness::Current })
    }

    /// Returns once the event at `position` is applied or parked, wherever it got its number.
    async fn passed(&self, reader: &Reader, position: &Position) -> Result<()> {
        let meant = self.passed_in(reader, position, position.partition);
        match position.sequence {
            Some(_) => meant.await,
            None => {
                select(Box::pin(meant), Box::pin(self.passed_later(reader, position))).await.factor_first().0
            }
        }
    }

    /// The same for an event that got its number in a later generation than it was meant for, because the topic was divided
    /// anew in between.
    async fn passed_later(&self, reader: &Reader, position: &Position) -> Result<()> {
        loop {
            sleep(ELSEWHERE_LOOK).await;
            // Without the bus it is only looked for where it was meant to go.
            let Ok(topic) = self.desk().bus().topic(&position.topic).await else { continue };
            let later = topic.generations.after(position.partition, position.key_hash);
            let places: Vec<_> =
                later.map(|partition| Box::pin(self.passed_in(reader, position, partition))).collect();
            if !places.is_empty() {
                return select_all(places).await.0;
            }
        }
    }

    /// Returns once the event at `position` is applied or parked in `partition`: told by the worker here, or found in the
    /// database.
    async fn passed_in(&self, reader: &Reader, position: &Position, partition: u32) -> Result<()> {
        for look in 0.. {
            let topic = &position.topic;
            if let Some(mut told) = self.progress().of(&reader.subscription, topic, partition)
                && told.wait_for(|applied| applied.covers(position)).await.is_ok()
            {
                return Ok(());
            }
            let cursor = self.database().cursor(&reader.subscription, topic, partition).await?;
            if cursor.is_some_and(|cursor| covers(&cursor, position)) {
                return Ok(());
            }
            sleep(CURSOR_LOOK.delay(look, 1.0)).await;
        }
        Ok(())
    }

    /// The subscription of that name, or that which keeps the live build of the view of that name.
    async fn reader(&self, view: &str) -> Result<Reader> {
        if let Some(reader) = self.builds().reader(view).await? {
            return Ok(reader);
        }
        let known = || self.readers().iter().map(|reader| reader.subscription.as_str());
        let found = self.readers().iter().find(|reader| reader.subscription == view).cloned();
        found.ok_or_else(|| {
            let known: Vec<&str> = self.builds().names().chain(known()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            Error::new(
                Kind::Wiring,
                format!("service {} has no view or subscription {view:?}; it has: {known}", self.service()),
            )
        })
    }
}

/// A subscription, as those who wait for it know it.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// What views call themselves; the subscription's name for all others.
    pub(crate) name: String,
    pub(crate) subscription: String,
    pub(crate) topics: Vec<&'static str>,
}

impl Reader {
    fn check(&self, position: &Position) -> Result<()> {
        if self.topics.contains(&position.topic.as_str()) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Token,
            format!(
                "the position names topic {}, which {} does not read (it reads {}); send only positions of those",
                position.topic,
                self.name,
                self.topics.join(", ")
            ),
        ))
    }
}

fn wrong_token(error: tombolo_event::Error) -> Error {
    Error::new(Kind::Token, error.to_string()).because(error)
}

/// Writes into a response where the request's events went, and what was found of those that it named.
pub(crate) async fn answer(database: &impl Outbox, current: &Current, headers: &mut HeaderMap) {
    let mut written = current.written();
    if !written.is_empty() {
        // Whoever cannot be told the numbers in time can still find the events by their ids.
        timeout(NUMBER_WAIT_MAX, number(database, &mut written)).await.ok();
        set(headers, POSITION_HEADER, &written);
    }
    if let Some(freshness) = current.freshness() {
        set(headers, FRESHNESS_HEADER, &freshness);
    }
}

/// Waits until the relay has numbered all of them.
async fn number(database: &impl Outbox, written: &mut Positions) {
    for look in 0.. {
        if written.each().iter().all(|position| position.sequence.is_some()) {
            return;
        }
        sleep(NUMBER_LOOK.delay(look, 1.0)).await;
        if let Err(error) = database.complete(written.each_mut()).await {
            tracing::debug!("positions stay without their numbers: {error}");
            return;
        }
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &impl fmt::Display) {
    // Names, numbers and ids are always valid in a header.
    if let Ok(value) = HeaderValue::try_from(value.to_string()) {
        headers.append(HeaderName::from_static(name), value);
    }
}
