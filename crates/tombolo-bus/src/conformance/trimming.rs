//! Cases about removing what lies before a place. Invariant: what was removed is refused as such, to readers and to repeats; everything
//! else is as if nothing had been removed.

use futures_util::StreamExt;
use futures_util::future::join;
use tombolo_event::{Cursor, EventId, Incarnation};

use super::Ability;
use super::Case;
use super::stage::{
    Line, Stage, collect, follow, impostor, ok, record, records, records_of, refused, same, within,
};
use crate::{Batch, Kind, Record, Result};

pub(super) fn cases() -> Vec<Case> {
    let restarts = |abilities: &super::Abilities| match abilities.trims {
        Ability::Can => abilities.reopens,
        cannot => cannot,
    };
    vec![
        Case::new(a_place_before_what_is_kept_is_refused_by_a_kind_of_its_own).trimming(),
        Case::new(what_is_kept_is_read_as_before).trimming(),
        Case::new(sequences_and_tails_go_on_after_a_trim).trimming(),
        Case::new(the_last_event_of_a_partition_stays).trimming(),
        Case::new(a_repeat_of_what_was_trimmed_is_never_acknowledged).trimming(),
        Case::new(a_repeat_of_what_is_kept_is_acknowledged_after_a_trim).trimming(),
        Case::new(a_trim_proves_where_the_rest_begins).trimming(),
        Case::new(trimming_again_or_less_changes_nothing).trimming(),
        Case::new(a_sealed_partition_is_trimmed_as_any_other).trimming(),
        Case::new(a_reader_that_trimming_overtakes_is_told).trimming(),
        Case::new(trimming_beside_appends_loses_none_of_them).trimming(),
        Case::new(what_was_trimmed_stays_so_over_a_restart).needing(restarts),
    ]
}

async fn trim(line: &Line, first: &Record) -> Result<()> {
    line.bus.trim(&line.topic.name, line.partition, line.after(first)).await
}

/// A partition of twenty events that begins with the eighth.
async fn trimmed(stage: &Stage) -> (Line, Vec<Record>) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let all = records(1, 20);
    line.stored(&all).await;
    ok("trim", trim(&line, &all[7]).await);
    (line, all)
}

/// Expects that a place before the eighth event is refused, and that the refusal names the eighth.
async fn is_before_the_eighth(line: &Line, place: Cursor, all: &[Record]) {
    for read in [line.to_tail(place), line.following(place)] {
        let error =
            line.bus.read(read).await.err().unwrap_or_else(|| panic!("a place that was trimmed is read"));
        assert_eq!(error.kind(), Kind::Trimmed, "{error}");
        assert_eq!(error.begins(), Some(line.after(&all[7])), "where the rest begins");
    }
}

async fn a_place_before_what_is_kept_is_refused_by_a_kind_of_its_own(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    is_before_the_eighth(&line, line.start(), &all).await;
    for before in &all[..7] {
        is_before_the_eighth(&line, line.after(before), &all).await;
    }
    let elsewhere = line.after(&impostor(&all[12]));
    refused(Kind::OtherId, line.bus.read(line.to_tail(elsewhere)).await.map(drop));
    let beyond = Cursor::at(line.topic.incarnation, 21, EventId::new());
    refused(Kind::BeyondTail, line.bus.read(line.to_tail(beyond)).await.map(drop));
}

async fn what_is_kept_is_read_as_before(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    let other = line.on(&stage.handle().await);
    for (at, stored) in (1..).zip(&all).skip(7) {
        let stream = other.read(other.to_tail(other.after(stored))).await;
        same(&records_of(collect(stream, stored.sequence).await), &all[at..]);
    }
    let beside = line.in_partition(1);
    beside.holds(&[]).await;
    let others = records(1, 3);
    beside.stored(&others).await;
    beside.holds(&others).await;
}

async fn sequences_and_tails_go_on_after_a_trim(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    let tails = ok("raise", line.raise(2).await);
    assert_eq!((tails[0].sequence, tails[0].id), (20, Some(all[19].id)));
    refused(Kind::OlderEpoch, line.append(&records(21, 1)).await);
    let line = line.at_epoch(2);
    let live = line.read(line.following(line.after(&all[19]))).await;
    refused(Kind::Hole, line.append(&records(22, 1)).await);
    let more = records(21, 5);
    line.stored(&more).await;
    same(&records_of(follow(live, 20, 25).await), &more);
    let tails = ok("tails", line.bus.tails(&line.topic.name).await);
    assert_eq!((tails[0].sequence, tails[0].id), (25, Some(more[4].id)));
}

async fn the_last_event_of_a_partition_stays(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 5);
    line.stored(&all).await;
    ok("trim", trim(&line, &all[4]).await);
    let tails = ok("tails", line.bus.tails(&line.topic.name).await);
    assert_eq!((tails[0].sequence, tails[0].id), (5, Some(all[4].id)));
    line.stored(&all[4..]).await;
    refused(Kind::OtherId, line.append(&[impostor(&all[4])]).await);
    let more = records(6, 2);
    line.stored(&more).await;
    let stream = line.read(line.to_tail(line.after(&all[4]))).await;
    same(&records_of(collect(stream, 5).await), &more);
}

async fn a_repeat_of_what_was_trimmed_is_never_acknowledged(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    refused(Kind::Trimmed, line.append(&all[..3]).await);
    refused(Kind::Trimmed, line.append(&all[5..12]).await);
    refused(Kind::Trimmed, line.append(&[impostor(&all[2])]).await);
    refused(Kind::OlderEpoch, line.at_epoch(0).append(&all[..3]).await);
    let error = line.append(&all[..3]).await.err();
    assert_eq!(error.and_then(|error| error.begins()), Some(line.after(&all[7])));
}

