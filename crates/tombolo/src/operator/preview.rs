//! `POST /tombolo/requests/preview`: where a reset or a skip would go, and what it would mean.
//!
//! Invariant: what is asked for later is exactly what was shown: a preview names places of the log by their ids, and the
//! holder of the lease only ever moves a cursor to such a place.

use axum::Json;
use axum::extract::State;
use futures_util::StreamExt;
use jiff::Timestamp;
use tombolo_bus::{Bus, Read, Record, Topic};
use tombolo_db::{CursorState, Database};
use tombolo_event::operator::{Goal, Move, PartitionOf, Place, Plan, Preview};
use tombolo_event::{Cursor, Envelope, EventId};

use super::{cursors_of, of, wrong};
use crate::problem::Problem;
use crate::worker::VIEW_RESET;
use crate::{App, Error};

/// Events that a preview names one by one.
const NAMED_MAX: usize = 20;

pub(super) async fn preview<D: Database>(
    State(app): State<App<D>>,
    Json(plan): Json<Plan>,
) -> Result<Json<Preview>, Problem> {
    let cursors = cursors_of(&app, &plan.subscription).await?;
    let kind = app.status().subscriptions.into_iter().find(|status| status.name == plan.subscription);
    let kind = kind.map_or_else(|| "subscription".to_owned(), |status| status.kind);
    let moves = moves(app.desk().bus(), &cursors, &plan.to).await?;
    if moves.is_empty() {
        return Err(wrong(nothing_moves(&plan, &cursors)));
    }
    let is_skip = matches!(plan.to, Goal::Over { .. });
    let (warning, needs_force) = if is_skip { (skipping(), false) } else { resetting(&kind) };
    Ok(Json(Preview { kind, moves, warning: Some(warning.into()), needs_force }))
}

/// The moves of all cursors. What goes back in a partition takes the partitions of later generations back to their start:
/// there the same keys go on.
async fn moves(bus: &dyn Bus, cursors: &[CursorState], goal: &Goal) -> Result<Vec<Move>, Problem> {
    let is_skip = matches!(goal, Goal::Over { .. });
    let mut moves: Vec<Move> = Vec::new();
    for cursor in cursors {
        let topic = bus.topic(&cursor.topic).await.map_err(Error::from)?;
        let earlier = topic.generations.before(cursor.partition);
        let is_earlier = |of: &PartitionOf| of.topic == cursor.topic && earlier.contains(&of.partition);
        if !is_skip && moves.iter().any(|moved| is_earlier(&moved.to.of)) {
            moves.extend(moved(bus, &topic, cursor, &Goal::Start).await?);
        } else if is_meant(goal, cursor) {
            moves.extend(moved(bus, &topic, cursor, goal).await?);
        }
    }
    Ok(moves)
}

/// Refuses to go back in a partition without the partitions of later generations, where its keys go on.
pub(super) async fn check_reset(bus: &dyn Bus, cursors: &[CursorState], to: &[Place]) -> Result<(), Problem> {
    for cursor in cursors.iter().filter(|cursor| cursor.cursor.sequence > 0) {
        let own = of(cursor);
        if to.iter().any(|place| place.of == own && place.sequence == 0) {
            continue;
        }
        let topic = bus.topic(&own.topic).await.map_err(Error::from)?;
        let earlier = topic.generations.before(own.partition);
        let is_earlier =
            |place: &&Place| place.of.topic == own.topic && earlier.contains(&place.of.partition);
        if let Some(place) = to.iter().find(is_earlier) {
            return Err(wrong(format!(
                "what goes back in {}/{} goes on in partition {}, so that goes back to its start, too; ask for the moves that POST /tombolo/requests/preview shows",
                own.topic, place.of.partition, own.partition
            )));
        }
    }
    Ok(())
}

fn is_meant(goal: &Goal, cursor: &CursorState) -> bool {
    match goal {
        Goal::Start | Goal::Time { .. } => true,
        Goal::Sequence { of: meant, .. } | Goal::Over { of: meant, .. } => of(cursor) == *meant,
    }
}

fn skipping() -> &'static str {
    "what is stepped over is never handled by this subscription; if a handler fails with it, park or repair it instead (`tombolo parked list`)"
}

fn resetting(kind: &str) -> (&'static str, bool) {
    match kind {
        "view" => (VIEW_RESET, true),
        "effect" => (
            "the calls for these events are made again with the same idempotency keys, except those that are on record as done",
            false,
        ),
        _ => (
            "what this subscription did for these events it does again, what it publishes included (with the same ids)",
            false,
        ),
    }
}

