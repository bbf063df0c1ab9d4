//! Copies from before a topic was divided: of the database, and of the bus.

use std::sync::Arc;

use tombolo::Running;
use tombolo::recovery::What;
use tombolo::sqlite::Sqlite;
use tombolo_bus::embedded::Log;
use tombolo_event::ServiceName;
use tombolo_event::operator::{Action, Ask, of_topic};

use super::site::{Site, look, place_many, sorted, stop, take_bus, topic, until_halted, until_published};
use crate::support::{eventually, until_copied};

/// Has the topic divided anew, in the database and on the bus.
async fn divide(orders: &Running<Sqlite>, bus: &Arc<Log>, partitions: u32) {
    let action = Action::Divide { partitions };
    let subscription = of_topic(&ServiceName::new("orders").unwrap());
    let ask = Ask { subscription, asked_by: "ann@host".into(), action };
    let asked = reqwest::Client::new().post(format!("{}/tombolo/requests", orders.url)).json(&ask).send();
    assert!(asked.await.unwrap().status().is_success());
    eventually("a division", || async { topic(bus).await.generations.present() == partitions }).await;
}

#[tokio::test]
async fn a_database_from_before_a_division_is_halted_and_takes_the_generations_of_the_bus() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..20).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("orders", "backup");
    let orders = site.orders(&bus, "orders").await;
    divide(&orders, &bus, 3).await;
    place_many(&orders, 20..60).await;
    until_published(&orders).await;
    stop(orders).await;
    site.copy_database("backup", "orders");
    let orders = site.orders(&bus, "orders").await;
    let state = until_halted(&orders).await;
    assert!(state.contains("older than its topic on the bus"), "{state}");
    assert!(state.contains("(partitions 8 → 3 there, 8 here)"), "{state}");
    place_many(&orders, 100..110).await;
    let shown = take_bus(&orders).await;
    assert_eq!(shown.now.unwrap().what, What::DatabaseBehind);
    assert_eq!(shown.partitions.iter().map(|seen| seen.unknown.unwrap()).sum::<u64>(), 40);
    until_published(&orders).await;
    place_many(&orders, 110..120).await;
    let history = site.history(&bus).await;
    let seen = sorted(until_copied(&history.app, 80).await);
    assert_eq!(seen, (0..60).chain(100..120).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_bus_from_before_a_division_is_divided_again_if_nothing_is_lost_with_it() {
    let site = Site::new();
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    place_many(&orders, 0..20).await;
    until_published(&orders).await;
    stop(orders).await;
    drop(bus);
    site.copy_log("bus", "old");
    let bus = site.log("bus");
    let orders = site.orders(&bus, "orders").await;
    divide(&orders, &bus, 3).await;
    stop(orders).await;

    let old = site.log("old");
    let orders = site.orders(&old, "orders").await;
    place_many(&orders, 20..40).await;
    until_published(&orders).await;
    assert_eq!(topic(&old).await.generations.each(), [8, 3]);
    stop(orders).await;
    drop(old);

    // Now something of the new generation would be lost with it.
    site.copy_log("bus", "old");
    let old = site.log("old");
    let orders = site.orders(&old, "orders").await;
    let state = until_halted(&orders).await;
    assert!(state.contains("is older than the database of orders"), "{state}");
    let shown = take_bus(&orders).await;
    assert_eq!(shown.now.unwrap().what, What::BusBehind);
    place_many(&orders, 40..60).await;
    until_published(&orders).await;
    let history = site.history(&old).await;
    let seen = sorted(until_copied(&history.app, 40).await);
    assert_eq!(seen, (0..20).chain(40..60).collect::<Vec<_>>());
    assert!(look(&orders).await.halt.is_none());
}
