//! Power cuts at any operation, with readers: what was acknowledged or seen is there afterwards.
//!
//! Every run prints its seed when it fails; the same seed gives the same faults.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::simulated::Faults;
use super::*;

const PARTITIONS: u32 = 3;
const RUNS: u64 = 150;

/// What callers and readers know of a partition.
#[derive(Default)]
struct Known {
    acknowledged: AtomicU64,
    seen: AtomicU64,
}

/// One life of a log: appends and reads until the power is cut. Returns what they knew then.
async fn live(disk: &Disk, options: Options, seed: u64, cut_after: u64) -> Option<(Topic, Vec<Arc<Known>>)> {
    disk.set(Faults { cut_at: Some(cut_after), ..Faults::default() });
    let (log, _) = Log::start(Arc::new(disk.clone()), options, None).ok()?;
    let topic = log.ensure_topic(&spec(PARTITIONS)).await.ok()?;
    let known: Vec<Arc<Known>> = (0..PARTITIONS).map(|_| Arc::default()).collect();
    let mut tasks = JoinSet::new();
    for (partition, own) in (0..).zip(&known) {
        let tail = log.tails(&topic.name).await.ok()?[partition as usize].sequence;
        tasks.spawn(write(log.clone(), topic.clone(), partition, tail, own.clone(), seed));
        let read = Read::following(&topic.name, partition, Cursor::start(topic.incarnation));
        let mut stream = log.read(read).await.ok()?;
        let own = own.clone();
        tasks.spawn(async move {
            while let Some(Ok(batch)) = stream.next().await {
                assert_eq!(batch.records, expected(partition, batch.first..=batch.last));
                own.seen.store(batch.last, Ordering::SeqCst);
            }
        });
    }
    while !disk.is_off() {
        tokio::task::yield_now().await;
    }
    log.close().await;
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    Some((topic, known))
}

/// Appends with a few in flight until one is refused.
async fn write(log: Arc<Log>, topic: Topic, partition: u32, tail: u64, known: Arc<Known>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ u64::from(partition));
    let mut next = tail + 1;
    loop {
        let mut flight = futures_util::stream::FuturesOrdered::new();
        for _ in 0..random.random_range(1..4) {
            let last = next + random.random_range(0..5);
            flight.push_back(log.append(batch(&topic, partition, next..=last)));
            next = last + 1;
        }
        while let Some(answer) = flight.next().await {
            let Ok(appended) = answer else { return };
            known.acknowledged.store(appended.last, Ordering::SeqCst);
        }
    }
}

