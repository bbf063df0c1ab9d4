//! From four processes to one and back, on the same data.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::fold::assert_all_agree;
use crate::running::{Shop, text};

/// The same answer in all three ways.
async fn history(shop: &Shop, user_id: &str, orders: usize) -> Value {
    let replica = shop.replica_of(user_id, orders).await;
    for via in ["call", "gather"] {
        let answer = shop.history(user_id, via).await;
        assert_eq!((answer.status, &answer.body["missing"]), (StatusCode::OK, &json!([])), "{via}");
        assert_eq!(answer.body["orders"], replica["orders"], "{via}");
    }
    replica["orders"].clone()
}

#[tokio::test]
async fn the_shop_goes_from_four_processes_to_one_and_back_on_the_same_data() {
    let mut shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    let mut placed = BTreeSet::new();
    placed.insert(text(&shop.order(&ada, &kite, 1).await["id"]));
    // Whatever is still on its way is on its way in the data.
    shop.down().await;

    let one = shop.up_as_one().await;
    history(&shop, &ada, 1).await;
    let second = text(&shop.order(&ada, &kite, 2).await["id"]);
    assert_eq!(shop.pay(&second).await.status, StatusCode::OK);
    placed.insert(second);
    let rope = shop.product("Rope", 300).await;
    placed.insert(text(&shop.order(&ada, &rope, 3).await["id"]));
    history(&shop, &ada, 3).await;
    assert_all_agree(&shop, &placed).await;
    the_operators_commands_say_what_they_can(&shop).await;
    one.end().await;

    shop.up().await;
    placed.insert(text(&shop.order(&ada, &rope, 4).await["id"]));
    let orders = history(&shop, &ada, 4).await;
    let paid = orders.as_array().unwrap().iter().filter(|order| order["state"] == "paid").count();
    assert_eq!(paid, 1);
    assert_all_agree(&shop, &placed).await;
    shop.end().await;
}

/// What needs only the bus works; what needs a runner says that there is none, and a runner is kept out.
async fn the_operators_commands_say_what_they_can(shop: &Shop) {
    let services = shop.tombolo(&["services", "list"]).await;
    assert!(services.contains("order-history") && services.contains(shop.url("orders")), "{services}");
    let subscriptions = shop.tombolo(&["subscriptions", "list"]).await;
    assert!(subscriptions.contains("payments") && subscriptions.contains("live"), "{subscriptions}");
    let status = shop.try_tombolo(&["status"]).await;
    let said = String::from_utf8(status.stderr).unwrap();
    assert!(!status.status.success() && said.contains("nothing runs in"), "{said}");
    let runner = shop.try_tombolo(&["dev", shop.place().to_str().unwrap()]).await;
    let said = String::from_utf8(runner.stderr).unwrap();
    assert!(!runner.status.success() && said.contains("in use by another runner"), "{said}");
}
