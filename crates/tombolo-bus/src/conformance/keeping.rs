//! Cases about what is kept when the bus stops and starts. Invariant: what was acknowledged before is there after,
//! and nothing that was refused.

use super::Case;
use super::listing::{said, saying};
use super::stage::{Stage, impostor, ok, records, refused};
use crate::Kind;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(what_was_acknowledged_survives_a_restart).needing(|abilities| abilities.reopens),
        Case::new(fences_survive_a_restart).needing(|abilities| abilities.reopens),
        Case::new(cursors_survive_a_restart).needing(|abilities| abilities.reopens),
        Case::new(a_repeat_after_a_restart_is_recognised).needing(|abilities| abilities.reopens),
        Case::new(registrations_survive_a_restart).needing(|abilities| abilities.reopens),
    ]
}

async fn what_was_acknowledged_survives_a_restart(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let (first, second) = (records(1, 50), records(1, 8));
    for round in first[..40].chunks(7) {
        line.stored(round).await;
    }
    line.in_partition(1).stored(&second[..5]).await;
    let line = line.on(&stage.factory.reopen().await);
    line.holds(&first[..40]).await;
    line.in_partition(1).holds(&second[..5]).await;
    line.stored(&first[40..]).await;
    line.in_partition(1).stored(&second[5..]).await;
    let line = line.on(&stage.factory.reopen().await);
    line.holds(&first).await;
    line.in_partition(1).holds(&second).await;
}

async fn fences_survive_a_restart(stage: Stage) {
    let old = stage.topic(&stage.handle().await, 2).await;
    let all = records(1, 3);
    old.stored(&all[..2]).await;
    ok("raise", old.raise(4).await);
    let bus = stage.factory.reopen().await;
    let old = old.on(&bus);
    refused(Kind::OlderEpoch, old.append(&all[2..]).await);
    refused(Kind::OlderEpoch, old.raise(3).await);
    let topic = ok("ensure", bus.ensure_topic(&stage.spec("", 2)).await);
    assert_eq!(
        (topic.incarnation, topic.epoch),
        (old.topic.incarnation, 4),
        "the topic is the same as before"
    );
    refused(Kind::TopicDiffers, bus.ensure_topic(&stage.spec("", 1)).await);
    old.at_epoch(4).stored(&all[2..]).await;
    old.holds(&all).await;
}

async fn cursors_survive_a_restart(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 10);
    line.stored(&all).await;
    let line = line.on(&stage.factory.reopen().await);
    for (at, stored) in (1..).zip(&all) {
        let stream = line.read(line.to_tail(line.after(stored))).await;
        let found = super::stage::records_of(super::stage::collect(stream, stored.sequence).await);
        super::stage::same(&found, &all[at..]);
    }
    let elsewhere = line.after(&impostor(&all[4]));
    refused(Kind::OtherId, line.bus.read(line.to_tail(elsewhere)).await.map(drop));
}

async fn a_repeat_after_a_restart_is_recognised(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 6);
    line.stored(&all[..4]).await;
    let line = line.on(&stage.factory.reopen().await);
    line.stored(&all[..4]).await;
    refused(Kind::OtherId, line.append(&[impostor(&all[3])]).await);
    refused(Kind::Hole, line.append(&all[5..]).await);
    line.stored(&all[2..]).await;
    line.holds(&all).await;
}

async fn registrations_survive_a_restart(stage: Stage) {
    let bus = stage.handle().await;
    ok("register", bus.register(&saying(&stage, "", 1, "old")).await);
    let last = [saying(&stage, "", 1, "new"), saying(&stage, "", 2, "other")];
    for one in &last {
        ok("register", bus.register(one).await);
    }
    let bus = stage.factory.reopen().await;
    assert_eq!(said(&stage, &*bus).await, last);
}
