//! The gateway in front of three replicas of `orders`, of which one after the other is killed while customers go on.
//!
//! Invariant: every refusal is counted, and each is one that is allowed: a POST under way at a kill.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::doors::order;
use crate::fold::assert_all_agree;
use crate::running::{Shop, text};
use crate::wait::until;

/// Half of them read, half of them order.
const CUSTOMERS: usize = 8;
const KILLS: usize = 4;
/// So many orders are answered 201 between two kills.
const ORDERS_BETWEEN: usize = 40;
/// How long until who has returned has its share again.
const BALANCE_BOUND: Duration = Duration::from_secs(2);
/// So many requests show whether it has.
const REQUESTS_SEEN: u64 = 60;

/// A POST that was not answered 201.
struct Failed {
    began: Instant,
    ended: Instant,
}

/// What the customers met.
#[derive(Default)]
struct Met {
    read: usize,
    /// The orders that were answered 201, by the quantity that only that request had.
    placed: BTreeMap<i64, String>,
    failed: Vec<Failed>,
}

/// Customers at the door until they are told to stop.
struct Customers<'a> {
    shop: &'a Shop,
    user: String,
    product: String,
    known: String,
    door: String,
    met: Mutex<Met>,
    stop: CancellationToken,
}

impl Customers<'_> {
    async fn all(&self) {
        join_all((0..CUSTOMERS).map(|number| async move {
            for turn in 0.. {
                if self.stop.is_cancelled() {
                    return;
                }
                match number % 2 {
                    0 => self.read().await,
                    _ => self.order((turn * CUSTOMERS + number) as i64).await,
                }
            }
        }))
        .await;
    }

    async fn read(&self) {
        let url = format!("{}/orders/{}", self.door, self.known);
        let answer = self.shop.ask(Method::GET, url, None).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "a safe request failed: {answer:?}");
        self.met.lock().unwrap().read += 1;
    }

    async fn order(&self, quantity: i64) {
        let url = format!("{}/orders", self.door);
        let began = Instant::now();
        let request = self.shop.client.post(url).json(&order(&self.user, &self.product, quantity));
        let answer = request.send().await.unwrap();
        let (status, id) = (answer.status(), answer.headers().get("x-request-id").cloned());
        let body: Value = answer.json().await.unwrap();
        let mut met = self.met.lock().unwrap();
        if status == StatusCode::CREATED {
            met.placed.insert(quantity, text(&body["id"]));
            return;
        }
        assert_eq!(
            (status, &*text(&body["type"])),
            (StatusCode::BAD_GATEWAY, "urn:tombolo:gateway:unreachable")
        );
        assert_eq!(id.unwrap(), text(&body["request_id"]), "{body}");
        met.failed.push(Failed { began, ended: Instant::now() });
    }

    async fn some_more(&self) {
        let before = self.met.lock().unwrap().placed.len();
        until("more orders to be placed", async || {
            let more = self.met.lock().unwrap().placed.len() - before;
            if more >= ORDERS_BETWEEN { Ok(()) } else { Err(more) }
        })
        .await;
    }
}

/// A replica of `orders`: its process, and where it is.
async fn replicas(shop: &Shop) -> Vec<(i32, String)> {
    let status = shop.status().await;
    let orders = status["services"].as_array().unwrap().iter().find(|it| it["name"] == "orders").unwrap();
    let one =
        |replica: &Value| Some((i32::try_from(replica["pid"].as_i64()?).unwrap(), text(&replica["url"])));
    orders["replicas"].as_array().unwrap().iter().filter_map(one).collect()
}

/// How many requests each replica of `orders` that is well was given, as the gateway says.
async fn shares(shop: &Shop) -> BTreeMap<String, u64> {
    let url = format!("{}/replicas", shop.gateway_admin());
    let all: Vec<Value> = shop.client.get(url).send().await.unwrap().json().await.unwrap();
    let orders = all
        .iter()
        .filter(|it| text(&it["route"]).ends_with("/orders") && !text(&it["route"]).contains("/me"));
    let well = orders.filter(|it| it["well"] == true);
    well.map(|it| (format!("http://{}", text(&it["replica"])), it["requests"].as_u64().unwrap())).collect()
}

