//! Damage of every kind to a small log: cut at every byte, every bit flipped, sidecars gone, segments missing.

use std::fs;

use super::*;
use crate::embedded::format::{Group, Place, SegmentHeader};
use crate::embedded::inspection::{inspect, verify};
use crate::embedded::scan::{Ending, Found, scan};
use crate::embedded::storage::{Memory, Storage, read_all as read_all_of};
use crate::{Error, Kind};

/// A closed log of one segment: three groups of events in two partitions, which are then sealed, and one in the next.
async fn small_log(log: Arc<Log>) {
    let topic = topic(&log, 2).await;
    append(&log, &topic, 0, 1..=2).await.unwrap();
    append(&log, &topic, 1, 1..=1).await.unwrap();
    append(&log, &topic, 0, 3..=4).await.unwrap();
    divide(&log, &topic, &[2, 1]).await.unwrap();
    append(&log, &topic, 2, 1..=1).await.unwrap();
    log.close().await;
}

/// A closed log of several segments, with one group for each event.
async fn long_log(disk: &Disk, events: u64) {
    let log = on(disk, small());
    let topic = topic(&log, 1).await;
    for sequence in 1..=events {
        append(&log, &topic, 0, sequence..=sequence).await.unwrap();
    }
    log.close().await;
}

fn segment(number: u64) -> String {
    format!("{number:08}.segment")
}

fn get(disk: &Disk, name: &str) -> Vec<u8> {
    read_all_of(&*disk.open(name).unwrap()).unwrap()
}

fn put(disk: &Disk, name: &str, bytes: &[u8]) {
    disk.create(name).unwrap().write_at(bytes, 0).unwrap();
}

/// What a reader of the whole log sees: each partition's records, or the first error.
async fn seen(disk: &Disk) -> Result<Vec<Vec<Record>>> {
    let (log, _) = Log::start(Arc::new(disk.clone()), small(), None)?;
    let mut all = Vec::new();
    if let Ok(topic) = log.topic(&name("orders")).await {
        for partition in 0..topic.partitions() {
            all.push(records(&log, &topic, partition).await?);
        }
    }
    log.close().await;
    Ok(all)
}

fn names_a_place(error: &Error) -> bool {
    error.kind() == Kind::Corrupt
        && error.to_string().contains(".segment")
        && error.to_string().contains("offset")
}

#[tokio::test]
async fn a_log_cut_at_any_byte_opens_with_every_whole_group() {
    let disk = Disk::new(0);
    small_log(on(&disk, small())).await;
    let whole = Bytes::from(get(&disk, &segment(1)));
    let blocks = scan(&whole, &SegmentHeader::decode(&whole).unwrap()).blocks;
    let mut counts = Vec::new();
    for cut in 0..=whole.len() {
        let copy = Disk::new(0);
        put(&copy, &segment(1), &whole[..cut]);
        let found = seen(&copy).await.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        for (partition, own) in (0..).zip(&found) {
            assert_eq!(*own, expected(partition, 1..=own.len() as u64), "cut at {cut}");
        }
        let end = |block: &&Found| (block.offset + block.header.length()).next_multiple_of(8);
        let kept = blocks.iter().filter(|block| block.header.topic != 0 && end(block) <= cut);
        let events: usize = found.iter().map(Vec::len).sum();
        assert_eq!(events as u32, kept.map(|block| block.header.count).sum::<u32>(), "cut at {cut}");
        counts.push(events);
    }
    assert_eq!((counts[0], counts.last().copied()), (0, Some(6)));
}

#[tokio::test]
async fn a_flipped_bit_is_never_a_wrong_or_missing_event_without_a_word() {
    let disk = Disk::new(0);
    let options = Options { segment_bytes: 1536, first_segment_bytes: 1536, ..small() };
    small_log(on(&disk, options)).await;
    let whole = get(&disk, &segment(1));
    let undamaged = seen(&disk).await.unwrap();
    let (mut refused, mut cut, mut silent) = (0, 0, 0);
    for bit in 0..whole.len() * 8 {
        let copy = Disk::new(0);
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        put(&copy, &segment(1), &bytes);
        let inspection = inspect(&copy).unwrap();
        match Log::start(Arc::new(copy.clone()), small(), None) {
            Err(error) => {
                assert!(names_a_place(&error), "bit {bit}: {error}");
                assert!(!inspection.damage.is_empty(), "bit {bit}");
                refused += 1;
            }
            Ok((log, recovered)) => {
                assert!(inspection.damage.is_empty(), "bit {bit}: {inspection:?}");
                assert_eq!(recovered.cut, inspection.cut, "bit {bit}");
                log.close().await;
                assert_eq!(seen(&copy).await.unwrap(), undamaged, "bit {bit}");
                *(if recovered.cut.is_some() { &mut cut } else { &mut silent }) += 1;
            }
        }
    }
    assert!(refused > 0 && cut > 0, "refused {refused}, cut {cut}");
    assert_eq!(silent, 0);
}

#[tokio::test]
async fn a_flipped_bit_in_a_sealed_segment_is_an_error_that_names_the_place() {
    let disk = Disk::new(0);
    long_log(&disk, 40).await;
    let whole = get(&disk, &segment(1));
    assert!(disk.names().unwrap().contains(&segment(2)));
    let mut errors = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        put(&disk, &segment(1), &bytes);
        match seen(&disk).await {
            Err(error) => {
                assert!(names_a_place(&error), "byte {at}: {error}");
                errors += 1;
            }
            Ok(found) => assert_eq!(found, [expected(0, 1..=40)], "byte {at}"),
        }
        assert!(!inspect(&disk).unwrap().damage.is_empty(), "byte {at}");
    }
    assert!(errors > whole.len() / 2, "{errors} of {}", whole.len());
}

