//! kill -9, of everything, while customers go on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::doors::order;
use crate::fold::assert_all_agree;
use crate::running::{Shop, text};
use crate::wait::until;

const CUSTOMERS: usize = 4;
/// What they buy.
const PRODUCTS: usize = 3;
/// So many orders are answered 201 between two kills.
const ORDERS_BETWEEN: usize = 25;
/// Between two orders of a customer, at least.
const PACE: Duration = Duration::from_millis(1);
/// One of so many orders is followed by a new user and a changed product.
const CHANGE_EVERY: usize = 5;

/// Customers who go on ordering until they are told to stop, whatever they are answered.
pub(crate) struct Customers<'a> {
    shop: &'a Shop,
    users: Vec<String>,
    products: Vec<String>,
    /// Between two orders of one of them, at least.
    pace: Duration,
    accepted: AtomicUsize,
    pub(crate) stop: CancellationToken,
}

impl<'a> Customers<'a> {
    /// Customers with so many accounts, and a few products to buy.
    pub(crate) async fn of(shop: &'a Shop, accounts: usize, pace: Duration) -> Self {
        let (mut users, mut products) = (Vec::new(), Vec::new());
        for number in 0..accounts {
            users.push(shop.user(&format!("customer-{number}")).await);
        }
        for number in 0..PRODUCTS {
            products.push(shop.product(&format!("Thing {number}"), 100 * number as i64).await);
        }
        let (accepted, stop) = (AtomicUsize::new(0), CancellationToken::new());
        Self { shop, users, products, pace, accepted, stop }
    }

    /// The ids of the orders that were answered 201.
    pub(crate) async fn all(&self) -> BTreeSet<String> {
        let ids = join_all((0..CUSTOMERS).map(|number| self.one(number))).await;
        ids.into_iter().flatten().collect()
    }

    async fn one(&self, number: usize) -> Vec<String> {
        let mut ids = Vec::new();
        let mut pace = interval(self.pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in number.. {
            pace.tick().await;
            if self.stop.is_cancelled() {
                break;
            }
            let (user_id, product_id) =
                (&self.users[turn % self.users.len()], &self.products[turn % PRODUCTS]);
            let url = format!("{}/orders", self.shop.url("orders"));
            let answer = self
                .shop
                .ask(Method::POST, url, Some(&order(user_id, product_id, 1 + turn as i64 % 5)))
                .await;
            match answer {
                Ok(answer) if answer.status == StatusCode::CREATED => {
                    ids.push(text(&answer.body["id"]));
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                }
                // Nobody may be told that it worked; it may have, or not.
                _ => {}
            }
            if turn % CHANGE_EVERY == 0 {
                self.disturb(turn, product_id).await;
            }
        }
        ids
    }

    /// What else goes on; refusals are part of it.
    async fn disturb(&self, turn: usize, product_id: &str) {
        let users = format!("{}/users", self.shop.url("users"));
        let user = json!({ "name": format!("visitor {turn}"), "email": "visitor@example.org" });
        self.shop.ask(Method::POST, users, Some(&user)).await.ok();
        let product = format!("{}/products/{product_id}", self.shop.url("products"));
        let change = json!({ "title": format!("Thing {turn}"), "price_cents": turn });
        self.shop.ask(Method::PATCH, product, Some(&change)).await.ok();
    }

    pub(crate) async fn some_more(&self) {
        let before = self.accepted.load(Ordering::Relaxed);
        until("more orders to be accepted", async || {
            let more = self.accepted.load(Ordering::Relaxed) - before;
            if more >= ORDERS_BETWEEN { Ok(()) } else { Err(more) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_under_load_every_answered_order_is_in_the_replica_once() {
    let shop = Shop::start().await;
    let customers = Customers::of(&shop, 5, PACE).await;
    let kills = async {
        for victim in ["orders", "order-history", "bus", "products", "users", "bus", "orders"] {
            customers.some_more().await;
            shop.kill(victim).await;
        }
        customers.some_more().await;
        customers.stop.cancel();
    };
    let (answered, ()) = tokio::join!(customers.all(), kills);
    assert!(answered.len() >= 8 * ORDERS_BETWEEN);
    assert_all_agree(&shop, &answered).await;
    eprintln!("{} orders answered 201 under 7 kills", answered.len());
    shop.end().await;
}
