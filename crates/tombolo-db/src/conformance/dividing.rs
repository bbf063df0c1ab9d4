//! Cases about a topic that is divided into partitions anew: what has a number keeps it, what has none goes to the new
//! generation, and of each key in the order of its commits.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tombolo_event::operator::{Action, Outcome, PartitionOf, Place, Request};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, KeyHash};
use uuid::Uuid;

use super::recovering::{adoption, decided, halted, tail};
use super::stage::{
    LONG, Noted, Ready, assert_contiguous, event_of, marks_of, noted, owner, service, stand_at,
};
use super::{Case, Fixture, Stage};
use crate::port::recovery::{Adopted, Adoption};
use crate::{
    Cursors, Goal, Kind, Leader, Outbox, OutboxRow, Recovery, Requests, RoundLimit, Schema, StartAt,
    Transaction,
};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(what_has_a_number_keeps_it_and_what_comes_goes_to_the_new_generation),
        Case::new(whoever_leads_next_hands_out_the_earlier_generations_first),
        Case::new(what_commits_after_a_division_goes_to_the_new_generation)
            .needing(|abilities| abilities.late_commits),
        Case::new(what_becomes_due_goes_to_the_new_generation),
        Case::new(only_the_next_generation_is_taken),
        Case::new(a_request_has_its_outcome_with_the_division),
        Case::new(a_crash_at_a_division_leaves_all_of_it_or_nothing),
        Case::new(a_replaced_leader_divides_nothing),
        Case::new(every_number_that_the_topic_had_is_accepted),
        Case::new(the_generations_of_the_bus_are_taken_with_its_word),
        Case::new(a_database_that_went_on_keeps_its_generations),
        Case::new(new_partitions_of_a_topic_are_read_from_their_start),
        Case::new(places_are_reached_when_the_cursors_are_there_and_stay),
    ]
}

const ALL: RoundLimit = RoundLimit { rows: 1_000, bytes: 1 << 20 };

fn some(from: i64, count: i64) -> Vec<Noted> {
    (from..from + count).map(|n| noted(&format!("k{}", n % 7), n)).collect()
}

async fn round(leader: &mut dyn Leader) -> Vec<OutboxRow> {
    leader.round(&[], ALL).await.expect("a round works")
}

fn these(each: &[u32]) -> Generations {
    Generations::try_from(each.to_vec()).expect("generations that a topic can have")
}

/// Fails unless all rows are where the present generation has their keys, numbered from 1.
fn assert_placed(rows: &[OutboxRow], generations: &Generations) {
    for row in rows {
        let key = KeyHash::of(&event_of(row).key);
        assert_eq!(row.partition, generations.partition(key), "an event is in a partition of another key");
    }
    assert_contiguous(rows, 0);
}

/// Fails unless the values of each key rise, in the order of `rows`.
fn assert_in_order(rows: &[OutboxRow]) {
    let mut last = BTreeMap::new();
    for event in rows.iter().map(event_of) {
        let before = last.insert(event.key.clone(), event.value);
        assert!(before < Some(event.value), "key {:?}: {before:?}, then {}", event.key, event.value);
    }
}

async fn what_has_a_number_keeps_it_and_what_comes_goes_to_the_new_generation<F: Fixture>(stage: Stage<F>) {
    for (before, after) in [(2, 5), (5, 2)] {
        let ready = stage.prepared(before).await;
        let mut leader = ready.lead(Uuid::now_v7()).await;
        ready.commit(&some(0, 20)).await;
        let old = round(&mut *leader).await;
        assert_placed(&old, &these(&[before]));
        let generations = ready.divide(&mut *leader, after).await;
        let committed = ready.commit(&some(20, 20)).await;
        let in_new = |partition| (before..before + after).contains(&partition);
        assert!(committed.positions.iter().all(|position| in_new(position.partition)));
        let new = round(&mut *leader).await;
        assert_placed(&new, &generations);
        assert_eq!((old.len(), new.len()), (20, 20));
        assert_in_order(&[old.clone(), new.clone()].concat());
        let standing = ready.database.standing(Uuid::now_v7()).await.expect("a look works");
        assert_eq!((standing.generations, standing.partitions.len()), (generations, 7));
        leader.round(&marks_of(&[old, new].concat()), ALL).await.expect("a round works");
        assert_eq!(ready.depth().await.rows, 0);
    }
}

