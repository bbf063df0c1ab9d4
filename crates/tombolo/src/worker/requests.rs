//! Carrying out what operators asked: under the lease, in the transaction that also writes the outcome.
//!
//! takes: the open requests of held partitions · writes: what was asked, and the outcome · commits when: both are
//! written · if we crash here: the request waits · if it repeats: it has its outcome, and the repeat is refused.
//!
//! Invariant: a request whose outcome says that it was done was done exactly once; one that was refused changed nothing.

use std::collections::BTreeSet;

use tombolo_bus::Read;
use tombolo_db::{Database, ParkedEvent, ParkedFilter, Transaction};
use tombolo_event::operator::{Action, Outcome, PartitionOf, Place, Request, Which};
use tombolo_event::{Cursor, KeyHash};
use uuid::Uuid;

use super::{Session, Worker};
use crate::Result;
use crate::subscription::Role;

/// Parked events that are discarded in one transaction.
const DISCARDED_AT_ONCE: usize = 1_000;
/// Events that an outcome names one by one.
const NAMED_MAX: usize = 10;

/// A redrive that was asked for and is under way.
pub(super) struct Redriving {
    request: Uuid,
    lane: usize,
    /// The keys that are still to be tried.
    keys: BTreeSet<KeyHash>,
    handled: u64,
    failed: u64,
}

impl Session {
    /// Tells the redrives that were asked for what became of an event of `key`.
    pub(super) fn tell_redrive(&mut self, lane: usize, key: KeyHash, handled: bool) {
        for redriving in self.redriving.iter_mut().filter(|redriving| redriving.lane == lane) {
            if !redriving.keys.contains(&key) {
                continue;
            }
            redriving.handled += u64::from(handled);
            if !handled {
                redriving.failed += 1;
                redriving.keys.remove(&key);
            }
        }
    }
}

impl<D: Database> Worker<D> {
    /// Carries out what was asked of the partitions that are held here.
    pub(super) async fn carry_out(&self, session: &mut Session) -> Result<()> {
        for request in self.database.open_requests(&self.subscription.name).await? {
            let Some(lane) = request.of.as_ref().and_then(|of| session.lane_of(of)) else { continue };
            if session.redriving.iter().any(|redriving| redriving.request == request.id) {
                continue;
            }
            // What this version does not know is left to one that does.
            let Ok(action) = serde_json::from_value::<Action>(request.detail.clone()) else { continue };
            self.act(session, lane, &request, action).await?;
        }
        self.finish_redrives(session).await
    }

    async fn act(&self, session: &mut Session, lane: usize, request: &Request, action: Action) -> Result<()> {
        tracing::info!(subscription = self.subscription.name, request = %request.id, by = request.asked_by,
            "carries out: {}", request.detail);
        match action {
            Action::Pause => self.pause_lane(session, lane, request).await,
            Action::Resume => self.resume_lane(session, lane, request).await,
            Action::Redrive(which) => self.begin_redrive(session, lane, request, &which).await,
            Action::Discard(which) => self.discard(session, lane, request, &which).await,
            Action::Reset { to, force } => match &to[..] {
                [to] => self.reset(session, lane, request, to, force).await,
                _ => self.refuse(request, "a reset names one place for each partition".into()).await,
            },
            Action::Skip { to } => self.skip(session, lane, request, &to).await,
            // These are about builds of a view, or about the topic: the view's keeper and the relay's leader carry them out.
            Action::Rebuild { .. } | Action::Switch { .. } | Action::Drop { .. } | Action::Divide { .. } => {
                Ok(())
            }
        }
    }

    async fn refuse(&self, request: &Request, why: String) -> Result<()> {
        tracing::warn!(subscription = self.subscription.name, request = %request.id, "refuses: {why}");
        Ok(self.database.finish(request.id, &Outcome::refused(why)).await?)
    }

    async fn pause_lane(&self, session: &mut Session, index: usize, request: &Request) -> Result<()> {
        let lane = &mut session.lanes[index];
        let mut tx = self.database.begin(&self.publisher).await?;
        tx.pause(&lane.claim, Some(&request.asked_by)).await?;
        let text = format!("{} is paused after {}", place(lane.of()), lane.claim.cursor.sequence);
        tx.finish(request.id, &Outcome::done(text)).await?;
        tx.commit().await?;
        lane.pause(&request.asked_by);
        session.streams.remove(&index);
        Ok(())
    }

