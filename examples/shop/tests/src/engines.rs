//! The shop, unchanged, on what people run already: on each of the buses, with `orders` on PostgreSQL, `users` on MariaDB, the
//! history on SQLite, and `products` on documents, or on MongoDB where that is to be had; on PostgreSQL as the bus, `users` is there, too.
//!
//! Invariant: each test has a namespace of its own on the bus and databases of its own on the servers, and drops the databases.

use std::collections::BTreeSet;
use std::env;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};
use tombolo::mongodb::driver::{Client, options::ClientOptions};
use tombolo::settings::database_kind;
use uuid::Uuid;

use crate::built::MONGODB;
use crate::fold::assert_all_agree;
use crate::kills::Customers;
use crate::running::{Elsewhere, Shop};

/// Between two orders of a customer, at least: a bus that several tests share is not to be measured here.
const PACE: Duration = Duration::from_millis(20);

const POSTGRES: &str = "TOMBOLO_TEST_POSTGRES";
const MARIADB: &str = "TOMBOLO_TEST_MARIADB";

/// The servers of one test.
struct Ground {
    /// Tells it from every other on the same servers.
    name: String,
    bus: String,
    /// Where `orders` has its database.
    postgres: String,
    /// Where `users` has its.
    users: String,
    /// For `products`, instead of a file.
    mongodb: Option<String>,
}

impl Ground {
    /// What the environment names, by the variables of the bus and of the server for `users`; says so if something is missing.
    fn find(bus: &str, users: &str) -> Option<Self> {
        let server = |variable: &str| {
            let url = env::var(variable).ok().filter(|url| !url.is_empty());
            if url.is_none() {
                eprintln!(
                    "skipped: the shop on {bus}: {variable} is not set; run cargo xtask test --install"
                );
            }
            url.map(|url| url.trim_end_matches('/').to_owned())
        };
        Some(Self {
            name: format!("shop-{}", &Uuid::new_v4().simple().to_string()[..12]),
            bus: server(bus)?,
            postgres: server(POSTGRES)?,
            users: server(users)?,
            mongodb: None,
        })
    }

    /// The same with `products` on MongoDB; says so if there is none.
    fn with_mongodb(mut self) -> Option<Self> {
        self.mongodb = env::var(MONGODB).ok().filter(|url| !url.is_empty());
        if self.mongodb.is_none() {
            eprintln!(
                "skipped: the shop with products on MongoDB: a server is not to be had here; put mongod on the PATH and run cargo xtask test, or name a replica set in {MONGODB}"
            );
        }
        self.mongodb.is_some().then_some(self)
    }

    /// The name of a database on its server.
    fn database(&self, service: &str) -> String {
        format!("{}_{service}", self.name.replace('-', "_"))
    }

    /// What the shop is started with; `bus` is a form of the bus's URL with the server and the namespace in it.
    fn elsewhere(&self, bus: fn(&str, &str) -> String) -> Elsewhere {
        let on = |server: &str, service| {
            let (server, _) = server.rsplit_once('/').expect("the URL names a database");
            (service, format!("{server}/{}", self.database(service)))
        };
        let mut databases = vec![on(&self.postgres, "orders"), on(&self.users, "users")];
        if let Some(mongodb) = &self.mongodb {
            let (server, options) =
                mongodb.split_once("/?").expect("the URL has options and names no database");
            databases.push(("products", format!("{server}/{}?{options}", self.database("products"))));
        }
        Elsewhere { bus: Some(bus(&self.bus, &self.name)), databases }
    }

    async fn drop_databases(&self) {
        for (server, service) in [(&self.postgres, "orders"), (&self.users, "users")] {
            let drop = AssertSqlSafe(format!("DROP DATABASE {}", self.database(service)));
            match database_kind(server) {
                "mysql" => {
                    let mut mariadb = MySqlConnection::connect(server).await.unwrap();
                    sqlx::raw_sql(drop).execute(&mut mariadb).await.unwrap();
                }
                _ => {
                    let mut postgres = PgConnection::connect(server).await.unwrap();
                    sqlx::raw_sql(drop).execute(&mut postgres).await.unwrap();
                }
            }
        }
        if let Some(mongodb) = &self.mongodb {
            let client = Client::with_options(ClientOptions::parse(mongodb).await.unwrap()).unwrap();
            let products = client.database(&self.database("products"));
            // Written by the service that this test ran, and by nobody else.
            assert!(products.list_collection_names().await.unwrap().contains(&"products".to_owned()));
            products.drop().await.unwrap();
        }
    }
}

