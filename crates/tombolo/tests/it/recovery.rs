//! Restores and clones, with real copies of files: each is named, nothing is stepped over, and an operator's word ends it.

mod site;
mod dividing;
#[cfg(feature = "postgres")]
mod postgres;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::recovery::{Choice, What};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::status::State;
use tombolo::{
    Attempt, Effect, Event, Handled, IdempotencyKey, Reactor, Running, Service, Settings, State as Given,
};
use tombolo_bus::{Bus, Topic};
use tombolo_db::Outbox;
use tombolo_event::ServiceName;

use crate::support::{Placed, eventually, place, subscription, until_copied};
use site::{
    Site, decide, events, look, orders_table, place_many, sorted, start, stop, take_bus, topic, until_halted,
    until_halted_as, until_published,
};

#[tokio::test]
async fn a_database_from_before_a_thousand_events_is_halted_and_goes_on_behind_the_bus() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..50).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("orders", "backup");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 50..1_050).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("backup", "orders");
    let epoch = topic(&bus).await.epoch;

    // However often it is started, it climbs over nothing and publishes nothing.
    for n in 0..4 {
        let orders = site.orders(&bus, "orders").await;
        let state = until_halted(&orders).await;
        assert!(state.contains("the database of orders is older than its topic on the bus"), "{state}");
        place_many(&orders, 2_000 + n..2_001 + n).await;
        stop(orders).await;
    }
    assert_eq!((topic(&bus).await.epoch, events(&bus).await), (epoch, 1_050));

    let orders = site.orders(&bus, "orders").await;
    until_halted(&orders).await;
    let shown = take_bus(&orders).await;
    assert_eq!(shown.now.unwrap().what, What::DatabaseBehind);
    assert_eq!(shown.partitions.iter().map(|seen| seen.unknown.unwrap()).sum::<u64>(), 1_000);
    assert_eq!(shown.partitions.iter().map(|seen| seen.kept).sum::<u64>(), 4);
    until_published(&orders).await;
    place_many(&orders, 3_000..3_010).await;
    let history = site.history(&bus).await;
    let seen = sorted(until_copied(&history.app, 1_064).await);
    assert_eq!(seen, (0..1_050).chain(2_000..2_004).chain(3_000..3_010).collect::<Vec<_>>());
    let past = look(&orders).await.past;
    assert_eq!((past[0].choice.as_str(), past[0].by.as_str()), ("take-bus", "ann@office"));
}

#[tokio::test]
async fn a_copy_beside_the_original_never_takes_the_topic_over() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..20).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("orders", "staging");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 20..21).await;
    until_published(&orders).await;
    let epoch = topic(&bus).await.epoch;
    for n in 0..5 {
        let staging = site.orders(&bus, "staging").await;
        until_halted(&staging).await;
        place_many(&staging, 900 + n..901 + n).await;
        stop(staging).await;
        place_many(&orders, 100 + n..101 + n).await;
    }
    until_published(&orders).await;
    assert_eq!((topic(&bus).await.epoch, events(&bus).await), (epoch, 26));
    assert!(orders.app.status().relay.unwrap().leading, "the original was never disturbed");
}

/// Nothing tells a fresh copy of an idle service from the service itself, but that the other one is alive.
#[tokio::test]
async fn a_copy_that_differs_in_nothing_is_halted_while_the_original_leads() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..5).await;
    until_published(&orders).await;
    site.copy_database("orders", "staging");
    let epoch = topic(&bus).await.epoch;
    for _ in 0..3 {
        let staging = site.orders(&bus, "staging").await;
        place_many(&staging, 900..901).await;
        let state = until_halted(&staging).await;
        assert!(state.contains("another database leads topic orders right now"), "{state}");
        let halt = look(&staging).await.halt.unwrap();
        for choice in [Choice::Resume, Choice::TakeBus] {
            let (status, answer) = decide(&staging, &halt, choice).await;
            assert_eq!(status, 409, "{answer}");
        }
        stop(staging).await;
    }
    assert!(orders.app.status().relay.unwrap().leading, "the original was never disturbed");
    assert_eq!((topic(&bus).await.epoch, events(&bus).await), (epoch, 5));
    stop(orders).await;
    // Once the original is gone, the operator may let the copy be the one.
    let staging = site.orders(&bus, "staging").await;
    until_halted(&staging).await;
    let halt = look(&staging).await.halt.unwrap();
    let (status, answer) = decide(&staging, &halt, Choice::Resume).await;
    assert_eq!(status, 200, "{answer}");
    until_published(&staging).await;
    assert_eq!(events(&bus).await, 8);
}

