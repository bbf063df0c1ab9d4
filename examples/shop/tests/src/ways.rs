//! One question, three ways, one answer.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::running::Shop;

#[tokio::test]
async fn the_three_ways_give_the_same_answer() {
    let shop = Shop::start().await;
    let (ada, bob) = (shop.user("ada").await, shop.user("bob").await);
    let (kite, rope) = (shop.product("Kite", 2_490).await, shop.product("Rope", 300).await);
    let mut placed = Vec::new();
    for (product_id, title, price_cents, quantity) in
        [(&kite, "Kite", 2_490, 2), (&rope, "Rope", 300, 1), (&kite, "Kite", 2_490, 5)]
    {
        let order = shop.order(&ada, product_id, quantity).await;
        placed.push(json!({
            "order_id": order["id"], "product_id": product_id, "title": title, "quantity": quantity,
            "price_cents": price_cents, "state": "open",
        }));
    }
    shop.order(&bob, &rope, 7).await;
    shop.replica_of(&ada, 3).await;
    shop.replica_of(&bob, 1).await;
    for via in ["call", "gather", "replica"] {
        let answer = shop.history(&ada, via).await;
        let expected = json!({
            "via": via, "user": { "id": ada, "name": "ada" }, "orders": placed, "missing": [],
        });
        assert_eq!((answer.status, answer.body), (StatusCode::OK, expected));
        let bobs = shop.history(&bob, via).await.body;
        assert_eq!(
            (bobs["orders"].as_array().unwrap().len(), &bobs["orders"][0]["quantity"]),
            (1, &json!(7))
        );
    }
    shop.end().await;
}

#[tokio::test]
async fn a_user_without_orders_has_none_in_each_way_and_so_has_nobody() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    shop.replica_of(&ada, 0).await;
    for via in ["call", "gather", "replica"] {
        let answer = shop.history(&ada, via).await;
        assert_eq!((answer.status, &answer.body["orders"]), (StatusCode::OK, &json!([])), "{answer:?}");
        assert_eq!(answer.body["user"]["name"], "ada");
        let answer = shop.history("nobody", via).await;
        let expected = json!({ "via": via, "user": null, "orders": [], "missing": [] });
        assert_eq!((answer.status, answer.body), (StatusCode::OK, expected));
    }
    shop.end().await;
}

#[tokio::test]
async fn a_new_title_arrives_and_the_price_stays_the_one_when_ordered() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    shop.order(&ada, &kite, 1).await;
    shop.replica_of(&ada, 1).await;
    shop.change(&kite, json!({ "title": "Kite, red" })).await;
    shop.change(&kite, json!({ "price_cents": 1_990 })).await;
    let title = |history: &Value| history["orders"][0]["title"] == "Kite, red";
    shop.replica_with(&ada, "the new title in the replica", title).await;
    for via in ["call", "gather", "replica"] {
        let line = shop.history(&ada, via).await.body["orders"][0].clone();
        assert_eq!((&line["title"], &line["price_cents"]), (&json!("Kite, red"), &json!(2_490)), "{via}");
    }
    let sells_at = |order: &Value| order["price_cents"] == 1_990;
    crate::wait::until("an order at the new price", async || {
        let order = shop.order(&ada, &kite, 1).await;
        if sells_at(&order) { Ok(()) } else { Err(order) }
    })
    .await;
    shop.end().await;
}

#[tokio::test]
async fn two_replicas_of_orders_sell_from_one_database() {
    let shop = Shop::start_with(2).await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    let urls = shop.urls_of("orders");
    assert_eq!(urls.len(), 2);
    let body = crate::doors::order(&ada, &kite, 1);
    for number in 0..20 {
        let url = format!("{}/orders", urls[number % 2]);
        let answer = shop.ask(reqwest::Method::POST, url, Some(&body)).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    }
    let replica = shop.replica_of(&ada, 20).await;
    let called = shop.history(&ada, "call").await.body;
    assert_eq!(called["orders"], replica["orders"]);
    shop.end().await;
}