/// The same answer in all three ways, with so many orders.
async fn assert_ways_agree(shop: &Shop, user_id: &str, orders: usize) {
    let replica = shop.replica_of(user_id, orders).await;
    for via in ["call", "gather"] {
        let answer = shop.history(user_id, via).await;
        let mut expected = replica.clone();
        expected["via"] = json!(via);
        assert_eq!((answer.status, answer.body), (StatusCode::OK, expected));
    }
}

/// What is asked of another service while that is stopped: by call not at all, by gather in part, by replica in full.
async fn assert_an_outage_is_named(shop: &Shop, user_id: &str) {
    let whole = shop.history(user_id, "replica").await.body;
    shop.tombolo(&["stop", "users"]).await;
    let called = shop.history(user_id, "call").await;
    assert_eq!(called.status, StatusCode::SERVICE_UNAVAILABLE, "{called:?}");
    assert!(called.detail().contains("users"), "{called:?}");
    let gathered = shop.history(user_id, "gather").await.body;
    assert_eq!((&gathered["orders"], &gathered["user"]), (&whole["orders"], &Value::Null), "{gathered}");
    assert_eq!(gathered["missing"][0]["service"], "users", "{gathered}");
    assert_eq!(shop.history(user_id, "replica").await.body, whole);
    shop.tombolo(&["start", "users"]).await;
}

/// Customers go on while each service is killed with SIGKILL; the ids of the orders that were answered 201.
async fn kill_each(shop: &Shop) -> BTreeSet<String> {
    let customers = Customers::of(shop, 3, PACE).await;
    let kills = async {
        for victim in ["orders", "users", "order-history", "products"] {
            customers.some_more().await;
            shop.kill(victim).await;
        }
        customers.some_more().await;
        customers.stop.cancel();
    };
    tokio::join!(customers.all(), kills).0
}

async fn the_shop_is_whole(ground: Ground, bus: fn(&str, &str) -> String) {
    let shop = Shop::start_on(ground.elsewhere(bus)).await;
    let status = shop.status().await;
    assert_eq!(status["bus"]["pid"], Value::Null, "the runner started a bus of its own: {status}");
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    shop.order(&ada, &kite, 1).await;
    assert_ways_agree(&shop, &ada, 1).await;
    assert_an_outage_is_named(&shop, &ada).await;

    shop.tombolo(&["stop", "order-history"]).await;
    for quantity in 2..=10 {
        shop.order(&ada, &kite, quantity).await;
    }
    shop.tombolo(&["start", "order-history"]).await;
    assert_ways_agree(&shop, &ada, 10).await;

    let answered = kill_each(&shop).await;
    assert_all_agree(&shop, &answered).await;
    eprintln!("{} orders answered 201 under 4 kills", answered.len());
    shop.end().await;
    ground.drop_databases().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_nats_with_three_kinds_of_databases_the_shop_is_whole() {
    let Some(ground) = Ground::find("TOMBOLO_TEST_NATS", MARIADB) else { return };
    the_shop_is_whole(ground, |server, name| format!("{server}/{name}?accept=unsynced")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_rabbitmq_with_three_kinds_of_databases_the_shop_is_whole() {
    let Some(ground) = Ground::find("TOMBOLO_TEST_RABBITMQ", MARIADB) else { return };
    the_shop_is_whole(ground, |server, name| format!("{server}?namespace={name}&accept=unsynced")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_with_three_kinds_of_databases_the_shop_is_whole() {
    let Some(ground) = Ground::find("TOMBOLO_TEST_REDIS", MARIADB) else { return };
    the_shop_is_whole(ground, |server, name| format!("{server}?namespace={name}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_with_users_there_too_the_shop_is_whole() {
    let Some(ground) = Ground::find(POSTGRES, POSTGRES) else { return };
    the_shop_is_whole(ground, |server, name| format!("{server}?namespace={name}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_nats_with_products_on_mongodb_the_shop_is_whole() {
    let Some(ground) = Ground::find("TOMBOLO_TEST_NATS", MARIADB).and_then(Ground::with_mongodb) else {
        return;
    };
    the_shop_is_whole(ground, |server, name| format!("{server}/{name}?accept=unsynced")).await;
}
