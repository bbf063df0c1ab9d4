//! Cases about what is published for later: durable, moved once when it is due, in the order in which it is due.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tombolo_event::{Envelope, EventId};
use uuid::Uuid;

use super::recovering::{adoption, decided, halted, tail};
use super::stage::{Noted, Ready, assert_contiguous, event_of, noted, service, stand_at};
use super::{Case, Fixture, Stage, Tx};
use crate::{Depth, Kind, Leader, Origin, Recovery, RoundLimit, Transaction};

/// Longer than no move takes.
const STILL: Duration = Duration::from_millis(150);

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(an_event_for_later_has_no_place_until_it_is_due),
        Case::new(what_is_due_comes_in_the_order_of_its_due_times),
        Case::new(what_is_due_comes_between_the_events_of_its_key),
        Case::new(an_event_for_later_commits_with_its_transaction),
        Case::new(a_crash_at_a_move_neither_loses_nor_doubles),
        Case::new(a_replaced_leader_moves_nothing),
        Case::new(a_move_keeps_within_its_limit),
        Case::new(a_move_waits_for_the_commit_of_its_key),
        Case::new(a_withdrawn_event_never_comes),
        Case::new(what_was_moved_cannot_be_withdrawn),
        Case::new(a_withdrawal_that_is_not_committed_holds_its_key)
            .needing(|abilities| abilities.late_commits),
        Case::new(the_same_consequence_is_kept_once),
        Case::new(what_came_before_a_restore_does_not_come_again),
        Case::new(a_full_outbox_keeps_nothing_for_later),
    ]
}

/// A fixed moment and so many seconds: the database must not look at its own clock.
fn at(seconds: i64) -> Timestamp {
    let noon: Timestamp = "2150-01-01T12:00:00Z".parse().expect("a moment");
    noon + SignedDuration::from_secs(seconds)
}

async fn keep<F: Fixture>(ready: &Ready<F>, event: &Noted, due: Timestamp) -> EventId {
    let mut tx = ready.begin().await;
    let id = tx.outgoing().publish_at(event, due).expect("it may be published later");
    assert!(tx.commit().await.expect("it commits").positions.is_empty(), "it has a place already");
    id
}

/// Moves everything that is due, in as few rounds as that takes.
async fn move_all(leader: &mut dyn Leader, now: Timestamp) -> usize {
    let mut moved = 0;
    loop {
        match leader.move_due(now, RoundLimit::default()).await.expect("a move works") {
            0 => return moved,
            some => moved += some,
        }
    }
}

async fn values<F: Fixture>(ready: &Ready<F>, leader: &mut dyn Leader) -> Vec<i64> {
    ready.drain(leader).await.iter().map(|row| event_of(row).value).collect()
}

async fn an_event_for_later_has_no_place_until_it_is_due<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let id = keep(&ready, &noted("a", 1), at(10)).await;
    let depth = ready.depth().await;
    assert_eq!((depth.rows, depth.later_rows, depth.next_due), (0, 1, Some(at(10))));
    assert!(depth.later_bytes > 0);
    assert_eq!(ready.woken(), 1, "the relay has to learn the due time");
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert!(ready.drain(&mut *leader).await.is_empty());
    assert_eq!(leader.next_due(), Some(at(10)));
    assert_eq!(move_all(&mut *leader, at(9)).await, 0, "it is not due");
    assert_eq!(move_all(&mut *leader, at(10)).await, 1);
    let rows = ready.drain(&mut *leader).await;
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [id]);
    let envelope = Envelope::decode(rows[0].bytes.clone()).expect("stored bytes are an event");
    assert_eq!((envelope.time, envelope.source), (at(10), service().to_string()));
    assert_eq!((ready.depth().await, leader.next_due()), (Depth::default(), None));
}

async fn what_is_due_comes_in_the_order_of_its_due_times<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    for (value, seconds) in [(5, 50), (1, 10), (3, 30), (4, 30), (2, 20), (6, 60)] {
        keep(&ready, &noted(["a", "b"][value as usize % 2], value), at(seconds)).await;
    }
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert_eq!(move_all(&mut *leader, at(30)).await, 4);
    assert_eq!(move_all(&mut *leader, at(1_000)).await, 2);
    let rows = ready.drain(&mut *leader).await;
    assert_contiguous(&rows, 0);
    assert_eq!(rows.iter().map(|row| event_of(row).value).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}

