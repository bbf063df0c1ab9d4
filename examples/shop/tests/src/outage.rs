//! Something is away: what still works, what says so, and what is made up for.

use std::fs;

use reqwest::StatusCode;
use serde_json::json;

use crate::running::Shop;
use crate::wait::until;

#[tokio::test]
async fn without_products_a_call_fails_by_name_a_gather_is_partial_and_the_replica_is_whole() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    shop.order(&ada, &kite, 2).await;
    let whole = shop.replica_of(&ada, 1).await;
    shop.tombolo(&["stop", "products"]).await;

    let called = shop.history(&ada, "call").await;
    assert_eq!(called.status, StatusCode::SERVICE_UNAVAILABLE, "{called:?}");
    assert!(called.detail().contains("products"), "{called:?}");

    let gathered = shop.history(&ada, "gather").await;
    assert_eq!(gathered.status, StatusCode::OK, "{gathered:?}");
    let missing = gathered.body["missing"].as_array().unwrap();
    assert_eq!((missing.len(), &missing[0]["service"]), (1, &json!("products")), "{gathered:?}");
    assert!(missing[0]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{gathered:?}");
    let mut part = whole["orders"].clone();
    part[0]["title"] = json!(null);
    assert_eq!((&gathered.body["orders"], &gathered.body["user"]), (&part, &whole["user"]));

    assert_eq!(shop.history(&ada, "replica").await.body, whole);
    shop.end().await;
}

#[tokio::test]
async fn without_products_a_known_one_sells_and_an_unknown_one_is_unavailable() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    until("the copy of `orders` to know the product", async || {
        let known: Vec<(i64,)> = shop.rows("orders", "SELECT price_cents FROM catalog_v2_b1_products").await;
        if known == [(2_490,)] { Ok(()) } else { Err(known) }
    })
    .await;
    shop.tombolo(&["stop", "products"]).await;
    let sold = shop.order(&ada, &kite, 1).await;
    assert_eq!(sold["price_cents"], 2_490);

    let unknown = shop.try_order(&ada, "no-such-product", 1).await;
    assert_eq!(unknown.status, StatusCode::SERVICE_UNAVAILABLE, "{unknown:?}");
    assert!(unknown.detail().contains("products"), "{unknown:?}");

    shop.tombolo(&["start", "products"]).await;
    let unknown = shop.try_order(&ada, "no-such-product", 1).await;
    assert_eq!(unknown.status, StatusCode::UNPROCESSABLE_ENTITY, "{unknown:?}");
    shop.end().await;
}

#[tokio::test]
async fn an_unknown_user_or_product_is_refused_by_name_while_its_owner_is_up() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    for (user_id, product_id, named) in [("nobody", &*kite, "nobody"), (&*ada, "nothing", "nothing")] {
        let answer = shop.try_order(user_id, product_id, 1).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
        assert!(answer.detail().contains(named), "{answer:?}");
    }
    shop.tombolo(&["stop", "users"]).await;
    let answer = shop.try_order("nobody", &kite, 1).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(answer.detail().contains("users"), "{answer:?}");
    shop.end().await;
}

#[tokio::test]
async fn orders_placed_while_order_history_is_stopped_are_there_when_it_starts() {
    let shop = Shop::start().await;
    let ada = shop.user("ada").await;
    let kite = shop.product("Kite", 2_490).await;
    shop.order(&ada, &kite, 1).await;
    shop.replica_of(&ada, 1).await;
    shop.tombolo(&["stop", "order-history"]).await;
    let late = shop.user("late").await;
    for quantity in 1..=20 {
        shop.order(&ada, &kite, quantity).await;
        shop.order(&late, &kite, quantity).await;
    }
    shop.change(&kite, json!({ "title": "Kite, red" })).await;
    shop.tombolo(&["start", "order-history"]).await;
    for (user_id, orders) in [(&ada, 21), (&late, 20)] {
        shop.replica_of(user_id, orders).await;
        let renamed = |history: &serde_json::Value| history["orders"][0]["title"] == "Kite, red";
        let replica = shop.replica_with(user_id, "the new title", renamed).await;
        let called = shop.history(user_id, "call").await.body;
        assert_eq!((&called["orders"], &called["user"]), (&replica["orders"], &replica["user"]));
    }
    shop.end().await;
}

#[tokio::test]
async fn a_deleted_database_of_order_history_is_rebuilt_from_the_topics() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    for quantity in 1..=30 {
        shop.order(&ada, &kite, quantity).await;
    }
    shop.change(&kite, json!({ "title": "Kite, red" })).await;
    let renamed = |history: &serde_json::Value| {
        history["orders"].as_array().unwrap().len() == 30 && history["orders"][0]["title"] == "Kite, red"
    };
    let before = shop.replica_with(&ada, "everything in the replica", renamed).await;
    shop.tombolo(&["stop", "order-history"]).await;
    let mut deleted = 0;
    for file in fs::read_dir(shop.data()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("order-history.db") {
            fs::remove_file(file.path()).unwrap();
            deleted += 1;
        }
    }
    assert!(deleted > 0);
    shop.tombolo(&["start", "order-history"]).await;
    let after = shop.replica_with(&ada, "everything in the replica again", renamed).await;
    assert_eq!(after, before);
    shop.end().await;
}

#[tokio::test]
async fn without_the_bus_orders_are_taken_and_calls_answered_and_a_gather_says_why_not() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    shop.order(&ada, &kite, 1).await;
    shop.replica_of(&ada, 1).await;
    shop.tombolo(&["stop", "bus"]).await;

    shop.order(&ada, &kite, 2).await;
    let called = shop.history(&ada, "call").await;
    assert_eq!(
        (called.status, called.body["orders"].as_array().map(Vec::len)),
        (StatusCode::OK, Some(2)),
        "{called:?}"
    );
    let gathered = shop.history(&ada, "gather").await;
    assert_eq!(gathered.status, StatusCode::OK, "{gathered:?}");
    let missing = gathered.body["missing"].as_array().unwrap();
    assert!(!missing.is_empty() && missing.iter().all(|one| one["reason"] == "bus-away"), "{gathered:?}");
    assert_eq!(shop.history(&ada, "replica").await.body["orders"].as_array().unwrap().len(), 1);

    shop.tombolo(&["start", "bus"]).await;
    shop.replica_of(&ada, 2).await;
    shop.end().await;
}
