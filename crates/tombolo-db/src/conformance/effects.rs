//! Cases about effects: what a call has come to is stored under the lease, beside the cursor, and stays.

use tombolo_event::{Cursor, EventId};
use uuid::Uuid;

use super::stage::{LONG, Ready, once};
use super::{Case, Fixture, Stage};
use crate::{CallState, Claim, EffectCall, Effects, Kind, Leases, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(completions_in_any_order_are_read_back_beyond_the_cursor),
        Case::new(an_undone_transaction_completes_nothing),
        Case::new(a_completion_under_an_older_lease_is_refused),
        Case::new(a_completion_beside_a_moved_cursor_is_refused),
        Case::new(a_call_that_is_done_is_neither_tried_nor_completed_again),
        Case::new(tries_and_results_outlive_the_worker),
        Case::new(another_event_under_the_same_sequence_replaces_the_call),
        Case::new(calls_far_below_the_cursor_are_forgotten),
        Case::new(a_call_that_is_done_with_an_error_may_be_done_again_without_one),
        Case::new(calls_after_a_place_are_forgotten_with_the_transaction),
    ]
}

const NAME: &str = "confirmations";

fn call(sequence: u64) -> EffectCall {
    EffectCall { sequence, id: EventId::new(), attempts: 1, result: None, error: None }
}

fn returned(sequence: u64, result: &str) -> EffectCall {
    EffectCall { result: Some(result.to_owned()), ..call(sequence) }
}

async fn held<F: Fixture>(ready: &Ready<F>) -> Claim {
    ready.open(NAME).await;
    ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0)
}

async fn record<F: Fixture>(ready: &Ready<F>, claim: &Claim, call: &EffectCall) {
    ready.database.record_call(claim, call).await.expect("the claim holds the lease");
}

async fn calls<F: Fixture>(ready: &Ready<F>, claim: &Claim) -> Vec<CallState> {
    ready.database.calls(claim).await.expect("calls can be read")
}

/// Completes a call, and moves the cursor if told to.
async fn complete<F: Fixture>(ready: &Ready<F>, claim: &mut Claim, call: &EffectCall, to: Option<Cursor>) {
    let mut tx = ready.begin().await;
    tx.complete(claim, call).await.expect("the claim holds");
    if let Some(to) = to {
        tx.advance(claim, &to).await.expect("the claim holds");
    }
    tx.commit().await.expect("it commits");
    claim.cursor = to.unwrap_or(claim.cursor);
}

fn at(claim: &Claim, call: &EffectCall) -> Cursor {
    Cursor::at(claim.cursor.incarnation, call.sequence, call.id)
}

/// What is done, as (sequence, result).
fn done(states: &[CallState]) -> Vec<(u64, Option<&str>)> {
    let is_done = states.iter().filter(|state| state.done_at.is_some());
    is_done.map(|state| (state.call.sequence, state.call.result.as_deref())).collect()
}

async fn completions_in_any_order_are_read_back_beyond_the_cursor<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let all: Vec<EffectCall> = (1..=4).map(|sequence| returned(sequence, "{\"a\":1}")).collect();
    for early in [&all[3], &all[1]] {
        complete(&ready, &mut claim, early, None).await;
    }
    let result = Some("{\"a\":1}");
    let again = ready.reopened().await;
    assert_eq!(done(&calls(&again, &claim).await), [(2, result), (4, result)]);
    let to = at(&claim, &all[1]);
    complete(&ready, &mut claim, &all[0], Some(to)).await;
    assert_eq!(done(&calls(&again, &claim).await), [(4, result)], "what is below the cursor was returned");
    let latest = ready.database.latest_calls(NAME, 2).await.expect("calls can be read");
    let latest: Vec<u64> = latest.iter().map(|latest| latest.state.call.sequence).collect();
    assert_eq!(latest.len(), 2, "people see the latest, those below the cursor too");
    assert!(latest.contains(&1), "{latest:?}");
}

async fn an_undone_transaction_completes_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let claim = held(&ready).await;
    let mut tx = ready.begin().await;
    tx.complete(&claim, &call(1)).await.expect("the claim holds");
    assert!(tx.is_used());
    tx.rollback().await.expect("it is undone");
    let mut tx = ready.begin().await;
    tx.complete(&claim, &call(1)).await.expect("the claim holds");
    drop(tx);
    assert!(calls(&ready, &claim).await.is_empty(), "a completion was kept without what goes with it");
}

async fn a_completion_under_an_older_lease_is_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let first = Uuid::now_v7();
    let old = ready.claim(NAME, first, LONG).await.remove(0);
    ready.database.release(NAME, once(first)).await.expect("it is released");
    let mut new = ready.reopened().await.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    assert!(new.lease_epoch > old.lease_epoch);
    let error = ready.database.record_call(&old, &call(1)).await.expect_err("it lost the lease");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let mut tx = ready.begin().await;
    let error = tx.complete(&old, &call(1)).await.expect_err("it lost the lease");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert_eq!(tx.commit().await.expect_err("it was refused").kind(), Kind::Poisoned);
    assert!(calls(&ready, &new).await.is_empty());
    complete(&ready, &mut new, &call(1), None).await;
}

