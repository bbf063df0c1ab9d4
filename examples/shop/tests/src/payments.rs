//! An order is paid in its time, or cancelled, whatever is restarted meanwhile.

use std::collections::BTreeSet;
use std::process::Command;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::built::binary;
use crate::fold::assert_all_agree;
use crate::running::{Shop, text};

/// Long enough to pay in, short enough to be waited for.
const PAYMENT_SECONDS: u32 = 3;

#[tokio::test]
async fn an_order_that_is_not_paid_in_its_time_is_cancelled_across_restarts_and_crashes() {
    let shop = Shop::start_with_payment_seconds(PAYMENT_SECONDS).await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    let mut placed = Vec::new();
    for quantity in 1..=4 {
        let order = shop.order(&ada, &kite, quantity).await;
        assert_eq!(order["state"], "open");
        placed.push(text(&order["id"]));
        if quantity == 2 {
            let paid = shop.pay(&placed[1]).await;
            assert_eq!((paid.status, &paid.body["state"]), (StatusCode::OK, &json!("paid")), "{paid:?}");
        }
    }
    let again = shop.pay(&placed[1]).await;
    assert!(again.status == StatusCode::CONFLICT && again.detail().contains("is paid"), "{again:?}");
    // While its process is down nothing becomes due, and nothing is forgotten.
    shop.kill("orders").await;
    shop.tombolo(&["stop", "orders"]).await;
    shop.tombolo(&["start", "orders"]).await;
    for order in [&placed[0], &placed[2], &placed[3]] {
        shop.until_order_is(order, "cancelled").await;
    }
    let late = shop.pay(&placed[0]).await;
    assert!(late.status == StatusCode::CONFLICT && late.detail().contains("is cancelled"), "{late:?}");
    let unknown = shop.pay("nothing").await;
    assert_eq!((unknown.status, unknown.detail()), (StatusCode::NOT_FOUND, "there is no order \"nothing\""));
    assert_all_agree(&shop, &placed.iter().cloned().collect::<BTreeSet<_>>()).await;
    let states = |history: &Value| {
        let lines = history["orders"].as_array().unwrap().iter();
        lines.map(|line| text(&line["state"])).collect::<Vec<_>>()
    };
    for via in ["call", "gather", "replica"] {
        let history = shop.history(&ada, via).await.body;
        assert_eq!(states(&history), ["cancelled", "paid", "cancelled", "cancelled"], "{via}");
    }
    shop.end().await;
}

#[test]
fn a_wrong_time_for_payment_is_refused_by_name() {
    let output = Command::new(binary("shop-orders"))
        .arg("--describe")
        .env("SHOP_PAYMENT_SECONDS", "a quarter of an hour")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("SHOP_PAYMENT_SECONDS"), "{said}");
    assert!(said.contains("a quarter of an hour") && said.contains("from 1 to 31536000"), "{said}");
}
