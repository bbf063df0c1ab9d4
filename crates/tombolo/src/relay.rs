//! The relay: moves the outbox to the topic.
//!
//! takes: numbered rows of the outbox · writes: the topic, then removes the rows · commits when: the bus has
//! acknowledged (appended and synced) · if we crash here: the next leader finds the rows with the same numbers and
//! sends them again · if it repeats: same bytes, same numbers, acknowledged without a double.
//!
//! One leader for each service, elected through its own database, with an epoch that the bus holds too. Taking over,
//! and after any refusal: what is in memory is dropped, both sides are compared, the epoch is raised, the outbox is read.
//!
//! Invariant: nothing is guessed from the bus. What the bus says is only compared with what the database says, and
//! a difference halts the database by name until an operator decides (`recovery`).

mod lanes;
mod later;
mod dividing;
pub(crate) mod foreign;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Signal, Topic};
use tombolo_db::{Depth, Leader, Mark, Outbox, Publisher, Requests, RoundLimit};
use tombolo_event::Backoff;
use tombolo_event::barrier;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::recovery::{Examined, Questions, Recovery};
use crate::settings::Lease;
use crate::status::Board;
use crate::{Clock, Error, Kind, Result};
use lanes::Lanes;
use later::Schedule;

/// Rows that are taken and not yet acknowledged, at most.
const IN_FLIGHT_ROWS_MAX: usize = 8_000;
/// The bytes that wait in the outbox, at most; looked at every few seconds, so passed by what comes in between.
const OUTBOX_BYTES_MAX: u64 = 4 << 30;
const HALF: i64 = (OUTBOX_BYTES_MAX / 2) as i64;
/// The net under the wake-ups: how often an idle outbox is looked at, from and to.
const POLL: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
const STOPPED_RETRY: Duration = Duration::from_secs(30);

/// The subject on which a committing process that does not lead wakes the one that does.
fn wake_subject(service: &str) -> String {
    format!("wake.{service}")
}

/// What the relay needs.
pub(crate) struct Relay {
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) requests: Arc<dyn Requests>,
    /// Changes whenever an operator may have asked for something.
    pub(crate) announced: watch::Receiver<u64>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) publisher: Publisher,
    /// Who this process is to the leases.
    pub(crate) holder: Uuid,
    pub(crate) woken: Arc<Notify>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) board: Arc<Board>,
    pub(crate) clock: Clock,
    pub(crate) lease: Lease,
    pub(crate) stop: CancellationToken,
}

