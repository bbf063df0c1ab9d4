//! Cases about generations. Invariant: once a topic is divided anew, nothing is stored behind the tail of an earlier
//! partition, and what was there is read and acknowledged as before.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use tombolo_event::Incarnation;

use super::Case;
use super::stage::{
    Line, Stage, collect, follow, generations, impostor, ok, records, records_of, refused, same, within,
};
use crate::{Kind, Record, TopicSpec};

/// How many times each race is run.
const ROUNDS: u32 = 12;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(numbers_of_a_new_generation_follow_the_earlier_ones),
        Case::new(a_division_seals_every_earlier_partition),
        Case::new(a_repeat_in_a_sealed_partition_is_acknowledged),
        Case::new(what_goes_beyond_a_seal_is_refused_whole),
        Case::new(another_id_in_a_sealed_partition_is_refused),
        Case::new(an_append_that_was_prepared_before_a_division_is_refused),
        Case::new(a_division_under_another_epoch_is_refused),
        Case::new(a_division_of_another_incarnation_is_refused),
        Case::new(dividing_again_changes_nothing),
        Case::new(a_division_that_is_not_one_generation_more_is_refused),
        Case::new(a_topic_is_divided_many_times),
        Case::new(a_topic_is_made_with_all_its_generations),
        Case::new(ensuring_a_divided_topic_finds_it_as_it_is),
        Case::new(a_raise_fences_every_generation),
        Case::new(a_division_of_one_topic_leaves_the_others),
        Case::new(sealed_partitions_are_read_as_before),
        Case::new(a_reader_that_follows_is_not_ended_by_a_division),
        Case::new(appends_that_race_with_a_division_lie_before_the_seal_or_are_refused),
        Case::new(divisions_that_race_make_one_generation),
        Case::new(a_division_survives_a_restart).needing(|abilities| abilities.reopens),
        Case::new(seals_survive_a_restart).needing(|abilities| abilities.reopens),
    ]
}

/// A topic of two partitions with these records in each, divided into three more.
async fn divided(stage: &Stage, stored: [&[Record]; 2]) -> Line {
    let line = stage.topic(&stage.handle().await, 2).await;
    for (partition, records) in (0..).zip(stored).filter(|(_, records)| !records.is_empty()) {
        line.in_partition(partition).stored(records).await;
    }
    line.divided(&[2, 3]).await
}

async fn numbers_of_a_new_generation_follow_the_earlier_ones(stage: Stage) {
    let (old, new) = (records(1, 3), records(1, 2));
    let line = divided(&stage, [&[], &old]).await;
    let other = line.on(&stage.handle().await);
    let listed = ok("list the topics", other.bus.topics().await);
    let listed = listed.into_iter().find(|topic| topic.name == line.topic.name);
    for found in [Some(ok("find the topic", other.bus.topic(&line.topic.name).await)), listed] {
        assert_eq!(found.as_ref(), Some(&line.topic), "everybody is told of the division");
    }
    line.in_partition(2).stored(&new).await;
    other.in_partition(4).stored(&new[..1]).await;
    let tails = ok("tails", other.bus.tails(&line.topic.name).await);
    let found: Vec<_> = tails.iter().map(|tail| (tail.partition, tail.sequence, tail.id)).collect();
    let (end, one, two) = (Some(old[2].id), Some(new[0].id), Some(new[1].id));
    assert_eq!(found, [(0, 0, None), (1, 3, end), (2, 2, two), (3, 0, None), (4, 1, one)]);
    refused(Kind::UnknownPartition, line.in_partition(5).append(&new).await);
}

async fn a_division_seals_every_earlier_partition(stage: Stage) {
    let all = records(1, 4);
    let line = divided(&stage, [&all[..2], &[]]).await;
    for line in [&line, &line.on(&stage.handle().await)] {
        refused(Kind::Sealed, line.append(&all[2..]).await);
        refused(Kind::Sealed, line.append(&all[3..]).await);
        refused(Kind::Sealed, line.in_partition(1).append(&all).await);
    }
    line.holds(&all[..2]).await;
    line.in_partition(1).holds(&[]).await;
}

async fn a_repeat_in_a_sealed_partition_is_acknowledged(stage: Stage) {
    let all = records(1, 5);
    let line = divided(&stage, [&all, &[]]).await;
    for line in [&line, &line.on(&stage.handle().await)] {
        line.stored(&all).await;
        for part in [&all[..2], &all[2..3], &all[4..]] {
            assert_eq!(ok("repeat", line.append(part).await).last, 5, "the last sequence that is stored");
        }
    }
    line.holds(&all).await;
}

