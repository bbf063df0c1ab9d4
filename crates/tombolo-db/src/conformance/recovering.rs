//! Cases about a database that does not agree with the bus: nobody leads until somebody decides, and what is decided
//! is done whole.

use jiff::Timestamp;
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::stage::{LONG, Ready, Wait, assert_contiguous, event_of, marks_of, names, noted};
use super::{Case, Fixture, Stage};
use crate::port::recovery::{Adopted, Adoption, Decision, Halt, Recovery};
use crate::{Kind, Mark, Origin, Outbox, RoundLimit, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(looking_changes_nothing),
        Case::new(a_look_tells_numbers_and_marks),
        Case::new(a_renewal_shows_in_the_lease_to_everybody),
        Case::new(nobody_leads_from_a_halted_database),
        Case::new(a_halt_fences_the_leader_of_before),
        Case::new(a_halt_is_refused_when_the_look_is_out_of_date),
        Case::new(what_is_on_the_bus_is_dropped_and_the_rest_is_numbered_after_it),
        Case::new(a_decision_is_carried_out_once),
        Case::new(a_consequence_on_the_bus_is_not_published_again),
        Case::new(halts_and_decisions_are_kept),
    ]
}

fn found(text: &str) -> Halt {
    // As precise as every database keeps it.
    let found_at =
        Timestamp::from_millisecond(Timestamp::now().as_millisecond()).expect("a time of now is in range");
    Halt { id: Uuid::now_v7(), found_at, finding: text.into() }
}

pub(super) fn decided(halt: &Halt) -> Decision {
    Decision { halt: halt.id, by: "an operator".into(), choice: "bus".into() }
}

/// Halts a database that nobody leads.
pub(super) async fn halted<F: Fixture>(ready: &Ready<F>) -> Halt {
    let halt = found("{}");
    let epoch = ready.database.standing(Uuid::now_v7()).await.expect("a look works").epoch;
    assert!(ready.database.halt(&halt, epoch, Uuid::now_v7()).await.expect("halting works"));
    halt
}

pub(super) fn adoption(tails: Vec<Mark>, on_bus: Vec<EventId>) -> Adoption {
    let generations = Generations::first(tails.len() as u32).expect("a few partitions");
    Adoption { incarnation: Incarnation::new(), epoch: 40, generations, tails, on_bus }
}

pub(super) fn tail(partition: u32, sequence: u64) -> Mark {
    Mark { partition, sequence, id: (sequence > 0).then(EventId::new) }
}

async fn looking_changes_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let me = Uuid::now_v7();
    let first = ready.database.standing(me).await.expect("a look works");
    assert_eq!(ready.database.standing(me).await.expect("a look works"), first);
    assert_eq!((first.epoch, first.is_free, first.incarnation, first.partitions.len()), (0, true, None, 4));
    let leader = ready.lead(me).await;
    let mine = ready.database.standing(me).await.expect("a look works");
    let others = ready.reopened().await.database.standing(Uuid::now_v7()).await.expect("a look works");
    assert_eq!((mine.epoch, mine.is_free, others.is_free), (leader.epoch(), true, false));
}

async fn a_look_tells_numbers_and_marks<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let pinned = Incarnation::new();
    leader.pin(pinned).await.expect("nothing is pinned yet");
    ready.commit(&[noted("a", 1), noted("b", 2), noted("c", 3)]).await;
    let rows = leader.round(&[], RoundLimit::default()).await.expect("a round works");
    let done = marks_of(&rows[..1]);
    leader.round(&done, RoundLimit::default()).await.expect("a round works");
    let standing = ready.database.standing(Uuid::now_v7()).await.expect("a look works");
    assert_eq!((standing.incarnation, standing.partitions[0].removed), (Some(pinned), done[0]));
    assert_eq!(standing.partitions[0].numbered, 3);
    let waiting = ready.database.waiting().await.expect("a look works");
    assert_eq!(waiting, [(0, rows[1].id), (0, rows[2].id)]);
    assert_eq!(ready.database.numbered(0, 2).await.expect("a look works"), Some(rows[1].id));
    assert_eq!(ready.database.numbered(0, 1).await.expect("a look works"), None);
}

