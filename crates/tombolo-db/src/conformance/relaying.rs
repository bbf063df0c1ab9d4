//! Cases about what the relay is given: each row once, with a number that never changes, until it is done.

use tombolo_event::EventId;
use uuid::Uuid;

use super::stage::{Noted, assert_contiguous, marks_of, names, noted};
use super::{Case, Fixture, Stage};
use crate::{Depth, Kind, Mark, RoundLimit};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(a_row_is_handed_out_once_by_each_leader),
        Case::new(rows_keep_their_numbers_whoever_leads),
        Case::new(what_is_done_is_not_handed_out_again),
        Case::new(a_round_keeps_within_its_limit),
        Case::new(marks_tell_what_was_removed_last),
        Case::new(a_mark_beyond_the_numbers_is_a_restored_database),
        Case::new(reporting_the_same_again_changes_nothing),
        Case::new(the_outbox_is_empty_and_its_size_flat_after_draining),
    ]
}

fn some(from: i64, count: i64) -> Vec<Noted> {
    (from..from + count).map(|n| noted(&format!("k{}", n % 7), n)).collect()
}

const ALL: RoundLimit = RoundLimit { rows: 1_000, bytes: 1 << 20 };

async fn a_row_is_handed_out_once_by_each_leader<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    ready.commit(&some(0, 20)).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert!(leader.marks().iter().all(|mark| (mark.sequence, mark.id) == (0, None)));
    let mut rows = leader.round(&[], ALL).await.expect("a round works");
    assert!(leader.round(&[], ALL).await.expect("a round works").is_empty(), "handed out twice");
    ready.commit(&some(20, 20)).await;
    rows.extend(leader.round(&[], ALL).await.expect("a round works"));
    assert_eq!(rows.len(), 40);
    assert_contiguous(&rows, 0);
}

async fn rows_keep_their_numbers_whoever_leads<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let holder = Uuid::now_v7();
    ready.commit(&some(0, 30)).await;
    let mut leader = ready.lead(holder).await;
    let first = leader.round(&[], ALL).await.expect("a round works");
    drop(leader);
    let mut leader = ready.reopened().await.lead(holder).await;
    ready.commit(&some(30, 10)).await;
    let mut again = Vec::new();
    while again.len() < 40 {
        let rows = leader.round(&[], ALL).await.expect("a round works");
        assert!(!rows.is_empty(), "only {} of 40 rows are handed out", again.len());
        again.extend(rows);
    }
    for row in &first {
        assert!(again.contains(row), "a row has another number, other bytes, or is gone");
    }
    assert_contiguous(&again, 0);
}

async fn what_is_done_is_not_handed_out_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let holder = Uuid::now_v7();
    ready.commit(&some(0, 30)).await;
    let mut leader = ready.lead(holder).await;
    let rows = leader.round(&[], ALL).await.expect("a round works");
    let (sent, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.sequence <= 4);
    leader.round(&marks_of(&sent), ALL).await.expect("a round works");
    drop(leader);
    let mut leader = ready.lead(holder).await;
    let found = leader.round(&[], ALL).await.expect("a round works");
    let (mut found, mut expected) = (names(&found), names(&rest));
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(ready.depth().await.rows, rest.len() as u64);
}

async fn a_round_keeps_within_its_limit<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let large = Noted { padding: "x".repeat(100_000), ..noted("large", 1) };
    ready.commit(&[large.clone(), large.clone(), large]).await;
    ready.commit(&some(0, 10)).await;
    let holder = Uuid::now_v7();
    let mut leader = ready.lead(holder).await;
    let limit = RoundLimit { rows: 4, bytes: 1_000 };
    let rows = leader.round(&[], limit).await.expect("a round works");
    assert_eq!(rows.len(), 1, "one row is handed out however large, and no second one");
    let mut all = rows;
    // Another leader begins with what is numbered, within the same limits.
    leader = ready.lead(holder).await;
    all.clear();
    while all.len() < 13 {
        let rows = leader.round(&[], limit).await.expect("a round works");
        let bytes: usize = rows.iter().map(|row| row.bytes.len()).sum();
        assert!((1..=4).contains(&rows.len()), "{} rows", rows.len());
        assert!(rows.len() == 1 || bytes <= 1_000, "{bytes} bytes in {} rows", rows.len());
        all.extend(rows);
    }
    assert_contiguous(&all, 0);
}

async fn marks_tell_what_was_removed_last<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let holder = Uuid::now_v7();
    ready.commit(&some(0, 30)).await;
    let mut leader = ready.lead(holder).await;
    let rows = ready.drain(&mut *leader).await;
    leader.resign(&[]).await.expect("it resigns");
    let leader = ready.reopened().await.lead(Uuid::now_v7()).await;
    let mut expected = marks_of(&rows);
    expected.sort_by_key(|mark| mark.partition);
    let mut found = leader.marks().to_vec();
    assert!(found.is_sorted_by_key(|mark| mark.partition) && found.len() == 4);
    found.retain(|mark| mark.sequence > 0);
    assert_eq!(found, expected);
    drop(leader);
}

async fn a_mark_beyond_the_numbers_is_a_restored_database<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.commit(&[noted("a", 1)]).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let rows = leader.round(&[], ALL).await.expect("a round works");
    let beyond = Mark { partition: 0, sequence: 9, id: Some(EventId::new()) };
    let error = leader.round(&[beyond], ALL).await.expect_err("nobody gave number 9");
    assert_eq!(error.kind(), Kind::Mismatch, "{error}");
    assert_eq!((ready.depth().await.rows, rows.len()), (1, 1), "nothing is removed");
}

async fn reporting_the_same_again_changes_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    ready.commit(&some(0, 10)).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let marks = marks_of(&leader.round(&[], ALL).await.expect("a round works"));
    for _ in 0..3 {
        assert!(leader.round(&marks, ALL).await.expect("a round works").is_empty());
        assert_eq!(ready.depth().await, Depth::default());
    }
    ready.commit(&some(10, 1)).await;
    assert_eq!(leader.round(&marks, ALL).await.expect("a round works").len(), 1);
    leader.resign(&marks).await.expect("it resigns");
    assert_eq!(ready.depth().await.rows, 1);
}

async fn the_outbox_is_empty_and_its_size_flat_after_draining<F: Fixture>(stage: Stage<F>) {
    const CYCLES: i64 = 8;
    const EVENTS: i64 = 2_000;
    let ready = stage.prepared(4).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut sizes = Vec::new();
    for cycle in 0..CYCLES {
        ready.commit(&some(cycle * EVENTS, EVENTS)).await;
        assert_eq!(ready.drain(&mut *leader).await.len(), EVENTS as usize);
        assert_eq!(ready.depth().await, Depth::default());
        sizes.push(ready.fixture().size(&ready.database).await);
    }
    let (second, last) = (sizes[1], sizes[sizes.len() - 1]);
    assert!(last <= second + second / 4, "the tables grow although they are drained: {sizes:?}");
}