/// Kills a replica; from when to when it was dying. A process loses its memory before its connections, so it is gone when nobody
/// listens at its address, or somebody else.
async fn kill(shop: &Shop, pid: i32, url: &str) -> (Instant, Instant) {
    let address = url.trim_start_matches("http://");
    let from = Instant::now();
    assert!(shop.signal(pid, Signal::SIGKILL), "{pid} is not a process of this shop");
    until("the process to be gone", async || {
        let listens = TcpStream::connect(address).await.is_ok();
        let is_another = replicas(shop).await.iter().any(|(other, at)| at == url && *other != pid);
        if listens && !is_another { Err(pid) } else { Ok(()) }
    })
    .await;
    (from, Instant::now())
}

/// Waits until a replica answers again, and then until it has its share; how long that took.
async fn balanced(shop: &Shop, url: &str) -> Duration {
    until("the replica to be back", async || {
        let ready = shop.client.get(format!("{url}/ready")).send().await;
        if ready.is_ok_and(|answer| answer.status() == StatusCode::OK) { Ok(()) } else { Err(()) }
    })
    .await;
    let (returned, before) = (Instant::now(), shares(shop).await);
    until("it has its share again", async || {
        let now = shares(shop).await;
        // What returned counts from nothing.
        let more =
            |(it, count): (&String, &u64)| count - before.get(it).filter(|was| *was <= count).unwrap_or(&0);
        let (all, own): (u64, u64) =
            (now.iter().map(more).sum(), now.get_key_value(url).map(more).unwrap_or_default());
        // Half of a third at least.
        if now.len() == 3 && all >= REQUESTS_SEEN && own * 6 >= all { Ok(()) } else { Err(now) }
    })
    .await;
    returned.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_of_three_replicas_dies_no_safe_request_fails_and_of_the_others_those_under_way() {
    let shop = Shop::start_checking("local").await;
    shop.tombolo(&["scale", "orders=3"]).await;
    let (user, product) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    let known = text(&shop.order(&user, &product, 1_000_000).await["id"]);
    let door = shop.gateway();
    let (met, stop) = (Mutex::default(), CancellationToken::new());
    let customers = Customers { shop: &shop, user, product, known, door, met, stop };
    let kills = async {
        let mut kills = Vec::new();
        for number in 0..KILLS {
            customers.some_more().await;
            let (pid, url) = replicas(&shop).await.swap_remove(number % 3);
            kills.push(kill(&shop, pid, &url).await);
            let took = balanced(&shop, &url).await;
            assert!(took < BALANCE_BOUND, "out of balance for {took:?}");
            eprintln!("in balance {took:?} after {url} was back");
        }
        customers.some_more().await;
        customers.stop.cancel();
        kills
    };
    let ((), kills) = tokio::join!(customers.all(), kills);
    let met = customers.met.into_inner().unwrap();
    for (from, to) in &kills {
        let of_this = met.failed.iter().filter(|it| it.began <= *to && it.ended >= *from).count();
        assert!(of_this <= CUSTOMERS / 2, "{of_this} failed, more than were under way");
    }
    let is_known = |it: &Failed| kills.iter().any(|(from, to)| it.began <= *to && it.ended >= *from);
    assert!(met.failed.iter().all(is_known), "a request failed that was not under way at a kill");
    let (placed, failed) = (met.placed.len(), met.failed.len());
    eprintln!("{} read, {placed} orders placed, {failed} failed under {KILLS} kills", met.read);

    let rows: Vec<(i64, String)> = shop.rows("orders", "SELECT quantity, id FROM orders_with_state").await;
    let once: BTreeMap<i64, String> = rows.iter().cloned().collect();
    assert_eq!(once.len(), rows.len(), "an order was placed twice");
    let lost: Vec<_> = met.placed.iter().filter(|(quantity, id)| once.get(quantity) != Some(id)).collect();
    assert!(lost.is_empty(), "answered 201 and not there: {lost:?}");
    assert!(rows.len() <= 1 + placed + failed);
    let ids: BTreeSet<String> = met.placed.into_values().collect();
    assert_all_agree(&shop, &ids).await;
    shop.end().await;
}