async fn a_renewal_shows_in_the_lease_to_everybody<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let other = ready.reopened().await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let lease = async || other.database.standing(Uuid::now_v7()).await.expect("a look works").lease;
    let before = lease().await;
    assert_eq!(lease().await, before, "looking changed the lease");
    let mut wait = Wait::until("a renewal shows");
    while lease().await == before {
        leader.renew().await.expect("nobody else leads");
        wait.again().await;
    }
}

async fn nobody_leads_from_a_halted_database<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let me = Uuid::now_v7();
    let leader = ready.lead(me).await;
    let halt = found("{\"found\":\"by the leader\"}");
    let epoch = leader.epoch();
    drop(leader);
    assert!(ready.database.halt(&halt, epoch, me).await.expect("halting works"));
    let other = ready.reopened().await;
    for holder in [me, Uuid::now_v7()] {
        assert!(other.database.lead(holder, LONG).await.expect("asking works").is_none(), "somebody leads");
    }
    let standing = other.database.standing(me).await.expect("a look works");
    assert_eq!((standing.epoch, standing.halt.as_ref()), (epoch, Some(&halt)), "the epoch does not climb");
    other.database.resume(&decided(&halt)).await.expect("the halt ends");
    assert_eq!(other.lead(Uuid::now_v7()).await.epoch(), epoch + 1);
}

async fn a_halt_fences_the_leader_of_before<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let me = Uuid::now_v7();
    let mut leader = ready.lead(me).await;
    ready.commit(&[noted("a", 1)]).await;
    let done = marks_of(&leader.round(&[], RoundLimit::default()).await.expect("a round works"));
    let again = ready.reopened().await;
    assert!(again.database.halt(&found("{}"), leader.epoch(), me).await.expect("halting works"));
    let error = leader.round(&done, RoundLimit::default()).await.expect_err("round");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let error = leader.round(&[], RoundLimit::default()).await.expect_err("idle round");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert_eq!(leader.renew().await.expect_err("renew").kind(), Kind::Fenced);
    assert_eq!(ready.depth().await.rows, 1, "nothing is removed");
}

async fn a_halt_is_refused_when_the_look_is_out_of_date<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let (leads, looks) = (Uuid::now_v7(), Uuid::now_v7());
    let leader = ready.lead(leads).await;
    let database = &ready.database;
    assert!(!database.halt(&found("{}"), leader.epoch(), looks).await.expect("asking works"), "it is led");
    assert!(!database.halt(&found("{}"), 0, leads).await.expect("asking works"), "of an older epoch");
    assert_eq!(database.standing(looks).await.expect("a look works").halt, None);
    let first = found("{}");
    assert!(database.halt(&first, leader.epoch(), leads).await.expect("halting works"));
    assert!(!database.halt(&found("{}"), leader.epoch(), leads).await.expect("asking works"), "halted twice");
    assert_eq!(database.standing(looks).await.expect("a look works").halt, Some(first));
}

async fn what_is_on_the_bus_is_dropped_and_the_rest_is_numbered_after_it<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mine: Vec<_> = (0..20).map(|n| noted(&format!("k{}", n % 5), n)).collect();
    ready.commit(&mine).await;
    let rows = leader.round(&[], RoundLimit::default()).await.expect("a round works");
    leader.resign(&[]).await.expect("it resigns");
    ready.commit(&[noted("k0", 20), noted("k1", 21)]).await;
    let halt = halted(&ready).await;
    let on_bus: Vec<EventId> = rows.iter().filter(|row| row.sequence <= 3).map(|row| row.id).collect();
    let adoption = adoption(vec![tail(0, 50), tail(1, 0)], on_bus.clone());
    let adopted = ready.database.adopt(&decided(&halt), &adoption).await.expect("the bus's word is taken");
    let kept = 22 - on_bus.len() as u64;
    assert_eq!(adopted, Adopted { dropped: on_bus.len() as u64, kept });
    let standing = ready.database.standing(Uuid::now_v7()).await.expect("a look works");
    assert_eq!((standing.halt, standing.incarnation), (None, Some(adoption.incarnation)));
    let marks: Vec<Mark> = standing.partitions.iter().map(|counted| counted.removed).collect();
    assert_eq!(marks, adoption.tails);
    assert_eq!(ready.depth().await.rows, kept);
    let mut leader = ready.reopened().await.lead(Uuid::now_v7()).await;
    assert_eq!(leader.epoch(), 41, "above what was raised at the bus");
    let rows = ready.drain(&mut *leader).await;
    let of = |partition| rows.iter().filter(|row| row.partition == partition).cloned().collect::<Vec<_>>();
    assert_contiguous(&of(0), 50);
    assert_contiguous(&of(1), 0);
    assert!(names(&rows).iter().all(|(_, _, id)| !on_bus.contains(id)) && rows.len() as u64 == kept);
    for key in 0..5 {
        let values: Vec<i64> = rows
            .iter()
            .map(event_of)
            .filter(|event| event.key == format!("k{key}"))
            .map(|e| e.value)
            .collect();
        assert!(values.is_sorted(), "k{key} is out of order: {values:?}");
    }
    assert_eq!(ready.depth().await, crate::Depth::default());
}