async fn what_goes_beyond_a_seal_is_refused_whole(stage: Stage) {
    let all = records(1, 5);
    let line = divided(&stage, [&all[..3], &[]]).await;
    refused(Kind::Sealed, line.append(&all).await);
    line.holds(&all[..3]).await;
    refused(Kind::Sealed, line.on(&stage.handle().await).append(&all[2..4]).await);
    line.holds(&all[..3]).await;
}

async fn another_id_in_a_sealed_partition_is_refused(stage: Stage) {
    let all = records(1, 3);
    let line = divided(&stage, [&all, &[]]).await;
    for stored in &all {
        refused(Kind::OtherId, line.append(&[impostor(stored)]).await);
    }
    line.holds(&all).await;
}

async fn an_append_that_was_prepared_before_a_division_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let all = records(1, 4);
    line.stored(&all[..2]).await;
    let prepared = line.prepare(&all[2..]);
    line.on(&stage.handle().await).divided(&[2, 1]).await;
    refused(Kind::Sealed, line.bus.append(prepared).await);
    line.holds(&all[..2]).await;
    line.in_partition(2).stored(&records(1, 2)).await;
}

async fn a_division_under_another_epoch_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    ok("raise", line.on(&stage.handle().await).raise(3).await);
    refused(Kind::OlderEpoch, line.divide(&[2, 4]).await);
    let ahead = line.at_epoch(4).divide(&[2, 4]).await;
    assert!(ahead.is_err(), "a division under epoch 4 was taken, though the topic's epoch is 3");
    let found = ok("find the topic", line.bus.topic(&line.topic.name).await);
    assert_eq!(found.generations, generations(&[2]), "the refusals changed nothing");
    line.at_epoch(3).stored(&records(1, 1)).await;
    line.at_epoch(3).divided(&[2, 4]).await;
    refused(Kind::OlderEpoch, line.divide(&[2, 4]).await);
}

async fn a_division_of_another_incarnation_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let (name, more) = (&line.topic.name, generations(&[1, 2]));
    refused(Kind::OtherIncarnation, line.bus.divide(name, Incarnation::new(), 1, &more).await);
    line.stored(&records(1, 1)).await;
    let absent = stage.name("-absent");
    refused(Kind::UnknownTopic, line.bus.divide(&absent, line.topic.incarnation, 1, &more).await);
}

async fn dividing_again_changes_nothing(stage: Stage) {
    let (old, new) = (records(1, 2), records(1, 4));
    let line = divided(&stage, [&old, &[]]).await;
    line.in_partition(3).stored(&new[..2]).await;
    line.divided(&[2, 3]).await;
    line.on(&stage.handle().await).divided(&[2, 3]).await;
    line.in_partition(3).stored(&new[2..]).await;
    line.holds(&old).await;
    line.in_partition(3).holds(&new).await;
    assert_eq!(ok("tails", line.bus.tails(&line.topic.name).await).len(), 5);
}

async fn a_division_that_is_not_one_generation_more_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    for wrong in [&[3][..], &[1, 1], &[3, 2], &[2, 3, 4]] {
        refused(Kind::TopicDiffers, line.divide(wrong).await);
    }
    line.stored(&records(1, 1)).await;
    let line = line.divided(&[2, 3]).await;
    for wrong in [&[2][..], &[2, 4], &[2, 2, 3], &[2, 3, 4, 5]] {
        refused(Kind::TopicDiffers, line.divide(wrong).await);
    }
    let found = ok("find the topic", line.bus.topic(&line.topic.name).await);
    assert_eq!(found.generations, generations(&[2, 3]), "the refusals changed nothing");
    line.in_partition(4).stored(&records(1, 1)).await;
}

async fn a_topic_is_divided_many_times(stage: Stage) {
    let mut line = stage.topic(&stage.handle().await, 3).await;
    let mut each = vec![3];
    let mut stored = Vec::new();
    for partitions in [1, 4, 1, 2] {
        let last = line.topic.partitions() - 1;
        let all = records(1, 2);
        line.in_partition(last).stored(&all).await;
        stored.push((last, all));
        each.push(partitions);
        line = line.on(&stage.handle().await).divided(&each).await;
    }
    line.in_partition(10).stored(&records(1, 1)).await;
    for (partition, all) in &stored {
        refused(Kind::Sealed, line.in_partition(*partition).append(&records(3, 1)).await);
        line.in_partition(*partition).holds(all).await;
    }
}

