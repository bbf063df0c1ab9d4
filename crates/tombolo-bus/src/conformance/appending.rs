//! Cases about appends of one relay. Invariant: acknowledged means stored once, under the number and id that were sent.

use bytes::Bytes;
use futures_util::future::join_all;
use tombolo_event::Incarnation;

use super::Case;
use super::stage::{Stage, impostor, ok, record, records, refused};
use crate::Kind;
use crate::port::{APPEND_BYTES_MAX, APPEND_RECORDS_MAX};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(what_is_appended_is_readable),
        Case::new(what_is_appended_is_readable_through_another_handle),
        Case::new(partitions_are_numbered_apart),
        Case::new(topics_are_numbered_apart),
        Case::new(the_first_record_of_a_partition_is_1),
        Case::new(a_hole_is_refused),
        Case::new(another_id_under_a_stored_number_is_refused),
        Case::new(another_id_behind_a_true_prefix_is_refused_whole),
        Case::new(a_repeat_is_acknowledged_and_not_doubled),
        Case::new(a_repeat_of_what_lies_further_back_is_acknowledged),
        Case::new(a_repeat_with_more_behind_it_is_completed),
        Case::new(an_append_to_another_incarnation_is_refused),
        Case::new(an_empty_append_is_refused),
        Case::new(an_append_with_a_hole_inside_is_refused),
        Case::new(an_append_over_its_bounds_is_refused),
        Case::new(an_append_at_its_bounds_is_stored),
        Case::new(the_largest_record_is_stored),
        Case::new(any_bytes_come_back_as_they_were),
        Case::new(appends_that_do_not_wait_for_each_other_are_stored_in_order),
        Case::new(appends_behind_a_refused_one_are_refused),
    ]
}

async fn what_is_appended_is_readable(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 7);
    line.stored(&all[..3]).await;
    line.holds(&all[..3]).await;
    line.stored(&all[3..]).await;
    line.holds(&all).await;
}

async fn what_is_appended_is_readable_through_another_handle(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let other = line.on(&stage.handle().await);
    let all = records(1, 6);
    other.holds(&[]).await;
    line.stored(&all[..2]).await;
    other.holds(&all[..2]).await;
    other.stored(&all[2..4]).await;
    line.stored(&all[4..]).await;
    other.holds(&all).await;
}

async fn partitions_are_numbered_apart(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 3).await;
    let expected: Vec<_> = (0..3).map(|partition| records(1, 2 + partition)).collect();
    for (partition, records) in (0..).zip(&expected) {
        line.in_partition(partition).stored(&records[..1]).await;
    }
    for (partition, records) in (0..).zip(&expected) {
        line.in_partition(partition).stored(&records[1..]).await;
    }
    for (partition, records) in (0..).zip(&expected) {
        line.in_partition(partition).holds(records).await;
    }
}

async fn topics_are_numbered_apart(stage: Stage) {
    let bus = stage.handle().await;
    let (a, b) = (stage.topic_named(&bus, "-a", 1).await, stage.topic_named(&bus, "-ab", 1).await);
    let (of_a, of_b) = (records(1, 3), records(1, 2));
    a.stored(&of_a).await;
    b.stored(&of_b).await;
    a.holds(&of_a).await;
    b.holds(&of_b).await;
}

async fn the_first_record_of_a_partition_is_1(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    refused(Kind::Hole, line.append(&records(2, 1)).await);
    refused(Kind::Hole, line.append(&records(0, 1)).await);
    line.holds(&[]).await;
}

async fn a_hole_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 4);
    line.stored(&all[..2]).await;
    refused(Kind::Hole, line.append(&records(4, 2)).await);
    line.holds(&all[..2]).await;
    line.stored(&all[2..]).await;
    line.holds(&all).await;
}

async fn another_id_under_a_stored_number_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 4);
    line.stored(&all).await;
    for stored in &all {
        refused(Kind::OtherId, line.append(&[impostor(stored)]).await);
    }
    let other = line.on(&stage.handle().await);
    refused(Kind::OtherId, other.append(&[impostor(&all[3])]).await);
    line.holds(&all).await;
}

async fn another_id_behind_a_true_prefix_is_refused_whole(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 3);
    line.stored(&all).await;
    for wrong in 0..3 {
        let mut repeat = all.clone();
        repeat[wrong] = impostor(&all[wrong]);
        repeat.extend(records(4, 2));
        refused(Kind::OtherId, line.append(&repeat).await);
        line.holds(&all).await;
    }
}

