//! Cases about cursors: they move from where they are, under the lease, with the effect, or not at all.

use tombolo_event::{Cursor, EventId, Incarnation};
use uuid::Uuid;

use super::stage::{LONG, Noted, Ready, noted, once, service};
use super::{Case, Fixture, Stage};
use crate::{Claim, CursorState, Cursors, Kind, Leases, StartAt, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(a_cursor_moves_with_its_effect),
        Case::new(a_cursor_that_moved_rolls_the_effect_back),
        Case::new(a_worker_that_lost_its_lease_is_fenced),
        Case::new(a_dropped_transaction_moves_no_cursor),
        Case::new(attempts_are_counted_until_the_cursor_moves),
        Case::new(a_claim_says_whether_its_holder_before_gave_it_up),
        Case::new(a_pause_outlives_its_holder),
        Case::new(opening_tells_the_types_that_were_added),
        Case::new(opening_again_keeps_the_cursors),
    ]
}

const NAME: &str = "customers";

fn after(claim: &Claim, sequence: u64) -> Cursor {
    Cursor::at(claim.cursor.incarnation, sequence, EventId::new())
}

async fn state<F: Fixture>(ready: &Ready<F>, claim: &Claim) -> CursorState {
    let states = ready.database.cursors().await.expect("cursors can be read");
    let is_its =
        |state: &CursorState| state.subscription == claim.subscription && state.partition == claim.partition;
    states.into_iter().find(is_its).expect("the cursor is there")
}

async fn a_cursor_moves_with_its_effect<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let incarnation = ready.open(NAME).await;
    let mut claims = ready.claim(NAME, Uuid::now_v7(), LONG).await;
    assert_eq!(claims.len(), 2);
    let claim = &mut claims[0];
    assert_eq!((claim.cursor, claim.topic.clone()), (Cursor::start(incarnation), service()));
    for sequence in [3, 4, 9] {
        let to = after(claim, sequence);
        let mut tx = ready.publishing(&[noted("a", 1)]).await;
        ready.fixture().write(&mut tx, &format!("at {sequence}"), 1).await.expect("the effect is written");
        tx.advance(claim, &to).await.expect("the cursor is where the claim says");
        tx.commit().await.expect("it commits");
        claim.cursor = to;
        let state = state(&ready, claim).await;
        assert_eq!((state.cursor, state.held), (to, true));
        assert!(state.moved_at.is_some());
    }
    assert_eq!((ready.depth().await.rows, ready.read("at 9").await), (3, Some(1)));
    assert_eq!(state(&ready, &claims[1]).await.cursor, Cursor::start(incarnation), "another partition moved");
}

async fn a_cursor_that_moved_rolls_the_effect_back<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let to = after(&claim, 5);
    let mut tx = ready.begin().await;
    tx.advance(&claim, &to).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    let mut tx = ready.publishing(&[noted("a", 1)]).await;
    ready.fixture().write(&mut tx, "a", 1).await.expect("the effect is written");
    let error = tx.advance(&claim, &after(&claim, 3)).await.expect_err("it is elsewhere");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    assert_eq!(tx.commit().await.expect_err("it was refused").kind(), Kind::Poisoned);
    assert_eq!((ready.read("a").await, ready.depth().await.rows), (None, 0), "the effect was kept");
    assert_eq!(state(&ready, &claim).await.cursor, to);
}

async fn a_worker_that_lost_its_lease_is_fenced<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let old = ready.claim(NAME, first, LONG).await.remove(0);
    ready.database.release(NAME, once(first)).await.expect("it is released");
    let new = ready.reopened().await.claim(NAME, second, LONG).await.remove(0);
    assert!(new.lease_epoch > old.lease_epoch, "a lease epoch is higher than any before");
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 1).await.expect("the effect is written");
    let error = tx.advance(&old, &after(&old, 1)).await.expect_err("it lost the lease");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert_eq!(tx.commit().await.expect_err("it was refused").kind(), Kind::Poisoned);
    let error =
        ready.database.record_attempt(&old, EventId::new(), 1, "x").await.expect_err("it lost the lease");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let found = state(&ready, &new).await;
    assert_eq!((ready.read("a").await, found.cursor, found.attempts), (None, new.cursor, 0));
    let mut tx = ready.begin().await;
    tx.advance(&new, &after(&new, 1)).await.expect("it holds the lease");
    tx.commit().await.expect("it commits");
}

async fn a_dropped_transaction_moves_no_cursor<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let mut tx = ready.begin().await;
    tx.advance(&claim, &after(&claim, 5)).await.expect("the cursor is where the claim says");
    assert!(tx.is_used());
    drop(tx);
    assert_eq!(state(&ready, &claim).await.cursor, claim.cursor);
}

