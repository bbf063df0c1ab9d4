//! What the port says, on this engine: appends, repeats, fences, reads, rolls.

use super::*;
use crate::Kind;

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
