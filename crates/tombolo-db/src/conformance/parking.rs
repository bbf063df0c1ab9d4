//! Cases about what waits parked: it goes in with the cursor and comes out with its effect, under the lease alone.

use jiff::Timestamp;
use tombolo_event::{Cursor, EventId, KeyHash};
use uuid::Uuid;

use super::stage::{LONG, Ready, once, service};
use super::{Case, Fixture, Stage};
use crate::{Claim, Kind, Leases, ParkedEvent, ParkedFilter, Parking, Transaction, Tries};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(an_event_is_parked_with_the_cursor_or_not_at_all),
        Case::new(a_parked_event_leaves_with_its_effect_or_not_at_all),
        Case::new(a_worker_that_lost_its_lease_takes_nothing_out),
        Case::new(the_head_of_each_key_is_its_first_event),
        Case::new(tries_are_recorded_under_the_lease),
        Case::new(what_is_parked_can_be_found_and_counted),
        Case::new(a_cursor_that_goes_back_takes_out_what_comes_again),
    ]
}

const NAME: &str = "customers";

/// A parked event at `sequence` of `key` in the claim's partition.
pub(super) fn parked(claim: &Claim, sequence: u64, key: &str) -> ParkedEvent {
    ParkedEvent {
        subscription: claim.subscription.clone(),
        topic: claim.topic.clone(),
        partition: claim.partition,
        sequence,
        id: EventId::new(),
        key_hash: KeyHash::of(key),
        event_type: "notes.noted.v1".into(),
        bytes: vec![0, 1, 255].into(),
        parked_at: Timestamp::from_millisecond(1_700_000_000_000 + sequence as i64).expect("a time"),
        tries: Tries {
            attempts: 3,
            unfinished: 1,
            error: Some("no such\0 product".into()),
            retry_at: Timestamp::from_millisecond(1_800_000_000_000).ok(),
        },
    }
}

/// One that only waits behind another.
fn behind(claim: &Claim, sequence: u64, key: &str) -> ParkedEvent {
    ParkedEvent { tries: Tries::default(), ..parked(claim, sequence, key) }
}

/// Parks `events` and moves the cursor over the last.
async fn park<F: Fixture>(ready: &Ready<F>, claim: &mut Claim, events: &[ParkedEvent]) {
    let last = events.last().expect("there is one");
    let to = Cursor::at(claim.cursor.incarnation, last.sequence, last.id);
    let mut tx = ready.begin().await;
    tx.park(events).await.expect("they are parked");
    tx.advance(claim, &to).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    claim.cursor = to;
}

async fn all<F: Fixture>(ready: &Ready<F>) -> Vec<ParkedEvent> {
    ready.database.parked(&ParkedFilter::default(), 100).await.expect("they can be read")
}

async fn an_event_is_parked_with_the_cursor_or_not_at_all<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let holder = Uuid::now_v7();
    let mut claim = ready.claim(NAME, holder, LONG).await.remove(0);
    let event = parked(&claim, 1, "a");
    park(&ready, &mut claim, std::slice::from_ref(&event)).await;
    let found = all(&ready).await.remove(0);
    let same = ParkedEvent {
        tries: Tries { error: found.tries.error.clone(), ..event.tries.clone() },
        ..event.clone()
    };
    assert_eq!(found, same);
    assert!(found.tries.error.is_some_and(|error| error.contains("product")));
    let stale = claim.clone();
    let claim = ready.claim(NAME, holder, LONG).await.remove(0);
    let mut tx = ready.begin().await;
    tx.park(&[behind(&stale, 2, "a")]).await.expect("the cursor is what guards it");
    let to = Cursor::at(claim.cursor.incarnation, 2, EventId::new());
    assert_eq!(tx.advance(&stale, &to).await.expect_err("it lost the lease").kind(), Kind::Fenced);
    assert!(tx.commit().await.is_err());
    assert_eq!(all(&ready).await.len(), 1, "a worker that lost its lease parked something");
}

async fn a_parked_event_leaves_with_its_effect_or_not_at_all<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let mut claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let events = [parked(&claim, 1, "a"), behind(&claim, 2, "a")];
    park(&ready, &mut claim, &events).await;
    for is_committed in [false, true] {
        let mut tx = ready.begin().await;
        ready.fixture().write(&mut tx, "a", 1).await.expect("the effect is written");
        tx.unpark(&claim, 1).await.expect("it is parked");
        if is_committed {
            tx.commit().await.expect("it commits");
        }
        assert_eq!(ready.read("a").await.is_some(), is_committed);
        assert_eq!(all(&ready).await.len(), if is_committed { 1 } else { 2 });
    }
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "twice", 1).await.expect("the effect is written");
    let error = tx.unpark(&claim, 1).await.expect_err("it was handled already");
    assert_eq!(error.kind(), Kind::CursorMoved, "{error}");
    assert!(tx.commit().await.is_err());
    assert_eq!(ready.read("twice").await, None, "an event was applied twice");
}

