//! What the port says, on this engine: appends, repeats, fences, reads, rolls.

use super::*;
use crate::{Kind, Reach, Registration, Signal};

#[tokio::test]
async fn what_is_appended_is_read_back_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), small());
    let topic = topic(&log, 2).await;
    for step in 0..40 {
        append(&log, &topic, step % 2, 1 + u64::from(step / 2) * 3..=u64::from(step / 2) * 3 + 3)
            .await
            .unwrap();
    }
    log.close().await;
    let (log, recovered) = Log::open(folder.path(), small()).unwrap();
    assert_eq!((recovered.events, &recovered.cut), (120, &None));
    assert!(recovered.segments > 3, "{recovered:?}");
    for partition in 0..2 {
        assert_eq!(records(&log, &topic, partition).await.unwrap(), expected(partition, 1..=60));
    }
    assert_eq!(append(&log, &topic, 0, 61..=61).await.unwrap(), 61);
}

#[tokio::test]
async fn a_repeat_is_acknowledged_only_if_the_ids_match() {
    let log = Log::in_memory(small()).unwrap();
    let topic = topic(&log, 1).await;
    assert_eq!(append(&log, &topic, 0, 1..=5).await.unwrap(), 5);
    assert_eq!(append(&log, &topic, 0, 1..=5).await.unwrap(), 5);
    assert_eq!(append(&log, &topic, 0, 4..=8).await.unwrap(), 8);
    assert_eq!(append(&log, &topic, 0, 10..=10).await.unwrap_err().kind(), Kind::Hole);
    let mut other = batch(&topic, 0, 8..=9);
    other.records[0].id = EventId::new();
    assert_eq!(log.append(other).await.unwrap_err().kind(), Kind::OtherId);
    assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=8));
}

#[tokio::test]
async fn an_older_epoch_is_fenced_also_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), small());
    let old = topic(&log, 1).await;
    append(&log, &old, 0, 1..=2).await.unwrap();
    let tails = log.raise_epoch(&old.name, old.incarnation, 3).await.unwrap();
    assert_eq!((tails[0].sequence, tails[0].id), (2, Some(id(0, 2))));
    assert_eq!(append(&log, &old, 0, 3..=3).await.unwrap_err().kind(), Kind::OlderEpoch);
    log.close().await;
    let log = open(folder.path(), small());
    assert_eq!(append(&log, &old, 0, 3..=3).await.unwrap_err().kind(), Kind::OlderEpoch);
    let new = topic(&log, 1).await;
    assert_eq!(new.epoch, 3);
    assert_eq!(append(&log, &new, 0, 3..=3).await.unwrap(), 3);
    assert_eq!(log.raise_epoch(&old.name, old.incarnation, 2).await.unwrap_err().kind(), Kind::OlderEpoch);
}

#[tokio::test]
async fn a_cursor_is_proven_before_anything_is_read_after_it() {
    let log = Log::in_memory(small()).unwrap();
    let topic = topic(&log, 1).await;
    append(&log, &topic, 0, 1..=5).await.unwrap();
    let read = |cursor| log.read(Read::to_tail(&topic.name, 0, cursor));
    let at = |sequence, id| Cursor::at(topic.incarnation, sequence, id);
    let after: Vec<_> = read(at(3, id(0, 3))).await.unwrap().collect().await;
    assert_eq!(after[0].as_ref().unwrap().records, expected(0, 4..=5));
    assert_eq!(read(at(5, id(0, 5))).await.unwrap().count().await, 0);
    assert_eq!(read(at(3, id(0, 4))).await.err().unwrap().kind(), Kind::OtherId);
    assert_eq!(read(at(6, id(0, 6))).await.err().unwrap().kind(), Kind::BeyondTail);
    let elsewhere = Cursor::start(tombolo_event::Incarnation::new());
    assert_eq!(read(elsewhere).await.err().unwrap().kind(), Kind::OtherIncarnation);
}