async fn what_is_due_comes_between_the_events_of_its_key<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    keep(&ready, &noted("a", 3), at(10)).await;
    ready.commit(&[noted("a", 1)]).await;
    let mut values_seen = values(&ready, &mut *leader).await;
    ready.commit(&[noted("a", 2)]).await;
    assert_eq!(move_all(&mut *leader, at(10)).await, 1);
    ready.commit(&[noted("a", 4)]).await;
    values_seen.extend(values(&ready, &mut *leader).await);
    assert_eq!(values_seen, [1, 2, 3, 4]);
}

async fn an_event_for_later_commits_with_its_transaction<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    tx.outgoing().publish_at(&noted("a", 1), at(10)).expect("it may be published later");
    tx.rollback().await.expect("it is rolled back");
    assert_eq!((ready.read("a").await, ready.depth().await), (None, Depth::default()));
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    tx.outgoing().publish_at(&noted("a", 2), at(10)).expect("it may be published later");
    let now = tx.outgoing().publish(&noted("a", 1)).expect("it is published");
    let committed = tx.commit().await.expect("it commits");
    assert_eq!(committed.positions.iter().map(|position| position.id).collect::<Vec<_>>(), [now]);
    let other = ready.reopened().await;
    let depth = other.depth().await;
    assert_eq!((other.read("a").await, depth.rows, depth.later_rows), (Some(7), 1, 1));
}

async fn a_crash_at_a_move_neither_loses_nor_doubles<F: Fixture>(stage: Stage<F>) {
    for barrier in ["later.before-move", "later.after-move"] {
        let ready = stage.prepared(2).await;
        let holder = Uuid::now_v7();
        for value in 1..4 {
            keep(&ready, &noted("a", value), at(value)).await;
        }
        let mut leader = ready.lead(holder).await;
        let moving = async move { leader.move_due(at(10), RoundLimit::default()).await };
        stand_at(barrier, moving).await.crash().await;
        let other = ready.reopened().await;
        let mut leader = other.lead(holder).await;
        move_all(&mut *leader, at(10)).await;
        assert_eq!(values(&other, &mut *leader).await, [1, 2, 3], "after a crash at {barrier}");
        assert_eq!(other.depth().await, Depth::default(), "after a crash at {barrier}");
    }
}

async fn a_replaced_leader_moves_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let holder = Uuid::now_v7();
    keep(&ready, &noted("a", 1), at(10)).await;
    let mut old = ready.lead(holder).await;
    let mut new = ready.reopened().await.lead(holder).await;
    let error = old.move_due(at(10), RoundLimit::default()).await.expect_err("it was replaced");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let depth = ready.depth().await;
    assert_eq!((depth.rows, depth.later_rows), (0, 1));
    assert_eq!(move_all(&mut *new, at(10)).await, 1);
}

async fn a_move_keeps_within_its_limit<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut tx = ready.begin().await;
    for value in 0..10 {
        let large = Noted { padding: "x".repeat(10_000), ..noted("a", value) };
        tx.outgoing().publish_at(&large, at(0)).expect("it may be published later");
    }
    tx.commit().await.expect("it commits");
    let mut leader = ready.lead(Uuid::now_v7()).await;
    for (rows, bytes, expected) in [(3, 1 << 20, 3), (5, 1, 1), (5, 25_000, 2), (100, 1 << 20, 4), (1, 1, 0)]
    {
        let moved = leader.move_due(at(0), RoundLimit { rows, bytes }).await.expect("a move works");
        assert_eq!(moved, expected, "at most {rows} rows of {bytes} bytes");
    }
    assert_eq!(values(&ready, &mut *leader).await, (0..10).collect::<Vec<_>>());
}

async fn a_move_waits_for_the_commit_of_its_key<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    keep(&ready, &noted("a", 2), at(10)).await;
    let tx = ready.publishing(&[noted("a", 1)]).await;
    let committing = stand_at("outbox.before-commit", tx.commit()).await;
    let mut moving = tokio::spawn(async move {
        leader.move_due(at(10), RoundLimit::default()).await.map(|moved| (leader, moved))
    });
    assert!(
        tokio::time::timeout(STILL, &mut moving).await.is_err(),
        "it did not wait for the lock of its key"
    );
    committing.finish().await.expect("it commits");
    let (mut leader, moved) = moving.await.expect("it does not panic").expect("a move works");
    assert_eq!(moved, 1);
    assert_eq!(values(&ready, &mut *leader).await, [1, 2]);
}

