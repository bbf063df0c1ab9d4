//! Cases about what other programs publish by plain SQL: the same promises as for what is published from Rust.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_event::{Envelope, Event, EventId};
use uuid::Uuid;

use super::recovering::{adoption, decided, halted, tail};
use super::schedule::seed;
use super::stage::{
    Noted, Ready, assert_contiguous, assert_each_key_is_in_order, event_of, names, noted, service, stand_at,
};
use super::{Abilities, Case, Fixture, Foreign, ForeignRow, Own, Stage};
use crate::{Depth, ForeignParts, Kind, Outbox, OutboxRow, Recovery, RoundLimit, Schema};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    let cases = vec![
        Case::new(foreign_rows_commit_with_their_state_and_say_what_they_say),
        Case::new(foreign_rows_of_a_key_are_in_the_order_of_their_commits),
        Case::new(foreign_rows_and_those_of_the_service_share_the_numbers),
        Case::new(a_crash_while_foreign_rows_are_taken_in_neither_loses_nor_doubles),
        Case::new(foreign_rows_keep_their_numbers_whoever_leads),
        Case::new(a_replaced_leader_takes_no_foreign_row_in),
        Case::new(what_no_bus_takes_is_parked_with_its_key_and_takes_no_number),
        Case::new(a_parked_foreign_row_goes_on_once_it_is_mended),
        Case::new(foreign_rows_are_taken_in_within_the_limit_of_a_round),
        Case::new(a_foreign_row_that_is_on_the_bus_is_dropped),
        Case::new(a_table_for_foreign_rows_is_noticed_while_somebody_leads),
        Case::new(what_is_not_there_for_others_is_said_by_name),
    ];
    let at_once = vec![
        Case::new(a_foreign_row_that_commits_late_is_not_skipped),
        Case::new(a_foreign_key_is_locked_until_the_commit),
    ];
    let cases = cases.into_iter().map(|case| case.needing(|abilities| abilities.foreign));
    let at_once = at_once.into_iter().map(|case| case.needing(Abilities::foreign_at_once));
    cases.chain(at_once).collect()
}

const OUTBOX: ForeignParts = ForeignParts { outbox: true, notify: false, inbox: false };

async fn prepared<F: Fixture>(stage: &Stage<F>, partitions: u32) -> Ready<F> {
    let ready = stage.prepared(partitions).await;
    ready.database.prepare_foreign(OUTBOX, Schema::Apply).await.expect("it is made");
    ready
}

fn row(key: &str, value: i64) -> ForeignRow {
    let data = serde_json::to_string(&noted(key, value)).expect("it is JSON");
    ForeignRow { id: None, event_type: Noted::TYPE.into(), key: key.into(), data }
}

/// A row that no bus will take.
fn bad(key: &str) -> ForeignRow {
    ForeignRow { event_type: "Noted, hopefully".into(), ..row(key, 0) }
}

async fn begin<F: Fixture>(ready: &Ready<F>) -> Box<dyn Foreign> {
    ready.fixture().foreign(&ready.database).await
}

async fn commit<F: Fixture>(ready: &Ready<F>, rows: &[ForeignRow]) {
    let mut tx = begin(ready).await;
    for row in rows {
        tx.publish(row).await.expect("it is inserted");
    }
    tx.end(Own::Committed).await;
}

fn values(rows: &[OutboxRow]) -> Vec<i64> {
    rows.iter().map(|row| event_of(row).value).collect()
}