    async fn resume_lane(&self, session: &mut Session, index: usize, request: &Request) -> Result<()> {
        let lane = &mut session.lanes[index];
        let mut tx = self.database.begin(&self.publisher).await?;
        tx.pause(&lane.claim, None).await?;
        let text = match &lane.claim.paused_by {
            Some(by) => format!(
                "{} goes on after {}; {by} had paused it",
                place(lane.of()),
                lane.claim.cursor.sequence
            ),
            None => format!("{} was not paused", place(lane.of())),
        };
        tx.finish(request.id, &Outcome::done(text)).await?;
        tx.commit().await?;
        match lane.claim.paused_by.take() {
            Some(_) => self.read(session, index).await,
            None => Ok(()),
        }
    }

    async fn begin_redrive(
        &self,
        session: &mut Session,
        index: usize,
        request: &Request,
        which: &Which,
    ) -> Result<()> {
        let lane = &session.lanes[index];
        if lane.is_paused() {
            return self.refuse(request, paused(lane.of())).await;
        }
        let keys: BTreeSet<KeyHash> = match self.filter(which).await? {
            None => lane.parked.hashes().collect(),
            Some(key) => lane.parked.hashes().filter(|hash| *hash == key).collect(),
        };
        // What waits behind earlier partitions follows by itself.
        let keys: BTreeSet<KeyHash> = keys.into_iter().filter(|key| !lane.parked.is_behind(*key)).collect();
        let lane = &mut session.lanes[index];
        for key in &keys {
            lane.parked.schedule(*key, Some(jiff::Timestamp::MIN));
        }
        let redriving = Redriving { request: request.id, lane: index, keys, handled: 0, failed: 0 };
        session.redriving.push(redriving);
        Ok(())
    }

    /// The key that is meant; none for all. An event that is not parked stands for a key that nothing has.
    async fn filter(&self, which: &Which) -> Result<Option<KeyHash>> {
        if let Some(key) = &which.key {
            return Ok(Some(KeyHash::of(key)));
        }
        let Some(id) = which.event else { return Ok(None) };
        let subscription = Some(self.subscription.name.clone());
        let found =
            self.database.parked(&ParkedFilter { subscription, id: Some(id), key_hash: None }, 1).await?;
        Ok(Some(found.first().map_or_else(|| KeyHash::of(&id.to_string()), |event| event.key_hash)))
    }

    /// Writes the outcome of the redrives that have tried each of their keys.
    pub(super) async fn finish_redrives(&self, session: &mut Session) -> Result<()> {
        let lanes = &session.lanes;
        for redriving in &mut session.redriving {
            redriving.keys.retain(|key| lanes[redriving.lane].parked.contains(*key));
        }
        for done in session.redriving.extract_if(.., |redriving| redriving.keys.is_empty()) {
            let at = place(lanes[done.lane].of());
            let text = match (done.handled, done.failed) {
                (0, 0) if lanes[done.lane].parked.has_ahead() => format!(
                    "{at}: what is parked here follows by itself, once what is parked of its key in earlier partitions has left"
                ),
                (0, 0) => format!("nothing of it is parked in {at}"),
                (handled, 0) => format!("{} of {at} handled", events(handled)),
                (handled, failed) => format!(
                    "{} of {at} handled; {failed} {} again and stays parked: `tombolo parked list` says with what",
                    events(handled),
                    if failed == 1 { "key failed" } else { "keys failed" }
                ),
            };
            let outcome = if done.failed == 0 { Outcome::done(text) } else { Outcome::refused(text) };
            self.database.finish(done.request, &outcome).await?;
        }
        Ok(())
    }

    async fn discard(
        &self,
        session: &mut Session,
        index: usize,
        request: &Request,
        which: &Which,
    ) -> Result<()> {
        let lane = &session.lanes[index];
        let key_hash = which.key.as_deref().map(KeyHash::of);
        let subscription = Some(self.subscription.name.clone());
        let filter = ParkedFilter { subscription, key_hash, id: which.event };
        let (mut named, mut count) = (Vec::new(), 0);
        loop {
            let found = self.database.parked(&filter, usize::MAX).await?;
            let its = |event: &&ParkedEvent| {
                event.topic == lane.claim.topic && event.partition == lane.claim.partition
            };
            let some: Vec<&ParkedEvent> = found.iter().filter(its).take(DISCARDED_AT_ONCE).collect();
            let is_last = some.len() < DISCARDED_AT_ONCE;
            let mut tx = self.database.begin(&self.publisher).await?;
            for event in &some {
                tx.unpark(&lane.claim, event.sequence).await?;
                if named.len() < NAMED_MAX {
                    named.push(format!("{} ({} {})", event.sequence, event.event_type, event.id));
                }
            }
            count += some.len() as u64;
            if is_last {
                let named = named.join(", ");
                let text = format!("{} of {} discarded: {named}", events(count), place(lane.of()));
                tx.finish(request.id, &Outcome::done(text)).await?;
            }
            tx.commit().await?;
            if is_last {
                break;
            }
        }
        self.reload_parked(session, index).await
    }

