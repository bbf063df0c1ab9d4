//! Applying: events, effects and cursors in one transaction of the consumer's database.
//!
//! takes: steps of one or more lanes · writes: what the handlers write, what waits behind parked events of its key, and the
//! cursors · commits when: all are handled · if we crash here: nothing happened · if it repeats: the compare-and-set of the
//! cursor refuses.
//!
//! Invariant: a failure counts against its own event alone: what stood before it is undone and done again without it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_bus::Record;
use tombolo_db::{Claim, Database, ParkedEvent, Transaction, Tries};
use tombolo_event::barrier;
use tombolo_event::{Cursor, Envelope, KeyHash, TraceContext};
use tracing::Instrument;

use super::lane::{Lane, Step};
use super::{BATCH_EVENTS_MAX, Session, Worker};
use crate::current::Current;
use crate::handler::{Boxed, HandlerError, reject};
use crate::life::Repeat;
use crate::metrics::OfSubscription;
use crate::{Error, Result};

/// A transaction quicker than this lets the next one be larger, one slower than [`SLOW`] makes it smaller.
const QUICK: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_millis(250);

/// An event that is handled here, as it came from the bus or out of the parked ones.
pub(super) struct Delivery {
    pub(super) record: Record,
    pub(super) key_hash: KeyHash,
    /// None if the bytes are not an event; handling it says so.
    envelope: Option<Envelope>,
}

impl Delivery {
    pub(super) fn new(record: Record) -> Self {
        let envelope = Envelope::decode(record.bytes.clone()).ok();
        // What is not an event has no key that anything could wait behind, so it stands for itself.
        let key_hash = match &envelope {
            Some(envelope) => KeyHash::of(&envelope.key),
            None => KeyHash::of(&record.id.to_string()),
        };
        Self { record, key_hash, envelope }
    }

    pub(super) fn of_parked(event: &ParkedEvent) -> Self {
        let event_type = event.event_type.clone().into();
        let (sequence, id, bytes) = (event.sequence, event.id, event.bytes.clone());
        Self::new(Record { sequence, id, event_type, bytes })
    }

    /// The row that it waits in.
    pub(super) fn parked(&self, claim: &Claim, tries: Tries, now: Timestamp) -> ParkedEvent {
        ParkedEvent {
            subscription: claim.subscription.clone(),
            topic: claim.topic.clone(),
            partition: claim.partition,
            sequence: self.record.sequence,
            id: self.record.id,
            key_hash: self.key_hash,
            event_type: self.record.type_name().to_owned(),
            bytes: self.record.bytes.clone(),
            parked_at: now,
            tries,
        }
    }
}

/// Where each lane's cursor comes to be, and when the last event handled on the way was published.
type Ends = BTreeMap<usize, (Cursor, Option<Timestamp>)>;

/// A transaction that only has to commit.
struct Prepared<T> {
    tx: T,
    ends: Ends,
    handled: u64,
    behind: Behind,
}

/// What goes behind parked events of its key, and in which lanes.
#[derive(Default)]
struct Behind {
    lanes: Vec<usize>,
    events: Vec<ParkedEvent>,
}

/// Why a transaction was undone.
pub(super) enum Undone {
    /// A handler failed.
    Failed(Failure),
    /// The database was away, or the lease is lost: nobody's fault.
    Away(Error),
}

/// What failed.
pub(super) struct Failure {
    /// Which of the steps; none if it only showed when all were done.
    pub(super) at: Option<usize>,
    pub(super) error: HandlerError,
}

impl From<tombolo_db::Error> for Undone {
    fn from(error: tombolo_db::Error) -> Self {
        use tombolo_db::Kind;
        match error.kind() {
            Kind::Unavailable | Kind::Fenced | Kind::CursorMoved | Kind::Full => Self::Away(error.into()),
            _ => Self::Failed(Failure { at: None, error: error.into() }),
        }
    }
}

impl From<HandlerError> for Undone {
    fn from(error: HandlerError) -> Self {
        if error.is_transient() {
            Self::Away(Error::new(crate::Kind::DatabaseAway, error.to_string()))
        } else {
            Self::Failed(Failure { at: None, error })
        }
    }
}

impl Undone {
    /// The same, but of the step `at`.
    fn at(self, at: usize) -> Self {
        match self {
            Self::Failed(failure) => Self::Failed(Failure { at: Some(at), ..failure }),
            away => away,
        }
    }
}

impl<D: Database> Worker<D> {
    /// Handles `steps` in transactions of the present size; what has to be tried alone is.
    pub(super) async fn apply(&self, session: &mut Session, steps: Vec<Step>) -> Result<()> {
        let mut rest = &steps[..];
        while !rest.is_empty() {
            let careful = |step: &Step| session.lanes[step.lane].is_careful(step);
            let together = rest.iter().take(session.batch_events).take_while(|step| !careful(step)).count();
            let (now, later) = rest.split_at(together.max(1));
            rest = later;
            match together {
                0 => self.alone(session, &now[0], None).await?,
                _ => self.together(session, now).await?,
            }
        }
        Ok(())
    }

