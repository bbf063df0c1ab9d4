//! A random schedule of everything that relays and readers do, held against a list.
//!
//! Invariant: the engine answers each step as [`Expected`] does, a list of ids, an epoch and generations. The seed is printed;
//! `TOMBOLO_SEED` repeats it.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombolo_event::{Cursor, Generations};

use super::Case;
use super::stage::{Line, Stage, collect, impostor, ok, records, records_of, refused, same};
use crate::{Bus, Kind, Record};

/// How many steps a schedule has.
const STEPS: u32 = 400;
const PARTITIONS: u32 = 3;
const HANDLES: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(a_random_schedule_ends_as_a_list_says)]
}

async fn a_random_schedule_ends_as_a_list_says(stage: Stage) {
    let seed =
        std::env::var("TOMBOLO_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("TOMBOLO_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut handles: Vec<Arc<dyn Bus>> = Vec::new();
    for _ in 0..HANDLES {
        handles.push(stage.handle().await);
    }
    let line = stage.topic(&handles[0], PARTITIONS).await;
    let mut expected = Expected {
        epoch: 1,
        generations: line.topic.generations.clone(),
        partitions: vec![Vec::new(); PARTITIONS as usize],
    };
    for _ in 0..STEPS {
        let bus = &handles[random.random_range(0..HANDLES)];
        let line = line.on(bus).in_partition(random.random_range(0..expected.generations.partitions()));
        match random.random_range(0..100) {
            0..60 => append(&line, &mut expected, &mut random).await,
            60..70 => raise(&line, &mut expected, &mut random).await,
            70..72 => divide(&line, &mut expected, &mut random).await,
            _ => read(&line, &expected, &mut random).await,
        }
    }
    for partition in 0..expected.generations.partitions() {
        line.in_partition(partition).holds(&expected.partitions[partition as usize]).await;
    }
}

/// What the topic must hold.
struct Expected {
    epoch: u64,
    generations: Generations,
    partitions: Vec<Vec<Record>>,
}

impl Expected {
    fn of(&self, line: &Line) -> &Vec<Record> {
        &self.partitions[line.partition as usize]
    }

    /// What the engine must say to an append, storing it if it must be stored.
    fn append(&mut self, line: &Line, append: &[Record]) -> Result<u64, Kind> {
        if line.epoch < self.epoch {
            return Err(Kind::OlderEpoch);
        }
        let stored = &mut self.partitions[line.partition as usize];
        for record in append {
            match stored.get(record.sequence as usize - 1) {
                Some(there) if there.id != record.id => return Err(Kind::OtherId),
                _ => {}
            }
        }
        let is_sealed = self.generations.is_sealed(line.partition);
        if is_sealed && append.iter().any(|record| record.sequence > stored.len() as u64) {
            return Err(Kind::Sealed);
        }
        if append[0].sequence > stored.len() as u64 + 1 {
            return Err(Kind::Hole);
        }
        let new = append.iter().filter(|record| record.sequence > stored.len() as u64).cloned();
        let new: Vec<_> = new.collect();
        stored.extend(new);
        Ok(stored.len() as u64)
    }
}

async fn append(line: &Line, expected: &mut Expected, random: &mut StdRng) {
    let epoch =
        if random.random_ratio(1, 8) { random.random_range(0..=expected.epoch) } else { expected.epoch };
    let line = line.at_epoch(epoch);
    let stored = expected.of(&line);
    let back = if random.random_ratio(1, 3) { random.random_range(0..=stored.len().min(6)) } else { 0 };
    let ahead = if random.random_ratio(1, 8) { random.random_range(1..4) } else { 0 };
    let first = stored.len() - back + ahead;
    let mut sent = if ahead == 0 { stored[first..].to_vec() } else { Vec::new() };
    sent.extend(records((first + sent.len()) as u64 + 1, random.random_range(0..5)));
    if sent.is_empty() {
        sent = records(first as u64 + 1, 1);
    }
    if random.random_ratio(1, 8) {
        let at = random.random_range(0..sent.len());
        sent[at] = impostor(&sent[at]);
    }
    sent.truncate(random.random_range(1..=sent.len()));
    let found = line.append(&sent).await.map(|appended| appended.last).map_err(|error| error.kind());
    let first = sent[0].sequence;
    assert_eq!(found, expected.append(&line, &sent), "append of {} from {first}, epoch {epoch}", sent.len());
}

async fn raise(line: &Line, expected: &mut Expected, random: &mut StdRng) {
    let epoch = random.random_range(expected.epoch.saturating_sub(2)..=expected.epoch + 2);
    let raised = line.raise(epoch).await;
    if epoch < expected.epoch {
        return refused(Kind::OlderEpoch, raised);
    }
    expected.epoch = epoch;
    let tails: Vec<_> = ok("raise", raised).into_iter().map(|tail| (tail.sequence, tail.id)).collect();
    let tail = |stored: &Vec<Record>| (stored.len() as u64, stored.last().map(|record| record.id));
    assert_eq!(tails, expected.partitions.iter().map(tail).collect::<Vec<_>>());
}

async fn divide(line: &Line, expected: &mut Expected, random: &mut StdRng) {
    let epoch =
        if random.random_ratio(1, 4) { random.random_range(0..=expected.epoch) } else { expected.epoch };
    let again = expected.generations.each().len() > 1 && random.random_ratio(1, 4);
    let mut each = expected.generations.each().to_vec();
    if !again {
        each.push(random.random_range(1..=3));
    }
    let divided = line.at_epoch(epoch).divide(&each).await;
    if epoch < expected.epoch {
        return refused(Kind::OlderEpoch, divided);
    }
    expected.generations = ok("divide", divided).generations;
    assert_eq!(expected.generations.each(), each);
    expected.partitions.resize(expected.generations.partitions() as usize, Vec::new());
}

async fn read(line: &Line, expected: &Expected, random: &mut StdRng) {
    let stored = expected.of(line);
    let incarnation = line.topic.incarnation;
    let at = random.random_range(0..=stored.len() + 1);
    let cursor = match stored.get(at.wrapping_sub(1)) {
        Some(record) if random.random_ratio(1, 6) => {
            let elsewhere = Cursor::at(incarnation, at as u64, impostor(record).id);
            return refused(Kind::OtherId, line.bus.read(line.to_tail(elsewhere)).await.map(drop));
        }
        Some(record) => line.after(record),
        None if at == 0 => line.start(),
        None => {
            let beyond = Cursor::at(incarnation, at as u64, tombolo_event::EventId::new());
            return refused(Kind::BeyondTail, line.bus.read(line.to_tail(beyond)).await.map(drop));
        }
    };
    let mut read = line.to_tail(cursor);
    read.batch_bytes_max = random.random_range(100..2_000);
    same(&records_of(collect(line.read(read).await, at as u64).await), &stored[at..]);
}
