//! The same path on other engines: PostgreSQL under both services, JetStream or the embedded log between them, and SQLite
//! beside PostgreSQL. Against real servers; without them the tests say so.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};
use tombolo::postgres::{Postgres, Tx};
use tombolo::sqlite::Sqlite;
use tombolo::status::State as Status;
use tombolo::testing::World;
use tombolo::{App, Clock, Handled, Running, Service, Settings, State, View};
use tombolo_bus::{Bus, Identity};
use tombolo_db::{ParkedEvent, ParkedFilter, Parking};
use tombolo_event::ServiceName;
use tombolo_event::operator::{Action, Ask, of_topic};
use uuid::Uuid;

use crate::support::{Ground, Placed, eventually, until_copied};

/// The address of a server, or none with a line that says so.
fn server(what: &str, variable: &str) -> Option<String> {
    let url = env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        eprintln!("skipped: {what}: {variable} is not set; run cargo xtask test --install");
    }
    url
}

/// A database of its own on the server.
pub(crate) async fn postgres() -> Option<Postgres> {
    let url = server("postgres", "TOMBOLO_TEST_POSTGRES")?;
    let name = format!("it_{}", Uuid::new_v4().simple());
    let admin = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    let (place, options) =
        url.split_once('?').map_or((url.as_str(), ""), |(place, options)| (place, options));
    let (host, _) = place
        .rsplit_once('/')
        .filter(|(host, _)| host.contains("//") && !host.ends_with('/'))
        .unwrap_or((place, ""));
    Some(Postgres::open(&format!("{host}/{name}?{options}")).unwrap())
}

async fn nats(service: &str, namespace: &str) -> Option<Arc<dyn Bus>> {
    let url = server("nats", "TOMBOLO_TEST_NATS")?;
    let identity = Identity::Service(ServiceName::new(service).unwrap());
    Some(
        tombolo_bus::connect(
            &format!("{}/{namespace}?accept=unsynced", url.trim_end_matches('/')),
            &identity,
        )
        .await
        .unwrap(),
    )
}

pub(crate) async fn table(database: Postgres) -> tombolo::Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS rows (n BIGSERIAL PRIMARY KEY, id TEXT NOT NULL, cents BIGINT NOT NULL)",
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