async fn a_repeat_is_acknowledged_and_not_doubled(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 3);
    for _ in 0..3 {
        line.stored(&all).await;
    }
    line.on(&stage.handle().await).stored(&all).await;
    line.holds(&all).await;
}

async fn a_repeat_of_what_lies_further_back_is_acknowledged(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 9);
    line.stored(&all).await;
    for part in [&all[..2], &all[3..5], &all[8..]] {
        let appended = ok("repeat", line.append(part).await);
        assert_eq!(appended.last, 9, "the last sequence stored in the partition is named");
    }
    line.holds(&all).await;
}

async fn a_repeat_with_more_behind_it_is_completed(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 6);
    line.stored(&all[..3]).await;
    line.stored(&all[..4]).await;
    line.stored(&all[2..]).await;
    line.holds(&all).await;
}

async fn an_append_to_another_incarnation_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let mut append = line.prepare(&records(1, 1));
    append.incarnation = Incarnation::new();
    refused(Kind::OtherIncarnation, line.bus.append(append).await);
    line.holds(&[]).await;
}

async fn an_empty_append_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    refused(Kind::Hole, line.append(&[]).await);
    line.holds(&[]).await;
}

async fn an_append_with_a_hole_inside_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let mut holed = records(1, 4);
    holed.remove(2);
    refused(Kind::Hole, line.append(&holed).await);
    let mut doubled = records(1, 2);
    doubled.push(impostor(&doubled[1]));
    refused(Kind::Hole, line.append(&doubled).await);
    line.holds(&[]).await;
}

async fn an_append_over_its_bounds_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    refused(Kind::TooLarge, line.append(&records(1, APPEND_RECORDS_MAX as u64 + 1)).await);
    let heavy: Vec<_> = (1..=65).map(|sequence| record(sequence, APPEND_BYTES_MAX / 64)).collect();
    refused(Kind::TooLarge, line.append(&heavy).await);
    line.holds(&[]).await;
}

async fn an_append_at_its_bounds_is_stored(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let many = records(1, APPEND_RECORDS_MAX as u64);
    line.stored(&many).await;
    line.holds(&many).await;
    let heavy: Vec<_> = (1..=64).map(|sequence| record(sequence, APPEND_BYTES_MAX / 64 - 64)).collect();
    let line = line.in_partition(1);
    line.stored(&heavy).await;
    line.holds(&heavy).await;
}

async fn the_largest_record_is_stored(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let largest = [record(1, stage.abilities.record_bytes_max)];
    line.stored(&largest).await;
    line.holds(&largest).await;
}

async fn any_bytes_come_back_as_they_were(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let mut all = records(1, 4);
    all[0].bytes = Bytes::new();
    all[1].bytes = (0..=255).collect::<Vec<u8>>().into();
    all[2].bytes = Bytes::from_static(b"\r\n\r\nNATS/1.0\r\n\0\0");
    all[3].event_type = Bytes::new();
    line.stored(&all).await;
    line.holds(&all).await;
}

async fn appends_that_do_not_wait_for_each_other_are_stored_in_order(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    // More appends than the runtime lets one task do without a pause.
    let all = [records(1, 400), records(1, 400)];
    let rounds = (0..400).step_by(2).flat_map(|at| {
        [(0, &all[0][at..at + 2]), (1, &all[1][at..at + 2])]
            .map(|(partition, round)| line.bus.append(line.in_partition(partition).prepare(round)))
    });
    for appended in join_all(rounds).await {
        ok("append without waiting for the one before", appended);
    }
    line.holds(&all[0]).await;
    line.in_partition(1).holds(&all[1]).await;
}

async fn appends_behind_a_refused_one_are_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 12);
    line.stored(&all[..2]).await;
    let mut wrong = vec![impostor(&all[1])];
    wrong.extend_from_slice(&all[2..4]);
    let behind = all[4..].chunks(2);
    let sent = join_all(std::iter::once(&wrong[..]).chain(behind).map(|round| line.append(round))).await;
    let kinds: Vec<_> = sent.into_iter().map(|sent| sent.map_err(|error| error.kind())).collect();
    assert_eq!(kinds[0], Err(Kind::OtherId));
    assert!(kinds[1..].iter().all(|sent| *sent == Err(Kind::Hole)), "what follows leaves a hole: {kinds:?}");
    line.holds(&all[..2]).await;
    line.stored(&all[2..]).await;
    line.holds(&all).await;
}