/// A numbered replica that is started again while its older self still leads is no copy, and does not fight it.
#[tokio::test]
async fn the_same_replica_started_twice_is_not_taken_for_a_copy() {
    let site = Site::new();
    let bus = site.log("bus");
    let replica = async || {
        let settings = Settings { replica: Some(1), ..Settings::default() };
        let service =
            Service::new("orders", site.database("orders")).setup(orders_table).publishes::<Placed>();
        service.bus(Arc::clone(&bus) as Arc<dyn Bus>).start(settings).await.unwrap()
    };
    let older = replica().await;
    place_many(&older, 0..3).await;
    until_published(&older).await;
    let epoch = topic(&bus).await.epoch;
    let newer = replica().await;
    eventually("the newer one follows", || async {
        newer.app.status().relay.is_some_and(|relay| relay.state.contains("another replica leads"))
    })
    .await;
    place_many(&newer, 3..6).await;
    until_published(&newer).await;
    assert_eq!((topic(&bus).await.epoch, events(&bus).await), (epoch, 6));
    drop(older);
    place_many(&newer, 6..9).await;
    until_published(&newer).await;
    assert_eq!(events(&bus).await, 9);
    assert!(!newer.app.status().relay.unwrap().is_halted);
}

#[tokio::test]
async fn an_old_copy_of_the_bus_is_named_at_both_ends_even_when_it_has_grown_past_them() {
    let site = Site::new();
    let bus = site.log("bus");
    let (orders, history) = (site.orders(&bus, "orders").await, site.history(&bus).await);
    place_many(&orders, 0..30).await;
    until_copied(&history.app, 30).await;
    until_published(&orders).await;
    bus.close().await;
    site.copy_log("bus", "backup");
    stop(orders).await;
    stop(history).await;
    let bus = site.log("bus");
    let (orders, history) = (site.orders(&bus, "orders").await, site.history(&bus).await);
    place_many(&orders, 30..60).await;
    until_copied(&history.app, 60).await;
    until_published(&orders).await;
    stop(orders).await;
    stop(history).await;
    bus.close().await;

    let bus = site.log("backup");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 60..61).await;
    let state = until_halted(&orders).await;
    assert!(state.contains("topic orders on the bus is older than the database of orders"), "{state}");
    let shown = take_bus(&orders).await;
    assert_eq!(shown.partitions.iter().filter_map(|seen| seen.lost).sum::<u64>(), 30);
    // The log grows past every cursor under numbers that had other events.
    place_many(&orders, 61..400).await;
    until_published(&orders).await;
    let history = site.history(&bus).await;
    eventually("the subscription stops", || async {
        subscription(&history.app).is_some_and(|status| status.state == State::Stopped)
    })
    .await;
    let status = subscription(&history.app).unwrap();
    let stopped: Vec<_> = status.partitions.iter().filter(|seen| seen.state == State::Stopped).collect();
    assert!(!stopped.is_empty() && stopped.iter().all(|seen| seen.error.is_some()), "{stopped:?}");
    // Where nothing was lost it goes on; where something was, nothing is stepped over.
    for partition in &stopped {
        let seen = shown.partitions.iter().find(|seen| seen.partition == partition.partition).unwrap();
        assert!(seen.lost.unwrap() > 0, "{partition:?} stopped, though it lost nothing");
    }
    assert_eq!(stopped.len(), shown.partitions.iter().filter(|seen| seen.lost > Some(0)).count());
}