    /// Handles steps in one transaction, or, if one of them fails, without it.
    async fn together(&self, session: &mut Session, steps: &[Step]) -> Result<()> {
        let mut rest = steps;
        while !rest.is_empty() {
            let span =
                tracing::debug_span!("apply", subscription = self.subscription.name, events = rest.len());
            let done = match self.transaction(session, rest).instrument(span).await {
                Ok(took) => {
                    session.batch_events = next_size(session.batch_events, rest.len(), took);
                    rest.len()
                }
                Err(Undone::Away(error)) => return Err(error),
                Err(Undone::Failed(failure)) => {
                    session.batch_events = (session.batch_events / 2).max(1);
                    self.again(session, rest, failure).await?
                }
            };
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Does again what was undone, up to the step that failed; returns how many steps that is.
    async fn again(&self, session: &mut Session, steps: &[Step], failure: Failure) -> Result<usize> {
        let Some(at) = failure.at else {
            for step in steps {
                self.alone(session, step, None).await?;
            }
            return Ok(steps.len());
        };
        match self.transaction(session, &steps[..at]).await {
            Ok(_) => {}
            Err(Undone::Away(error)) => return Err(error),
            // Not what failed before, so it is looked for one by one.
            Err(Undone::Failed(_)) => {
                for step in &steps[..at] {
                    self.alone(session, step, None).await?;
                }
            }
        }
        self.alone(session, &steps[at], Some(failure.error)).await?;
        Ok(at + 1)
    }

    /// One transaction: every step's effect, then every lane's cursor. Steps of lanes that are halted are left out.
    pub(super) async fn transaction(
        &self,
        session: &mut Session,
        steps: &[Step],
    ) -> Result<Duration, Undone> {
        self.bound_followers(session, steps);
        let is_open = |step: &&Step| !session.lanes[step.lane].is_halted();
        let Some(first) = steps.iter().find(is_open) else { return Ok(Duration::ZERO) };
        let began = Instant::now();
        let in_hand = (session.batch_events * 2).min(BATCH_EVENTS_MAX);
        session.lanes.iter_mut().for_each(|lane| lane.claim.in_hand = in_hand as u32);
        let repeat = self.repeats(&session.lanes, first);
        if repeat == Repeat::BeforeCommit {
            self.prepare(&session.lanes, steps).await?.tx.rollback().await?;
        }
        let Prepared { tx, ends, handled, behind } = self.prepare(&session.lanes, steps).await?;
        tx.commit().await?;
        barrier::reach("subscription.after-commit");
        if repeat == Repeat::AfterCommit {
            self.repeat(&session.lanes, steps).await;
        }
        let took = began.elapsed();
        self.count(handled, took, &ends);
        if handled > 0 {
            session.kept.alike = 0;
        }
        for (lane, event) in behind.lanes.into_iter().zip(&behind.events) {
            session.lanes[lane].parked.follow(event.key_hash, event.parked_at);
        }
        for (lane, (cursor, time)) in ends {
            let applied = steps.iter().filter(|step| step.lane == lane).map(|step| step.to);
            session.lanes[lane].moved(cursor, time.map_or(Duration::ZERO, age), applied);
        }
        Ok(took)
    }

    /// Halts the lanes in which no more events may wait behind parked ones.
    fn bound_followers(&self, session: &mut Session, steps: &[Step]) {
        for step in steps {
            let lane = &mut session.lanes[step.lane];
            let waits =
                step.delivery.as_ref().is_some_and(|delivery| lane.parked.contains(delivery.key_hash));
            if !waits || lane.is_halted() {
                continue;
            }
            if let Err(why) = lane.parked.room_behind() {
                self.stick(session, step.lane, why);
            }
        }
    }

    /// A transaction that cannot begin, for whatever reason, is no event's fault.
    pub(super) async fn begin_for_events(&self) -> Result<D::Tx, Undone> {
        self.database.begin(&self.publisher).await.map_err(|error| Undone::Away(error.into()))
    }

    /// Handles every step and moves every lane's cursor, all but the commit.
    async fn prepare(&self, lanes: &[Lane], steps: &[Step]) -> Result<Prepared<D::Tx>, Undone> {
        let mut tx = self.begin_for_events().await?;
        let (mut ends, mut handled, mut behind) = (Ends::new(), 0, Behind::default());
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| !lanes[step.lane].is_halted()) {
            let lane = &lanes[step.lane];
            let time = match &step.delivery {
                Some(delivery) if lane.parked.contains(delivery.key_hash) => {
                    behind.lanes.push(step.lane);
                    behind.events.push(delivery.parked(&lane.claim, Tries::default(), self.clock.now()));
                    None
                }
                Some(delivery) => {
                    handled += 1;
                    Some(self.handle(delivery, &mut tx).await.map_err(|undone| undone.at(index))?)
                }
                None => None,
            };
            let end = ends.entry(step.lane).or_insert((step.to, None));
            *end = (step.to, time.or(end.1));
        }
        barrier::reach("subscription.after-effect");
        tx.park(&behind.events).await?;
        for (&lane, (cursor, _)) in &ends {
            tx.advance(&lanes[lane].claim, cursor).await?;
        }
        barrier::reach("subscription.after-cursor");
        Ok(Prepared { tx, ends, handled, behind })
    }

    fn repeats(&self, lanes: &[Lane], first: &Step) -> Repeat {
        let claim = &lanes[first.lane].claim;
        let place = (claim.topic.as_str(), claim.partition, first.to.sequence);
        self.life.repeats(&self.subscription.name, place)
    }

    /// Handles again, under the claims from before the commit, what was committed: the cursors refuse it.
    async fn repeat(&self, lanes: &[Lane], steps: &[Step]) {
        if let Ok(accepted) = self.prepare(lanes, steps).await {
            accepted.tx.commit().await.ok();
        }
    }

    /// Handles one event; returns when it was published.
    pub(super) async fn handle(&self, delivery: &Delivery, tx: &mut D::Tx) -> Result<Timestamp, Undone> {
        let record = &delivery.record;
        let Some(handler) = self.subscription.handler(record.type_name()) else {
            return Err(no_handler(record.type_name()).into());
        };
        let decoded;
        let envelope = match &delivery.envelope {
            Some(envelope) => envelope,
            None => {
                decoded = Envelope::decode(record.bytes.clone()).map_err(HandlerError::from)?;
                &decoded
            }
        };
        let handle = |tx| handler.handle(envelope, record.sequence, &self.states, tx);
        self.handle_within(envelope, record.sequence, tx, handle).await?;
        Ok(envelope.time)
    }

    /// Runs what a handler does in `tx` for an event: as a consequence of it, within its trace, and with its panics caught.
    pub(super) async fn handle_within<'t>(
        &self,
        envelope: &Envelope,
        sequence: u64,
        tx: &'t mut D::Tx,
        handle: impl FnOnce(&'t mut D::Tx) -> Boxed<'t>,
    ) -> Result<(), HandlerError> {
        let trace = envelope.trace.map_or_else(TraceContext::begin, TraceContext::child);
        let correlation = envelope.correlation.clone().unwrap_or_else(|| envelope.id.to_string());
        let outgoing = tx.outgoing();
        outgoing.enter(self.subscription.origin(envelope.id));
        outgoing.trace = Some(trace);
        outgoing.correlation = Some(correlation.clone());
        let used = outgoing.used();
        let span = tracing::info_span!("handle", subscription = self.subscription.name, event_type = envelope.event_type,
            event = %envelope.id, sequence, trace = trace.trace_id());
        let work = handle(tx);
        let scoped = Current::within(trace, Some(correlation)).scope(async {
            Current::opened(used);
            work.await
        });
        match AssertUnwindSafe(scoped.instrument(span)).catch_unwind().await {
            Ok(handled) => handled,
            Err(panic) => Err(reject(format!("the handler panicked: {}", panic_text(&*panic)))),
        }
    }

    pub(super) fn of(&self) -> OfSubscription {
        OfSubscription { subscription: self.subscription.name.clone() }
    }

    fn count(&self, handled: u64, took: Duration, ends: &Ends) {
        let of = self.of();
        self.metrics.handled.get_or_create(&of).inc_by(handled);
        self.metrics.batch_events.get_or_create(&of).observe(handled as f64);
        self.metrics.batch_seconds.get_or_create(&of).observe(took.as_secs_f64());
        for published in ends.values().filter_map(|(_, time)| *time) {
            self.metrics.visible_seconds.get_or_create(&of).observe(age(published).as_secs_f64());
        }
    }
}

fn next_size(present: usize, used: usize, took: Duration) -> usize {
    if took > SLOW {
        (present / 2).max(1)
    } else if took < QUICK && used >= present {
        (present * 2).min(BATCH_EVENTS_MAX)
    } else {
        present
    }
}

pub(super) fn age(published: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(published)).unwrap_or_default()
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// A parked event whose type nobody handles any more.
pub(super) fn no_handler(event_type: &str) -> HandlerError {
    reject(format!(
        "this version of the service does not handle {event_type}: deploy one that does, or discard the event"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_quick_and_shrink_when_slow() {
        assert_eq!(next_size(1, 1, Duration::from_millis(1)), 2);
        assert_eq!(next_size(64, 3, Duration::from_millis(1)), 64);
        assert_eq!(next_size(64, 64, Duration::from_secs(1)), 32);
        assert_eq!(next_size(BATCH_EVENTS_MAX, BATCH_EVENTS_MAX, Duration::ZERO), BATCH_EVENTS_MAX);
    }
}