async fn withdraw<F: Fixture>(ready: &Ready<F>, id: EventId) -> (Tx<F>, bool) {
    let mut tx = ready.begin().await;
    let was_there = tx.withdraw(id).await.expect("a withdrawal works");
    (tx, was_there)
}

async fn a_withdrawn_event_never_comes<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let id = keep(&ready, &noted("a", 1), at(10)).await;
    let (tx, was_there) = withdraw(&ready, id).await;
    tx.rollback().await.expect("it is rolled back");
    assert!(was_there && ready.depth().await.later_rows == 1, "an undone withdrawal takes nothing back");
    let (tx, was_there) = withdraw(&ready, id).await;
    tx.commit().await.expect("it commits");
    assert!(was_there);
    let (mut tx, was_there) = withdraw(&ready, id).await;
    assert!(!was_there, "it was withdrawn before");
    let own = tx.outgoing().publish_at(&noted("a", 2), at(10)).expect("it may be published later");
    assert!(tx.withdraw(own).await.expect("a withdrawal works"), "its own is not committed yet");
    tx.commit().await.expect("it commits");
    assert_eq!(ready.depth().await, Depth::default());
    assert_eq!(move_all(&mut *ready.lead(Uuid::now_v7()).await, at(10)).await, 0);
    let mut tx = ready.begin().await;
    tx.outgoing().enter(Origin::View { view: "copies".into(), tables: None });
    assert_eq!(tx.withdraw(own).await.expect_err("views only fold").kind(), Kind::Refused);
    assert_eq!(tx.commit().await.expect_err("it is poisoned").kind(), Kind::Poisoned);
}

async fn what_was_moved_cannot_be_withdrawn<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let id = keep(&ready, &noted("a", 1), at(10)).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert_eq!(move_all(&mut *leader, at(10)).await, 1);
    let (tx, was_there) = withdraw(&ready, id).await;
    tx.commit().await.expect("it commits");
    assert!(!was_there);
    assert_eq!(values(&ready, &mut *leader).await, [1]);
}

async fn a_withdrawal_that_is_not_committed_holds_its_key<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let first = keep(&ready, &noted("a", 1), at(10)).await;
    keep(&ready, &noted("a", 2), at(20)).await;
    keep(&ready, &noted("b", 3), at(30)).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let (tx, _) = withdraw(&ready, first).await;
    assert_eq!(move_all(&mut *leader, at(40)).await, 1, "another key waits, or this one does not");
    tx.rollback().await.expect("it is rolled back");
    assert_eq!(move_all(&mut *leader, at(40)).await, 2);
    let rows = ready.drain(&mut *leader).await;
    let of_a = rows.iter().map(event_of).filter(|event| event.key == "a").map(|event| event.value);
    assert_eq!(of_a.collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rows.len(), 3);
}

async fn the_same_consequence_is_kept_once<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let origin = Origin::Reaction { subscription: "remind".into(), cause: EventId::new() };
    for _ in 0..2 {
        let mut tx = ready.begin().await;
        tx.outgoing().enter(origin.clone());
        tx.outgoing().publish_at(&noted("a", 1), at(10)).expect("a reactor may publish later");
        tx.commit().await.expect("a redo commits");
    }
    assert_eq!(ready.depth().await.later_rows, 1);
}

/// The database is an older copy, in which something waits that has come since.
async fn what_came_before_a_restore_does_not_come_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let came = keep(&ready, &noted("a", 1), at(10)).await;
    keep(&ready, &noted("a", 2), at(20)).await;
    let halt = halted(&ready).await;
    let on_bus = adoption(vec![tail(0, 1)], vec![came]);
    let adopted = ready.database.adopt(&decided(&halt), &on_bus).await.expect("adopting works");
    assert_eq!((adopted.dropped, ready.depth().await.later_rows), (1, 1));
    let mut leader = ready.lead(Uuid::now_v7()).await;
    move_all(&mut *leader, at(30)).await;
    let rows = ready.drain(&mut *leader).await;
    assert_contiguous(&rows, 1);
    assert_eq!(rows.iter().map(|row| event_of(row).value).collect::<Vec<_>>(), [2]);
}

async fn a_full_outbox_keeps_nothing_for_later<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let publisher = ready.publisher();
    publisher.full.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut tx = crate::Database::begin(&ready.database, &publisher).await.expect("a transaction begins");
    let refused = tx.outgoing().publish_at(&noted("a", 1), at(10));
    assert_eq!(refused.expect_err("it is full").kind(), Kind::Full);
    assert_eq!(tx.commit().await.expect_err("it is poisoned").kind(), Kind::Poisoned);
}