#[tokio::test]
async fn two_copies_that_both_went_on_are_told_apart_by_their_ids() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..5).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("orders", "twin");
    let orders = site.orders(&bus, "orders").await;
    place(&orders.app, "same", 10).await;
    until_published(&orders).await;
    stop(orders).await;
    // The twin numbers an event of its own while it cannot reach the bus.
    let nowhere = site.log("nowhere");
    let twin = site.orders(&nowhere, "twin").await;
    until_halted(&twin).await;
    place(&twin.app, "same", 20).await;
    let found = look(&twin).await.now.unwrap();
    assert_eq!(found.what, What::OtherTopic);
    stop(twin).await;
    let twin = site.orders(&bus, "twin").await;
    until_halted(&twin).await;
    assert_eq!(look(&twin).await.now.unwrap().what, What::Parted);
    let shown = take_bus(&twin).await;
    assert_eq!(
        shown.partitions.iter().map(|seen| (seen.unknown, seen.kept)).collect::<Vec<_>>(),
        [(Some(1), 1)]
    );
    until_published(&twin).await;
    let history = site.history(&bus).await;
    let copies = until_copied(&history.app, 7).await;
    let same: Vec<i64> = copies.iter().filter(|(id, _)| id == "same").map(|(_, cents)| *cents).collect();
    assert_eq!(same, [10, 20]);
}

#[tokio::test]
async fn a_bus_that_was_put_right_lets_the_service_go_on() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..5).await;
    until_published(&orders).await;
    stop(orders).await;
    let wrong = site.log("wrong");
    let orders = site.orders(&wrong, "orders").await;
    let state = until_halted(&orders).await;
    assert!(state.contains("it was made again, or this is another bus"), "{state}");
    let halt = look(&orders).await.halt.unwrap();
    let (status, answer) = decide(&orders, &halt, Choice::Resume).await;
    assert_eq!(status, 409, "{answer}");
    stop(orders).await;
    let orders = site.orders(&bus, "orders").await;
    until_halted(&orders).await;
    let shown = look(&orders).await;
    assert!(shown.now.is_none() && shown.partitions.is_empty(), "{shown:?}");
    let halt = shown.halt.unwrap();
    let (status, answer) = decide(&orders, &halt, Choice::Resume).await;
    assert_eq!(status, 200, "{answer}");
    place_many(&orders, 5..6).await;
    until_published(&orders).await;
    assert_eq!(events(&bus).await, 6);
    let (status, answer) = decide(&orders, &halt, Choice::TakeBus).await;
    assert_eq!(status, 409, "{answer}");
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Thanked {
    order: String,
}

impl Event for Thanked {
    const TYPE: &'static str = "thanks.thanked.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn thank(event: Placed, tx: &mut Tx) -> Handled {
    tx.publish(&Thanked { order: event.order })?;
    Ok(())
}

/// A reactor's consequences come again when its database is restored; on the bus they are there already.
#[tokio::test]
async fn what_a_reactor_publishes_again_after_a_restore_is_recognised() {
    let site = Site::new();
    let bus = site.log("bus");
    let thanks = async || {
        let service = Service::new("thanks", site.database("thanks")).publishes::<Thanked>();
        start(service.react(Reactor::from_start("thank").on(thank)), &bus).await
    };
    let on_bus = async || {
        let tails = bus.tails(&ServiceName::new("thanks").unwrap()).await.unwrap_or_default();
        tails.iter().map(|tail| tail.sequence).sum::<u64>()
    };
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..10).await;
    let running = thanks().await;
    eventually("10 thanks", async || on_bus().await == 10).await;
    until_published(&running).await;
    stop(running).await;
    site.copy_database("thanks", "backup");
    let running = thanks().await;
    place_many(&orders, 10..40).await;
    eventually("40 thanks", async || on_bus().await == 40).await;
    until_published(&running).await;
    stop(running).await;
    site.copy_database("backup", "thanks");
    let running = thanks().await;
    until_halted_as(&running, "thanks").await;
    take_bus(&running).await;
    place_many(&orders, 40..50).await;
    eventually("50 thanks", async || on_bus().await >= 50).await;
    eventually("it has caught up", || async {
        subscription(&running.app).is_some_and(|status| status.state == State::Live && status.lag_events == 0)
    })
    .await;
    until_published(&running).await;
    assert_eq!(on_bus().await, 50, "a consequence was published twice");
}

