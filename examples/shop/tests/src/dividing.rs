//! Topics that are divided anew while the shop runs, by the operator's command.

use serde_json::{Value, json};

use crate::running::Shop;

#[tokio::test]
async fn a_topic_is_divided_while_the_shop_runs_and_everything_arrives() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    for quantity in 1..=3 {
        shop.order(&ada, &kite, quantity).await;
    }
    let said = shop.tombolo(&["topics", "divide", "orders", "--partitions", "3"]).await;
    assert!(said.contains("topic orders has 3 partitions from here on (8 → 3)"), "{said}");
    shop.tombolo(&["topics", "divide", "users", "--partitions", "16"]).await;
    for quantity in 4..=6 {
        shop.order(&ada, &kite, quantity).await;
    }
    let bob = shop.user("bob").await;
    shop.order(&bob, &kite, 7).await;
    shop.replica_of(&ada, 6).await;
    shop.replica_of(&bob, 1).await;
    let orders = shop.history(&ada, "replica").await.body["orders"].clone();
    let quantities: Vec<&Value> = orders.as_array().unwrap().iter().map(|order| &order["quantity"]).collect();
    assert_eq!(quantities, [&json!(1), &json!(2), &json!(3), &json!(4), &json!(5), &json!(6)]);
    let topics = shop.tombolo(&["topics", "list"]).await;
    assert!(topics.contains("8 → 3") && topics.contains("8 → 16"), "{topics}");
    let again = shop.try_tombolo(&["topics", "divide", "orders", "--partitions", "3"]).await;
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(!again.status.success() && said.contains("has 3 partitions already"), "{said}");
    let nobody = shop.try_tombolo(&["topics", "divide", "nobody", "--partitions", "3"]).await;
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(said.contains("service nobody does not run"), "{said}");
    shop.end().await;
}
