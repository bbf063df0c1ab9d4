//! The same path with MariaDB under the services, and the embedded log between them. Against a real server; without it the
//! tests say so.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, MySqlPool};
use tombolo::mysql::{Mysql, Tx};
use tombolo::settings::Lease;
use tombolo::sqlite::Sqlite;
use tombolo::status::State as Status;
use tombolo::testing::World;
use tombolo::{App, Clock, Event, Handled, Reactor, Running, Service, Settings, State, View};
use tombolo_bus::Bus;
use tombolo_db::{ParkedEvent, ParkedFilter, Parking};
use uuid::Uuid;

use crate::support::{Ground, Placed, eventually, until_copied};

fn server() -> Option<String> {
    let url = env::var("TOMBOLO_TEST_MARIADB").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        eprintln!("skipped: mariadb: TOMBOLO_TEST_MARIADB is not set; run cargo xtask test --install");
    }
    url
}

/// A database of its own on the server.
pub(crate) async fn mariadb() -> Option<Mysql> {
    let url = server()?;
    let name = format!("it_{}", Uuid::new_v4().simple());
    let admin = MySqlPool::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    let (place, _) = url.rsplit_once('/').unwrap();
    Some(Mysql::open(&format!("{place}/{name}")).unwrap())
}

/// Rows without any guard against doubles, so that a double shows.
async fn table(database: Mysql) -> tombolo::Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS `rows` (n bigint AUTO_INCREMENT PRIMARY KEY, id varchar(100) NOT NULL, cents bigint NOT NULL)",
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

async fn insert(tx: &mut Tx, order: &str, cents: i64) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO `rows` (id, cents) VALUES (?, ?)").bind(order).bind(cents);
    insert.execute(&mut **tx).await.map(|_| ())
}

async fn copy(event: Placed, tx: &mut Tx) -> Handled {
    Ok(insert(tx, &event.order, event.cents).await?)
}

/// Publishes what follows from an order.
async fn confirm(event: Placed, tx: &mut Tx) -> Handled {
    insert(tx, &event.order, event.cents).await?;
    tx.publish(&Confirmed { order: event.order, cents: event.cents })?;
    Ok(())
}

/// What a reactor publishes.
#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Confirmed {
    order: String,
    cents: i64,
}

impl Event for Confirmed {
    const TYPE: &'static str = "history.confirmed.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn copy_confirmed(event: Confirmed, tx: &mut Tx) -> Handled {
    Ok(insert(tx, &event.order, event.cents).await?)
}

async fn start(service: Service<Mysql>, bus: Arc<dyn Bus>) -> Running<Mysql> {
    service.setup(table).bus(bus).start(Settings::default()).await.unwrap()
}

async fn place(app: &App<Mysql>, order: &str, cents: i64) {
    let mut tx = app.begin().await.unwrap();
    insert(&mut tx, order, cents).await.unwrap();
    tx.publish(&Placed { order: order.into(), cents }).unwrap();
    tx.commit().await.unwrap();
}

async fn rows(app: &App<Mysql>) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT id, cents FROM `rows` ORDER BY n").fetch_all(app.database().pool()).await.unwrap()
}