#[tokio::test]
async fn what_a_reader_of_some_types_passes_over_is_covered_by_its_batches() {
    let folder = tempfile::tempdir().unwrap();
    // From memory, and from disk.
    for options in [small(), Options { recent_bytes_max: 0, ..small() }] {
        let log = open(folder.path(), options);
        let topic = topic(&log, 1).await;
        append(&log, &topic, 0, 1..=50).await.unwrap();
        for bytes in [1, 200, 1 << 20] {
            let mut read = Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation));
            read.types = Some(vec!["orders.paid.v1".into()]);
            read.batch_bytes_max = bytes;
            let batches: Vec<Batch> = log.read(read).await.unwrap().map(Result::unwrap).collect().await;
            let mut next = 1;
            for batch in &batches {
                assert_eq!((batch.first, batch.last_id, batch.tail), (next, id(0, batch.last), 50));
                next = batch.last + 1;
            }
            assert_eq!(next, 51);
            let found: Vec<Record> = batches.into_iter().flat_map(|batch| batch.records).collect();
            assert_eq!(found, (3..=50).step_by(3).map(|sequence| record(0, sequence)).collect::<Vec<_>>());
        }
        log.close().await;
    }
}

#[tokio::test]
async fn a_follower_goes_on_live_and_ends_when_the_bus_closes() {
    let log = Log::in_memory(small()).unwrap();
    let topic = topic(&log, 1).await;
    append(&log, &topic, 0, 1..=2).await.unwrap();
    let mut stream =
        log.read(Read::following(&topic.name, 0, Cursor::start(topic.incarnation))).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().records, expected(0, 1..=2));
    let (batch, appended) = tokio::join!(stream.next(), append(&log, &topic, 0, 3..=4));
    appended.unwrap();
    assert_eq!(batch.unwrap().unwrap().records, expected(0, 3..=4));
    let (end, ()) = tokio::join!(stream.next(), log.close());
    assert!(end.is_none());
    assert_eq!(append(&log, &topic, 0, 5..=5).await.unwrap_err().kind(), Kind::Closed);
}

#[tokio::test]
async fn a_log_of_many_partitions_and_segments_reads_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, recent_bytes_max: 0, prepare_ahead: true, ..small() };
    let log = open(folder.path(), options.clone());
    let topic = topic(&log, 5).await;
    for first in (1..=1000).step_by(20) {
        let appends = (0..5).map(|partition| append(&log, &topic, partition, first..=first + 19));
        for answer in futures_util::future::join_all(appends).await {
            assert_eq!(answer.unwrap(), first + 19);
        }
    }
    for partition in 0..5 {
        assert_eq!(records(&log, &topic, partition).await.unwrap(), expected(partition, 1..=1000));
    }
    log.close().await;
    let log = open(folder.path(), options);
    for partition in 0..5 {
        assert_eq!(records(&log, &topic, partition).await.unwrap(), expected(partition, 1..=1000));
        assert_eq!(append(&log, &topic, partition, 7..=30).await.unwrap(), 1000);
    }
}

#[tokio::test]
async fn the_last_registration_of_a_replica_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), small());
    let registration = |replica, url: &str| Registration {
        service: name("orders"),
        replica,
        url: url.into(),
        descriptor: "{}".into(),
    };
    for (replica, url) in [(1, "a"), (2, "b"), (1, "c"), (1, "c")] {
        log.register(&registration(replica, url)).await.unwrap();
    }
    log.close().await;
    let log = open(folder.path(), small());
    assert_eq!(log.registrations().await.unwrap(), [registration(1, "c"), registration(2, "b")]);
}

#[tokio::test]
async fn a_signal_reaches_everybody_and_one_of_each_group() {
    let log = Log::in_memory(small()).unwrap();
    let signal = |text: &'static str| Signal { reply_to: None, payload: text.into() };
    assert_eq!(log.signal("a.b", signal("lost")).await.unwrap(), Reach::Nobody);
    let mut alone = log.listen("a.b", None).await.unwrap();
    let one = log.listen("a.b", Some("g")).await.unwrap();
    let two = log.listen("a.b", Some("g")).await.unwrap();
    for text in ["1", "2", "3", "4"] {
        assert_eq!(log.signal("a.b", signal(text)).await.unwrap(), Reach::Somebody);
    }
    assert_eq!(alone.next().await.unwrap().payload, "1");
    for _ in 0..crate::signal::SIGNALS_WAITING_MAX {
        log.signal("a.b", signal("more")).await.unwrap();
    }
    assert_eq!(alone.next().await.unwrap().payload, "more");
    assert_eq!(log.signal("a..b", signal("")).await.unwrap_err().kind(), Kind::InvalidName);
    log.close().await;
    let (one, two): (Vec<_>, Vec<_>) = tokio::join!(one.collect(), two.collect());
    let early = |signals: &[Signal]| signals.iter().filter(|signal| signal.payload != "more").count();
    assert_eq!((early(&one), early(&two)), (2, 2));
    drop(alone);
    assert_eq!(log.signal("a.b", signal("late")).await.unwrap_err().kind(), Kind::Closed);
}