async fn whoever_leads_next_hands_out_the_earlier_generations_first<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let holder = Uuid::now_v7();
    let mut leader = ready.lead(holder).await;
    ready.commit(&some(0, 20)).await;
    let mut handed_out = round(&mut *leader).await;
    ready.divide(&mut *leader, 3).await;
    ready.commit(&some(20, 20)).await;
    handed_out.extend(round(&mut *leader).await);
    ready.divide(&mut *leader, 4).await;
    ready.commit(&some(40, 20)).await;
    drop(leader);
    let mut leader = ready.reopened().await.lead(holder).await;
    assert_eq!(leader.generations(), &these(&[2, 3, 4]));
    assert_eq!(leader.marks().len(), 9);
    let mut again = Vec::new();
    while again.len() < 60 {
        let rows = leader.round(&[], RoundLimit { rows: 7, ..ALL }).await.expect("a round works");
        assert!(!rows.is_empty(), "only {} of 60 rows are handed out", again.len());
        again.extend(rows);
    }
    let generation = |row: &OutboxRow| these(&[2, 3, 4]).beside(row.partition).expect("a partition").start;
    assert!(again.is_sorted_by_key(generation), "a later generation is handed out first");
    assert!(handed_out.iter().all(|row| again.contains(row)), "a row has another number or is gone");
    assert_contiguous(&again, 0);
    assert_in_order(&again);
}

async fn what_commits_after_a_division_goes_to_the_new_generation<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let tx = ready.publishing(&[noted("a", 1), noted("b", 1)]).await;
    let late = stand_at("outbox.before-commit", tx.commit()).await;
    let generations = ready.divide(&mut *leader, 3).await;
    let mut positions = late.finish().await.expect("it commits").positions;
    assert!(positions.iter().all(|position| position.partition < 2), "it could not know better");
    ready.commit(&[noted("a", 2), noted("c", 1)]).await;
    let rows = round(&mut *leader).await;
    assert_placed(&rows, &generations);
    assert_in_order(&rows);
    assert_eq!(rows.len(), 4);
    ready.database.complete(&mut positions).await.expect("positions are completed");
    for position in &positions {
        let row = rows.iter().find(|row| row.id == position.id).expect("it is among the rows");
        assert_eq!((position.partition, position.sequence), (row.partition, Some(row.sequence)));
    }
}

async fn what_becomes_due_goes_to_the_new_generation<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let due: Timestamp = "2150-01-01T12:00:00Z".parse().expect("a moment");
    let mut tx = ready.begin().await;
    tx.outgoing().publish_at(&noted("a", 2), due).expect("it may be published later");
    tx.commit().await.expect("it commits");
    ready.commit(&[noted("a", 1)]).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let mut rows = round(&mut *leader).await;
    let generations = ready.divide(&mut *leader, 3).await;
    assert_eq!(leader.move_due(due, ALL).await.expect("a move works"), 1);
    let moved = round(&mut *leader).await;
    assert_placed(&moved, &generations);
    rows.extend(moved);
    assert_in_order(&rows);
    assert_eq!(rows.len(), 2);
}

async fn only_the_next_generation_is_taken<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    for wrong in [&[2][..], &[3], &[2, 3, 4], &[4, 3]] {
        let error = leader.divide(&these(wrong), None).await.expect_err("it is not the next");
        assert_eq!(error.kind(), Kind::Refused, "{error}");
    }
    assert_eq!(leader.generations(), &these(&[2]));
    ready.divide(&mut *leader, 2).await;
    let again = leader.divide(&these(&[2, 2]), None).await.expect_err("it is divided so already");
    assert_eq!(again.kind(), Kind::Refused, "{again}");
}

fn request() -> Request {
    Request::new("topic/notes", None, &Action::Pause, "ann@host")
}

