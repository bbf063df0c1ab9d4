//! Cases in which several relays append at once. Invariant: whoever wins, the log is contiguous and holds nothing
//! twice, and what anybody was told is stored is stored.

use futures_util::future::{join, join_all};

use super::Case;
use super::stage::{Line, Stage, ok, records};
use crate::{Kind, Record};

/// How many times each race is run.
const ROUNDS: u64 = 24;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(the_same_append_from_two_relays_is_stored_once),
        Case::new(different_appends_from_two_relays_are_not_both_acknowledged),
        Case::new(relays_of_different_epochs_leave_no_hole_and_no_double),
        Case::new(the_tails_of_a_raise_are_final_for_older_epochs),
        Case::new(partitions_take_appends_at_once),
        Case::new(what_another_relay_appended_elsewhere_leaves_no_hole),
    ]
}

async fn the_same_append_from_two_relays_is_stored_once(stage: Stage) {
    let one = stage.topic(&stage.handle().await, 1).await;
    let two = one.on(&stage.handle().await);
    let all = records(1, ROUNDS * 3);
    for round in all.chunks(3) {
        let (a, b) = join(one.append(round), two.append(round)).await;
        let last = round[2].sequence;
        assert_eq!(ok("append", a).last, last, "both are told the truth");
        assert_eq!(ok("append the same", b).last, last, "both are told the truth");
    }
    one.holds(&all).await;
}

async fn different_appends_from_two_relays_are_not_both_acknowledged(stage: Stage) {
    let one = stage.topic(&stage.handle().await, 1).await;
    let two = one.on(&stage.handle().await);
    let mut stored: Vec<Record> = Vec::new();
    for round in 0..ROUNDS {
        let (mine, yours) = (records(round * 2 + 1, 2), records(round * 2 + 1, 2));
        let (a, b) = join(one.append(&mine), two.append(&yours)).await;
        match (a.map_err(|error| error.kind()), b.map_err(|error| error.kind())) {
            (Ok(_), Err(Kind::OtherId)) => stored.extend(mine),
            (Err(Kind::OtherId), Ok(_)) => stored.extend(yours),
            other => panic!("one is stored and the other refused as OtherId, found {other:?}"),
        }
    }
    one.holds(&stored).await;
    two.holds(&stored).await;
}

/// A relay as it takes over: raises, learns the tail, appends the rest of `all` until it is fenced.
async fn relay(line: Line, all: &[Record], rounds: usize) -> u64 {
    let tails = match line.raise(line.epoch).await {
        Ok(tails) => tails,
        Err(error) if error.kind() == Kind::OlderEpoch => return 0,
        Err(error) => panic!("failed to raise: {error}"),
    };
    let mut acknowledged = tails[0].sequence;
    for round in all[acknowledged as usize..].chunks(2).take(rounds) {
        match line.append(round).await {
            Ok(appended) => acknowledged = appended.last,
            Err(error) => {
                assert_eq!(error.kind(), Kind::OlderEpoch, "a replaced relay is fenced: {error}");
                break;
            }
        }
    }
    acknowledged
}

async fn relays_of_different_epochs_leave_no_hole_and_no_double(stage: Stage) {
    let first = stage.topic(&stage.handle().await, 1).await;
    let handles = [stage.handle().await, stage.handle().await, stage.handle().await];
    let all = records(1, 400);
    for round in 0..ROUNDS / 3 {
        let relays =
            (0..).zip(&handles).map(|(n, bus)| relay(first.on(bus).at_epoch(2 + round * 3 + n), &all, 6));
        let acknowledged = join_all(relays).await.into_iter().max().unwrap_or_default();
        let found = first.all().await;
        assert!(
            found.len() as u64 >= acknowledged,
            "acknowledged up to {acknowledged}, stored {}",
            found.len()
        );
        first.holds(&all[..found.len()]).await;
    }
    assert!(!first.all().await.is_empty(), "the relays stored something");
}

async fn the_tails_of_a_raise_are_final_for_older_epochs(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 1).await;
    let new_bus = stage.handle().await;
    let mut stored: Vec<Record> = Vec::new();
    for epoch in 2..2 + ROUNDS {
        let next = records(stored.len() as u64 + 1, 24);
        let old = old.at_epoch(epoch - 1);
        let new = old.on(&new_bus).at_epoch(epoch);
        let appends = join_all(next.chunks(3).map(|round| old.append(round)));
        let (sent, tails) = join(appends, new.raise(epoch)).await;
        let tail = ok("raise", tails)[0].sequence as usize;
        let told = sent.iter().filter(|sent| sent.is_ok()).count() * 3;
        assert!(
            tail >= stored.len() + told,
            "{told} were acknowledged, the raise knows of {}",
            tail - stored.len()
        );
        let before = stored.len();
        stored.extend_from_slice(&next[..tail - before]);
        new.holds(&stored).await;
    }
}

async fn partitions_take_appends_at_once(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 4).await;
    let other = stage.handle().await;
    let all: Vec<_> = (0..4).map(|_| records(1, 40)).collect();
    let relays = (0..).zip(&all).map(|(partition, all)| {
        let line = line.in_partition(partition);
        let line = if partition % 2 == 0 { line } else { line.on(&other) };
        async move {
            for round in all.chunks(4) {
                line.stored(round).await;
            }
        }
    });
    join_all(relays).await;
    for (partition, all) in (0..).zip(&all) {
        line.in_partition(partition).holds(all).await;
    }
}

/// The first message of each append meets a topic that has moved on by a few records since its sender looked.
async fn what_another_relay_appended_elsewhere_leaves_no_hole(stage: Stage) {
    let one = stage.topic(&stage.handle().await, 2).await;
    let two = one.on(&stage.handle().await).in_partition(1);
    let (all, others) = (records(1, 48), records(1, 16));
    let (mut mine, mut theirs) = (all.chunks(8), others.as_slice());
    for strangers in [1, 2, 3, 1, 4, 5] {
        let (next, rest) = theirs.split_at(strangers);
        theirs = rest;
        two.stored(next).await;
        one.stored(mine.next().unwrap_or_default()).await;
    }
    one.holds(&all).await;
    two.holds(&others).await;
}
