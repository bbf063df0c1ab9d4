//! The bytes on disk are pinned: what was ever written stays readable.

use tombolo_event::Incarnation;

use super::*;
use crate::Registration;
use crate::embedded::format::{Group, Place, SYSTEM_TOPIC, SegmentHeader, System};
use crate::embedded::storage::{Memory, Storage};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/log-v1.segment");

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

fn written() -> Vec<u8> {
    let lineage = 0x746f_6d62_6f6c_6f21;
    let header = SegmentHeader { lineage, segment: 1, first_group: 1, previous_end: 0 };
    let mut bytes = header.encode().to_vec();
    let mut group = Group::with_capacity(0);
    let created =
        System::TopicCreated { number: 1, name: name("orders"), partitions: 2, incarnation: incarnation() };
    for system in [created, System::EpochRaised { topic: 1, epoch: 3 }, System::Registered(registration())] {
        group.push((SYSTEM_TOPIC, 0, 0), std::iter::once(&system.to_record()), 1);
    }
    group.push((1, 1, 3), [record(1, 1), record(1, 2), record(1, 3)].iter(), 1);
    for (number, mut group) in [(1, group), (2, Group::with_capacity(0))] {
        group.pad();
        let place = Place { segment: 1, offset: bytes.len() as u64 };
        bytes.extend_from_slice(&group.seal(place, lineage, number));
    }
    bytes
}

#[test]
fn the_bytes_on_disk_are_those_of_version_1() {
    let golden = std::fs::read(GOLDEN).unwrap();
    assert_eq!(
        written(),
        golden,
        "the stored format changed; old logs must stay readable, so this needs a new version"
    );
}

#[tokio::test]
async fn the_golden_log_is_readable() {
    let storage = Memory::default();
    storage.create("00000001.segment").unwrap().write_at(&std::fs::read(GOLDEN).unwrap(), 0).unwrap();
    let (log, recovered) = Log::start(Arc::new(storage), small(), None).unwrap();
    assert_eq!((recovered.events, recovered.cut), (3, None));
    let topic = log.topic(&name("orders")).await.unwrap();
    assert_eq!((topic.incarnation, topic.epoch, topic.partitions()), (incarnation(), 3, 2));
    assert_eq!(records(&log, &topic, 1).await.unwrap(), expected(1, 1..=3));
    assert_eq!(log.registrations().await.unwrap(), [registration()]);
}