async fn a_topic_is_made_with_all_its_generations(stage: Stage) {
    let bus = stage.handle().await;
    let spec = TopicSpec::new(stage.name(""), generations(&[2, 1, 3]));
    let topic = ok("ensure", bus.ensure_topic(&spec).await);
    assert_eq!((&topic.generations, topic.epoch), (&spec.generations, 0));
    let line = stage.line(&bus, topic).await;
    for partition in 0..3 {
        refused(Kind::Sealed, line.in_partition(partition).append(&records(1, 1)).await);
        line.in_partition(partition).holds(&[]).await;
    }
    for partition in 3..6 {
        let all = records(1, 2);
        line.in_partition(partition).stored(&all).await;
        line.in_partition(partition).holds(&all).await;
    }
}

async fn ensuring_a_divided_topic_finds_it_as_it_is(stage: Stage) {
    let line = divided(&stage, [&[], &[]]).await;
    let bus = stage.handle().await;
    let spec = |each: &[u32]| TopicSpec::new(stage.name(""), generations(each));
    for related in [&[2][..], &[2, 3], &[2, 3, 4]] {
        let found = ok("ensure again", bus.ensure_topic(&spec(related)).await);
        assert_eq!(found, line.topic, "the topic is as it was, asked for as {related:?}");
    }
    for other in [&[3][..], &[5], &[2, 4], &[3, 2]] {
        refused(Kind::TopicDiffers, bus.ensure_topic(&spec(other)).await);
    }
    line.in_partition(4).stored(&records(1, 1)).await;
}

async fn a_raise_fences_every_generation(stage: Stage) {
    let (old, new) = (records(1, 2), records(1, 2));
    let line = divided(&stage, [&old, &[]]).await;
    line.in_partition(2).stored(&new[..1]).await;
    let tails = ok("raise", line.on(&stage.handle().await).raise(2).await);
    let found: Vec<_> = tails.iter().map(|tail| (tail.partition, tail.sequence)).collect();
    assert_eq!(found, [(0, 2), (1, 0), (2, 1), (3, 0), (4, 0)]);
    refused(Kind::OlderEpoch, line.append(&old).await);
    refused(Kind::OlderEpoch, line.in_partition(2).append(&new[1..]).await);
    line.at_epoch(2).stored(&old).await;
    line.in_partition(2).at_epoch(2).stored(&new[1..]).await;
}

async fn a_division_of_one_topic_leaves_the_others(stage: Stage) {
    let bus = stage.handle().await;
    let (a, b) = (stage.topic_named(&bus, "-a", 1).await, stage.topic_named(&bus, "-b", 1).await);
    a.divided(&[1, 2]).await;
    b.stored(&records(1, 1)).await;
    assert_eq!(ok("find the other topic", bus.topic(&b.topic.name).await).generations, generations(&[1]));
}

async fn sealed_partitions_are_read_as_before(stage: Stage) {
    let all = records(1, 6);
    let line = divided(&stage, [&all, &[]]).await;
    let other = line.on(&stage.handle().await);
    other.holds(&all).await;
    for after in [line.start(), line.after(&all[2]), line.after(&all[5])] {
        let expected = &all[after.sequence as usize..];
        let found = collect(other.read(line.to_tail(after)).await, after.sequence).await;
        same(&records_of(found), expected);
        let live = other.read(line.following(after)).await;
        same(&records_of(follow(live, after.sequence, 6).await), expected);
    }
    let mut live = other.read(line.following(line.after(&all[5]))).await;
    let waited = tokio::time::timeout(Duration::from_millis(50), live.next()).await;
    assert!(waited.is_err(), "a live stream waits where nothing more comes");
    let elsewhere = line.after(&impostor(&all[3]));
    refused(Kind::OtherId, other.bus.read(line.to_tail(elsewhere)).await.map(drop));
}

async fn a_reader_that_follows_is_not_ended_by_a_division(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let (old, new) = (records(1, 4), records(1, 2));
    line.stored(&old[..2]).await;
    let reading = line.on(&stage.handle().await);
    let mut live = reading.read(line.following(line.start())).await;
    let first = ok("read", within("a batch", live.next()).await.expect("a live stream does not end"));
    line.stored(&old[2..]).await;
    let line = line.divided(&[1, 2]).await;
    let rest = follow(live, first.last, 4).await;
    same(&records_of([first].into_iter().chain(rest).collect()), &old);
    let line = line.in_partition(2);
    let live = reading.read(line.following(line.start())).await;
    line.stored(&new).await;
    same(&records_of(follow(live, 0, 2).await), &new);
}

