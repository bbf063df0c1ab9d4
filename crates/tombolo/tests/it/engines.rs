//! The same path on other engines: PostgreSQL under both services, JetStream or the embedded log between them, and SQLite
//! beside PostgreSQL. Against real servers; without them the tests say so.

use std::env;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgPool};
use tombolo::postgres::{Postgres, Tx};
use tombolo::sqlite::Sqlite;
use tombolo::testing::World;
use tombolo::{App, Handled, Running, Service, Settings, View};
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;
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
        tombolo_bus::connect(&format!("{}/{namespace}", url.trim_end_matches('/')), &identity).await.unwrap(),
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

async fn rows(app: &App<Postgres>) -> Vec<(String, i64)> {
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
