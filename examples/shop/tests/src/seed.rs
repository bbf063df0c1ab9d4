//! `shop-seed`, against a shop and against none.

use std::process::Stdio;

use tokio::process::Command;

use crate::built::binary;
use crate::running::Shop;

#[tokio::test]
async fn the_seed_fills_a_shop_and_finds_its_three_answers_equal() {
    let shop = Shop::start().await;
    let mut seed = Command::new(binary("shop-seed"));
    seed.args(["--users", "40", "--products", "15", "--orders", "400", "--concurrency", "8"]);
    for service in ["users", "products", "orders", "order-history"] {
        seed.arg(format!("--{service}-url")).arg(shop.url(service));
    }
    let output = seed.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("accepted    400 orders") && said.contains("refused     0"), "{said}");
    assert!(said.contains("call, gather and replica answer the same"), "{said}");
    let orders: Vec<(i64,)> = shop.view_rows("order-history", "SELECT count(*) FROM {orders}").await;
    assert_eq!(orders, [(400,)]);
    shop.end().await;
}

#[tokio::test]
async fn without_a_shop_the_seed_says_how_to_start_one() {
    let output =
        Command::new(binary("shop-seed")).args(["--users-url", "http://127.0.0.1:1"]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("users did not answer at http://127.0.0.1:1") && said.contains("cargo shop"),
        "{said}"
    );
}