#[tokio::test]
async fn a_sidecar_that_is_missing_or_damaged_is_built_again() {
    let disk = Disk::new(0);
    long_log(&disk, 60).await;
    let sidecar = "00000001.index";
    let good = get(&disk, sidecar);
    disk.remove(sidecar).unwrap();
    assert_eq!(inspect(&disk).unwrap().stale_indexes.len(), 1);
    assert_eq!(seen(&disk).await.unwrap(), [expected(0, 1..=60)]);
    assert_eq!(get(&disk, sidecar), good);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        for damaged in [&bytes[..], &good[..at]] {
            put(&disk, sidecar, damaged);
            assert_eq!(seen(&disk).await.unwrap(), [expected(0, 1..=60)], "byte {at}");
        }
    }
}

#[tokio::test]
async fn a_missing_segment_and_one_of_another_log_are_refused() {
    let disk = Disk::new(0);
    long_log(&disk, 60).await;
    assert!(disk.names().unwrap().contains(&segment(3)));
    let second = get(&disk, &segment(2));
    disk.remove(&segment(2)).unwrap();
    let error = seen(&disk).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("00000002.segment is missing"), "{error}");
    let other = Disk::new(0);
    long_log(&other, 60).await;
    put(&disk, &segment(2), &get(&other, &segment(2)));
    assert!(names_a_place(&seen(&disk).await.unwrap_err()));
    put(&disk, &segment(2), &second);
    assert_eq!(seen(&disk).await.unwrap(), [expected(0, 1..=60)]);
}

#[test]
fn a_copy_of_a_group_inside_an_event_is_not_taken_for_a_group() {
    let header = SegmentHeader { lineage: 7, segment: 1, first_group: 1, previous_end: 0 };
    let group = |record: &Record, offset, number| {
        let mut group = Group::with_capacity(0);
        group.push((1, 0, 0), std::iter::once(record), record.sequence);
        group.pad();
        group.seal(Place { segment: 1, offset }, 7, number)
    };
    let inner = group(&record(0, 2), 64, 2);
    // At every alignment, so that one of the copies begins where a group could.
    for shift in 0..8 {
        let evil = Record { bytes: [&vec![1; shift], &inner[..]].concat().into(), ..record(0, 1) };
        let outer = group(&evil, 64, 1);
        let mut bytes = [&header.encode()[..], &outer[..]].concat();
        assert_eq!(scan(&bytes, &header).ending, Ending::Clean);
        bytes[70] ^= 1;
        assert!(matches!(scan(&bytes, &header).ending, Ending::Torn(_)), "shift {shift}");
    }
}

#[test]
fn a_second_opener_is_refused_and_told_who_has_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), small());
    let error = Log::open(folder.path(), small()).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(verify(folder.path()).unwrap().in_use_by, Some(std::process::id().to_string()));
    drop(log);
    drop(open(folder.path(), small()));
}

#[tokio::test]
async fn verify_counts_events_and_finds_what_is_damaged_without_hiding_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    small_log(open(folder.path(), small())).await;
    let sound = verify(folder.path()).unwrap();
    let counts: Vec<_> = sound.topics[0].partitions.iter().map(|own| (own.events, own.last)).collect();
    assert_eq!((counts.as_slice(), sound.damage.len()), ([(4, 4), (1, 1), (1, 1)].as_slice(), 0));
    let mut bytes = fs::read(folder.path().join(segment(1))).unwrap();
    let at = bytes.windows(3).position(|three| three == b"1/1").unwrap();
    bytes[at] ^= 1;
    fs::write(folder.path().join(segment(1)), &bytes).unwrap();
    let damaged = verify(folder.path()).unwrap();
    assert_eq!(damaged.damage.len(), 1, "{damaged:?}");
    assert!(damaged.damage[0].offset < at as u64);
    let counts: Vec<_> = damaged.topics[0].partitions.iter().map(|own| (own.events, own.last)).collect();
    assert_eq!(counts, [(4, 4), (0, 0), (1, 1)]);
}

#[tokio::test]
async fn verify_and_opening_know_generations_in_sealed_segments() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), small());
    let topic = topic(&log, 1).await;
    append(&log, &topic, 0, 1..=4).await.unwrap();
    let topic = divide(&log, &topic, &[1, 2]).await.unwrap();
    for round in 0..40 {
        append(&log, &topic, 2, round * 3 + 1..=round * 3 + 3).await.unwrap();
    }
    log.close().await;
    let sound = verify(folder.path()).unwrap();
    assert!(sound.segments > 2 && sound.damage.is_empty(), "{sound:?}");
    let counts: Vec<_> = sound.topics[0].partitions.iter().map(|own| (own.events, own.last)).collect();
    assert_eq!(
        (&sound.topics[0].generations, counts),
        (&topic.generations, vec![(4, 4), (0, 0), (120, 120)])
    );
    let log = open(folder.path(), small());
    assert_eq!(log.topic(&topic.name).await.unwrap(), topic, "from the sidecar of its first segment");
    log.close().await;
}

#[test]
fn verify_finds_what_lies_behind_a_seal() {
    let storage = Memory::default();
    let bytes = super::golden::behind_a_seal();
    storage.create(&segment(1)).unwrap().write_at(&bytes, 0).unwrap();
    let found = inspect(&storage).unwrap();
    assert_eq!(found.damage.len(), 1, "{found:?}");
    assert!(found.damage[0].found.contains("sequence 4 of orders/1, which was sealed"), "{found:?}");
}
