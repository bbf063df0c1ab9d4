//! Cases about reading. Invariant: a stream begins by proving that the log is the one that the cursor was in, and
//! covers every sequence after it once, in order.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use futures_util::{FutureExt, StreamExt};
use tombolo_event::{Cursor, EventId, Incarnation};

use super::Case;
use super::stage::{Stage, collect, follow, ok, record, records, records_of, refused, same, within};
use crate::{Batch, Kind, Record};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_reader_gets_what_is_after_its_cursor),
        Case::new(a_cursor_whose_record_has_another_id_is_refused),
        Case::new(a_cursor_beyond_the_tail_is_refused),
        Case::new(a_cursor_of_another_incarnation_is_refused),
        Case::new(reading_to_the_tail_ends),
        Case::new(reading_to_the_tail_ends_at_the_tail_it_found),
        Case::new(a_reader_that_follows_sees_what_is_appended_later),
        Case::new(a_reader_that_follows_sees_what_another_handle_appends),
        Case::new(a_reader_that_follows_misses_nothing_under_appends),
        Case::new(a_reader_that_follows_goes_on_after_a_raise),
        Case::new(batches_are_bounded),
        Case::new(a_record_larger_than_the_bound_comes_alone),
        Case::new(a_batch_names_the_tail),
        Case::new(a_reader_of_some_types_gets_all_of_them_and_a_range_without_holes),
        Case::new(types_that_were_not_asked_for_are_passed_over).needing(|abilities| abilities.filters),
        Case::new(a_reader_of_some_types_follows_past_the_others).needing(|abilities| abilities.filters),
        Case::new(many_readers_see_the_same),
        Case::new(a_reader_that_does_not_read_stops_nobody).needing(|abilities| abilities.history),
        Case::new(readers_that_are_left_in_the_middle_hold_nobody_up),
    ]
}

async fn a_reader_gets_what_is_after_its_cursor(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let all = records(1, 9);
    line.stored(&all).await;
    line.in_partition(1).stored(&records(1, 3)).await;
    for (at, stored) in (1..).zip(&all) {
        let stream = line.read(line.to_tail(line.after(stored))).await;
        same(&records_of(collect(stream, stored.sequence).await), &all[at..]);
    }
}

async fn a_cursor_whose_record_has_another_id_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 4);
    line.stored(&all).await;
    for sequence in 1..=4 {
        let elsewhere = Cursor::at(line.topic.incarnation, sequence, EventId::new());
        refused(Kind::OtherId, line.bus.read(line.to_tail(elsewhere)).await.map(drop));
        refused(Kind::OtherId, line.bus.read(line.following(elsewhere)).await.map(drop));
    }
}

async fn a_cursor_beyond_the_tail_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 2);
    for stored in [0, 2] {
        if stored > 0 {
            line.stored(&all).await;
        }
        let beyond = Cursor::at(line.topic.incarnation, stored + 1, EventId::new());
        refused(Kind::BeyondTail, line.bus.read(line.to_tail(beyond)).await.map(drop));
        refused(Kind::BeyondTail, line.bus.read(line.following(beyond)).await.map(drop));
    }
}

async fn a_cursor_of_another_incarnation_is_refused(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 2);
    line.stored(&all).await;
    for cursor in [Cursor::start(Incarnation::new()), Cursor::at(Incarnation::new(), 2, all[1].id)] {
        refused(Kind::OtherIncarnation, line.bus.read(line.following(cursor)).await.map(drop));
    }
}

async fn reading_to_the_tail_ends(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    same(&line.all().await, &[]);
    let all = records(1, 3);
    line.stored(&all).await;
    same(&line.all().await, &all);
    let stream = line.read(line.to_tail(line.after(&all[2]))).await;
    same(&records_of(collect(stream, 3).await), &[]);
}

async fn reading_to_the_tail_ends_at_the_tail_it_found(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 6);
    line.stored(&all[..3]).await;
    let stream = line.read(line.to_tail(line.start())).await;
    line.stored(&all[3..]).await;
    let found = records_of(collect(stream, 0).await);
    assert!(found.len() >= 3, "everything that was there when the stream began");
    same(&found, &all[..found.len()]);
}

