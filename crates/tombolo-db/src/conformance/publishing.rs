//! Cases about the transaction: state and events together or not at all, in the order of commits.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_event::EventId;
use uuid::Uuid;

use super::schedule::seed;
use super::stage::{
    Noted, Ready, Undeclared, assert_contiguous, assert_each_key_is_in_order, event_of, marks_of, names,
    noted, stand_at,
};
use super::{Ability, Case, Fixture, Own, Stage, Tx};
use crate::outgoing::EVENTS_PER_TRANSACTION_MAX;
use crate::{Committed, Depth, Kind, Origin, Outgoing, RoundLimit, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(state_and_events_commit_together),
        Case::new(a_rollback_leaves_neither_state_nor_event),
        Case::new(a_dropped_transaction_leaves_neither_state_nor_event),
        Case::new(events_join_a_transaction_of_the_users_own),
        Case::new(events_without_a_transaction_are_refused).needing(|abilities| abilities.bare_statements),
        Case::new(what_may_not_be_published_makes_the_commit_impossible),
        Case::new(a_failed_statement_leaves_state_and_event_together),
        Case::new(a_commit_without_events_wakes_nobody),
        Case::new(a_transaction_knows_whether_it_was_used),
        Case::new(the_largest_transaction_commits_in_order),
        Case::new(many_keys_at_once_do_not_exhaust_the_locks),
        Case::new(events_of_a_key_are_in_the_order_of_their_commits),
        Case::new(a_key_is_locked_until_the_commit),
        Case::new(a_late_commit_is_not_skipped).needing(|abilities| abilities.late_commits),
        Case::new(a_late_commit_changes_no_number).needing(|abilities| abilities.late_commits),
    ]
}

async fn state_and_events_commit_together<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    let first = tx.outgoing().publish(&noted("a", 1)).expect("it is published");
    let second = tx.outgoing().publish(&noted("b", 2)).expect("it is published");
    assert_eq!((ready.read("a").await, ready.depth().await.rows), (None, 0), "seen before the commit");
    let committed = tx.commit().await.expect("it commits");
    let positions: Vec<EventId> = committed.positions.iter().map(|position| position.id).collect();
    assert_eq!(positions, [first, second]);
    assert!(committed.positions.iter().all(|position| position.topic.as_str() == "notes"));
    let depth = ready.depth().await;
    assert_eq!((ready.read("a").await, depth.rows, ready.woken()), (Some(7), 2, 1));
    assert!(depth.bytes > 0 && depth.oldest.is_some());
    let other = ready.reopened().await;
    assert_eq!((other.read("a").await, other.depth().await), (Some(7), depth));
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    for position in committed.positions {
        let row = rows.iter().find(|row| row.id == position.id).expect("the event is in the outbox");
        assert_eq!((row.partition, row.event_type.as_str()), (position.partition, "notes.noted.v1"));
        assert!(position.sequence.is_none_or(|sequence| sequence == row.sequence));
    }
}

async fn events_join_a_transaction_of_the_users_own<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let own = async |how, key: &str| write_own(&ready, how, key).await;
    ready.commit(&[noted("before", 1)]).await;
    let committed = own(Own::Committed, "a").await.expect("it commits");
    assert_eq!((ready.read("a").await, committed.positions.len()), (Some(1), 1));
    own(Own::RolledBack, "b").await.expect("it is rolled back");
    assert_eq!((ready.read("b").await, ready.depth().await.rows), (None, 2));
    ready.commit(&[noted("after", 1)]).await;
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    assert_contiguous(&rows, 0);
    assert_eq!(rows.iter().map(|row| event_of(row).key).collect::<Vec<_>>(), ["before", "a", "after"]);
    assert_eq!(rows[1].id, committed.positions[0].id);
}

async fn events_without_a_transaction_are_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let refused = write_own(&ready, Own::None, "c").await.expect_err("there is no transaction");
    assert_eq!(refused.kind(), Kind::Poisoned, "{refused}");
    assert_nothing(&ready).await;
}

async fn write_own<F: Fixture>(ready: &Ready<F>, how: Own, key: &str) -> crate::Result<Committed> {
    let mut outgoing = Outgoing::new(ready.publisher());
    outgoing.publish(&noted(key, 1)).expect("it is published");
    ready.fixture().write_own(&ready.database, how, outgoing, key).await
}

async fn a_rollback_leaves_neither_state_nor_event<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut tx = ready.publishing(&[noted("a", 1)]).await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    tx.rollback().await.expect("it is rolled back");
    assert_nothing(&ready).await;
}