async fn a_completion_beside_a_moved_cursor_is_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let old = claim.clone();
    let to = at(&claim, &call(3));
    complete(&ready, &mut claim, &call(3), Some(to)).await;
    let mut tx = ready.begin().await;
    let error = tx.complete(&old, &call(2)).await.expect_err("the cursor is elsewhere");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    assert_eq!(tx.commit().await.expect_err("it was refused").kind(), Kind::Poisoned);
}

async fn a_call_that_is_done_is_neither_tried_nor_completed_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let once = returned(2, "1");
    complete(&ready, &mut claim, &once, None).await;
    let again = EffectCall { attempts: 2, result: None, ..once.clone() };
    let error = ready.database.record_call(&claim, &again).await.expect_err("it is done");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    let mut tx = ready.begin().await;
    let error = tx.complete(&claim, &again).await.expect_err("it is done");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    drop(tx);
    let states = calls(&ready, &claim).await;
    assert_eq!((done(&states), states[0].call.attempts), (vec![(2, Some("1"))], 1));
}

async fn tries_and_results_outlive_the_worker<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let long = format!("no answer\0{}", "ä".repeat(100_000));
    let first = call(5);
    record(&ready, &claim, &first).await;
    let second = EffectCall { attempts: 2, error: Some(long), result: Some("7".into()), ..first.clone() };
    record(&ready, &claim, &second).await;
    let states = calls(&ready.reopened().await, &claim).await;
    let found = &states[0];
    assert_eq!((found.call.sequence, found.call.id, found.call.attempts), (5, first.id, 2));
    assert_eq!((found.call.result.as_deref(), found.done_at), (Some("7"), None));
    assert!(found.call.error.as_ref().is_some_and(|error| error.starts_with("no answer")), "{found:?}");
    complete(&ready, &mut claim, &EffectCall { attempts: 3, error: None, ..second }, None).await;
    let states = calls(&ready, &claim).await;
    assert_eq!((states.len(), done(&states), states[0].call.attempts), (1, vec![(5, Some("7"))], 3));
}

async fn another_event_under_the_same_sequence_replaces_the_call<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    complete(&ready, &mut claim, &returned(1, "1"), None).await;
    let other = call(1);
    record(&ready, &claim, &other).await;
    let states = calls(&ready, &claim).await;
    assert_eq!((states[0].call.id, states[0].done_at), (other.id, None));
    complete(&ready, &mut claim, &returned(1, "2"), None).await;
    assert_eq!(done(&calls(&ready, &claim).await), [(1, Some("2"))]);
}

async fn calls_far_below_the_cursor_are_forgotten<F: Fixture>(stage: Stage<F>) {
    const KEPT: u64 = 10;
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let beyond = call(60);
    complete(&ready, &mut claim, &beyond, None).await;
    for sequence in 1..=50 {
        let next = call(sequence);
        let to = at(&claim, &next);
        complete(&ready, &mut claim, &next, Some(to)).await;
        ready.database.forget_calls(&claim, KEPT).await.expect("calls are forgotten");
    }
    let latest = ready.database.latest_calls(NAME, usize::MAX >> 1).await.expect("calls can be read");
    let mut kept: Vec<u64> = latest.iter().map(|latest| latest.state.call.sequence).collect();
    kept.sort_unstable();
    assert_eq!(kept, (41..=50).chain([60]).collect::<Vec<_>>());
}

async fn a_call_that_is_done_with_an_error_may_be_done_again_without_one<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    let parked = EffectCall { error: Some("no answer".into()), ..returned(1, "1") };
    let to = at(&claim, &parked);
    complete(&ready, &mut claim, &parked, Some(to)).await;
    let error = ready.database.record_call(&claim, &parked).await.expect_err("it is out of the way");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    let read =
        async || ready.database.call_at(&claim, 1).await.expect("a call can be read").expect("it is there");
    assert_eq!(read().await.call, parked);
    let again = EffectCall { error: None, attempts: 4, ..parked };
    let mut tx = ready.begin().await;
    tx.complete(&claim, &again).await.expect("it may be done again");
    tx.commit().await.expect("it commits");
    assert_eq!(read().await.call, again);
    assert!(ready.database.call_at(&claim, 2).await.expect("a call can be read").is_none());
}

async fn calls_after_a_place_are_forgotten_with_the_transaction<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut claim = held(&ready).await;
    for sequence in 1..=5 {
        complete(&ready, &mut claim, &call(sequence), None).await;
    }
    let mut tx = ready.begin().await;
    tx.forget_calls_after(&claim, 2).await.expect("calls are forgotten");
    tx.rollback().await.expect("it is undone");
    assert_eq!(calls(&ready, &claim).await.len(), 5);
    let mut tx = ready.begin().await;
    tx.forget_calls_after(&claim, 2).await.expect("calls are forgotten");
    tx.commit().await.expect("it commits");
    assert_eq!(done(&calls(&ready, &claim).await), [(1, None), (2, None)]);
}