async fn foreign_rows_commit_with_their_state_and_say_what_they_say<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    ready.fixture().foreign_key(&ready.database, "a").await;
    let mut undone = begin(&ready).await;
    undone.count("a").await;
    undone.publish(&row("a", 1)).await.expect("it is inserted");
    undone.end(Own::RolledBack).await;
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_none());
    let id = Uuid::now_v7();
    let mut tx = begin(&ready).await;
    tx.count("a").await;
    tx.publish(&ForeignRow { id: Some(id), ..row("a", 7) }).await.expect("it is inserted");
    tx.publish(&row("b", 8)).await.expect("it is inserted");
    tx.end(Own::Committed).await;
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_some());
    let depth = ready.depth().await;
    assert_eq!((depth.rows, depth.parked_rows, ready.read("a").await), (2, 0, Some(1)));
    assert!(depth.bytes > 0 && depth.oldest.is_some());
    let rows = ready.drain(&mut *leader).await;
    assert_contiguous(&rows, 0);
    let first = rows.iter().find(|row| row.id.0 == id).expect("the id that was given is kept");
    assert_eq!((event_of(first).value, first.event_type.as_str()), (7, Noted::TYPE));
    for row in &rows {
        let envelope = Envelope::decode(row.bytes.clone()).expect("it is an event");
        assert_eq!((envelope.source.as_str(), envelope.id), (service().as_str(), row.id));
        let age = jiff::Timestamp::now().duration_since(envelope.time).as_secs();
        assert!((-5..300).contains(&age), "its time is {}", envelope.time);
    }
    assert_eq!(ready.depth().await, Depth::default());
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_none());
}

/// Each transaction takes the next value of one of few keys, which orders the commits of that key, and a relay drains all the while.
async fn foreign_rows_of_a_key_are_in_the_order_of_their_commits<F: Fixture>(stage: Stage<F>) {
    const WRITERS: u64 = 6;
    const COMMITS: usize = 30;
    const KEYS: usize = 3;
    let ready = prepared(&stage, 2).await;
    for key in 0..KEYS {
        ready.fixture().foreign_key(&ready.database, &format!("k{key}")).await;
    }
    let seed = seed("foreign_rows_of_a_key_are_in_the_order_of_their_commits");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (ready, mut random) = (ready.clone(), StdRng::seed_from_u64(seed.wrapping_add(writer)));
        writers.spawn(async move {
            for _ in 0..COMMITS {
                let key = format!("k{}", random.random_range(0..KEYS));
                let mut tx = begin(&ready).await;
                let value = tx.count(&key).await;
                tx.publish(&row(&key, value)).await.expect("it is inserted");
                let how = if random.random_bool(0.1) { Own::RolledBack } else { Own::Committed };
                tx.end(how).await;
            }
        });
    }
    assert_each_key_is_in_order(&ready, writers).await;
}

async fn foreign_rows_and_those_of_the_service_share_the_numbers<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut rows = Vec::new();
    for value in 0..6 {
        match value % 2 {
            0 => commit(&ready, &[row("a", value)]).await,
            _ => drop(ready.commit(&[noted("b", value)]).await),
        }
        rows.extend(ready.drain(&mut *leader).await);
    }
    assert_contiguous(&rows, 0);
    assert_eq!(values(&rows), [0, 1, 2, 3, 4, 5]);
}

async fn a_foreign_row_that_commits_late_is_not_skipped<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut late = begin(&ready).await;
    late.publish(&row("late", 99)).await.expect("it is inserted");
    let mut rows = Vec::new();
    for value in 0..10 {
        commit(&ready, &[row("b", value)]).await;
        rows.extend(ready.drain(&mut *leader).await);
    }
    assert_eq!(values(&rows), (0..10).collect::<Vec<_>>(), "what committed meanwhile is handed out");
    late.end(Own::Committed).await;
    let found = ready.drain(&mut *leader).await;
    assert_eq!(
        (values(&found), found[0].sequence),
        (vec![99], 11),
        "the late row follows, and is not skipped"
    );
    assert_eq!(ready.depth().await, Depth::default());
}