async fn a_dropped_transaction_leaves_neither_state_nor_event<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut tx = ready.publishing(&[noted("a", 1)]).await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    drop(tx);
    assert_nothing(&ready).await;
    ready.commit(&[noted("a", 1)]).await;
    assert_eq!(ready.depth().await.rows, 1, "the next transaction works");
}

async fn assert_nothing<F: Fixture>(ready: &Ready<F>) {
    assert_eq!(ready.read("a").await, None, "state was kept");
    assert_eq!(ready.depth().await, Depth::default(), "an event was kept");
    assert_eq!(ready.woken(), 0, "a relay was woken");
}

async fn what_may_not_be_published_makes_the_commit_impossible<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let large = Noted { padding: "x".repeat(tombolo_event::envelope::EVENT_BYTES_MAX), ..noted("a", 1) };
    type Publish<F> = Box<dyn Fn(&mut Tx<F>) -> crate::Result<EventId> + Send>;
    let refused: Vec<(&str, Publish<F>)> = vec![
        ("undeclared", Box::new(|tx| tx.outgoing().publish(&Undeclared {}))),
        ("too large", Box::new(move |tx| tx.outgoing().publish(&large))),
        ("an empty key", Box::new(|tx| tx.outgoing().publish(&noted("", 1)))),
        (
            "a view",
            Box::new(|tx| {
                tx.outgoing().enter(Origin::View { view: "titles".into(), tables: None });
                tx.outgoing().publish(&noted("a", 1))
            }),
        ),
    ];
    for (what, publish) in refused {
        let mut tx = ready.publishing(&[noted("a", 1)]).await;
        ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
        let error = publish(&mut tx).expect_err(what);
        assert_eq!(error.kind(), Kind::Refused, "{what}: {error}");
        let error = tx.commit().await.expect_err(what);
        assert_eq!(error.kind(), Kind::Poisoned, "{what}: {error}");
        assert_nothing(&ready).await;
    }
}

async fn a_failed_statement_leaves_state_and_event_together<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    for publishes in [true, false] {
        let mut tx = ready.begin().await;
        ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
        ready.fixture().write(&mut tx, "a", 8).await.expect_err("the key is taken");
        if publishes {
            tx.outgoing().publish(&noted("a", 1)).expect("it is published");
        }
        let committed = tx.commit().await;
        if stage.abilities.failures_abort == Ability::Can {
            assert_eq!(committed.expect_err("it was aborted").kind(), Kind::Poisoned);
            assert_nothing(&ready).await;
        } else {
            // Only the statement is undone, so everything else of the transaction is there, or nothing is.
            let kept = committed.is_ok();
            assert_eq!(ready.read("a").await.is_some(), kept);
            assert_eq!(ready.depth().await.rows == 1, kept);
            return;
        }
    }
}

async fn a_commit_without_events_wakes_nobody<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    assert!(tx.commit().await.expect("it commits").positions.is_empty());
    assert_eq!((ready.read("a").await, ready.woken()), (Some(7), 0));
}

async fn a_transaction_knows_whether_it_was_used<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut tx = ready.begin().await;
    assert!(!tx.is_used());
    ready.fixture().write(&mut tx, "a", 7).await.expect("the row is written");
    assert!(tx.is_used());
    drop(tx);
    assert!(ready.publishing(&[noted("a", 1)]).await.is_used());
}

async fn the_largest_transaction_commits_in_order<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let events: Vec<Noted> =
        (0..EVENTS_PER_TRANSACTION_MAX).map(|n| noted(&format!("k{}", n % 50), n as i64)).collect();
    let mut tx = ready.publishing(&events).await;
    let error = tx.outgoing().publish(&noted("one", 1)).expect_err("one more than may be");
    assert_eq!(error.kind(), Kind::Refused);
    tx.rollback().await.expect("it is rolled back");
    ready.commit(&events).await;
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    assert_eq!(rows.len(), EVENTS_PER_TRANSACTION_MAX);
    assert_contiguous(&rows, 0);
    assert_rising(&rows.iter().map(event_of).collect::<Vec<_>>());
}

/// Fails unless the values of each key rise.
fn assert_rising(events: &[Noted]) {
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    for event in events {
        if let Some(before) = last.insert(&event.key, event.value) {
            assert!(before < event.value, "key {}: {} came before {}", event.key, before, event.value);
        }
    }
}

async fn many_keys_at_once_do_not_exhaust_the_locks<F: Fixture>(stage: Stage<F>) {
    const WRITERS: usize = 6;
    const KEYS: usize = 5_000;
    let ready = stage.prepared(4).await;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let ready = ready.clone();
        writers.push(tokio::spawn(async move {
            let events: Vec<Noted> = (0..KEYS).map(|n| noted(&format!("{writer}-{n}"), 1)).collect();
            ready.commit(&events).await;
        }));
    }
    for writer in writers {
        writer.await.expect("each transaction commits");
    }
    assert_eq!(ready.depth().await.rows, (WRITERS * KEYS) as u64);
}