    async fn reset(
        &self,
        session: &mut Session,
        index: usize,
        request: &Request,
        to: &Place,
        force: bool,
    ) -> Result<()> {
        let lane = &session.lanes[index];
        let from = lane.claim.cursor;
        if self.subscription.role == Role::View && !force {
            return self.refuse(request, VIEW_RESET.into()).await;
        }
        if to.incarnation != from.incarnation || to.sequence > from.sequence {
            let why = format!(
                "a reset goes back, but {} is after {} and {} was asked for; `tombolo subscriptions skip` goes ahead",
                place(lane.of()),
                from.sequence,
                to.sequence
            );
            return self.refuse(request, why).await;
        }
        let text = format!(
            "{} goes on after {} instead of {}, so {} are handled again",
            place(lane.of()),
            to.sequence,
            from.sequence,
            events(from.sequence - to.sequence)
        );
        self.move_to(session, index, request, to, text).await
    }

    async fn skip(&self, session: &mut Session, index: usize, request: &Request, to: &Place) -> Result<()> {
        let lane = &session.lanes[index];
        let (from, cursor) = (lane.claim.cursor, to.cursor());
        let same_log = to.incarnation == from.incarnation;
        if same_log && (to.sequence < from.sequence || cursor == from) {
            let why = format!(
                "a skip goes ahead, but {} is after {} already and {} was asked for; `tombolo subscriptions reset` goes back",
                place(lane.of()),
                from.sequence,
                to.sequence
            );
            return self.refuse(request, why).await;
        }
        if !same_log && lane.parked.keys() > 0 {
            let why = format!(
                "{} of {} are parked, which belong to the log before: redrive or discard them first",
                events(lane.parked.events()),
                place(lane.of())
            );
            return self.refuse(request, why).await;
        }
        let text = skipped(lane.of(), &from, &cursor);
        self.move_to(session, index, request, to, text).await
    }

    /// Moves the cursor to a place that the bus knows.
    async fn move_to(
        &self,
        session: &mut Session,
        index: usize,
        request: &Request,
        to: &Place,
        text: String,
    ) -> Result<()> {
        let lane = &session.lanes[index];
        let cursor = to.cursor();
        let found = self.bus.read(Read::to_tail(&lane.claim.topic, lane.claim.partition, cursor)).await;
        match found {
            Ok(stream) => drop(stream),
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => return self.refuse(request, format!("there is no such place: {error}")).await,
        }
        let mut tx = self.database.begin(&self.publisher).await?;
        if cursor.incarnation == lane.claim.cursor.incarnation {
            tx.unpark_after(&lane.claim, cursor.sequence).await?;
        }
        if cursor.sequence < lane.claim.cursor.sequence {
            tx.forget_calls_after(&lane.claim, cursor.sequence).await?;
        }
        tx.advance(&lane.claim, &cursor).await?;
        tx.finish(request.id, &Outcome::done(text)).await?;
        tx.commit().await?;
        session.lanes[index].moved(cursor, std::time::Duration::ZERO, std::iter::empty());
        self.reload_parked(session, index).await?;
        match session.lanes[index].is_paused() {
            true => Ok(()),
            false => self.read(session, index).await,
        }
    }

    async fn reload_parked(&self, session: &mut Session, index: usize) -> Result<()> {
        let heads = self.database.parked_heads(&self.subscription.name).await?;
        session.lanes[index].load_parked(&heads);
        Ok(())
    }
}

/// Why a view is not simply reset.
pub(crate) const VIEW_RESET: &str = "a view that goes back applies its events again onto the rows that are there, so most views would then be wrong; build it anew beside the old one with `tombolo views rebuild`, or say --force if its tables were emptied or its folds may repeat";

fn place(of: PartitionOf) -> String {
    format!("{}/{}", of.topic, of.partition)
}

/// What a skip steps over, by name.
fn skipped(of: PartitionOf, from: &Cursor, to: &Cursor) -> String {
    let (at, last) = (from.sequence, to.sequence);
    if from.incarnation == to.incarnation {
        let count = events(last - at);
        return format!("{} steps over {count}: {} to {last}, and goes on after {last}", place(of), at + 1);
    }
    format!(
        "{} leaves the log {} after {at}, and goes on in the log {} after {last}",
        place(of),
        from.incarnation,
        to.incarnation
    )
}

fn paused(of: PartitionOf) -> String {
    format!("{} is paused; `tombolo subscriptions resume` first", place(of))
}

fn events(count: u64) -> String {
    if count == 1 { "1 event".into() } else { format!("{count} events") }
}