/// What is acknowledged lies below the seal; what is not is not there, or is there because its answer came too late.
async fn appends_that_race_with_a_division_lie_before_the_seal_or_are_refused(stage: Stage) {
    let mut line = stage.topic(&stage.handle().await, 2).await;
    let dividing = stage.handle().await;
    let mut each = vec![2];
    for _ in 0..ROUNDS {
        let first = line.topic.partitions() - 2;
        let lines = [line.in_partition(first), line.in_partition(first + 1)];
        each.push(2);
        let appending = join_all(lines.iter().map(append_until_sealed));
        let (told, after) = join(appending, line.on(&dividing).divided(&each)).await;
        let tails = ok("tails", dividing.tails(&line.topic.name).await);
        for (line, (all, acknowledged)) in lines.iter().zip(told) {
            let tail = tails[line.partition as usize].sequence;
            assert!(acknowledged <= tail, "{acknowledged} is acknowledged and the seal is at {tail}");
            line.holds(&all[..usize::try_from(tail).expect("few records")]).await;
        }
        line = after.on(&line.bus);
    }
}

/// Appends in pairs, several under way at once, until one is refused; returns what was sent and how far it was acknowledged.
async fn append_until_sealed(line: &Line) -> (Vec<Record>, u64) {
    let (mut all, mut acknowledged) = (Vec::new(), 0);
    loop {
        let sent = all.len();
        all.extend(records(sent as u64 + 1, 8));
        let appended = join_all(all[sent..].chunks(2).map(|round| line.append(round))).await;
        let mut refusals = appended.into_iter().filter_map(|appended| match appended {
            Ok(appended) => {
                acknowledged = acknowledged.max(appended.last);
                None
            }
            Err(error) => Some(error.kind()),
        });
        if let Some(kind) = refusals.next() {
            assert_eq!(kind, Kind::Sealed, "the first refusal names the seal");
            return (all, acknowledged);
        }
    }
}

async fn divisions_that_race_make_one_generation(stage: Stage) {
    let mut line = stage.topic(&stage.handle().await, 1).await;
    let other = stage.handle().await;
    let mut each = vec![1];
    for _ in 0..ROUNDS {
        let (mine, yours) = ([&each[..], &[1]].concat(), [&each[..], &[2]].concat());
        let theirs = line.on(&other);
        let (a, b) = join(line.divide(&mine), theirs.divide(&yours)).await;
        each = match (a.map_err(|error| error.kind()), b.map_err(|error| error.kind())) {
            (Ok(_), Err(Kind::TopicDiffers)) => mine,
            (Err(Kind::TopicDiffers), Ok(_)) => yours,
            wrong => panic!("one divides and the other is refused as TopicDiffers, found {wrong:?}"),
        };
        line = line.divided(&each).await;
        let same = [*each.last().expect("there is one")];
        each.extend(same);
        let (a, b) = join(line.divide(&each), line.on(&other).divide(&each)).await;
        assert_eq!(ok("divide", a), ok("divide into the same", b), "both are told of one division");
        line = line.divided(&each).await;
    }
}

async fn a_division_survives_a_restart(stage: Stage) {
    let (old, new) = (records(1, 3), records(1, 4));
    let line = divided(&stage, [&old, &[]]).await;
    line.in_partition(4).stored(&new[..2]).await;
    let bus = stage.factory.reopen().await;
    let found = ok("find the topic", bus.topic(&line.topic.name).await);
    assert_eq!(found, line.topic, "the topic is as before");
    let line = line.on(&bus);
    line.holds(&old).await;
    line.in_partition(4).stored(&new[2..]).await;
    line.in_partition(4).holds(&new).await;
    let line = line.divided(&[2, 3, 1]).await.on(&stage.factory.reopen().await);
    line.in_partition(4).holds(&new).await;
    line.in_partition(5).stored(&new).await;
}

async fn seals_survive_a_restart(stage: Stage) {
    let all = records(1, 4);
    let line = divided(&stage, [&all[..3], &[]]).await;
    let line = line.on(&stage.factory.reopen().await);
    refused(Kind::Sealed, line.append(&all[3..]).await);
    refused(Kind::Sealed, line.append(&all).await);
    refused(Kind::Sealed, line.in_partition(1).append(&all).await);
    line.stored(&all[..3]).await;
    line.holds(&all[..3]).await;
    line.in_partition(1).holds(&[]).await;
    line.in_partition(2).stored(&all).await;
}
