//! Cases about topics: making, finding, listing, and their tails. Invariant: a name is one topic, for everybody.

use futures_util::future::join_all;
use tombolo_event::{Cursor, Incarnation};

use super::Case;
use super::stage::{Line, Stage, generations, ok, records, refused};
use crate::{Kind, Read, TopicSpec};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(the_guarantee_names_the_engine),
        Case::new(ensuring_a_topic_again_finds_the_same),
        Case::new(handles_that_ensure_at_once_get_one_topic),
        Case::new(a_topic_that_continues_another_has_its_incarnation),
        Case::new(a_topic_with_other_partitions_differs),
        Case::new(an_unknown_topic_is_said_so),
        Case::new(an_unknown_partition_is_said_so),
        Case::new(topics_are_listed_by_name_once),
        Case::new(a_new_topic_is_empty),
        Case::new(tails_name_the_last_of_each_partition),
    ]
}

async fn the_guarantee_names_the_engine(stage: Stage) {
    let guarantee = stage.handle().await.guarantee();
    assert!(!guarantee.engine.is_empty() && !guarantee.detail.is_empty(), "{guarantee:?}");
}

async fn ensuring_a_topic_again_finds_the_same(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 3).await;
    line.stored(&records(1, 2)).await;
    let other = stage.handle().await;
    let again = ok("ensure again", other.ensure_topic(&stage.spec("", 3)).await);
    assert_eq!(again.incarnation, line.topic.incarnation, "the incarnation stays");
    assert_eq!((again.name, again.generations, again.epoch), (stage.name(""), generations(&[3]), 1));
    assert_eq!(line.all().await.len(), 2, "nothing was lost by ensuring again");
}

async fn handles_that_ensure_at_once_get_one_topic(stage: Stage) {
    let spec = stage.spec("", 2);
    let handles = [stage.handle().await, stage.handle().await, stage.handle().await];
    let made = join_all(handles.iter().map(|bus| bus.ensure_topic(&spec))).await;
    let made: Vec<_> = made.into_iter().map(|topic| ok("ensure", topic).incarnation).collect();
    assert!(made.iter().all(|incarnation| *incarnation == made[0]), "one incarnation for all: {made:?}");
}

async fn a_topic_that_continues_another_has_its_incarnation(stage: Stage) {
    let bus = stage.handle().await;
    let incarnation = Incarnation::new();
    let spec = TopicSpec { incarnation: Some(incarnation), ..stage.spec("", 2) };
    let made = ok("ensure", bus.ensure_topic(&spec).await);
    assert_eq!(made.incarnation, incarnation);
    let other = stage.handle().await;
    assert_eq!(ok("find", other.topic(&spec.name).await).incarnation, incarnation);
    assert_eq!(ok("ensure as it is", other.ensure_topic(&stage.spec("", 2)).await).incarnation, incarnation);
    let another = TopicSpec { incarnation: Some(Incarnation::new()), ..spec };
    refused(Kind::TopicDiffers, other.ensure_topic(&another).await);
}

async fn a_topic_with_other_partitions_differs(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 2).await;
    let spec = stage.spec("", 4);
    refused(Kind::TopicDiffers, bus.ensure_topic(&spec).await);
    refused(Kind::TopicDiffers, stage.handle().await.ensure_topic(&spec).await);
    let found = ok("find the topic", bus.topic(&line.topic.name).await);
    assert_eq!(found.generations, generations(&[2]), "the refusal changed nothing");
}

async fn an_unknown_topic_is_said_so(stage: Stage) {
    let bus = stage.handle().await;
    let known = stage.topic(&bus, 1).await;
    let name = stage.name("-absent");
    let line = Line { topic: crate::Topic { name: name.clone(), ..known.topic.clone() }, ..known };
    refused(Kind::UnknownTopic, bus.topic(&name).await);
    refused(Kind::UnknownTopic, bus.tails(&name).await);
    refused(Kind::UnknownTopic, line.raise(2).await);
    refused(Kind::UnknownTopic, line.append(&records(1, 1)).await);
    refused(Kind::UnknownTopic, bus.read(line.following(line.start())).await.map(drop));
}

async fn an_unknown_partition_is_said_so(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 2).await.in_partition(2);
    refused(Kind::UnknownPartition, line.append(&records(1, 1)).await);
    let read = Read::following(&line.topic.name, 2, line.start());
    refused(Kind::UnknownPartition, bus.read(read).await.map(drop));
}

async fn topics_are_listed_by_name_once(stage: Stage) {
    let bus = stage.handle().await;
    let second = stage.topic_named(&bus, "-b", 2).await.topic;
    let first = stage.topic_named(&bus, "-a", 1).await.topic;
    let all = ok("list the topics", stage.handle().await.topics().await);
    assert!(all.is_sorted_by(|a, b| a.name < b.name), "the list is ordered by name, each once");
    for topic in [first, second] {
        let found =
            all.iter().find(|found| found.name == topic.name).expect("a topic that was made is listed");
        assert_eq!(
            (found.incarnation, &found.generations, found.epoch),
            (topic.incarnation, &topic.generations, 1)
        );
    }
}

async fn a_new_topic_is_empty(stage: Stage) {
    let bus = stage.handle().await;
    let topic = ok("ensure", bus.ensure_topic(&stage.spec("", 3)).await);
    assert_eq!(topic.epoch, 0, "no relay has raised it");
    let tails = ok("tails", bus.tails(&topic.name).await);
    let found: Vec<_> = tails.iter().map(|tail| (tail.partition, tail.sequence, tail.id)).collect();
    assert_eq!(found, [(0, 0, None), (1, 0, None), (2, 0, None)]);
    let elsewhere = Cursor::start(Incarnation::new());
    refused(Kind::OtherIncarnation, bus.read(Read::to_tail(&topic.name, 0, elsewhere)).await.map(drop));
}

async fn tails_name_the_last_of_each_partition(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 3).await;
    let (some, one) = (records(1, 3), records(1, 1));
    line.in_partition(2).stored(&some).await;
    line.stored(&one).await;
    let tails = ok("tails", stage.handle().await.tails(&line.topic.name).await);
    let found: Vec<_> = tails.iter().map(|tail| (tail.partition, tail.sequence, tail.id)).collect();
    assert_eq!(found, [(0, 1, Some(one[0].id)), (1, 0, None), (2, 3, Some(some[2].id))]);
}