/// The keys of the calls that were made, in their order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<IdempotencyKey>>>);

async fn call(_: Placed, calls: Given<Calls>, attempt: Attempt) -> Handled {
    calls.0.0.lock().unwrap().push(attempt.key);
    Ok(())
}

/// A copy of a database sends no mail in the place of its original.
#[tokio::test]
async fn a_halted_service_makes_no_calls_until_it_is_decided() {
    let site = Site::new();
    let bus = site.log("bus");
    let calls = Calls::default();
    let made = || calls.0.lock().unwrap().len();
    let thanks = async || {
        let service = Service::new("thanks", site.database("thanks")).publishes::<Thanked>();
        let service = service.state(calls.clone()).react(Reactor::from_start("thank").on(thank));
        start(service.effect(Effect::from_start("mail").on(call)), &bus).await
    };
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..3).await;
    let running = thanks().await;
    eventually("3 calls", async || made() == 3).await;
    until_published(&running).await;
    stop(running).await;
    site.copy_database("thanks", "backup");
    let running = thanks().await;
    place_many(&orders, 3..8).await;
    eventually("8 calls", async || made() == 8).await;
    until_published(&running).await;
    stop(running).await;
    site.copy_database("backup", "thanks");
    let running = thanks().await;
    until_halted_as(&running, "thanks").await;
    eventually("the reactor has caught up, which the mail could have too", || async {
        let reactor = running.app.status().subscriptions.into_iter().find(|status| status.name == "thank");
        reactor.is_some_and(|status| status.state == State::Live && status.lag_events == 0)
    })
    .await;
    assert_eq!(made(), 8, "a copy made calls");
    take_bus(&running).await;
    eventually("13 calls", async || made() >= 13).await;
    let keys = calls.0.lock().unwrap().clone();
    assert_eq!(keys[3..8].iter().collect::<BTreeSet<_>>(), keys[8..].iter().collect(), "with other keys");
}

/// The bus is fenced before the database is written: a crash in between leaves the halt, and deciding again is enough.
#[tokio::test]
async fn a_decision_that_a_crash_broke_off_is_made_again() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..3).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("orders", "backup");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 3..6).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("backup", "orders");
    let orders = site.orders(&bus, "orders").await;
    until_halted(&orders).await;
    let Topic { name, incarnation, epoch, .. } = topic(&bus).await;
    bus.raise_epoch(&name, incarnation, epoch + 1).await.unwrap();
    stop(orders).await;
    let orders = site.orders(&bus, "orders").await;
    until_halted(&orders).await;
    take_bus(&orders).await;
    place_many(&orders, 6..9).await;
    until_published(&orders).await;
    assert_eq!(events(&bus).await, 9);
}

#[tokio::test]
async fn a_halt_outlives_restarts_and_the_service_serves_meanwhile() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..3).await;
    until_published(&orders).await;
    stop(orders).await;
    let elsewhere = site.log("elsewhere");
    let orders = site.orders(&elsewhere, "orders").await;
    let first = {
        until_halted(&orders).await;
        look(&orders).await.halt.unwrap().id
    };
    place_many(&orders, 3..9).await;
    stop(orders).await;
    let orders = site.orders(&elsewhere, "orders").await;
    until_halted(&orders).await;
    assert_eq!(look(&orders).await.halt.unwrap().id, first, "the same halt, found once");
    assert_eq!(orders.app.database().depth().await.unwrap().rows, 6, "what was written waits");
    assert_eq!(copies_of(&orders).await, 9);
    take_bus(&orders).await;
    until_published(&orders).await;
    assert_eq!(events(&elsewhere).await, 6);
}

async fn copies_of(orders: &Running<Sqlite>) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(orders.app.database().pool()).await.unwrap()
}
