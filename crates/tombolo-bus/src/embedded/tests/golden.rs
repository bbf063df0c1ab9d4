//! The bytes on disk are pinned: what was ever written stays readable.

use tombolo_event::Incarnation;

use super::*;
use crate::Registration;
use crate::embedded::format::{Group, Place, SYSTEM_TOPIC, SegmentHeader, System};
use crate::embedded::storage::{Memory, Storage};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/log-v1.segment");
const GOLDEN_DIVIDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/log-v1-divided.segment");

fn incarnation() -> Incarnation {
    Incarnation(Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0001))
}

fn registration() -> Registration {
    Registration {
        service: name("orders"),
        replica: 1,
        url: "http://127.0.0.1:7001".into(),
        descriptor: "{}".into(),
    }
}

fn push_system(group: &mut Group, system: &System) {
    group.push((SYSTEM_TOPIC, 0, 0), std::iter::once(&system.to_record()), 1);
}

fn first_group() -> Group {
    let mut group = Group::with_capacity(0);
    let created =
        System::TopicCreated { number: 1, name: name("orders"), partitions: 2, incarnation: incarnation() };
    for system in [created, System::EpochRaised { topic: 1, epoch: 3 }, System::Registered(registration())] {
        push_system(&mut group, &system);
    }
    group.push((1, 1, 3), [record(1, 1), record(1, 2), record(1, 3)].iter(), 1);
    group
}

fn written() -> Vec<u8> {
    segment([first_group(), Group::with_capacity(0)])
}

/// The same, and then divided into three more partitions.
fn written_divided() -> Vec<u8> {
    let mut group = Group::with_capacity(0);
    let generations = Generations::try_from(vec![2, 3]).unwrap();
    push_system(&mut group, &System::TopicDivided { topic: 1, generations });
    group.push((1, 4, 3), [record(4, 1), record(4, 2)].iter(), 1);
    segment([first_group(), group])
}

/// The same, and then an event where nothing may come any more.
pub(super) fn behind_a_seal() -> Vec<u8> {
    let mut group = Group::with_capacity(0);
    let generations = Generations::try_from(vec![2, 3]).unwrap();
    push_system(&mut group, &System::TopicDivided { topic: 1, generations });
    group.push((1, 1, 3), [record(1, 4)].iter(), 4);
    segment([first_group(), group])
}

fn segment(groups: [Group; 2]) -> Vec<u8> {
    let lineage = 0x746f_6d62_6f6c_6f21;
    let header = SegmentHeader { lineage, segment: 1, first_group: 1, previous_end: 0 };
    let mut bytes = header.encode().to_vec();
    for (number, mut group) in (1..).zip(groups) {
        group.pad();
        let place = Place { segment: 1, offset: bytes.len() as u64 };
        bytes.extend_from_slice(&group.seal(place, lineage, number));
    }
    bytes
}

#[test]
fn the_bytes_on_disk_are_those_of_version_1() {
    for (path, written) in [(GOLDEN, written()), (GOLDEN_DIVIDED, written_divided())] {
        let golden = std::fs::read(path).unwrap();
        assert_eq!(
            written, golden,
            "the stored format changed; old logs must stay readable, so this needs a new version"
        );
    }
}

fn opened(path: &str) -> (Arc<Log>, u64) {
    let storage = Memory::default();
    storage.create("00000001.segment").unwrap().write_at(&std::fs::read(path).unwrap(), 0).unwrap();
    let (log, recovered) = Log::start(Arc::new(storage), small(), None).unwrap();
    assert_eq!(recovered.cut, None);
    (log, recovered.events)
}

#[tokio::test]
async fn the_golden_log_is_readable() {
    let (log, events) = opened(GOLDEN);
    assert_eq!(events, 3);
    let topic = log.topic(&name("orders")).await.unwrap();
    assert_eq!((topic.incarnation, topic.epoch, topic.partitions()), (incarnation(), 3, 2));
    assert_eq!(records(&log, &topic, 1).await.unwrap(), expected(1, 1..=3));
    assert_eq!(log.registrations().await.unwrap(), [registration()]);
}

#[tokio::test]
async fn the_golden_log_of_a_divided_topic_is_readable() {
    let (log, events) = opened(GOLDEN_DIVIDED);
    assert_eq!(events, 5);
    let topic = log.topic(&name("orders")).await.unwrap();
    assert_eq!((topic.incarnation, topic.epoch, topic.generations.each()), (incarnation(), 3, &[2, 3][..]));
    assert_eq!(records(&log, &topic, 1).await.unwrap(), expected(1, 1..=3));
    assert_eq!(records(&log, &topic, 4).await.unwrap(), expected(4, 1..=2));
    assert_eq!(append(&log, &topic, 1, 4..=4).await.unwrap_err().kind(), crate::Kind::Sealed);
}