/// Places 300 orders on 5 keys from 6 tasks at once; each task has keys of its own, so their order is known.
async fn place_many(app: &App<Mysql>) {
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

/// State and events of one service, a reactor that publishes in another, a view of a third: each on MariaDB, each event once.
#[tokio::test]
async fn mariadb_to_mariadb_by_a_reactor_to_a_view_keeps_everything_in_order() {
    let (Some(source), Some(middle), Some(target)) = (mariadb().await, mariadb().await, mariadb().await)
    else {
        return;
    };
    let ground = Ground::new();
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = start(Service::new("orders", source).publishes::<Placed>(), bus()).await;
    let history = Service::new("history", middle).publishes::<Confirmed>();
    let history = start(history.react(Reactor::from_start("confirm").on(confirm)), bus()).await;
    let report =
        start(Service::new("report", target).view(View::new("rows", 1).on(copy_confirmed)), bus()).await;
    place_many(&orders.app).await;
    eventually("300 rows", || async { rows(&report.app).await.len() >= 300 }).await;
    assert_in_order(&rows(&orders.app).await);
    assert_in_order(&rows(&history.app).await);
    assert_in_order(&rows(&report.app).await);
    for running in [orders, history, report] {
        running.shutdown().await;
    }
}

#[tokio::test]
async fn mariadb_feeds_a_view_in_sqlite() {
    let Some(source) = mariadb().await else { return };
    let ground = Ground::new();
    let orders = Service::new("orders", source).publishes::<Placed>();
    let orders = start(orders, Arc::clone(&ground.bus) as Arc<dyn Bus>).await;
    let history: Running<Sqlite> = ground.history().await;
    place_many(&orders.app).await;
    assert_in_order(&until_copied(&history.app, 300).await);
}

/// A transaction that commits after many later ones is not passed over.
#[tokio::test]
async fn a_late_commit_in_mariadb_arrives_too() {
    let Some(source) = mariadb().await else { return };
    let ground = Ground::new();
    let orders = Service::new("orders", source).publishes::<Placed>();
    let orders = start(orders, Arc::clone(&ground.bus) as Arc<dyn Bus>).await;
    let history = ground.history().await;
    let mut late = orders.app.begin().await.unwrap();
    insert(&mut late, "late", 1).await.unwrap();
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
async fn a_world_crashes_a_service_on_mariadb_too() {
    let Some(database) = mariadb().await else { return };
    let world = World::new();
    let service = |database| Service::new("orders", database).setup(table).publishes::<Placed>();
    let orders = world.start_on(move || database.clone(), service).await;
    let history = world.start(crate::world::history).await;
    let points = ["relay.after-numbering", "relay.after-append", "relay.after-remove"];
    for point in points {
        orders.crash_at(point);
        place(&orders.app(), point, 1).await;
        orders.crashed().await;
        orders.restart().await;
    }
    world.settle().await;
    assert_eq!(crate::support::copies(&history.app()).await.len(), points.len());
}

/// Where a service was stopped, and where it was dropped in the middle, it goes on: nothing is missing, nothing doubled.
#[tokio::test]
async fn a_service_on_mariadb_goes_on_where_it_was() {
    let (Some(source), Some(target)) = (mariadb().await, mariadb().await) else { return };
    let ground = Ground::new();
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = async || start(Service::new("orders", source.clone()).publishes::<Placed>(), bus()).await;
    let history = async || {
        let service = Service::new("history", target.clone()).view(View::new("rows", 1).on(copy));
        let settings =
            Settings { replica: Some(1), lease: Lease(Duration::from_secs(2)), ..Settings::default() };
        service.setup(table).bus(bus()).start(settings).await.unwrap()
    };
    let mut placed = 0;
    for round in 0..4 {
        let (producer, consumer) = (orders().await, history().await);
        for _ in 0..25 {
            place(&producer.app, &format!("o{}", placed % 7), placed).await;
            placed += 1;
        }
        if round % 2 == 0 {
            producer.shutdown().await;
            consumer.shutdown().await;
        }
        // Else both are dropped: their tasks end where they are.
    }
    let (producer, consumer) = (orders().await, history().await);
    eventually("every row", || async { rows(&consumer.app).await.len() as i64 >= placed }).await;
    let all = rows(&consumer.app).await;
    assert_eq!(all.len() as i64, placed, "an order was applied twice");
    for key in 0..7 {
        let key = format!("o{key}");
        assert!(all.iter().filter(|(id, _)| *id == key).map(|(_, cents)| *cents).is_sorted(), "{key}");
    }
    producer.shutdown().await;
    consumer.shutdown().await;
}

/// Fails for the order "bad" while there is trouble, after it has written.
async fn copy_unless_bad(event: Placed, State(trouble): State<Arc<AtomicBool>>, tx: &mut Tx) -> Handled {
    let is_bad = event.order == "bad" && trouble.load(Ordering::SeqCst);
    copy(event, tx).await?;
    if is_bad { Err(std::io::Error::other("the order is bad").into()) } else { Ok(()) }
}

async fn parked(app: &App<Mysql>) -> Vec<ParkedEvent> {
    app.database().parked(&ParkedFilter::default(), 1_000).await.unwrap()
}

#[tokio::test]
async fn a_key_is_parked_in_mariadb_and_comes_back_in_order() {
    let (Some(source), Some(target)) = (mariadb().await, mariadb().await) else { return };
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

/// A handler that waits for a lock too long, and passes the error on: nobody's fault, however often.
#[tokio::test]
async fn lock_timeouts_of_a_handler_in_mariadb_count_no_attempt() {
    let Some(target) = mariadb().await else { return };
    let ground = Ground::new();
    let orders = ground.orders().await;
    table(target.clone()).await.unwrap();
    let mut other = target.pool().acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES `rows` WRITE").execute(&mut *other).await.unwrap();
    let url = target.pool().connect_options();
    // Each wait for a table ends after a second.
    let pool = sqlx::mysql::MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(
            async move { sqlx::raw_sql("SET lock_wait_timeout = 1").execute(connection).await.map(|_| ()) },
        )
    });
    let pool = pool.connect_lazy_with((*url).clone());
    let history = Service::new("history", Mysql::new(pool)).view(View::new("rows", 1).on(copy));
    let history =
        history.bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap();
    crate::support::place(&orders.app, "o1", 1).await;
    eventually("it says that it waits", || async {
        history.app.status().subscriptions.iter().any(|status| status.state == Status::Waiting)
    })
    .await;
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();
    eventually("the row", || async { rows(&history.app).await.len() == 1 }).await;
    assert!(parked(&history.app).await.is_empty());
    history.shutdown().await;
}

#[tokio::test]
async fn a_consumer_whose_mariadb_is_cut_off_parks_nothing() {
    let Some(url) = server() else { return };
    let Some(target) = mariadb().await else { return };
    let admin = MySqlPool::connect(&url).await.unwrap();
    // An account of its own, which can be shut.
    let name = format!("cut_{}", &Uuid::new_v4().simple().to_string()[..12]);
    let order = async |sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&admin).await.unwrap();
    order(format!("CREATE USER {name}@'%' IDENTIFIED BY 'cut'; GRANT ALL ON *.* TO {name}@'%'")).await;
    let options = (*target.pool().connect_options()).clone().username(&name).password("cut");
    let database = Mysql::new(MySqlPool::connect_lazy_with(options));
    let ground = Ground::new();
    let orders = ground.orders().await;
    let history = Service::new("history", database).view(View::new("rows", 1).on(copy));
    let history = start(history, Arc::clone(&ground.bus) as Arc<dyn Bus>).await;
    crate::support::place(&orders.app, "o0", 0).await;
    eventually("the first row", || async { rows(&history.app).await.len() == 1 }).await;
    order(format!("ALTER USER {name}@'%' ACCOUNT LOCK; KILL HARD CONNECTION USER {name}")).await;
    for n in 1..30 {
        crate::support::place(&orders.app, &format!("o{n}"), n).await;
    }
    eventually("it says that it waits", || async {
        history.app.status().subscriptions.iter().any(|status| status.state == Status::Waiting)
    })
    .await;
    order(format!("ALTER USER {name}@'%' ACCOUNT UNLOCK")).await;
    eventually("30 rows", || async {
        let rows = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM `rows`").fetch_one(target.pool()).await;
        rows.is_ok_and(|rows| rows == 30)
    })
    .await;
    assert!(parked(&history.app).await.is_empty());
    history.shutdown().await;
    order(format!("DROP USER {name}@'%'")).await;
}