async fn a_worker_that_lost_its_lease_takes_nothing_out<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let mut old = ready.claim(NAME, first, LONG).await.remove(0);
    let event = parked(&old, 1, "a");
    park(&ready, &mut old, &[event]).await;
    ready.database.release(NAME, once(first)).await.expect("it is released");
    let new = ready.reopened().await.claim(NAME, second, LONG).await.remove(0);
    let mut tx = ready.begin().await;
    ready.fixture().write(&mut tx, "a", 1).await.expect("the effect is written");
    let error = tx.unpark(&old, 1).await.expect_err("it lost the lease");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    assert!(tx.commit().await.is_err());
    assert_eq!((ready.read("a").await, all(&ready).await.len()), (None, 1));
    let mut tx = ready.begin().await;
    tx.unpark(&new, 1).await.expect("it holds the lease");
    tx.commit().await.expect("it commits");
    assert!(all(&ready).await.is_empty());
}

async fn the_head_of_each_key_is_its_first_event<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    ready.open(NAME).await;
    let mut claims = ready.claim(NAME, Uuid::now_v7(), LONG).await;
    assert!(ready.database.parked_heads(NAME).await.expect("they can be read").is_empty());
    let claim = &mut claims[1];
    let events = [parked(claim, 1, "a"), behind(claim, 2, "a"), parked(claim, 3, "b"), behind(claim, 9, "a")];
    park(&ready, claim, &events).await;
    let mut heads = ready.database.parked_heads(NAME).await.expect("they can be read");
    heads.sort_by_key(|head| head.parked_at);
    let found: Vec<_> = heads.iter().map(|head| (head.key_hash, head.events, head.partition)).collect();
    assert_eq!(found, [(KeyHash::of("a"), 3, claim.partition), (KeyHash::of("b"), 1, claim.partition)]);
    assert_eq!((heads[0].tries.attempts, heads[0].tries.retry_at), (3, events[0].tries.retry_at));
    assert_eq!(heads[0].topic, service());
    let of = |most| ready.database.parked_of(claim, KeyHash::of("a"), most);
    let sequences = |events: Vec<ParkedEvent>| events.iter().map(|event| event.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(of(10).await.expect("they can be read")), [1, 2, 9]);
    assert_eq!(sequences(of(2).await.expect("they can be read")), [1, 2]);
    let elsewhere = ready.database.parked_of(&claims[0], KeyHash::of("a"), 10).await;
    assert!(elsewhere.expect("they can be read").is_empty(), "another partition's were read");
}

async fn tries_are_recorded_under_the_lease<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let holder = Uuid::now_v7();
    let mut old = ready.claim(NAME, holder, LONG).await.remove(0);
    let event = parked(&old, 1, "a");
    park(&ready, &mut old, &[event]).await;
    let tries = Tries { attempts: 4, unfinished: 0, error: Some("again".into()), retry_at: None };
    ready.database.record_tries(&old, 1, &tries).await.expect("it holds the lease");
    assert_eq!(all(&ready).await[0].tries, tries);
    let missing = ready.database.record_tries(&old, 2, &tries).await.expect_err("it is not parked");
    assert_eq!(missing.kind(), Kind::CursorMoved, "{missing}");
    ready.claim(NAME, holder, LONG).await;
    let fenced =
        ready.database.record_tries(&old, 1, &Tries::default()).await.expect_err("it lost the lease");
    assert_eq!(fenced.kind(), Kind::Fenced, "{fenced}");
    assert_eq!(all(&ready).await[0].tries, tries);
}

async fn what_is_parked_can_be_found_and_counted<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let mut claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let events = [parked(&claim, 1, "a"), behind(&claim, 2, "a"), parked(&claim, 3, "b")];
    park(&ready, &mut claim, &events).await;
    let counts = ready.database.parked_counts().await.expect("they can be counted");
    assert_eq!((counts.len(), counts[0].keys, counts[0].events), (1, 2, 3));
    assert_eq!(counts[0].oldest, Some(events[0].parked_at));
    let is_parked = async |subscription: &str, key: &str| {
        let found = ready.database.is_parked(subscription, &service(), KeyHash::of(key)).await;
        found.expect("it can be asked")
    };
    assert!(is_parked(NAME, "a").await && is_parked(NAME, "b").await);
    assert!(!is_parked(NAME, "c").await && !is_parked("others", "a").await);
    let filtered = async |filter: ParkedFilter| {
        let found = ready.database.parked(&filter, 100).await.expect("they can be read");
        found.iter().map(|event| event.sequence).collect::<Vec<_>>()
    };
    let key_hash = Some(KeyHash::of("a"));
    assert_eq!(filtered(ParkedFilter { key_hash, ..ParkedFilter::default() }).await, [1, 2]);
    let id = Some(events[2].id);
    assert_eq!(filtered(ParkedFilter { id, ..ParkedFilter::default() }).await, [3]);
    let subscription = Some("others".to_owned());
    assert!(filtered(ParkedFilter { subscription, ..ParkedFilter::default() }).await.is_empty());
}

async fn a_cursor_that_goes_back_takes_out_what_comes_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    ready.open(NAME).await;
    let mut claim = ready.claim(NAME, Uuid::now_v7(), LONG).await.remove(0);
    let events = [parked(&claim, 1, "a"), parked(&claim, 4, "b"), behind(&claim, 5, "a")];
    park(&ready, &mut claim, &events).await;
    let back = Cursor::at(claim.cursor.incarnation, 3, EventId::new());
    let mut tx = ready.begin().await;
    assert_eq!(tx.unpark_after(&claim, 3).await.expect("they are taken out"), 2);
    tx.advance(&claim, &back).await.expect("a cursor may go back");
    tx.commit().await.expect("it commits");
    let left: Vec<u64> = all(&ready).await.iter().map(|event| event.sequence).collect();
    assert_eq!(left, [1]);
}