async fn a_reader_that_follows_sees_what_is_appended_later(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 2).await;
    let all = records(1, 6);
    let mut live = line.read(line.following(line.start())).await;
    line.in_partition(1).stored(&records(1, 2)).await;
    for round in all.chunks(2) {
        let waited = tokio::time::timeout(Duration::from_millis(20), live.next()).await;
        assert!(waited.is_err(), "a live stream waits at the tail, found {:?}", waited.ok().flatten());
        line.stored(round).await;
        let mut found = Vec::new();
        while found.len() < 2 {
            let batch =
                within("what was just appended", live.next()).await.expect("a live stream does not end");
            found.extend(ok("read a batch", batch).records);
        }
        same(&found, round);
    }
    let live = line.read(line.following(line.after(&all[2]))).await;
    same(&records_of(follow(live, 3, 6).await), &all[3..]);
}

async fn a_reader_that_follows_sees_what_another_handle_appends(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 5);
    line.stored(&all[..1]).await;
    let live = line.on(&stage.handle().await).read(line.following(line.start())).await;
    line.stored(&all[1..]).await;
    same(&records_of(follow(live, 0, 5).await), &all);
}

async fn a_reader_that_follows_misses_nothing_under_appends(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let readers = [line.on(&stage.handle().await), line.clone()];
    let all = records(1, 300);
    let writing = async {
        for round in all.chunks(5) {
            line.stored(round).await;
        }
    };
    let reading = join_all(readers.iter().map(|reader| async {
        let live = reader.read(reader.following(reader.start())).await;
        same(&records_of(follow(live, 0, 300).await), &all);
    }));
    join(writing, reading).await;
}

async fn a_reader_that_follows_goes_on_after_a_raise(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 3);
    line.stored(&all[..1]).await;
    let live = line.read(line.following(line.start())).await;
    ok("raise", line.on(&stage.handle().await).raise(2).await);
    line.at_epoch(2).stored(&all[1..]).await;
    same(&records_of(follow(live, 0, 3).await), &all);
}

async fn batches_are_bounded(stage: Stage) {
    const BYTES_MAX: usize = 4_000;
    let line = stage.topic(&stage.handle().await, 1).await;
    let all: Vec<_> = (1..=60).map(|sequence| record(sequence, 700)).collect();
    line.stored(&all).await;
    let mut read = line.to_tail(line.start());
    read.batch_bytes_max = BYTES_MAX;
    let batches = collect(line.read(read).await, 0).await;
    for batch in &batches {
        let bytes: usize = batch.records.iter().map(Record::size).sum();
        assert!(bytes <= BYTES_MAX, "a batch holds {bytes} bytes, the bound is {BYTES_MAX}");
    }
    same(&records_of(batches), &all);
}

async fn a_record_larger_than_the_bound_comes_alone(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all: Vec<_> = (1..).zip([50, 20_000, 50, 50, 30_000]).map(|(n, bytes)| record(n, bytes)).collect();
    line.stored(&all).await;
    let mut read = line.to_tail(line.start());
    read.batch_bytes_max = 1_000;
    let batches = collect(line.read(read).await, 0).await;
    for batch in &batches {
        let large = batch.records.iter().any(|record| record.size() > 1_000);
        assert!(!large || batch.records.len() == 1, "a large record is a batch of its own");
    }
    same(&records_of(batches), &all);
}

async fn a_batch_names_the_tail(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    line.stored(&records(1, 20)).await;
    let mut read = line.to_tail(line.start());
    read.batch_bytes_max = 300;
    let batches = collect(line.read(read).await, 0).await;
    let tails: Vec<_> = batches.iter().map(|batch| batch.tail).collect();
    assert!(tails.iter().all(|tail| *tail == 20), "the tail is 20 in every batch, found {tails:?}");
}

/// Twenty records of which every fifth is of the type that is wanted, the last of them not.
fn mixed(first: u64) -> Vec<Record> {
    let mut all = records(first, 20);
    for wanted in all.iter_mut().filter(|record| record.sequence % 5 == 3) {
        wanted.event_type = Bytes::from_static(b"suite.wanted.v1");
    }
    all
}

fn wanted(records: &[Record]) -> Vec<Record> {
    records.iter().filter(|record| record.type_name() == "suite.wanted.v1").cloned().collect()
}