fn nothing_moves(plan: &Plan, cursors: &[CursorState]) -> String {
    let stands: Vec<String> = cursors
        .iter()
        .map(|cursor| format!("{}/{} after {}", cursor.topic, cursor.partition, cursor.cursor.sequence))
        .collect();
    format!("no cursor of {:?} would move by that; they stand at {}", plan.subscription, stands.join(", "))
}

async fn moved(
    bus: &dyn Bus,
    topic: &Topic,
    cursor: &CursorState,
    goal: &Goal,
) -> Result<Option<Move>, Problem> {
    let of = of(cursor);
    let at = cursor.cursor.sequence;
    match goal {
        Goal::Over { sequence, .. } => over(bus, topic, cursor, sequence.unwrap_or(at + 1)).await.map(Some),
        _ if cursor.cursor.incarnation != topic.incarnation => Err(wrong(format!(
            "{}/{} was read in another log of this topic than the one that is on the bus now; step over to it with `tombolo subscriptions skip --to SEQUENCE`",
            of.topic, of.partition
        ))),
        Goal::Start => back(bus, topic, cursor, |_| true).await,
        Goal::Sequence { sequence, .. } => {
            back(bus, topic, cursor, |record| record.sequence >= *sequence).await
        }
        Goal::Time { time } => back(bus, topic, cursor, |record| published(record) >= Some(*time)).await,
    }
}

fn published(record: &Record) -> Option<Timestamp> {
    Envelope::decode(record.bytes.clone()).ok().map(|envelope| envelope.time)
}

/// Back to before the first event that `is_first`.
async fn back(
    bus: &dyn Bus,
    topic: &Topic,
    cursor: &CursorState,
    is_first: impl Fn(&Record) -> bool,
) -> Result<Option<Move>, Problem> {
    let of = of(cursor);
    let mut before: (u64, Option<EventId>) = (0, None);
    let read = Read::to_tail(&topic.name, of.partition, Cursor::start(topic.incarnation));
    let mut batches = bus.read(read).await.map_err(Error::from)?;
    while let Some(batch) = batches.next().await {
        for record in batch.map_err(Error::from)?.records {
            if record.sequence > cursor.cursor.sequence {
                return Ok(None);
            }
            if is_first(&record) {
                let events = cursor.cursor.sequence - before.0;
                let (from, since) = (cursor.cursor.sequence, published(&record));
                return Ok(Some(Move {
                    from,
                    to: place(of, topic, before),
                    events,
                    since,
                    over: Vec::new(),
                }));
            }
            before = (record.sequence, Some(record.id));
        }
    }
    // The log ends before the cursor does: what comes next takes the numbers of what was lost.
    let events = cursor.cursor.sequence - before.0;
    let lost = Move {
        from: cursor.cursor.sequence,
        to: place(of, topic, before),
        events,
        since: None,
        over: Vec::new(),
    };
    Ok((events > 0).then_some(lost))
}

/// Ahead, over everything up to `last`.
async fn over(bus: &dyn Bus, topic: &Topic, cursor: &CursorState, last: u64) -> Result<Move, Problem> {
    let of = of(cursor);
    let same_log = cursor.cursor.incarnation == topic.incarnation;
    let from = if same_log { cursor.cursor.sequence } else { 0 };
    if same_log && last <= from && last != 0 {
        return Err(wrong(format!(
            "{}/{} is after {from} already, so nothing would be stepped over up to {last}",
            of.topic, of.partition
        )));
    }
    let mut at: (u64, Option<EventId>) = (0, None);
    let (mut named, mut since) = (Vec::new(), None);
    let read = Read::to_tail(&topic.name, of.partition, Cursor::start(topic.incarnation));
    let mut batches = bus.read(read).await.map_err(Error::from)?;
    'log: while let Some(batch) = batches.next().await {
        for record in batch.map_err(Error::from)?.records {
            if record.sequence > last {
                break 'log;
            }
            if record.sequence > from {
                since = since.or_else(|| published(&record));
                named.push(format!("{} ({} {})", record.sequence, record.type_name(), record.id));
                named.truncate(NAMED_MAX);
            }
            at = (record.sequence, Some(record.id));
        }
    }
    if at.0 != last {
        return Err(wrong(format!(
            "{}/{} ends at {} on the bus, so nothing can be stepped over up to {last}",
            of.topic, of.partition, at.0
        )));
    }
    let events = last.saturating_sub(from);
    Ok(Move { from: cursor.cursor.sequence, to: place(of, topic, at), events, since, over: named })
}

fn place(of: PartitionOf, topic: &Topic, at: (u64, Option<EventId>)) -> Place {
    Place { of, incarnation: topic.incarnation, sequence: at.0, id: at.1 }
}