/// Lives through several power cuts; says what was lost, if anything was.
async fn lives(seed: u64, options: &Options) -> std::result::Result<(), String> {
    let disk = Disk::new(seed);
    let mut random = StdRng::seed_from_u64(seed);
    let mut floor = vec![0; PARTITIONS as usize];
    for life in 0..4 {
        let lived = live(&disk, options.clone(), seed, random.random_range(1..120)).await;
        disk.restart();
        let opened = Log::start(Arc::new(disk.clone()), options.clone(), None);
        let (log, _) = opened.map_err(|error| format!("life {life}: {error}"))?;
        if let Some((topic, known)) = lived {
            for (own, floor) in known.iter().zip(&mut floor) {
                *floor =
                    own.acknowledged.load(Ordering::SeqCst).max(own.seen.load(Ordering::SeqCst)).max(*floor);
            }
            let found = log.topic(&topic.name).await.map_err(|error| format!("life {life}: {error}"))?;
            if found != topic {
                return Err(format!("life {life}: the topic is {found:?}, and was {topic:?}"));
            }
            for (partition, floor) in (0..).zip(&floor) {
                let records = records(&log, &topic, partition).await.map_err(|error| error.to_string())?;
                assert_eq!(
                    records,
                    expected(partition, 1..=records.len() as u64),
                    "seed {seed}, life {life}"
                );
                if (records.len() as u64) < *floor {
                    let kept = records.len();
                    return Err(format!(
                        "life {life}: partition {partition} kept {kept}, {floor} were acknowledged or seen"
                    ));
                }
            }
        }
        log.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_or_seen_survives_power_cuts() {
    for seed in 0..RUNS {
        lives(seed, &small()).await.unwrap_or_else(|lost| panic!("seed {seed}: {lost}"));
    }
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_cuts_catch_a_log_that_does_not_sync_or_serves_too_early() {
    use crate::embedded::Mutant;
    for mutant in [Mutant::NoSync, Mutant::ServeBeforeSynced] {
        let options = Options { mutant: Some(mutant), ..small() };
        let mut caught = None;
        for seed in 0..RUNS {
            if let Err(lost) = lives(seed, &options).await {
                caught = Some((seed, lost));
                break;
            }
        }
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} was not caught in {RUNS} runs");
    }
}

#[tokio::test]
async fn a_power_cut_at_every_operation_around_a_roll_loses_nothing_acknowledged() {
    for (seed, cut_after) in (0..8).flat_map(|seed| (1..90).map(move |cut| (seed, cut))) {
        let disk = Disk::new(seed);
        let log = on(&disk, small());
        let topic = topic(&log, 1).await;
        disk.set(Faults { cut_at: Some(cut_after), ..Faults::default() });
        let mut acknowledged = 0;
        while let Ok(last) = append(&log, &topic, 0, acknowledged + 1..=acknowledged + 4).await {
            acknowledged = last;
        }
        log.close().await;
        disk.restart();
        let opened = Log::start(Arc::new(disk.clone()), small(), None);
        let (log, _) = opened.unwrap_or_else(|error| panic!("seed {seed}, cut {cut_after}: {error}"));
        let kept = records(&log, &topic, 0).await.unwrap();
        assert_eq!(kept, expected(0, 1..=kept.len() as u64));
        assert!(
            kept.len() as u64 >= acknowledged,
            "seed {seed}, cut {cut_after}: {} of {acknowledged}",
            kept.len()
        );
        assert_eq!(
            append(&log, &topic, 0, kept.len() as u64 + 1..=kept.len() as u64 + 1).await.unwrap(),
            kept.len() as u64 + 1
        );
    }
}

/// Appends and divides in turn until the power is cut; returns the generations that were acknowledged, and how many events
/// of each partition.
async fn divide_on(log: &Log, topic: &Topic) -> (Vec<u32>, Vec<u64>) {
    let (mut each, mut acknowledged) = (vec![1], vec![0]);
    loop {
        let partition = each.len() as u32 - 1;
        let Ok(last) = append(log, topic, partition, 1..=2).await else { return (each, acknowledged) };
        acknowledged[partition as usize] = last;
        let more = [&each[..], &[1]].concat();
        if each.len() == 30 || divide(log, topic, &more).await.is_err() {
            return (each, acknowledged);
        }
        each = more;
        acknowledged.push(0);
    }
}

#[tokio::test]
async fn a_division_that_was_acknowledged_survives_a_power_cut_at_every_operation() {
    let mut divided = 0;
    for (seed, cut_after) in (0..4).flat_map(|seed| (1..60).map(move |cut| (seed, cut))) {
        let what = format!("seed {seed}, cut {cut_after}");
        let disk = Disk::new(seed);
        let log = on(&disk, small());
        let topic = topic(&log, 1).await;
        disk.set(Faults { cut_at: Some(cut_after), ..Faults::default() });
        let (each, acknowledged) = divide_on(&log, &topic).await;
        log.close().await;
        disk.restart();
        let opened = Log::start(Arc::new(disk.clone()), small(), None);
        let (log, _) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = log.topic(&topic.name).await.unwrap();
        assert!(found.generations.each().starts_with(&each), "{what}: {} after {each:?}", found.generations);
        for (partition, last) in (0..).zip(acknowledged) {
            let kept = records(&log, &topic, partition).await.unwrap();
            assert!(kept.len() as u64 >= last, "{what}: partition {partition}");
            if found.generations.is_sealed(partition) {
                let more = append(&log, &topic, partition, kept.len() as u64 + 1..=3).await;
                assert_eq!(more.unwrap_err().kind(), crate::Kind::Sealed, "{what}: partition {partition}");
            }
        }
        divided = divided.max(each.len());
    }
    assert!(divided > 5, "the cuts come after up to {divided} generations");
}