async fn a_repeat_of_what_is_kept_is_acknowledged_after_a_trim(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    for first in 7..20 {
        let appended = ok("repeat", line.append(&all[first..]).await);
        assert_eq!(appended.last, 20);
    }
    refused(Kind::OtherId, line.append(&[all[7].clone(), impostor(&all[8])]).await);
    let more = records(21, 2);
    line.stored(&[&all[15..], &more[..]].concat()).await;
    let stream = line.read(line.to_tail(line.after(&all[19]))).await;
    same(&records_of(collect(stream, 20).await), &more);
}

async fn a_trim_proves_where_the_rest_begins(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 6);
    line.stored(&all).await;
    let name = &line.topic.name;
    refused(Kind::OtherId, trim(&line, &impostor(&all[3])).await);
    let beyond = Cursor::at(line.topic.incarnation, 7, EventId::new());
    refused(Kind::BeyondTail, line.bus.trim(name, 0, beyond).await);
    let elsewhere = Cursor { incarnation: Incarnation::new(), ..line.after(&all[3]) };
    refused(Kind::OtherIncarnation, line.bus.trim(name, 0, elsewhere).await);
    refused(Kind::UnknownPartition, line.bus.trim(name, 1, line.after(&all[3])).await);
    refused(Kind::UnknownTopic, line.bus.trim(&stage.name("-no"), 0, line.after(&all[3])).await);
    ok("trim before the first", line.bus.trim(name, 0, line.start()).await);
    ok("trim before the first", trim(&line, &all[0]).await);
    line.holds(&all).await;
}

async fn trimming_again_or_less_changes_nothing(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    let other = line.on(&stage.handle().await);
    ok("trim again", trim(&other, &all[7]).await);
    ok("trim less", trim(&other, &all[2]).await);
    is_before_the_eighth(&line, line.start(), &all).await;
    let stream = line.read(line.to_tail(line.after(&all[7]))).await;
    same(&records_of(collect(stream, 8).await), &all[8..]);
}

async fn a_sealed_partition_is_trimmed_as_any_other(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 20);
    line.stored(&all).await;
    let divided = line.divided(&[1, 2]).await;
    ok("trim", trim(&divided, &all[7]).await);
    is_before_the_eighth(&divided, divided.start(), &all).await;
    refused(Kind::Sealed, divided.append(&records(21, 1)).await);
    refused(Kind::Trimmed, divided.append(&all[..1]).await);
    let appended = ok("repeat", divided.append(&all[18..]).await);
    assert_eq!(appended.last, 20);
    let present = divided.in_partition(1);
    let new = records(1, 2);
    present.stored(&new).await;
    present.holds(&new).await;
}

/// Checks what a reader from the start saw: each batch follows the one before, and it ends because it was overtaken, or at the end.
fn has_no_gap(found: &[Result<Batch>], all: &[Record]) {
    let mut last = 0;
    for (at, item) in found.iter().enumerate() {
        match item {
            Ok(batch) => {
                assert_eq!(batch.first, last + 1, "nothing is passed over");
                same(&batch.records, &all[last as usize..batch.last as usize]);
                last = batch.last;
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Trimmed, "{error}");
                assert_eq!(at + 1, found.len(), "the error is the last item");
                return;
            }
        }
    }
    assert_eq!(last, all.len() as u64, "a stream that does not end with an error is whole");
}

async fn a_reader_that_trimming_overtakes_is_told(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all: Vec<_> = (1..=160).map(|sequence| record(sequence, 64 << 10)).collect();
    for round in all.chunks(10) {
        line.stored(round).await;
    }
    let mut reads = Vec::new();
    for follows in [false, true] {
        let mut slow =
            line.read(if follows { line.following(line.start()) } else { line.to_tail(line.start()) }).await;
        let first = within("the first batch", slow.next()).await.expect("there is one");
        reads.push((slow, vec![first]));
    }
    ok("trim", trim(&line, &all[158]).await);
    for (mut slow, mut found) in reads {
        while found.last().is_some_and(|item| item.as_ref().is_ok_and(|batch| batch.last < 160)) {
            let Some(item) = within("the next batch", slow.next()).await else { break };
            found.push(item);
        }
        has_no_gap(&found, &all);
    }
}

async fn trimming_beside_appends_loses_none_of_them(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let other = line.on(&stage.handle().await);
    let all = records(1, 200);
    line.stored(&all[..5]).await;
    let appending = async {
        for round in all[5..].chunks(5) {
            line.stored(round).await;
        }
    };
    let trimming = async {
        loop {
            let tails = ok("tails", other.bus.tails(&other.topic.name).await);
            let last = tails[0].sequence;
            let first = &all[last as usize - 3];
            ok("trim", trim(&other, first).await);
            if last == 200 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    join(appending, trimming).await;
    let stream = line.read(line.to_tail(line.after(&all[197]))).await;
    same(&records_of(collect(stream, 198).await), &all[198..]);
    refused(Kind::Trimmed, line.bus.read(line.to_tail(line.after(&all[190]))).await.map(drop));
}

async fn what_was_trimmed_stays_so_over_a_restart(stage: Stage) {
    let (line, all) = trimmed(&stage).await;
    let line = line.on(&stage.factory.reopen().await);
    is_before_the_eighth(&line, line.start(), &all).await;
    refused(Kind::Trimmed, line.append(&all[..3]).await);
    let more = records(21, 2);
    line.stored(&more).await;
    let stream = line.read(line.to_tail(line.after(&all[7]))).await;
    same(&records_of(collect(stream, 8).await), &[&all[8..], &more[..]].concat());
}