/// Of two transactions of one key that are open at once, the one that is second everywhere waits for the first.
async fn a_foreign_key_is_locked_until_the_commit<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 1).await;
    let mut first = begin(&ready).await;
    first.publish(&row("a", 1)).await.expect("it is inserted");
    let other = ready.clone();
    let mut second = tokio::spawn(async move { commit(&other, &[row("a", 2)]).await });
    let overtook = tokio::time::timeout(Duration::from_millis(500), &mut second).await.is_ok();
    assert!(!overtook, "the second did not wait for the lock of its key");
    first.end(Own::Committed).await;
    second.await.expect("the second commits");
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    assert_eq!(values(&rows), [1, 2]);
}

async fn a_crash_while_foreign_rows_are_taken_in_neither_loses_nor_doubles<F: Fixture>(stage: Stage<F>) {
    for barrier in ["foreign.before-take-in", "foreign.after-take-in", "relay.after-numbering"] {
        let ready = prepared(&stage, 2).await;
        let holder = Uuid::now_v7();
        commit(&ready, &[row("a", 1), row("a", 2), row("a", 3)]).await;
        let mut leader = ready.lead(holder).await;
        let round = async move { leader.round(&[], RoundLimit::default()).await };
        stand_at(barrier, round).await.crash().await;
        let other = ready.reopened().await;
        let mut leader = other.lead(holder).await;
        let rows = other.drain(&mut *leader).await;
        assert_contiguous(&rows, 0);
        assert_eq!(values(&rows), [1, 2, 3], "after a crash at {barrier}");
        assert_eq!(other.depth().await, Depth::default(), "after a crash at {barrier}");
    }
}

async fn foreign_rows_keep_their_numbers_whoever_leads<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 4).await;
    let holder = Uuid::now_v7();
    let some: Vec<ForeignRow> = (0..30).map(|value| row(&format!("k{}", value % 7), value)).collect();
    commit(&ready, &some).await;
    let mut leader = ready.lead(holder).await;
    let first = leader.round(&[], RoundLimit::default()).await.expect("a round works");
    assert_eq!(first.len(), 30);
    drop(leader);
    commit(&ready, &[row("k1", 30)]).await;
    let mut leader = ready.reopened().await.lead(holder).await;
    let again = ready.drain(&mut *leader).await;
    for row in &first {
        assert!(again.contains(row), "a row has another number, other bytes, or is gone");
    }
    assert_contiguous(&again, 0);
    assert_eq!(again.len(), 31);
}

async fn a_replaced_leader_takes_no_foreign_row_in<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 2).await;
    let holder = Uuid::now_v7();
    commit(&ready, &[row("a", 1)]).await;
    let mut old = ready.lead(holder).await;
    let mut new = ready.reopened().await.lead(holder).await;
    // Taking in a first time, it would see that there is something, or numbers that were not handed out.
    let error = old.round(&[], RoundLimit::default()).await.expect_err("it was replaced");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_some());
    assert_eq!(values(&ready.drain(&mut *new).await), [1]);
}

async fn what_no_bus_takes_is_parked_with_its_key_and_takes_no_number<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let large = ForeignRow { data: format!("\"{}\"", "x".repeat(2 << 20)), ..row("large", 0) };
    commit(&ready, &[row("a", 1), bad("a"), row("b", 2), large, row("a", 3)]).await;
    let mut rows = ready.drain(&mut *leader).await;
    commit(&ready, &[row("a", 4), row("large", 5), row("b", 6)]).await;
    rows.extend(ready.drain(&mut *leader).await);
    assert_eq!(values(&rows), [1, 2, 6], "other keys flow on, and those of the parked rows wait");
    assert_contiguous(&rows, 0);
    let parked = ready.database.foreign_parked(10).await.expect("a look works");
    assert_eq!(parked.iter().map(|parked| parked.key.as_str()).collect::<Vec<_>>(), ["a", "large"]);
    assert!(parked[0].reason.contains("Noted, hopefully"), "{}", parked[0].reason);
    assert!(parked[1].reason.contains("2097154 bytes"), "{}", parked[1].reason);
    let depth = ready.depth().await;
    assert_eq!((depth.rows, depth.parked_rows), (5, 2));
    // Nobody has anything to do before somebody mends them: a poll would go on for ever.
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_none());
}

