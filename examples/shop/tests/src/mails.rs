//! The confirmation e-mails: an effect, seen from the mail store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::doors::order;
use crate::running::{Shop, text};
use crate::wait::until;

/// How often `orders` is killed.
const KILLS: usize = 10;
/// The most confirmations that arrive between two kills.
const MAILS_BETWEEN_MAX: usize = 12;

impl Shop {
    /// What the mail store has: the number of repeats, and the mails.
    async fn mails(&self) -> (u64, Vec<Value>) {
        let answer = self.get("mail", "/mails").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        (answer.body["repeats"].as_u64().unwrap(), answer.body["mails"].as_array().unwrap().clone())
    }

    pub(crate) async fn until_mails(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} confirmations"), async || match self.mails().await {
            (_, mails) if mails.len() >= count => Ok(mails),
            (repeats, mails) => Err((repeats, mails.len())),
        })
        .await
    }
}

/// The order that a mail is about.
fn order_of(mail: &Value) -> String {
    text(&mail["subject"]).trim_start_matches("Your order ").to_owned()
}

#[tokio::test]
async fn an_order_is_confirmed_to_whom_it_is_of() {
    let shop = Shop::start().await;
    let (user, product) = (shop.user("ada").await, shop.product("Lantern", 2490).await);
    let answer = shop.post("orders", "/orders", &order(&user, &product, 2)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let mail = shop.until_mails(1).await.remove(0);
    assert_eq!((order_of(&mail), text(&mail["to"])), (text(&answer.body["id"]), "ada@example.org".into()));
    assert!(text(&mail["text"]).contains("2490 cents"), "{mail}");
    let page = shop.get("mail", "/").await;
    assert!(page.content_type.starts_with("text/html"), "{page:?}");
    assert!(text(&page.body).contains("ada@example.org"), "{page:?}");
    shop.end().await;
}

/// Orders until told to stop, whatever is answered.
async fn customer(shop: &Shop, user: &str, product: &str, stop: &AtomicBool) {
    let url = format!("{}/orders", shop.url("orders"));
    while !stop.load(Ordering::SeqCst) {
        let ordered = shop.ask(Method::POST, url.clone(), Some(&order(user, product, 1))).await;
        if !ordered.is_ok_and(|answer| answer.status == StatusCode::CREATED) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_often_orders_is_killed_each_order_has_one_confirmation() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let shop = Shop::start().await;
    let (user, product) = (shop.user("ada").await, shop.product("Lantern", 2490).await);
    let stop = AtomicBool::new(false);
    let kills = async {
        let mut sent = 0;
        for _ in 0..KILLS {
            sent = shop.until_mails(sent + dice.random_range(1..=MAILS_BETWEEN_MAX)).await.len();
            shop.kill("orders").await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(kills, customer(&shop, &user, &product, &stop), customer(&shop, &user, &product, &stop));
    assert_each_order_is_confirmed_once(&shop).await;
    eprintln!("{KILLS} kills, seed {seed}");
    shop.end().await;
}

/// What must be true of the mails once all has come to rest: one for each order, whatever happened before.
pub(crate) async fn assert_each_order_is_confirmed_once(shop: &Shop) {
    let orders: Vec<(String,)> = shop.rows("orders", "SELECT id FROM orders").await;
    let orders: BTreeSet<String> = orders.into_iter().map(|(id,)| id).collect();
    shop.until_mails(orders.len()).await;
    until("the effect to be at the end of its topic", async || {
        let left: Vec<(i64,)> = shop.rows("orders", "SELECT count(*) FROM tombolo_outbox").await;
        if left[0].0 == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let (repeats, mails) = shop.mails().await;
    let mut confirmations: BTreeMap<String, usize> = BTreeMap::new();
    mails.iter().for_each(|mail| *confirmations.entry(order_of(mail)).or_default() += 1);
    let doubled: Vec<_> = confirmations.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "confirmed under more than one Message-ID: {doubled:?}");
    assert_eq!(confirmations.into_keys().collect::<BTreeSet<_>>(), orders);
    eprintln!("{} orders, {repeats} mails came twice with the same Message-ID", orders.len());
}