async fn a_decision_is_carried_out_once<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let halt = halted(&ready).await;
    let other = Decision { halt: Uuid::now_v7(), ..decided(&halt) };
    let adoption = adoption(vec![tail(0, 9)], Vec::new());
    let refused = ready.database.adopt(&other, &adoption).await.expect_err("about another halt");
    assert_eq!(refused.kind(), Kind::Mismatch, "{refused}");
    assert_eq!(ready.database.resume(&other).await.expect_err("another halt").kind(), Kind::Mismatch);
    ready.database.adopt(&decided(&halt), &adoption).await.expect("the bus's word is taken");
    let again = ready.database.adopt(&decided(&halt), &adoption).await.expect_err("it is over");
    assert_eq!(again.kind(), Kind::Mismatch, "{again}");
    assert_eq!(ready.database.resume(&decided(&halt)).await.expect_err("it is over").kind(), Kind::Mismatch);
}

/// Publishes what follows from `cause`, as a reactor would.
async fn react<F: Fixture>(ready: &Ready<F>, cause: EventId, keys: &[&str]) -> Vec<EventId> {
    let mut tx = ready.begin().await;
    tx.outgoing().enter(Origin::Reaction { subscription: "echo".into(), cause });
    let mut ids = Vec::new();
    for key in keys {
        ids.push(tx.outgoing().publish(&noted(key, 1)).expect("the event may be published"));
    }
    let committed = tx.commit().await.expect("the transaction commits");
    assert_eq!(committed.positions.len(), keys.len());
    ids
}

async fn a_consequence_on_the_bus_is_not_published_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let (first, second) = (EventId::new(), EventId::new());
    let ids = react(&ready, first, &["a", "b"]).await;
    let halt = halted(&ready).await;
    // One of them waits here, and is on the bus; the bus has one that was not made again yet.
    let coming = EventId::of_consequence(&tombolo_event::Consequence {
        service: "notes",
        subscription: "echo",
        cause: second,
        ordinal: 1,
    });
    let adoption = adoption(vec![tail(0, 4), tail(1, 4)], vec![ids[0], coming, EventId::new()]);
    let adopted = ready.database.adopt(&decided(&halt), &adoption).await.expect("the bus's word is taken");
    assert_eq!(adopted, Adopted { dropped: 1, kept: 1 });
    let again = react(&ready, second, &["c", "d", "e"]).await;
    assert_eq!(again[1], coming);
    react(&ready, first, &["a"]).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut found: Vec<EventId> = ready.drain(&mut *leader).await.iter().map(|row| row.id).collect();
    let mut expected = vec![ids[1], again[0], again[2]];
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "what is on the bus is published once more, or something else is not");
}

async fn halts_and_decisions_are_kept<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let first = halted(&ready).await;
    ready.database.resume(&decided(&first)).await.expect("the halt ends");
    let mut wait = Wait::until("the clock shows another millisecond");
    while Timestamp::now().as_millisecond() <= first.found_at.as_millisecond() {
        wait.again().await;
    }
    let second = halted(&ready).await;
    let kept = ready.reopened().await.database.halts(10).await.expect("a look works");
    assert_eq!(kept.iter().map(|halted| &halted.halt).collect::<Vec<_>>(), [&second, &first]);
    assert_eq!((&kept[0].decision, kept[1].decision.as_ref()), (&None, Some(&decided(&first))));
    assert_eq!(ready.database.halts(1).await.expect("a look works").len(), 1);
}