async fn a_parked_foreign_row_goes_on_once_it_is_mended<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    commit(&ready, &[bad("a"), row("a", 2), row("a", 3)]).await;
    assert!(ready.drain(&mut *leader).await.is_empty());
    ready.fixture().mend_foreign(&ready.database, "a", Noted::TYPE).await;
    let rows = ready.drain(&mut *leader).await;
    assert_eq!(values(&rows), [0, 2, 3]);
    assert_contiguous(&rows, 0);
    assert_eq!(ready.depth().await, Depth::default());
}

async fn foreign_rows_are_taken_in_within_the_limit_of_a_round<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 2).await;
    let large = |value| {
        let noted = Noted { padding: "x".repeat(10_000), ..noted("a", value) };
        ForeignRow { data: serde_json::to_string(&noted).expect("it is JSON"), ..row("a", value) }
    };
    commit(&ready, &(0..10).map(large).collect::<Vec<_>>()).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut all = Vec::new();
    for (rows, bytes) in [(3, 1 << 20), (5, 1), (5, 25_000), (100, 1 << 20), (100, 1 << 20)] {
        let some = leader.round(&[], RoundLimit { rows, bytes }).await.expect("a round works");
        let found: usize = some.iter().map(|row| row.bytes.len()).sum();
        assert!(
            some.len() <= rows && (some.len() == 1 || found <= bytes),
            "{} rows, {found} bytes",
            some.len()
        );
        all.extend(some);
    }
    assert_eq!(values(&all), (0..10).collect::<Vec<_>>());
}

async fn a_foreign_row_that_is_on_the_bus_is_dropped<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage, 2).await;
    let (there, not) = (Uuid::now_v7(), Uuid::now_v7());
    let with = |id, value| ForeignRow { id: Some(id), ..row("a", value) };
    commit(&ready, &[with(there, 1), with(not, 2)]).await;
    let halt = halted(&ready).await;
    let adoption = adoption(vec![tail(0, 4), tail(1, 4)], vec![EventId(there)]);
    let adopted = ready.database.adopt(&decided(&halt), &adoption).await.expect("the bus's word is taken");
    assert_eq!(adopted.dropped, 1);
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    assert_eq!(
        names(&rows).iter().map(|(_, sequence, id)| (*sequence, id.0)).collect::<Vec<_>>(),
        [(5, not)]
    );
}

async fn a_table_for_foreign_rows_is_noticed_while_somebody_leads<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert!(ready.drain(&mut *leader).await.is_empty());
    assert!(ready.database.foreign_waiting().await.expect("a look works").is_none());
    ready.database.prepare_foreign(OUTBOX, Schema::Apply).await.expect("it is made");
    commit(&ready, &[row("a", 1)]).await;
    assert_eq!(values(&ready.drain(&mut *leader).await), [1]);
    // Making it again changes nothing.
    commit(&ready, &[row("a", 2)]).await;
    ready.database.prepare_foreign(OUTBOX, Schema::Apply).await.expect("it is there");
    assert_eq!(values(&ready.drain(&mut *leader).await), [2]);
}

async fn what_is_not_there_for_others_is_said_by_name<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let inbox = ForeignParts { inbox: true, ..ForeignParts::default() };
    for (parts, option) in [(OUTBOX, "--outbox"), (inbox, "--inbox")] {
        let refused =
            ready.database.prepare_foreign(parts, Schema::Check).await.expect_err("it is not there");
        assert_eq!(refused.kind(), Kind::Schema, "{refused}");
        assert!(refused.to_string().contains(option), "{refused}");
        ready.database.prepare_foreign(parts, Schema::Apply).await.expect("it is made");
        ready.database.prepare_foreign(parts, Schema::Check).await.expect("it is there");
    }
}