async fn a_request_has_its_outcome_with_the_division<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    let asked = request();
    ready.database.ask(std::slice::from_ref(&asked)).await.expect("it is written down");
    let done = Outcome::done("divided");
    leader.divide(&these(&[2, 3]), Some((asked.id, &done))).await.expect("the topic is divided");
    let found = ready.database.request(asked.id).await.expect("it can be read").expect("it is there");
    assert!(found.outcome.is_some_and(|outcome| outcome.done));
    let again = leader.divide(&these(&[2, 3, 4]), Some((asked.id, &done))).await.expect_err("it was done");
    assert_eq!(again.kind(), Kind::Refused, "{again}");
    let standing = ready.database.standing(Uuid::now_v7()).await.expect("a look works");
    assert_eq!(standing.generations, these(&[2, 3]), "it was divided once more");
}

async fn a_crash_at_a_division_leaves_all_of_it_or_nothing<F: Fixture>(stage: Stage<F>) {
    for (at, is_divided) in [("divide.before-commit", false), ("divide.after-commit", true)] {
        let ready = stage.prepared(2).await;
        let holder = Uuid::now_v7();
        let mut leader = ready.lead(holder).await;
        let asked = request();
        ready.database.ask(std::slice::from_ref(&asked)).await.expect("it is written down");
        let dividing = async move {
            let done = Outcome::done("divided");
            leader.divide(&these(&[2, 3]), Some((asked.id, &done))).await
        };
        stand_at(at, dividing).await.crash().await;
        let other = ready.reopened().await;
        let mut leader = other.lead(holder).await;
        let found = leader.generations().clone();
        // What was sent to the database before the crash may still be carried out.
        assert!(found == these(&[2, 3]) || found == these(&[2]) && !is_divided, "{at}: {found}");
        assert_eq!(leader.marks().len() as u32, found.partitions());
        let open = other.database.has_open_requests().await.expect("it can be asked");
        assert_eq!(open, found == these(&[2]), "{at}");
        other.commit(&some(0, 9)).await;
        assert_placed(&round(&mut *leader).await, &found);
    }
}

async fn a_replaced_leader_divides_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let holder = Uuid::now_v7();
    let mut old = ready.lead(holder).await;
    let new = ready.reopened().await.lead(holder).await;
    let error = old.divide(&these(&[2, 3]), None).await.expect_err("it was replaced");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    let standing = ready.database.standing(holder).await.expect("a look works");
    assert_eq!((&standing.generations, new.generations()), (&these(&[2]), &these(&[2])));
}

async fn every_number_that_the_topic_had_is_accepted<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    ready.divide(&mut *leader, 3).await;
    for known in [2, 3] {
        ready.database.prepare(&owner(known), Schema::Apply).await.expect("it is one of the topic's");
    }
    let error = ready.database.prepare(&owner(4), Schema::Apply).await.expect_err("it never was");
    assert_eq!(error.kind(), Kind::Mismatch, "{error}");
    assert!(error.to_string().contains("tombolo topics divide notes --partitions 4"), "{error}");
}

/// Takes the word of a bus whose topic is divided like that.
async fn adopt<F: Fixture>(ready: &Ready<F>, generations: &Generations, tails: &[(u32, u64)]) -> Adopted {
    let halt = halted(ready).await;
    let tails = tails.iter().map(|&(partition, sequence)| tail(partition, sequence)).collect();
    let adoption = Adoption { generations: generations.clone(), ..adoption(tails, Vec::new()) };
    ready.database.adopt(&decided(&halt), &adoption).await.expect("the bus's word is taken")
}

async fn the_generations_of_the_bus_are_taken_with_its_word<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    ready.commit(&some(0, 20)).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert_eq!(round(&mut *leader).await.len(), 20, "numbered in the first");
    leader.resign(&[]).await.expect("it resigns");
    let generations = these(&[2, 3]);
    let tails = [(0, 9), (1, 0), (2, 4), (3, 4), (4, 4)];
    let adopted = adopt(&ready, &generations, &tails).await;
    assert_eq!((adopted.dropped, adopted.kept), (0, 20));
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert_eq!(leader.generations(), &generations);
    ready.commit(&some(20, 20)).await;
    let mut rows = Vec::new();
    while rows.len() < 40 {
        rows.extend(round(&mut *leader).await);
    }
    assert_contiguous(&rows, 4);
    assert!(rows.iter().all(|row| row.partition >= 2), "an event is in a sealed partition");
    assert_in_order(&rows);
}

