//! The shop's services in a test world: one process, real routes, everything delivered twice and shuffled, crashes at
//! named points. What each service does when another is late, silent or down is tested here, with fakes in their place;
//! real processes under `tombolo dev` are in `shop.rs`.

#![expect(clippy::unwrap_used, reason = "everything here is part of a test")]

use std::time::Duration;

use reqwest::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo::documents::Documents;
use tombolo::sqlite::Sqlite;
use tombolo::testing::{Fake, Part, World};
use tombolo::{Event, Question, Service};
use tombolo_identity::{Config, SealingKey};

/// What `users` says when somebody registers, as far as these tests say it in its place.
#[derive(Serialize, Deserialize, JsonSchema)]
struct UserRegistered {
    user_id: String,
    name: String,
    email: String,
}

impl Event for UserRegistered {
    const TYPE: &'static str = "users.registered.v1";
    fn key(&self) -> String {
        self.user_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductAdded {
    product_id: String,
    title: String,
    price_cents: i64,
}

impl Event for ProductAdded {
    const TYPE: &'static str = "products.added.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderPlaced {
    order_id: String,
    user_id: String,
    product_id: String,
    quantity: i64,
    price_cents: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderCancelled {
    order_id: String,
}

impl Event for OrderCancelled {
    const TYPE: &'static str = "orders.cancelled.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct UserById {
    user_id: String,
}

impl Question for UserById {
    const NAME: &'static str = "users.by-id.v1";
    type Answer = Option<Known>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductsByIds {
    product_ids: Vec<String>,
}

impl Question for ProductsByIds {
    const NAME: &'static str = "products.by-ids.v1";
    type Answer = Vec<Known>;
}

/// A user or a product, as `orders` asks for it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Known {
    id: String,
    price_cents: i64,
    email: String,
}

/// `orders` with the settings that it has by default.
fn orders_service(database: Sqlite) -> Service<Sqlite> {
    shop_orders::service(database).unwrap()
}

/// `users` that seals what it keeps with this key.
fn users_service(key: SealingKey) -> impl Fn(Sqlite) -> Service<Sqlite> + Send + Sync + 'static {
    let config = Config::new("http://users.test", key);
    move |database| shop_users::service(database, config.clone()).unwrap()
}

fn history_service(database: Sqlite) -> Service<Sqlite> {
    shop_order_history::service(database).unwrap()
}

/// A world with a `users` that knows only ada, and a `products` that has only the kite.
async fn ada_and_the_kite(world: &World) -> (Fake, Fake) {
    let known = |id: String, only: &str| {
        (id == only).then(|| Known { email: format!("{id}@example.org"), id, price_cents: 2_490 })
    };
    let users = world
        .fake("users")
        .publishes::<UserRegistered>()
        .answers(move |asked: UserById| Ok(known(asked.user_id, "ada")));
    let products = world.fake("products").publishes::<ProductAdded>().answers(move |asked: ProductsByIds| {
        Ok(asked.product_ids.into_iter().filter_map(|id| known(id, "kite")).collect())
    });
    (users.start().await, products.start().await)
}

fn order(user_id: &str, product_id: &str) -> Value {
    json!({ "user_id": user_id, "product_id": product_id, "quantity": 1 })
}

fn kite() -> ProductAdded {
    ProductAdded { product_id: "kite".into(), title: "Kite".into(), price_cents: 2_490 }
}

/// The history of a user in one of the three ways, without the name of the way.
async fn history_of(history: &Part, user_id: &str, via: &str) -> Value {
    let response = history.get(&format!("/users/{user_id}/orders?via={via}")).await;
    assert_eq!(response.status, StatusCode::OK, "{via}: {}", response.text());
    let mut answer = response.json::<Value>();
    assert_eq!(answer.as_object_mut().unwrap().remove("via"), Some(json!(via)));
    answer
}

#[tokio::test]
async fn an_order_is_seen_in_all_three_ways() {
    let world = World::new();
    let users = world.start(users_service(SealingKey::generate().unwrap())).await;
    let folder = tempfile::tempdir().unwrap();
    let catalogue = folder.path().join("products.redb").to_string_lossy().into_owned();
    let products = world.start_on(move || Documents::open(&catalogue).unwrap(), shop_products::service).await;
    let orders = world.start(orders_service).await;
    let history = world.start(history_service).await;

    let ada =
        users.post("/users", json!({ "name": "ada", "email": "ada@example.org" })).await.json::<Value>();
    let kite =
        products.post("/products", json!({ "title": "Kite", "price_cents": 2_490 })).await.json::<Value>();
    let (ada, kite) = (ada["id"].as_str().unwrap(), kite["id"].as_str().unwrap());
    let placed = orders.post("/orders", order(ada, kite)).await;
    assert_eq!(placed.status, StatusCode::CREATED, "{}", placed.text());
    world.settle().await;

    let by_replica = history_of(&history, ada, "replica").await;
    assert_eq!(by_replica["user"]["name"], "ada");
    assert_eq!(by_replica["orders"][0]["title"], "Kite");
    assert_eq!(history_of(&history, ada, "call").await, by_replica);
    assert_eq!(history_of(&history, ada, "gather").await, by_replica);
    assert_eq!(world.published::<OrderPlaced>().await.len(), 1);
}

#[tokio::test]
async fn wherever_the_history_crashes_each_order_is_in_it_once() {
    let world = World::new();
    let (_users, products) = ada_and_the_kite(&world).await;
    let orders = world.start(orders_service).await;
    let history = world.start(history_service).await;
    products.publish(&kite()).await;
    let points = ["after-read", "after-effect", "after-cursor", "after-commit"];
    for point in points {
        history.crash_at(&format!("subscription.{point}"));
        assert_eq!(orders.post("/orders", order("ada", "kite")).await.status, StatusCode::CREATED);
        history.crashed().await;
        history.restart().await;
    }
    world.settle().await;
    let replica = history_of(&history, "ada", "replica").await;
    assert_eq!(replica["orders"].as_array().unwrap().len(), points.len());
}

#[tokio::test]
async fn wherever_orders_crashes_what_it_accepted_is_published_once() {
    let world = World::new();
    let (_users, _products) = ada_and_the_kite(&world).await;
    let orders = world.start(orders_service).await;
    let points = ["relay.after-numbering", "relay.before-append", "relay.after-append", "relay.after-remove"];
    for point in points {
        orders.crash_at(point);
        // The answer may be lost in the crash; the order is not.
        orders.try_request(reqwest::Method::POST, "/orders", Some(&order("ada", "kite"))).await;
        orders.crashed().await;
        orders.restart().await;
        world.settle().await;
    }
    assert_eq!(world.published::<OrderPlaced>().await.len(), points.len());
}

#[tokio::test]
async fn an_unknown_user_is_422_but_users_out_of_reach_is_503_and_too_slow_504() {
    let world = World::new();
    let (users, _products) = ada_and_the_kite(&world).await;
    let orders = world.start(orders_service).await;
    assert_eq!(orders.post("/orders", order("ada", "kite")).await.status, StatusCode::CREATED);
    assert_eq!(orders.post("/orders", order("bob", "kite")).await.status, StatusCode::UNPROCESSABLE_ENTITY);

    users.crash().await;
    let unavailable = orders.post("/orders", order("ada", "kite")).await;
    assert_eq!(unavailable.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(unavailable.text().contains("users"), "{}", unavailable.text());

    users.restart().await;
    users.answers_after(Duration::from_secs(60));
    assert_eq!(orders.post("/orders", order("ada", "kite")).await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn what_orders_knows_by_events_sells_while_everybody_else_is_down() {
    let world = World::new();
    let (users, products) = ada_and_the_kite(&world).await;
    let orders = world.start(orders_service).await;
    let (name, email) = ("Eve".into(), "eve@example.org".into());
    users.publish(&UserRegistered { user_id: "eve".into(), name, email }).await;
    products.publish(&kite()).await;
    world.settle().await;
    users.crash().await;
    products.crash().await;
    let sold = orders.post("/orders", order("eve", "kite")).await;
    assert_eq!((sold.status, &sold.json::<Value>()["price_cents"]), (StatusCode::CREATED, &json!(2_490)));
}

#[tokio::test]
async fn an_order_that_is_there_before_its_product_gets_its_title_later() {
    let world = World::new();
    let (_users, products) = ada_and_the_kite(&world).await;
    let orders = world.fake("orders").publishes::<OrderPlaced>().start().await;
    let history = world.start(history_service).await;
    let (order_id, user_id, product_id) = ("o1".into(), "ada".into(), "kite".into());
    orders.publish(&OrderPlaced { order_id, user_id, product_id, quantity: 1, price_cents: 2_490 }).await;
    world.settle().await;
    assert_eq!(history_of(&history, "ada", "replica").await["orders"][0]["title"], json!(null));

    products.publish(&kite()).await;
    world.settle().await;
    assert_eq!(history_of(&history, "ada", "replica").await["orders"][0]["title"], "Kite");
}

/// How long an order may stay open, unless the environment says otherwise.
const PAYMENT_TIME: Duration = Duration::from_secs(900);

#[tokio::test]
async fn wherever_orders_crashes_what_is_not_paid_in_time_is_cancelled_once() {
    let world = World::new();
    let (_users, _products) = ada_and_the_kite(&world).await;
    let orders = world.start(orders_service).await;
    let history = world.start(history_service).await;
    let points =
        ["later.before-move", "later.after-move", "subscription.after-effect", "outbox.after-commit"];
    for point in points {
        for pays in [true, false] {
            let placed = orders.post("/orders", order("ada", "kite")).await.json::<Value>();
            if pays {
                let path = format!("/orders/{}/pay", placed["id"].as_str().unwrap());
                assert_eq!(orders.post(&path, json!({})).await.status, StatusCode::OK);
            }
        }
        world.settle().await;
        orders.crash_at(point);
        world.clock().advance(PAYMENT_TIME);
        orders.crashed().await;
        orders.restart().await;
        world.settle().await;
    }
    let replica = history_of(&history, "ada", "replica").await;
    let states: Vec<&Value> =
        replica["orders"].as_array().unwrap().iter().map(|line| &line["state"]).collect();
    assert_eq!(states, ["paid", "cancelled"].repeat(points.len()));
    assert_eq!(world.published::<OrderCancelled>().await.len(), points.len());
}
