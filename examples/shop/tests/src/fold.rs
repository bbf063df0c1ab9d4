//! What must be true of every database and topic once all has come to rest, whatever happened before.
//!
//! - I1 what was acknowledged is delivered; I2 what is delivered was committed; I3 sequences are contiguous;
//! - I4 every event is applied once; I5 a view equals the fold of its topics.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::StatusCode;
use serde_json::Value;

use crate::running::{Shop, text};
use crate::wait::until;

/// One order: id, user, product, quantity, price, state.
type Order = (String, String, String, i64, i64, String);

/// Waits until the outboxes are empty and the views have all of the topics, then compares everything.
pub(crate) async fn assert_all_agree(shop: &Shop, answered: &BTreeSet<String>) {
    let orders: Vec<Order> = shop
        .rows(
            "orders",
            "SELECT id, user_id, product_id, quantity, price_cents, state FROM orders_with_state ORDER BY id",
        )
        .await;
    let committed: BTreeSet<String> = orders.iter().map(|order| order.0.clone()).collect();
    let lost: Vec<_> = answered.difference(&committed).collect();
    assert!(lost.is_empty(), "answered 201 and not in the database of orders: {lost:?}");

    until("the topic to have every order", async || {
        let published = topic(shop, "orders").await.iter().filter(|event| is_placed(event)).count();
        if published >= orders.len() { Ok(()) } else { Err((published, orders.len())) }
    })
    .await;
    let placed = folded(&topic(shop, "orders").await);
    assert_eq!(placed, orders, "the topic (left) is not what orders committed (right): I1, I2");

    until("the view to be the fold of its topics", async || {
        let (view, expected) = (history(shop).await, expected_history(shop, &orders).await);
        if view == expected { Ok(()) } else { Err(difference(&view, &expected)) }
    })
    .await;
    until("the catalog of orders to be the fold of its topics", async || {
        let own: BTreeSet<(String, i64)> =
            set(shop.view_rows("orders", "SELECT id, price_cents FROM {products}").await);
        let priced = |(id, _, price_cents)| (id, price_cents);
        let owners: BTreeSet<_> = catalogue(shop).await.into_iter().map(priced).collect();
        if own == owners { Ok(()) } else { Err((own.len(), owners.len())) }
    })
    .await;
    for service in ["orders", "order-history"] {
        let log = shop.log(service);
        assert!(!log.contains("could not be handled"), "an event was applied twice, or too early: I4\n{log}");
    }
    assert_every_user_sees_the_same(shop, &orders).await;
}

fn set<T: Ord>(rows: Vec<T>) -> BTreeSet<T> {
    rows.into_iter().collect()
}

/// The orders that the events of their topic make. Each comes before what becomes of it, which comes once.
fn folded(events: &[Value]) -> Vec<Order> {
    let mut orders: BTreeMap<String, Order> = BTreeMap::new();
    for event in events {
        let (data, id) = (&event["data"], text(&event["data"]["order_id"]));
        let outcome = match event["type"].as_str().unwrap() {
            "orders.placed.v1" => {
                assert!(orders.insert(id, order_of(data)).is_none(), "an order was placed twice: {event}");
                continue;
            }
            "orders.payment-due.v1" => continue,
            "orders.paid.v1" => "paid",
            "orders.cancelled.v1" => "cancelled",
            unknown => panic!("nothing is known of {unknown}"),
        };
        let state = &mut orders.get_mut(&id).unwrap().5;
        assert_eq!(state, "open", "a second outcome: {event}");
        outcome.clone_into(state);
    }
    orders.into_values().collect()
}

fn is_placed(event: &Value) -> bool {
    event["type"] == "orders.placed.v1"
}

fn order_of(data: &Value) -> Order {
    let number = |key: &str| data[key].as_i64().unwrap();
    let word = |key: &str| text(&data[key]);
    let (quantity, price) = (number("quantity"), number("price_cents"));
    (word("order_id"), word("user_id"), word("product_id"), quantity, price, "open".into())
}

/// Every event of a topic; its sequences are looked at on the way (I3), and its ids (no doubles).
async fn topic(shop: &Shop, name: &str) -> Vec<Value> {
    let said = shop.tombolo(&["topics", "read", name]).await;
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut last: BTreeMap<i64, u64> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for event in &events {
        let sequence: u64 = text(&event["sequence"]).parse().unwrap();
        let before = last.entry(event["partition"].as_i64().unwrap()).or_default();
        assert_eq!(
            sequence,
            *before + 1,
            "a hole or a double in {name}, partition {}: I3",
            event["partition"]
        );
        *before = sequence;
        assert!(ids.insert(text(&event["id"])), "event {} is on the topic {name} twice", event["id"]);
    }
    events
}

/// The read model: orders with their titles, and users.
type History = (Vec<(Order, Option<String>)>, BTreeSet<(String, String)>);

async fn history(shop: &Shop) -> History {
    let orders: Vec<Order> = shop
        .view_rows("order-history", "SELECT order_id, user_id, product_id, quantity, price_cents, state FROM {orders} ORDER BY order_id")
        .await;
    let titles = shop.view_rows("order-history", "SELECT product_id, title FROM {products}").await;
    let users = shop.view_rows("order-history", "SELECT user_id, name FROM {users}").await;
    (titled(&orders, titles), set(users))
}

async fn expected_history(shop: &Shop, orders: &[Order]) -> History {
    let titles = catalogue(shop).await.into_iter().map(|(id, title, _)| (id, title)).collect();
    let users = shop.rows("users", "SELECT id, name FROM users").await;
    (titled(orders, titles), set(users))
}

/// Id, title and price of every product. Its file is of one process, so the service is asked.
async fn catalogue(shop: &Shop) -> Vec<(String, String, i64)> {
    let listed = shop.get("products", "/products").await;
    assert_eq!(listed.status, StatusCode::OK, "{listed:?}");
    let product = |product: &Value| {
        (text(&product["id"]), text(&product["title"]), product["price_cents"].as_i64().unwrap())
    };
    listed.body.as_array().unwrap().iter().map(product).collect()
}

fn titled(orders: &[Order], titles: Vec<(String, String)>) -> Vec<(Order, Option<String>)> {
    let titles: BTreeMap<String, String> = titles.into_iter().collect();
    orders.iter().map(|order| (order.clone(), titles.get(&order.2).cloned())).collect()
}

fn difference(view: &History, expected: &History) -> String {
    let lacking = expected.0.iter().find(|order| !view.0.contains(order));
    let beyond = view.0.iter().find(|order| !expected.0.contains(order));
    format!(
        "{} of {} orders and {} of {} users; lacking: {lacking:?}; beyond: {beyond:?}",
        view.0.len(),
        expected.0.len(),
        view.1.len(),
        expected.1.len()
    )
}

async fn assert_every_user_sees_the_same(shop: &Shop, orders: &[Order]) {
    let users: BTreeSet<&String> = orders.iter().map(|order| &order.1).collect();
    for user_id in users {
        let own = orders.iter().filter(|order| order.1 == *user_id).count();
        let replica = shop.history(user_id, "replica").await;
        assert_eq!(replica.status, StatusCode::OK, "{replica:?}");
        assert_eq!(replica.body["orders"].as_array().map(Vec::len), Some(own));
        for via in ["call", "gather"] {
            let answer = shop.history(user_id, via).await;
            assert_eq!(
                (&answer.body["orders"], &answer.body["missing"]),
                (&replica.body["orders"], &serde_json::json!([]))
            );
        }
    }
}