impl Relay {
    /// Runs until it is stopped.
    pub(crate) async fn run(self) {
        let mut attempt = 0;
        let mut said = String::new();
        while !self.stop.is_cancelled() {
            let began = Instant::now();
            let Err(error) = self.lead().await else { continue };
            self.measure().await.ok();
            self.metrics.relay_retries.inc();
            attempt = if began.elapsed() > self.lease.0 { 0 } else { attempt + 1 };
            let stopped = is_stop(&error);
            let state = if stopped { "stopped" } else { "waiting" };
            let pause = if stopped { STOPPED_RETRY } else { crate::RETRY.jittered(attempt) };
            self.board.relay(|relay| {
                relay.leading = false;
                relay.is_halted = error.kind() == Kind::Restored;
                relay.state = format!("{state}: {error}");
            });
            if said != error.to_string() {
                said = error.to_string();
                tracing::warn!(service = %self.publisher.service, "the relay {state}: {error}");
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.recovery.decided.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes the lead, if it is free, and drains until something is refused.
    async fn lead(&self) -> Result<()> {
        let Examined::Agree(topic) = self.recovery.examine().await? else {
            return self.follow().await;
        };
        let Some(mut leader) = self.outbox.lead(self.holder, self.lease.0).await? else {
            return self.follow().await;
        };
        self.take_over(&mut *leader, &topic).await?;
        self.board.relay(|relay| {
            relay.leading = true;
            relay.is_halted = false;
            relay.epoch = leader.epoch();
            relay.state = "idle".into();
        });
        tracing::info!(service = %self.publisher.service, epoch = leader.epoch(), "leads its outbox");
        let mut signals = self.bus.listen(&wake_subject(self.publisher.service.as_str()), None).await?;
        let mut asked = self.recovery.questions().await?;
        let drained = tokio::select! {
            drained = self.drain(&mut *leader, &topic, &mut asked) => drained,
            () = async { while signals.next().await.is_some() { self.woken.notify_one(); } std::future::pending().await } => Ok(Vec::new()),
        };
        let done = drained?;
        leader.resign(&done).await?;
        Ok(())
    }

    /// Somebody else leads: pass wake-ups on, and look again when its lease may have ended.
    async fn follow(&self) -> Result<()> {
        self.board.relay(|relay| {
            relay.leading = false;
            relay.state = "idle: another replica leads".into();
        });
        let again = Instant::now() + self.lease.0 / 4;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = sleep_until(again) => return Ok(()),
                () = self.woken.notified() => {
                    let wake = Signal { reply_to: None, payload: bytes::Bytes::new() };
                    self.bus.signal(&wake_subject(self.publisher.service.as_str()), wake).await?;
                }
            }
        }
    }

    /// Fences every older leader at the bus, and checks what it had written up to then.
    async fn take_over(&self, leader: &mut dyn Leader, topic: &Topic) -> Result<()> {
        leader.pin(topic.incarnation).await?;
        let tails = self.bus.raise_epoch(&topic.name, topic.incarnation, leader.epoch()).await?;
        self.recovery.examine_leading(topic, leader.epoch(), &tails).await
    }

    /// Rounds, pipelined: while appends are on their way the next rows are taken. Returns what is done but not yet reported.
    async fn drain(
        &self,
        leader: &mut dyn Leader,
        topic: &Topic,
        asked: &mut Questions,
    ) -> Result<Vec<Mark>> {
        let mut lanes = Lanes::new(Arc::clone(&self.bus), topic.clone(), leader.epoch());
        let mut renew = Instant::now() + self.lease.renew_every();
        let mut later = Schedule::new(self.clock.clone());
        let mut announced = self.announced.clone();
        announced.mark_changed();
        let (mut idle, mut look, mut moved, mut poll) = (0, true, true, Instant::now());
        loop {
            if self.stop.is_cancelled() {
                return self.finish(lanes).await;
            }
            if Instant::now() >= renew {
                renew = self.renew(leader).await?;
                moved = moved && self.measure().await?.rows > 0;
            }
            look |= later.move_due(leader).await?;
            if (look || lanes.is_removal_due()) && lanes.rows() < IN_FLIGHT_ROWS_MAX {
                let taken = self.round(leader, &mut lanes).await?;
                look = taken.may_have_more;
                idle = if taken.rows > 0 { 0 } else { idle };
                poll = Instant::now() + POLL.delay(idle, 1.0);
                moved |= taken.rows > 0;
            }
            self.divide_bus(leader, &mut lanes).await?;
            let has_room = lanes.rows() < IN_FLIGHT_ROWS_MAX;
            let upkeep = lanes.removal_at().filter(|_| has_room).map_or(renew, |at| at.min(renew));
            tokio::select! {
                biased;
                Some(question) = asked.next() => self.recovery.answer(leader, question).await?,
                acknowledged = lanes.next(), if lanes.is_sending() => self.note(acknowledged)?,
                Ok(()) = announced.changed() => self.carry_out(leader).await?,
                () = std::future::ready(()), if look && has_room => {}
                () = self.woken.notified() => (look, moved) = (true, true),
                () = self.stop.cancelled() => {}
                () = later.due(leader.next_due(), upkeep) => {}
                () = sleep_until(poll), if !lanes.is_sending() => (idle, look) = (idle + 1, true),
            }
        }
    }

    /// Lengthens the lease, and returns when to do so again.
    async fn renew(&self, leader: &mut dyn Leader) -> Result<Instant> {
        leader.renew().await?;
        Ok(Instant::now() + self.lease.renew_every())
    }

    fn note(&self, acknowledged: Result<(usize, Duration)>) -> Result<()> {
        barrier::reach("relay.after-append");
        let (events, took) = acknowledged?;
        self.metrics.relayed.inc_by(events as u64);
        self.metrics.append_seconds.observe(took.as_secs_f64());
        Ok(())
    }

    /// One round: what is done is removed, what comes next is sent.
    async fn round(&self, leader: &mut dyn Leader, lanes: &mut Lanes) -> Result<Taken> {
        let limit = RoundLimit::default();
        let rows = leader.round(&lanes.take_done_if_worth(), limit).await?;
        let bytes: usize = rows.iter().map(|row| row.bytes.len()).sum();
        // A short round was the last for now; a full one may have more behind it.
        let taken =
            Taken { rows: rows.len(), may_have_more: rows.len() >= limit.rows || bytes >= limit.bytes };
        if !rows.is_empty() {
            self.metrics.round_rows.observe(rows.len() as f64);
            barrier::reach("relay.before-append");
            lanes.send(rows);
        }
        Ok(taken)
    }

    /// Waits for what is on its way, so that a successor need not send it again. What waits for a division it finds again.
    async fn finish(&self, mut lanes: Lanes) -> Result<Vec<Mark>> {
        while lanes.is_sending() {
            lanes.next().await?;
        }
        Ok(lanes.take_done())
    }

    /// Refuses what comes next while the outbox is full, with what is kept for later, and warns at half.
    fn bound(&self, depth: &Depth) {
        let service = &self.publisher.service;
        let bytes = depth.bytes + depth.later_bytes;
        let before = self.metrics.outbox_bytes.get() + self.metrics.later_bytes.get();
        let full = bytes >= OUTBOX_BYTES_MAX;
        if self.publisher.full.swap(full, Ordering::Relaxed) != full {
            let now = if full { "is full: nothing more is taken" } else { "has room again" };
            tracing::error!(%service, bytes, bound = OUTBOX_BYTES_MAX, "the outbox {now}");
        } else if !full && before < HALF && bytes >= HALF as u64 {
            tracing::warn!(%service, bytes, bound = OUTBOX_BYTES_MAX, "the outbox is more than half full");
        }
    }

    async fn measure(&self) -> Result<Depth> {
        let depth = self.outbox.depth().await?;
        let age =
            depth.oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64().max(0.0));
        self.bound(&depth);
        self.metrics.outbox_rows.set(depth.rows as i64);
        self.metrics.outbox_bytes.set(depth.bytes as i64);
        self.metrics.outbox_age.set(age);
        self.metrics.later_rows.set(depth.later_rows as i64);
        self.metrics.later_bytes.set(depth.later_bytes as i64);
        self.metrics.parked_rows.set(depth.parked_rows as i64);
        self.metrics.later_due.set(depth.next_due.map_or(0, Timestamp::as_second));
        self.board.relay(|relay| {
            relay.outbox_rows = depth.rows;
            relay.outbox_bytes = depth.bytes;
            relay.oldest_seconds = age;
            relay.later_rows = depth.later_rows;
            relay.next_due = depth.next_due;
            relay.parked_rows = depth.parked_rows;
            relay.state = match (depth.rows, depth.parked_rows) {
                (0, _) => "idle".into(),
                (_, 0) => "moving".into(),
                (_, parked) => format!("moving; {parked} rows of other programs are parked"),
            };
        });
        Ok(depth)
    }
}

/// What a round took.
struct Taken {
    rows: usize,
    may_have_more: bool,
}

/// Whether going on needs an operator to say something. What passes by itself is retried soon: an older epoch, because a
/// leader that was replaced only has to begin anew; a bus that takes no more, until its disk has room or it is opened again.
fn is_stop(error: &Error) -> bool {
    matches!(error.kind(), Kind::Bus | Kind::Database | Kind::Restored) && !is_passing(error)
}

fn is_passing(error: &Error) -> bool {
    use tombolo_bus::Kind::{OlderEpoch, ReadOnly};
    let source = std::error::Error::source(error);
    let bus = source.and_then(|source| source.downcast_ref::<tombolo_bus::Error>());
    let database = source.and_then(|source| source.downcast_ref::<tombolo_db::Error>());
    bus.is_some_and(|error| matches!(error.kind(), OlderEpoch | ReadOnly))
        || database.is_some_and(|error| error.kind() == tombolo_db::Kind::Fenced)
}