pub(crate) async fn copy(event: Placed, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO rows (id, cents) VALUES ($1, $2)")
        .bind(event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn start(service: Service<Postgres>, bus: Arc<dyn Bus>) -> Running<Postgres> {
    service.setup(table).bus(bus).start(Settings::default()).await.unwrap()
}

pub(crate) async fn place(app: &App<Postgres>, order: &str, cents: i64) {
    let mut tx = app.begin().await.unwrap();
    sqlx::query("INSERT INTO rows (id, cents) VALUES ($1, $2)")
        .bind(order)
        .bind(cents)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.publish(&Placed { order: order.into(), cents }).unwrap();
    tx.commit().await.unwrap();
}

pub(crate) async fn rows(app: &App<Postgres>) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT id, cents FROM rows ORDER BY n").fetch_all(app.database().pool()).await.unwrap()
}

/// Places 300 orders on 5 keys from 6 tasks at once; each task has keys of its own, so their order is known.
async fn place_many(app: &App<Postgres>) {
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let app = app.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    place(&app, &format!("t{task}-{}", n % 5), n).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn assert_in_order(rows: &[(String, i64)]) {
    assert_eq!(rows.len(), 300);
    for task in 0..6 {
        for key in 0..5 {
            let key = format!("t{task}-{key}");
            let applied: Vec<i64> =
                rows.iter().filter(|(id, _)| *id == key).map(|(_, cents)| *cents).collect();
            assert_eq!(applied.len(), 10, "{key}");
            assert!(applied.is_sorted(), "{key}: {applied:?}");
        }
    }
}

/// Asks for another number of partitions, and waits until the bus has it.
async fn divide(orders: &Running<Postgres>, bus: &dyn Bus, partitions: u32) {
    let topic = ServiceName::new("orders").unwrap();
    let action = Action::Divide { partitions };
    let ask = Ask { subscription: of_topic(&topic), asked_by: "ann@host".into(), action };
    let asked = reqwest::Client::new().post(format!("{}/tombolo/requests", orders.url)).json(&ask).send();
    assert!(asked.await.unwrap().status().is_success());
    eventually("a division", || async {
        bus.topic(&topic).await.is_ok_and(|topic| topic.generations.present() == partitions)
    })
    .await;
}

#[tokio::test]
async fn a_topic_is_divided_under_writes_on_postgres_and_nats() {
    let (Some(source), Some(target)) = (postgres().await, postgres().await) else { return };
    let namespace = format!("it-{}", Uuid::new_v4().simple());
    let (Some(from), Some(to)) = (nats("orders", &namespace).await, nats("history", &namespace).await) else {
        return;
    };
    let orders = start(Service::new("orders", source).publishes::<Placed>(), from).await;
    let history =
        start(Service::new("history", target).view(View::new("rows", 1).on(copy)), Arc::clone(&to)).await;
    let dividing = async {
        for partitions in [3, 12, 5] {
            divide(&orders, &*to, partitions).await;
        }
    };
    tokio::join!(place_many(&orders.app), dividing);
    eventually("300 rows", || async { rows(&history.app).await.len() >= 300 }).await;
    assert_in_order(&rows(&history.app).await);
    let topic = to.topic(&ServiceName::new("orders").unwrap()).await.unwrap();
    assert_eq!(topic.generations.each(), [8, 3, 12, 5]);
    orders.shutdown().await;
    history.shutdown().await;
}

#[tokio::test]
async fn postgres_to_nats_to_postgres_keeps_everything_in_order() {
    let (Some(source), Some(target)) = (postgres().await, postgres().await) else { return };
    let namespace = format!("it-{}", Uuid::new_v4().simple());
    let (Some(from), Some(to)) = (nats("orders", &namespace).await, nats("history", &namespace).await) else {
        return;
    };
    let orders = start(Service::new("orders", source).publishes::<Placed>(), from).await;
    let history = start(Service::new("history", target).view(View::new("rows", 1).on(copy)), to).await;
    place_many(&orders.app).await;
    eventually("300 rows", || async { rows(&history.app).await.len() >= 300 }).await;
    assert_in_order(&rows(&history.app).await);
    orders.shutdown().await;
    history.shutdown().await;
}

#[tokio::test]
async fn postgres_feeds_a_view_in_sqlite() {
    let Some(source) = postgres().await else { return };
    let ground = Ground::new();
    let bus = Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = start(Service::new("orders", source).publishes::<Placed>(), bus).await;
    let history: Running<Sqlite> = ground.history().await;
    place_many(&orders.app).await;
    assert_in_order(&until_copied(&history.app, 300).await);
}

/// A transaction that commits after many later ones is not passed over.
#[tokio::test]
async fn a_late_commit_arrives_too() {
    let Some(source) = postgres().await else { return };
    let ground = Ground::new();
    let bus = Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = start(Service::new("orders", source).publishes::<Placed>(), bus).await;
    let history = ground.history().await;
    let mut late = orders.app.begin().await.unwrap();
    sqlx::query("INSERT INTO rows (id, cents) VALUES ('late', 1)").execute(&mut *late).await.unwrap();
    late.publish(&Placed { order: "late".into(), cents: 1 }).unwrap();
    for n in 0..20 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    until_copied(&history.app, 20).await;
    late.commit().await.unwrap();
    let copies = until_copied(&history.app, 21).await;
    assert_eq!(copies.iter().filter(|(order, _)| order == "late").count(), 1);
}

#[tokio::test]
async fn a_world_crashes_a_service_on_postgres_too() {
    let Some(database) = postgres().await else { return };
    let world = World::new();
    let service = |database| Service::new("orders", database).setup(table).publishes::<Placed>();
    let orders = world.start_on(move || database.clone(), service).await;
    let history = world.start(crate::world::history).await;
    for point in ["relay.after-numbering", "relay.after-append"] {
        orders.crash_at(point);
        place(&orders.app(), point, 1).await;
        orders.crashed().await;
        orders.restart().await;
    }
    world.settle().await;
    assert_eq!(crate::support::copies(&history.app()).await.len(), 2);
}

/// Fails for the order "bad" while there is trouble.
async fn copy_unless_bad(event: Placed, State(trouble): State<Arc<AtomicBool>>, tx: &mut Tx) -> Handled {
    let is_bad = event.order == "bad" && trouble.load(Ordering::SeqCst);
    copy(event, tx).await?;
    if is_bad { Err(std::io::Error::other("the order is bad").into()) } else { Ok(()) }
}

async fn parked(app: &App<Postgres>) -> Vec<ParkedEvent> {
    app.database().parked(&ParkedFilter::default(), 1_000).await.unwrap()
}

#[tokio::test]
async fn a_key_is_parked_in_postgres_and_comes_back_in_order() {
    let (Some(source), Some(target)) = (postgres().await, postgres().await) else { return };
    let ground = Ground::new();
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let (trouble, clock) = (Arc::new(AtomicBool::new(true)), Clock::default());
    let orders = start(Service::new("orders", source).publishes::<Placed>(), bus()).await;
    let history = Service::new("history", target)
        .clock(clock.clone())
        .state(Arc::clone(&trouble))
        .view(View::new("rows", 1).on(copy_unless_bad));
    let history = start(history, bus()).await;
    for n in 0..30 {
        place(&orders.app, if n % 3 == 0 { "bad" } else { "good" }, n).await;
    }
    eventually("20 rows, 10 parked", || async {
        rows(&history.app).await.len() == 20 && parked(&history.app).await.len() == 10
    })
    .await;
    assert_eq!(parked(&history.app).await[0].tries.attempts, 3);
    trouble.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(7_200));
    eventually("nothing parked", || async { parked(&history.app).await.is_empty() }).await;
    let all = rows(&history.app).await;
    for (key, expected) in [
        ("bad", (0..30).filter(|n| n % 3 == 0).collect::<Vec<i64>>()),
        ("good", (0..30).filter(|n| n % 3 != 0).collect()),
    ] {
        let applied: Vec<i64> = all.iter().filter(|(id, _)| id == key).map(|(_, cents)| *cents).collect();
        assert_eq!(applied, expected, "{key}");
    }
    orders.shutdown().await;
    history.shutdown().await;
}

#[tokio::test]
async fn a_consumer_whose_postgres_is_cut_off_parks_nothing() {
    let Some(url) = server("postgres", "TOMBOLO_TEST_POSTGRES") else { return };
    let Some(target) = postgres().await else { return };
    let ground = Ground::new();
    let orders = ground.orders().await;
    let history = start(
        Service::new("history", target.clone()).view(View::new("rows", 1).on(copy)),
        Arc::clone(&ground.bus) as Arc<dyn Bus>,
    )
    .await;
    crate::support::place(&orders.app, "o0", 0).await;
    eventually("the first row", || async { rows(&history.app).await.len() == 1 }).await;
    let admin = PgPool::connect(&url).await.unwrap();
    let name = target.pool().connect_options().get_database().unwrap().to_owned();
    let order = async |sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&admin).await.unwrap();
    order(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
    order(format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await;
    for n in 1..30 {
        crate::support::place(&orders.app, &format!("o{n}"), n).await;
    }
    eventually("it says that it waits", || async {
        history.app.status().subscriptions.iter().any(|status| status.state == Status::Waiting)
    })
    .await;
    order(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
    eventually("30 rows", || async {
        let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM rows").fetch_one(target.pool()).await;
        rows.is_ok_and(|rows| rows == 30)
    })
    .await;
    assert!(parked(&history.app).await.is_empty());
    history.shutdown().await;
}
