//! Cases about epochs. Invariant: once an epoch is raised, nothing under an older one is ever stored again.

use tombolo_event::Incarnation;

use super::Case;
use super::stage::{Stage, ok, records, refused};
use crate::{Kind, Tail};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(an_older_epoch_is_refused_after_a_raise),
        Case::new(an_append_that_was_prepared_before_a_raise_is_refused),
        Case::new(a_repeat_under_an_older_epoch_is_refused),
        Case::new(an_epoch_that_nobody_raised_is_refused),
        Case::new(raising_to_the_same_epoch_changes_nothing),
        Case::new(raising_to_an_older_epoch_is_refused),
        Case::new(raising_tells_the_tails),
        Case::new(raising_in_another_incarnation_is_refused),
        Case::new(a_raise_is_seen_by_everybody),
        Case::new(a_raise_fences_every_partition),
        Case::new(a_raise_of_one_topic_leaves_the_others),
    ]
}

async fn an_older_epoch_is_refused_after_a_raise(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 4);
    old.stored(&all[..2]).await;
    ok("raise", old.raise(2).await);
    refused(Kind::OlderEpoch, old.append(&all[2..]).await);
    old.holds(&all[..2]).await;
    old.at_epoch(2).stored(&all[2..]).await;
    old.holds(&all).await;
}

async fn an_append_that_was_prepared_before_a_raise_is_refused(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 5);
    old.stored(&all[..1]).await;
    let prepared = old.prepare(&all[1..3]);
    let new = old.on(&stage.handle().await).at_epoch(2);
    ok("raise through another handle", new.raise(2).await);
    refused(Kind::OlderEpoch, old.bus.append(prepared.clone()).await);
    new.holds(&all[..1]).await;
    new.stored(&all[1..]).await;
    refused(Kind::OlderEpoch, old.bus.append(prepared).await);
    new.holds(&all).await;
}

async fn a_repeat_under_an_older_epoch_is_refused(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 2);
    old.stored(&all).await;
    ok("raise", old.on(&stage.handle().await).raise(5).await);
    refused(Kind::OlderEpoch, old.append(&all).await);
    old.at_epoch(5).stored(&all).await;
    old.holds(&all).await;
}

async fn an_epoch_that_nobody_raised_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 2);
    let ahead = line.at_epoch(9).append(&all).await;
    assert!(ahead.is_err(), "an append under epoch 9 was taken, though the topic's epoch is 1");
    line.holds(&[]).await;
    line.stored(&all).await;
}

async fn raising_to_the_same_epoch_changes_nothing(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 4);
    line.stored(&all[..2]).await;
    let tails = ok("raise again", line.raise(1).await);
    assert_eq!(tails, [Tail { partition: 0, sequence: 2, id: Some(all[1].id) }]);
    ok("raise again through another handle", line.on(&stage.handle().await).raise(1).await);
    line.stored(&all[2..]).await;
    line.holds(&all).await;
}

async fn raising_to_an_older_epoch_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    ok("raise", line.raise(7).await);
    refused(Kind::OlderEpoch, line.raise(6).await);
    refused(Kind::OlderEpoch, line.on(&stage.handle().await).raise(1).await);
    assert_eq!(ok("find the topic", line.bus.topic(&line.topic.name).await).epoch, 7);
    line.at_epoch(7).stored(&records(1, 1)).await;
}

async fn raising_tells_the_tails(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 3).await;
    let (first, third) = (records(1, 2), records(1, 5));
    line.stored(&first).await;
    line.in_partition(2).stored(&third).await;
    let tails = ok("raise", line.on(&stage.handle().await).raise(2).await);
    let found: Vec<_> = tails.iter().map(|tail| (tail.partition, tail.sequence, tail.id)).collect();
    assert_eq!(found, [(0, 2, Some(first[1].id)), (1, 0, None), (2, 5, Some(third[4].id))]);
}

async fn raising_in_another_incarnation_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let raised = line.bus.raise_epoch(&line.topic.name, Incarnation::new(), 2).await;
    refused(Kind::OtherIncarnation, raised);
    assert_eq!(ok("find the topic", line.bus.topic(&line.topic.name).await).epoch, 1);
}

async fn a_raise_is_seen_by_everybody(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let other = stage.handle().await;
    assert_eq!(ok("find the topic", other.topic(&line.topic.name).await).epoch, 1);
    ok("raise", line.raise(3).await);
    assert_eq!(ok("find the topic", other.topic(&line.topic.name).await).epoch, 3);
    let listed = ok("list the topics", other.topics().await);
    let found = listed.iter().find(|topic| topic.name == line.topic.name);
    assert_eq!(found.map(|topic| topic.epoch), Some(3));
}

async fn a_raise_fences_every_partition(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 4).await;
    ok("raise", old.on(&stage.handle().await).raise(2).await);
    for partition in 0..4 {
        refused(Kind::OlderEpoch, old.in_partition(partition).append(&records(1, 1)).await);
        old.in_partition(partition).holds(&[]).await;
    }
}

async fn a_raise_of_one_topic_leaves_the_others(stage: Stage) {
    let bus = stage.handle().await;
    let (a, b) = (stage.topic_named(&bus, "-a", 1).await, stage.topic_named(&bus, "-b", 1).await);
    ok("raise", a.raise(2).await);
    b.stored(&records(1, 1)).await;
}