fn covers(batches: &[Batch], all: &[Record]) {
    for batch in batches {
        assert_eq!(batch.last_id, all[batch.last as usize - 1].id, "the last id, passed over or not");
    }
    assert_eq!(
        batches.last().map(|batch| batch.last),
        all.last().map(|record| record.sequence),
        "covered up to"
    );
}

async fn a_reader_of_some_types_gets_all_of_them_and_a_range_without_holes(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = mixed(1);
    line.stored(&all).await;
    let mut read = line.to_tail(line.start());
    read.types = Some(vec!["suite.wanted.v1".into()]);
    let batches = collect(line.read(read).await, 0).await;
    covers(&batches, &all);
    same(&wanted(&records_of(batches)), &wanted(&all));
}

async fn types_that_were_not_asked_for_are_passed_over(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = mixed(1);
    line.stored(&all).await;
    for types in [vec!["suite.wanted.v1"], vec!["suite.never.v1", "suite.wanted.v1"], vec!["suite.never.v1"]]
    {
        let expected = if types.contains(&"suite.wanted.v1") { wanted(&all) } else { Vec::new() };
        let mut read = line.to_tail(line.start());
        read.types = Some(types.iter().map(|name| (*name).to_owned()).collect());
        let batches = collect(line.read(read).await, 0).await;
        covers(&batches, &all);
        same(&records_of(batches), &expected);
    }
}

async fn a_reader_of_some_types_follows_past_the_others(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let mut read = line.following(line.start());
    read.types = Some(vec!["suite.wanted.v1".into()]);
    let live = line.read(read).await;
    let mut all = mixed(1);
    line.stored(&all).await;
    all.extend(mixed(21));
    line.stored(&all[20..]).await;
    let batches = follow(live, 0, 40).await;
    covers(&batches, &all);
    same(&records_of(batches), &wanted(&all));
}

async fn many_readers_see_the_same(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all = records(1, 200);
    line.stored(&all[..100]).await;
    let readers = (0..24).map(|_| async {
        let live = line.read(line.following(line.start())).await;
        same(&records_of(follow(live, 0, 200).await), &all);
    });
    join(join_all(readers), line.stored(&all[100..])).await;
}

async fn a_reader_that_does_not_read_stops_nobody(stage: Stage) {
    let line = stage.topic(&stage.handle().await, 1).await;
    let all: Vec<_> = (1..=160).map(|sequence| record(sequence, 64 << 10)).collect();
    line.stored(&all[..1]).await;
    let slow = line.read(line.following(line.start())).await;
    let mut quick = line.on(&stage.handle().await).read(line.following(line.start())).await;
    let began = Instant::now();
    for round in all[1..].chunks(10) {
        line.stored(round).await;
    }
    let limit = Duration::from_secs(15);
    assert!(began.elapsed() < limit, "10 MB were written in {:?} beside a slow reader", began.elapsed());
    let first =
        within("the quick reader's first batch", quick.next()).await.expect("a live stream does not end");
    let first = ok("read a batch", first);
    follow(quick, first.last, 160).await;
    same(&records_of(follow(slow, 0, 160).await), &all);
}

/// A stream that was asked once and is not asked again, as those of a worker that is busy with the batch of another.
async fn readers_that_are_left_in_the_middle_hold_nobody_up(stage: Stage) {
    const READERS: u32 = 40;
    let line = stage.topic(&stage.handle().await, READERS).await;
    let mut readers = Vec::new();
    for partition in 0..READERS {
        let of = line.in_partition(partition);
        of.stored(&records(1, 3)).await;
        readers.push(of.read(of.following(of.start())).await);
    }
    let mut left = Vec::new();
    for mut reader in readers {
        // One that has not answered at once is left with what it began.
        if reader.next().now_or_never().is_none() {
            left.push(reader);
        }
    }
    let within_reach = async {
        ok("tails", line.bus.tails(&line.topic.name).await);
        let other = line.in_partition(READERS - 1);
        same(
            &records_of(follow(other.read(other.following(other.start())).await, 0, 3).await),
            &other.all().await,
        );
    };
    within("others are served meanwhile", tokio::time::timeout(Duration::from_secs(5), within_reach))
        .await
        .expect("others are served within 5 s");
    for mut reader in left {
        let first = within("the reader goes on", reader.next()).await;
        assert!(matches!(first, Some(Ok(_))), "a reader that was left does not go on: {first:?}");
    }
}
