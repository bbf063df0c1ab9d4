//! A cursor is moved by something else than deliveries: a snapshot that the subscriber got, or an operator.
//!
//! Invariant: it moves only when nothing is under way, and what was read before is forgotten.

use tokio::sync::oneshot;
use tombolo_event::Cursor;

use super::{Change, Runner, Standing, reply};
use crate::problem::Problem;
use crate::push::queue::Queue;

/// Where the cursors are to be, once nothing is under way.
pub(super) struct Settling {
    cursors: Vec<(u32, Cursor)>,
    /// Whoever asked; a snapshot asks for nothing.
    asked: Option<oneshot::Sender<Result<(), Problem>>>,
}

impl Runner {
    /// The subscriber has a snapshot up to this cursor.
    pub(super) fn settle_at_snapshot(&mut self, to: Cursor) {
        self.settling = Some(Settling { cursors: vec![(0, to)], asked: None });
    }

    /// An operator moves the cursors.
    pub(super) fn settle_at(
        &mut self,
        cursors: Vec<(u32, Cursor)>,
        asked: oneshot::Sender<Result<(), Problem>>,
    ) {
        self.settling = Some(Settling { cursors, asked: Some(asked) });
    }

    /// Moves the cursors as soon as nothing is under way.
    pub(super) async fn settle(&mut self) {
        if self.under_way + self.committing > 0 {
            return;
        }
        let Some(Settling { cursors, asked }) = self.settling.take() else { return };
        let is_snapshot = asked.is_none();
        let mut changes = Vec::new();
        for standing in self.moved(&cursors, is_snapshot) {
            changes.push(Change::Stands(standing.clone()));
            self.kept.insert(standing.partition, standing);
        }
        changes.extend(self.failing().map(|event| Change::Cleared(event.place)));
        match self.let_go(&cursors, is_snapshot).await {
            Ok(unparked) => changes.extend(unparked),
            Err(problem) => {
                tracing::error!(problem = problem.detail(), "parked events could not be looked at");
            }
        }
        self.forget();
        drop(self.state.write(&self.definition.name, changes).await.await);
        if is_snapshot {
            self.recovery.well();
        }
        if let Some(asked) = asked {
            reply(asked, Ok(()));
        }
        self.look().await;
    }

    /// How the partitions stand afterwards: all that are open, those that move at their new place.
    fn moved(&self, cursors: &[(u32, Cursor)], is_snapshot: bool) -> Vec<Standing> {
        let of = |partition: u32| self.queue.standing(partition).or_else(|| self.kept.get(&partition));
        let mut standings: Vec<Standing> = self.queue.partitions().cloned().collect();
        for (partition, to) in cursors {
            let before = of(*partition).cloned().unwrap_or_else(|| Standing::new(*partition, *to));
            standings.retain(|it| it.partition != *partition);
            let is_older = is_snapshot && before.cursor.sequence > to.sequence;
            let cursor = if is_older { before.cursor } else { *to };
            let end = self.queue.end(*partition).map_or(before.cursor.sequence, |end| end.sequence);
            let repeated_to = before.repeated_to.max(end);
            let done = if is_snapshot { before.done } else { std::collections::BTreeSet::new() };
            let done = done.into_iter().filter(|at| *at > cursor.sequence).collect();
            standings.push(Standing { cursor, done, repeated_to, started_to: 0, ..before });
        }
        standings
    }

    /// The parked events that go: those in the snapshot, or those that will be read again.
    async fn let_go(&mut self, cursors: &[(u32, Cursor)], is_snapshot: bool) -> Result<Vec<Change>, Problem> {
        let mut changes = Vec::new();
        if self.parked.is_empty() {
            return Ok(changes);
        }
        for parked in self.state.parked(&self.definition.name).await? {
            let cursor = cursors.iter().find(|(partition, _)| *partition == parked.place.0);
            let Some((_, cursor)) = cursor else { continue };
            let is_before = parked.place.1 <= cursor.sequence;
            if is_before == is_snapshot {
                let key = self.key_of(&parked);
                self.unparked(&key);
                changes.push(Change::Unparked(parked.place));
            }
        }
        Ok(changes)
    }

    /// Forgets what was read; it is read again from the cursors.
    fn forget(&mut self) {
        for standing in self.queue.partitions() {
            self.kept.entry(standing.partition).or_insert_with(|| standing.clone());
        }
        self.queue = Queue::new(self.definition.order, std::collections::HashMap::new());
        self.readers.clear();
        self.reading.clear();
        self.is_unreadable = false;
        self.resting.clear();
        self.later.clear();
        self.full.clear();
        self.redrive.clear();
    }
}