/// Publishes the first event of each key alone: two that insert the same new row at once can be a deadlock of the test's own
/// table on MariaDB, which is its writer's to try again, and is not what is looked at here.
async fn first_of_each<F: Fixture>(ready: &Ready<F>, keys: usize) {
    for key in (0..keys).map(|key| format!("k{key}")) {
        let mut tx = ready.begin().await;
        let value = ready.fixture().count(&mut tx, &key).await;
        tx.outgoing().publish(&noted(&key, value)).expect("it is published");
        tx.commit().await.expect("it commits");
    }
}

/// Each transaction takes the next value of one of few keys, which orders the commits of that key, and a relay drains all the while.
async fn events_of_a_key_are_in_the_order_of_their_commits<F: Fixture>(stage: Stage<F>) {
    const WRITERS: u64 = 8;
    const COMMITS: usize = 40;
    const KEYS: usize = 3;
    let ready = stage.prepared(2).await;
    let seed = seed("events_of_a_key_are_in_the_order_of_their_commits");
    first_of_each(&ready, KEYS).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (ready, mut random) = (ready.clone(), StdRng::seed_from_u64(seed.wrapping_add(writer)));
        writers.spawn(async move {
            for _ in 0..COMMITS {
                let key = format!("k{}", random.random_range(0..KEYS));
                let mut tx = ready.begin().await;
                let value = ready.fixture().count(&mut tx, &key).await;
                tx.outgoing().publish(&noted(&key, value)).expect("it is published");
                match random.random_bool(0.1) {
                    true => tx.rollback().await.expect("it is rolled back"),
                    false => drop(tx.commit().await.expect("it commits")),
                }
            }
        });
    }
    assert_each_key_is_in_order(&ready, writers).await;
}

/// Of two transactions of one key that commit at once, the one that is second everywhere waits for the first.
async fn a_key_is_locked_until_the_commit<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let first = ready.clone();
    let first = stand_at("outbox.before-commit", async move { first.commit(&[noted("a", 1)]).await }).await;
    let second = ready.clone();
    let mut second = tokio::spawn(async move { second.commit(&[noted("a", 2)]).await });
    // It is enough that it did not get ahead for a while: with the lock it cannot, without it does at once.
    let overtook = tokio::time::timeout(Duration::from_millis(500), &mut second).await.is_ok();
    first.finish().await;
    if !overtook {
        second.await.expect("the second commits");
    }
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    let values: Vec<i64> = rows.iter().map(|row| event_of(row).value).collect();
    let expected = if overtook { [2, 1] } else { [1, 2] };
    assert_eq!(values, expected, "the events are not in the order of their commits");
}

/// Keys that share the only partition, but not a stripe.
const EARLY: &str = "late";
const OTHERS: [&str; 3] = ["b", "c", "d"];

async fn a_late_commit_is_not_skipped<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let late = ready.clone();
    let late = stand_at("outbox.before-commit", async move { late.commit(&[noted(EARLY, 1)]).await }).await;
    let mut rows = Vec::new();
    for n in 0..30 {
        ready.commit(&[noted(OTHERS[n % 3], n as i64)]).await;
        rows.extend(ready.drain(&mut *leader).await);
    }
    assert_eq!(rows.len(), 30, "what committed meanwhile is handed out");
    let id = late.finish().await.positions[0].id;
    let found = ready.drain(&mut *leader).await;
    assert_eq!(names(&found), [(0, 31, id)], "the late event follows, and is not skipped");
    assert_eq!(ready.depth().await, Depth::default());
}

async fn a_late_commit_changes_no_number<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let holder = Uuid::now_v7();
    let mut leader = ready.lead(holder).await;
    let late = ready.clone();
    let late = stand_at("outbox.before-commit", async move { late.commit(&[noted(EARLY, 1)]).await }).await;
    ready.commit(&[noted("b", 1), noted("c", 2)]).await;
    let before = leader.round(&[], RoundLimit::default()).await.expect("a round works");
    drop(leader);
    let id = late.finish().await.positions[0].id;
    assert_eq!(ready.depth().await.rows, 3);
    let mut leader = ready.lead(holder).await;
    let rows = ready.drain(&mut *leader).await;
    assert_eq!(names(&rows[..2]), names(&before), "rows that may have been sent got other numbers");
    assert_eq!(names(&rows[2..]), [(0, 3, id)]);
    assert_eq!(marks_of(&rows)[0].sequence, 3);
}