async fn attempts_are_counted_until_the_cursor_moves<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let holder = Uuid::now_v7();
    let claim = ready.claim(NAME, holder, LONG).await.remove(0);
    let event = EventId::new();
    for attempt in 1..=3 {
        let recorded = ready.database.record_attempt(&claim, event, attempt, "no such product").await;
        recorded.expect("it is recorded");
    }
    let found = state(&ready, &claim).await;
    assert_eq!((found.attempts, found.error.as_deref()), (3, Some("no such product")));
    let claim = ready.reopened().await.claim(NAME, holder, LONG).await.remove(0);
    assert_eq!((claim.attempts, claim.attempted), (3, Some(event)), "attempts outlive the worker");
    let long = "ä".repeat(100_000);
    ready.database.record_attempt(&claim, event, 4, &long).await.expect("it is recorded");
    let mut tx = ready.begin().await;
    tx.advance(&claim, &after(&claim, 1)).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    let found = state(&ready, &claim).await;
    assert_eq!((found.attempts, found.error), (0, None));
}

async fn a_claim_says_whether_its_holder_before_gave_it_up<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let holder = Uuid::now_v7();
    let mut claim = ready.claim(NAME, holder, LONG).await.remove(0);
    assert!(!claim.abandoned, "nobody held it before");
    claim.in_hand = 64;
    let mut tx = ready.begin().await;
    tx.advance(&claim, &after(&claim, 1)).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    let again = ready.claim(NAME, holder, LONG).await.remove(0);
    assert_eq!((again.abandoned, again.in_hand), (true, 64), "its own earlier life did not give it up");
    ready.database.release(NAME, once(holder)).await.expect("it is released");
    assert!(!ready.claim(NAME, Uuid::now_v7(), LONG).await[0].abandoned);
}

async fn a_pause_outlives_its_holder<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    ready.open(NAME).await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let old = ready.claim(NAME, first, LONG).await;
    let mut tx = ready.begin().await;
    tx.pause(&old[0], Some("ann@host")).await.expect("it holds the lease");
    tx.commit().await.expect("it commits");
    ready.database.release(NAME, once(first)).await.expect("it is released");
    let new = ready.claim(NAME, second, LONG).await;
    assert_eq!((new[0].paused_by.as_deref(), new[1].paused_by.as_deref()), (Some("ann@host"), None));
    let mut tx = ready.begin().await;
    assert_eq!(tx.pause(&old[0], None).await.expect_err("it lost the lease").kind(), Kind::Fenced);
    assert_eq!(state(&ready, &new[0]).await.paused_by.as_deref(), Some("ann@host"));
    drop(tx);
    let mut tx = ready.begin().await;
    tx.pause(&new[0], None).await.expect("it holds the lease");
    tx.commit().await.expect("it commits");
    assert_eq!(state(&ready, &new[0]).await.paused_by, None);
}

async fn opening_tells_the_types_that_were_added<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let types = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let start = StartAt { topic: service(), partition: 0, cursor: Cursor::start(Incarnation::new()) };
    let open = async |names: &[&str], starts: &[StartAt], accept| {
        ready.database.open(NAME, &types(names), starts, accept).await.expect("it opens")
    };
    assert!(open(&["a.b.v1"], &[], false).await.is_empty(), "a new subscription has no added types");
    assert!(open(&["a.b.v1"], &[], false).await.is_empty());
    assert_eq!(open(&["a.b.v1", "a.c.v1"], std::slice::from_ref(&start), false).await, ["a.c.v1"]);
    assert!(ready.database.cursors().await.expect("cursors can be read").is_empty(), "a cursor was made");
    assert_eq!(open(&["a.b.v1", "a.c.v1"], &[], false).await, ["a.c.v1"], "a refused type was remembered");
    assert_eq!(open(&["a.c.v1"], &[start], true).await, ["a.c.v1"]);
    assert!(open(&["a.b.v1", "a.c.v1"], &[], true).await.is_empty());
    assert_eq!(ready.database.cursors().await.expect("cursors can be read").len(), 1);
}

async fn opening_again_keeps_the_cursors<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    ready.open(NAME).await;
    let claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let to = after(&claim, 7);
    let mut tx = ready.begin().await;
    tx.advance(&claim, &to).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    let start =
        StartAt { topic: service(), partition: claim.partition, cursor: Cursor::start(Incarnation::new()) };
    let types = [<Noted as tombolo_event::Event>::TYPE.to_owned()];
    ready.database.open(NAME, &types, &[start], true).await.expect("it opens again");
    let found = state(&ready, &claim).await;
    assert_eq!((found.cursor, found.held), (to, true));
}
