//! Disks that are full or fail, and group commit.

use futures_util::FutureExt;

use super::simulated::Faults;
use super::*;
use crate::Kind;

#[tokio::test]
async fn many_who_wait_share_one_sync() {
    let disk = Disk::new(0);
    let log = on(&disk, Options { segment_bytes: 1 << 20, first_segment_bytes: 1 << 20, ..small() });
    let topic = topic(&log, 64).await;
    disk.set(Faults::default());
    let appends = (0..64).map(|partition| log.append(batch(&topic, partition, 1..=1)));
    let mut appends = futures_util::future::join_all(appends);
    // While the disk is busy everybody comes to wait: the writer has one at most, the others stand in its queue.
    let busy = disk.hold();
    assert!((&mut appends).now_or_never().is_none());
    drop(busy);
    for answer in appends.await {
        assert_eq!(answer.unwrap().last, 1);
    }
    // One for the first, one for all the others; a witness may follow.
    assert!(disk.syncs() <= 3, "{} syncs for 64 appends", disk.syncs());
}

#[tokio::test]
async fn appends_in_flight_chain_and_a_refused_one_takes_those_behind_it_along() {
    let disk = Disk::new(0);
    let log = on(&disk, small());
    let topic = topic(&log, 1).await;
    let (one, two) = tokio::join!(append(&log, &topic, 0, 1..=2), append(&log, &topic, 0, 3..=4));
    assert_eq!((one.unwrap(), two.unwrap()), (2, 4));
    let mut wrong = batch(&topic, 0, 4..=5);
    wrong.records[0].id = EventId::new();
    let (one, two) = tokio::join!(log.append(wrong), append(&log, &topic, 0, 6..=7));
    assert_eq!((one.unwrap_err().kind(), two.unwrap_err().kind()), (Kind::OtherId, Kind::Hole));
    let twice = tokio::join!(
        append(&log, &topic, 0, 5..=6),
        append(&log, &topic, 0, 5..=6),
        append(&log, &topic, 0, 6..=8)
    );
    assert_eq!((twice.0.unwrap(), twice.1.unwrap(), twice.2.unwrap()), (6, 6, 8));
    assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=8));
}

#[tokio::test]
async fn the_first_failed_sync_is_final_and_opening_again_repairs() {
    for fail in 1..6 {
        let disk = Disk::new(fail);
        let log = on(&disk, small());
        let topic = topic(&log, 1).await;
        disk.set(Faults { fail_sync: Some(fail), ..Faults::default() });
        let mut acknowledged = 0;
        let mut refused = 0;
        for sequence in 1..=30 {
            match append(&log, &topic, 0, sequence..=sequence).await {
                Ok(last) => {
                    assert_eq!(refused, 0, "acknowledged after a failed sync");
                    acknowledged = last;
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::ReadOnly);
                    assert!(error.to_string().contains("open it again"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0);
        assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=acknowledged));
        log.close().await;
        // The pages of the failed sync are in the page cache and not on disk. What the next life shows must be on disk.
        let log = on(&disk, small());
        let shown = records(&log, &topic, 0).await.unwrap();
        assert!(shown.len() as u64 >= acknowledged);
        disk.restart();
        let log = on(&disk, small());
        let kept = records(&log, &topic, 0).await.unwrap();
        assert!(kept.len() >= shown.len(), "fail {fail}: {} of {} shown are left", kept.len(), shown.len());
    }
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_recovers_when_there_is_room() {
    for capacity in [4200, 4700, 6300] {
        let disk = Disk::new(0);
        let log = on(&disk, small());
        let topic = topic(&log, 1).await;
        disk.set(Faults { capacity: Some(capacity), ..Faults::default() });
        let mut next = 1;
        let error = loop {
            match append(&log, &topic, 0, next..=next + 2).await {
                Ok(last) => next = last + 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::ReadOnly);
        assert!(error.to_string().contains("free space"), "{error}");
        assert_eq!(append(&log, &topic, 0, next..=next).await.unwrap_err().kind(), Kind::ReadOnly);
        assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=next - 1));
        disk.set(Faults::default());
        assert_eq!(append(&log, &topic, 0, next..=next + 9).await.unwrap(), next + 9);
        log.close().await;
        let (log, recovered) = Log::start(Arc::new(disk.clone()), small(), None).unwrap();
        assert_eq!(recovered.cut, None);
        assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=next + 9));
    }
}

#[tokio::test]
async fn what_a_failed_write_left_behind_is_erased_by_the_next() {
    let disk = Disk::new(0);
    let log = on(&disk, small());
    let topic = topic(&log, 1).await;
    append(&log, &topic, 0, 1..=3).await.unwrap();
    disk.set(Faults { full_at: Some(1), ..Faults::default() });
    assert_eq!(append(&log, &topic, 0, 4..=18).await.unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(append(&log, &topic, 0, 4..=4).await.unwrap(), 4);
    // Opened without closing, so that nothing but the next write can have erased it.
    let (log, recovered) = Log::start(Arc::new(disk.clone()), small(), None).unwrap();
    assert_eq!((recovered.events, recovered.cut), (4, None));
    assert_eq!(records(&log, &topic, 0).await.unwrap(), expected(0, 1..=4));
}
