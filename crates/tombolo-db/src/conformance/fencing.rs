//! Cases about who leads: one at a time, an epoch each, and the one before changes nothing any more.

use std::time::Instant;

use tombolo_event::Incarnation;
use uuid::Uuid;

use super::stage::{LONG, SHORT, Wait, marks_of, names, noted};
use super::{Case, Fixture, Stage};
use crate::{Kind, Leader, Outbox, RoundLimit};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(one_leads_at_a_time_and_epochs_only_rise),
        Case::new(a_replaced_leader_is_fenced_and_changes_nothing),
        Case::new(a_lease_ends_by_itself_and_is_kept_by_renewing),
        Case::new(a_resigned_lease_is_free_at_once),
        Case::new(the_topic_is_pinned_once),
        Case::new(of_many_candidates_one_leads),
    ]
}

async fn one_leads_at_a_time_and_epochs_only_rise<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let other = ready.reopened().await;
    let holder = Uuid::now_v7();
    for epoch in 1..4 {
        assert_eq!(ready.lead(holder).await.epoch(), epoch, "an epoch is one higher than any before");
        assert!(other.database.lead(Uuid::now_v7(), LONG).await.expect("leading works").is_none());
    }
}

async fn a_replaced_leader_is_fenced_and_changes_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let holder = Uuid::now_v7();
    ready.commit(&[noted("a", 1), noted("b", 2)]).await;
    let mut old = ready.lead(holder).await;
    let done = marks_of(&old.round(&[], RoundLimit::default()).await.expect("a round works"));
    let other = ready.reopened().await;
    let mut new = other.lead(holder).await;
    ready.commit(&[noted("c", 3)]).await;
    let error = old.round(&done, RoundLimit::default()).await.map(|_| ()).expect_err("round");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let error = old.round(&[], RoundLimit::default()).await.map(|_| ()).expect_err("idle round");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert_eq!(old.renew().await.expect_err("renew").kind(), Kind::Fenced);
    assert_eq!(old.pin(Incarnation::new()).await.expect_err("pin").kind(), Kind::Fenced);
    assert_eq!(old.resign(&done).await.expect_err("resign").kind(), Kind::Fenced);
    assert_eq!(ready.depth().await.rows, 3, "the old leader removed rows");
    new.pin(Incarnation::new()).await.expect("nothing is pinned yet");
    let rows = other.drain(&mut *new).await;
    assert_eq!(names(&rows).iter().map(|name| name.1).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(ready.database.lead(Uuid::now_v7(), LONG).await.expect("leading works").is_none());
}

async fn a_lease_ends_by_itself_and_is_kept_by_renewing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let other = ready.reopened().await;
    let mut leader = ready.database.lead(Uuid::now_v7(), SHORT).await.expect("leading works").expect("free");
    let began = Instant::now();
    let second = Uuid::now_v7();
    // Renewed often, it is kept for longer than a lease; every renewal that came late is no proof.
    while began.elapsed() < SHORT * 2 {
        let renewed = Instant::now();
        leader.renew().await.expect("nobody else leads");
        let taken = other.database.lead(second, SHORT).await.expect("leading works").is_some();
        assert!(!taken || renewed.elapsed() > SHORT / 2, "a lease that was just renewed was taken");
        if taken {
            return;
        }
        tokio::task::yield_now().await;
    }
    drop(leader);
    let mut wait = Wait::until("the lease of a dead leader ends");
    let next = loop {
        match other.database.lead(second, LONG).await.expect("leading works") {
            Some(next) => break next,
            None => wait.again().await,
        }
    };
    assert_eq!(next.epoch(), 2);
}

async fn a_resigned_lease_is_free_at_once<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.commit(&[noted("a", 1)]).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let done = marks_of(&leader.round(&[], RoundLimit::default()).await.expect("a round works"));
    leader.resign(&done).await.expect("it resigns");
    assert_eq!(ready.depth().await.rows, 0, "what was done is reported first");
    assert_eq!(ready.lead(Uuid::now_v7()).await.epoch(), 2);
}

async fn the_topic_is_pinned_once<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let (first, second) = (Incarnation::new(), Incarnation::new());
    let mut leader = ready.lead(Uuid::now_v7()).await;
    leader.pin(first).await.expect("it is the first");
    leader.pin(first).await.expect("it is the same");
    let error = leader.pin(second).await.expect_err("it is another");
    assert_eq!(error.kind(), Kind::Mismatch, "{error}");
    leader.resign(&[]).await.expect("it resigns");
    let mut leader = ready.reopened().await.lead(Uuid::now_v7()).await;
    assert_eq!(leader.pin(second).await.expect_err("it is another").kind(), Kind::Mismatch);
    leader.pin(first).await.expect("it is remembered");
}

async fn of_many_candidates_one_leads<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut candidates = Vec::new();
    for _ in 0..4 {
        let candidate = ready.reopened().await;
        candidates.push(tokio::spawn(async move {
            let won: Option<Box<dyn Leader>> =
                candidate.database.lead(Uuid::now_v7(), LONG).await.expect("leading works");
            won.map(|leader| leader.epoch())
        }));
    }
    let mut epochs = Vec::new();
    for candidate in candidates {
        epochs.extend(candidate.await.expect("no panic"));
    }
    assert_eq!(epochs, [1]);
}
