//! A random schedule against a model: commits, rollbacks, rounds, acknowledgements, crashes and takeovers.
//!
//! Invariant of the model: the n-th committed event of a partition has sequence n, is handed out once by each
//! leader until it is done, and never after.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_event::EventId;
use uuid::Uuid;

use super::stage::{Noted, Ready, noted};
use super::{Case, Fixture, Stage};
use crate::{Depth, Leader, Mark, OutboxRow, RoundLimit, Transaction};

const PARTITIONS: u32 = 3;
const STEPS: usize = 300;

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![Case::new(a_random_schedule_agrees_with_the_model)]
}

/// The seed of a random case, printed so that it can be repeated with `TOMBOLO_SEED`.
pub(super) fn seed(case: &str) -> u64 {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("{case}: TOMBOLO_SEED={seed}");
    seed
}

#[derive(Default)]
struct Model {
    /// The committed events of each partition, in order: the n-th has sequence n + 1.
    committed: BTreeMap<u32, Vec<EventId>>,
    /// How many of each partition the present leader handed out, and how many are done.
    handed_out: BTreeMap<u32, u64>,
    done: BTreeMap<u32, u64>,
}

impl Model {
    fn hand_out(&mut self, rows: &[OutboxRow]) {
        for row in rows {
            let last = self.handed_out.entry(row.partition).or_default();
            assert_eq!(row.sequence, *last + 1, "partition {} skips or repeats", row.partition);
            *last = row.sequence;
            let expected = self.committed[&row.partition][*last as usize - 1];
            assert_eq!(row.id, expected, "another event has {}/{}", row.partition, row.sequence);
        }
    }

    /// Some of what was handed out is acknowledged.
    fn acknowledge(&mut self, random: &mut StdRng) -> Vec<Mark> {
        let mut marks = Vec::new();
        for (&partition, &last) in &self.handed_out {
            let done = self.done.entry(partition).or_default();
            *done = random.random_range(*done..=last);
            if *done > 0 {
                let id = self.committed[&partition][*done as usize - 1];
                marks.push(Mark { partition, sequence: *done, id: Some(id) });
            }
        }
        marks
    }

    fn take_over(&mut self, leader: &dyn Leader) {
        for mark in leader.marks() {
            let done = self.done.get(&mark.partition).copied().unwrap_or(0);
            assert!(mark.sequence <= done, "more was removed than was done");
            self.handed_out.insert(mark.partition, mark.sequence);
            self.done.insert(mark.partition, mark.sequence);
        }
    }

    fn waiting(&self) -> u64 {
        let removed: u64 = self.done.values().sum();
        self.committed.values().map(|events| events.len() as u64).sum::<u64>() - removed
    }
}

async fn a_random_schedule_agrees_with_the_model<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(PARTITIONS).await;
    let mut random = StdRng::seed_from_u64(seed("a_random_schedule_agrees_with_the_model"));
    let (mut model, holder) = (Model::default(), Uuid::now_v7());
    let mut leader = ready.lead(holder).await;
    for _ in 0..STEPS {
        match random.random_range(0..20) {
            0..9 => commit(&ready, &mut model, &mut random).await,
            9..12 => give_up(&ready, &mut random).await,
            12..18 => {
                let limit =
                    RoundLimit { rows: random.random_range(1..8), bytes: random.random_range(100..3_000) };
                let done = model.acknowledge(&mut random);
                let rows = leader.round(&done, limit).await.expect("a round works");
                model.hand_out(&rows);
                assert_eq!(ready.depth().await.rows, model.waiting());
            }
            choice => {
                if choice == 18 {
                    drop(leader);
                } else {
                    leader.resign(&model.acknowledge(&mut random)).await.expect("it resigns");
                }
                leader = ready.lead(holder).await;
                model.take_over(&*leader);
            }
        }
    }
    drop(leader);
    let mut leader = ready.lead(holder).await;
    model.take_over(&*leader);
    let rows = ready.drain(&mut *leader).await;
    model.hand_out(&rows);
    assert_eq!(rows.len() as u64, model.waiting(), "events are missing");
    assert_eq!(ready.depth().await, Depth::default());
}

fn events(random: &mut StdRng) -> Vec<Noted> {
    let count = random.random_range(1..6);
    (0..count)
        .map(|_| noted(&format!("k{}", random.random_range(0..10)), random.random_range(0..1_000)))
        .collect()
}

async fn commit<F: Fixture>(ready: &Ready<F>, model: &mut Model, random: &mut StdRng) {
    for position in ready.commit(&events(random)).await.positions {
        model.committed.entry(position.partition).or_default().push(position.id);
    }
}

async fn give_up<F: Fixture>(ready: &Ready<F>, random: &mut StdRng) {
    let tx = ready.publishing(&events(random)).await;
    if random.random_bool(0.5) {
        tx.rollback().await.expect("it is rolled back");
    }
}
