//! Applying: events, effects and cursors in one transaction of the consumer's database.
//!
//! takes: steps of one or more lanes · writes: what the handlers write, and the cursors · commits when: all are handled ·
//! if we crash here: nothing happened · if it repeats: the compare-and-set of the cursor refuses.
//!
//! Invariant: a failing batch is undone and done again one by one, so that a failure counts against its own event alone.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::Instant;
use tombolo_bus::Record;
use tombolo_db::{Database, Transaction};
use tombolo_event::barrier;
use tombolo_event::{Cursor, Envelope, TraceContext};
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

/// Where each lane's cursor comes to be, and when the last event handled on the way was published.
type Ends = BTreeMap<usize, (Cursor, Option<Timestamp>)>;

/// A transaction that only has to commit.
struct Prepared<T> {
    tx: T,
    ends: Ends,
    handled: u64,
}

/// Why a transaction was undone.
pub(super) enum Undone {
    /// A handler failed.
    Failed(HandlerError),
    /// The database was away, or the lease is lost: nobody's fault.
    Away(Error),
}

impl From<tombolo_db::Error> for Undone {
    fn from(error: tombolo_db::Error) -> Self {
        use tombolo_db::Kind;
        match error.kind() {
            Kind::Unavailable | Kind::Fenced | Kind::CursorMoved | Kind::Full => Self::Away(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<HandlerError> for Undone {
    fn from(error: HandlerError) -> Self {
        if error.is_transient() {
            Self::Away(Error::new(crate::Kind::DatabaseAway, error.to_string()))
        } else {
            Self::Failed(error)
        }
    }
}

impl<D: Database> Worker<D> {
    /// Handles `steps` in transactions of the present size.
    pub(super) async fn apply(&self, session: &mut Session, steps: Vec<Step>) -> Result<()> {
        let mut rest = &steps[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(session.batch_events.min(rest.len()));
            rest = later;
            let now: Vec<&Step> = now.iter().filter(|step| !session.lanes[step.lane].is_waiting()).collect();
            let span =
                tracing::debug_span!("apply", subscription = self.subscription.name, events = now.len());
            match self.transaction(session, &now).instrument(span).await {
                Ok(took) => session.batch_events = next_size(session.batch_events, now.len(), took),
                Err(Undone::Away(error)) => return Err(error),
                Err(Undone::Failed(_)) => {
                    session.batch_events = 1;
                    self.one_by_one(session, &now).await?;
                }
            }
        }
        Ok(())
    }

    async fn one_by_one(&self, session: &mut Session, steps: &[&Step]) -> Result<()> {
        for step in steps {
            if session.lanes[step.lane].is_waiting() {
                continue;
            }
            match self.transaction(session, &[step]).await {
                Ok(_) => {}
                Err(Undone::Away(error)) => return Err(error),
                Err(Undone::Failed(error)) => self.failed(session, step, &error).await?,
            }
        }
        Ok(())
    }

    /// Records the attempt, and lets the lane wait; the others flow on.
    async fn failed(&self, session: &mut Session, step: &Step, error: &HandlerError) -> Result<()> {
        let lane = &mut session.lanes[step.lane];
        let claim = &lane.claim;
        let Some(event) = step.to.id else { return Ok(()) };
        let attempts = self.database.record_attempt(claim, event, &error.to_string()).await?;
        tracing::warn!(subscription = self.subscription.name, topic = %claim.topic, partition = claim.partition,
            sequence = step.to.sequence, %event, attempts, "could not be handled: {error}");
        lane.failed(attempts, error.to_string());
        session.streams.remove(&step.lane);
        self.metrics.retries.get_or_create(&self.of()).inc();
        Ok(())
    }

    /// One transaction: every step's effect, then every lane's cursor.
    async fn transaction(&self, session: &mut Session, steps: &[&Step]) -> Result<Duration, Undone> {
        let Some(first) = steps.first() else { return Ok(Duration::ZERO) };
        let began = Instant::now();
        let repeat = self.repeats(&session.lanes, first);
        if repeat == Repeat::BeforeCommit {
            self.prepare(&session.lanes, steps).await?.tx.rollback().await?;
        }
        let Prepared { tx, ends, handled } = self.prepare(&session.lanes, steps).await?;
        tx.commit().await?;
        barrier::reach("subscription.after-commit");
        if repeat == Repeat::AfterCommit {
            self.repeat(&session.lanes, steps).await;
        }
        let took = began.elapsed();
        self.count(handled, took, &ends);
        for (lane, (cursor, time)) in ends {
            let applied = steps.iter().filter(|step| step.lane == lane).map(|step| step.to);
            session.lanes[lane].moved(cursor, time.map_or(Duration::ZERO, age), applied);
        }
        Ok(took)
    }

    /// Handles every step and moves every lane's cursor, all but the commit.
    async fn prepare(&self, lanes: &[Lane], steps: &[&Step]) -> Result<Prepared<D::Tx>, Undone> {
        let mut tx = self.database.begin(&self.publisher).await?;
        let mut ends = Ends::new();
        let mut handled = 0;
        for step in steps {
            let time = match &step.record {
                Some(record) => self.handle(record, &mut tx).await?,
                None => None,
            };
            handled += u64::from(time.is_some());
            let end = ends.entry(step.lane).or_insert((step.to, None));
            *end = (step.to, time.or(end.1));
        }
        barrier::reach("subscription.after-effect");
        for (&lane, (cursor, _)) in &ends {
            tx.advance(&lanes[lane].claim, cursor).await?;
        }
        barrier::reach("subscription.after-cursor");
        Ok(Prepared { tx, ends, handled })
    }

    fn repeats(&self, lanes: &[Lane], first: &Step) -> Repeat {
        let claim = &lanes[first.lane].claim;
        let place = (claim.topic.as_str(), claim.partition, first.to.sequence);
        self.life.repeats(&self.subscription.name, place)
    }

    /// Handles again, under the claims from before the commit, what was committed: the cursors refuse it.
    async fn repeat(&self, lanes: &[Lane], steps: &[&Step]) {
        if let Ok(accepted) = self.prepare(lanes, steps).await {
            accepted.tx.commit().await.ok();
        }
    }

    /// Handles one record, if its type is handled here; returns when it was published.
    async fn handle(&self, record: &Record, tx: &mut D::Tx) -> Result<Option<Timestamp>, Undone> {
        let Some(handler) = self.subscription.handler(record.type_name()) else { return Ok(None) };
        let envelope = Envelope::decode(record.bytes.clone()).map_err(HandlerError::from)?;
        let handle = |tx| handler.handle(&envelope, record.sequence, &self.states, tx);
        self.handle_within(&envelope, record.sequence, tx, handle).await?;
        Ok(Some(envelope.time))
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