async fn a_database_that_went_on_keeps_its_generations<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    ready.commit(&some(0, 7)).await;
    round(&mut *leader).await;
    let generations = ready.divide(&mut *leader, 3).await;
    ready.commit(&some(7, 7)).await;
    let done = marks_of(&round(&mut *leader).await);
    ready.commit(&some(14, 7)).await;
    round(&mut *leader).await;
    leader.resign(&done).await.expect("it resigns");
    adopt(&ready, &these(&[2]), &[(0, 5), (1, 5)]).await;
    let mut leader = ready.lead(Uuid::now_v7()).await;
    assert_eq!(leader.generations(), &generations);
    let rows = ready.drain(&mut *leader).await;
    assert_eq!(rows.len(), 14);
    assert_placed(&rows, &generations);
    assert_in_order(&rows);
}

async fn new_partitions_of_a_topic_are_read_from_their_start<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let incarnation = Incarnation::new();
    let at = |sequence| Cursor::at(incarnation, sequence, EventId(Uuid::from_u128(sequence.into())));
    let open = async |partitions: u32, sequence| {
        let start = |partition| StartAt { topic: service(), partition, cursor: at(sequence) };
        let starts: Vec<StartAt> = (0..partitions).map(start).collect();
        ready.database.open("titles", &["t".to_owned()], &starts, true).await.expect("it opens");
    };
    open(2, 5).await;
    open(5, 7).await;
    for partition in 0..5 {
        let stands = ready.database.cursor("titles", &service(), partition).await.expect("it can be read");
        let expected = if partition < 2 { at(5) } else { Cursor::start(incarnation) };
        assert_eq!(stands, Some(expected), "partition {partition}");
    }
}

async fn places_are_reached_when_the_cursors_are_there_and_stay<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let incarnation = ready.open("titles").await;
    let goal = |partition, sequence| Goal { topic: service(), partition, incarnation, sequence };
    let lacks = async |goals: &[Goal]| {
        let lacks = ready.database.not_reached("titles", goals).await.expect("it can be asked");
        lacks.iter().map(|goal| goal.partition).collect::<Vec<_>>()
    };
    assert_eq!(lacks(&[goal(0, 0), goal(1, 3), goal(2, 0)]).await, [1, 2], "there is no partition 2");
    let claims = ready.claim("titles", Uuid::now_v7(), LONG).await;
    let mut tx = ready.begin().await;
    let to = Cursor::at(incarnation, 3, EventId::new());
    tx.advance(&claims[1], &to).await.expect("the claim is held");
    tx.commit().await.expect("it commits");
    assert_eq!(lacks(&[goal(0, 0), goal(1, 3)]).await, [0; 0]);
    assert_eq!(lacks(&[goal(1, 4)]).await, [1]);
    let elsewhere = Goal { incarnation: Incarnation::new(), ..goal(1, 3) };
    assert_eq!(lacks(&[elsewhere]).await, [1], "a place in another log");
    let of = PartitionOf { topic: service(), partition: 1 };
    let back = Place { of: of.clone(), incarnation, sequence: 0, id: None };
    let reset = Request::new("titles", Some(of), &Action::Reset { to: vec![back], force: true }, "ann@host");
    ready.database.ask(std::slice::from_ref(&reset)).await.expect("it is written down");
    assert_eq!(lacks(&[goal(0, 0), goal(1, 3)]).await, [1], "it is to go back from there");
    ready.database.finish(reset.id, &Outcome::refused("no")).await.expect("it waits");
    assert_eq!(lacks(&[goal(0, 0), goal(1, 3)]).await, [0; 0]);
}
