//! The same path with documents under the services, and the embedded log between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tombolo::documents::{Collection, Documents, Keys, Tx};
use tombolo::settings::Lease;
use tombolo::testing::World;
use tombolo::{App, Clock, Event, Handled, Reactor, Running, Service, Settings, State, View};
use tombolo_bus::Bus;
use tombolo_db::{ParkedEvent, ParkedFilter, Parking};

use crate::support::{Ground, Placed, eventually, until_copied};

/// Rows under the number in which they were written, so that a double shows.
const ROWS: Collection<Row> = Collection::new("rows");
/// How many there are.
const COUNT: Collection<u64> = Collection::new("count");
/// The cents of each order, in a view of its own.
const SUMS: Collection<i64> = Collection::of_view("sums");

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    order: String,
    cents: i64,
}

fn database(folder: &TempDir, name: &str) -> Documents {
    Documents::open(folder.path().join(format!("{name}.redb")).to_str().unwrap()).unwrap()
}

async fn insert(tx: &mut Tx, order: &str, cents: i64) -> tombolo_db::Result<()> {
    let number = tx.get(&COUNT, "rows").await?.unwrap_or(0) + 1;
    tx.put(&COUNT, "rows", &number).await?;
    tx.put(&ROWS, &format!("{number:08}"), &Row { order: order.into(), cents }).await
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
#[derive(Serialize, Deserialize, JsonSchema)]
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

async fn start(service: Service<Documents>, bus: Arc<dyn Bus>) -> Running<Documents> {
    service.bus(bus).start(Settings::default()).await.unwrap()
}

async fn place(app: &App<Documents>, order: &str, cents: i64) {
    let mut tx = app.begin().await.unwrap();
    insert(&mut tx, order, cents).await.unwrap();
    tx.publish(&Placed { order: order.into(), cents }).unwrap();
    tx.commit().await.unwrap();
}

async fn rows(app: &App<Documents>) -> Vec<(String, i64)> {
    let rows = app.database().read().await.unwrap().scan(&ROWS, Keys::all(), 10_000).await.unwrap();
    rows.into_iter().map(|(_, row)| (row.order, row.cents)).collect()
}

/// Places 300 orders on 30 keys from 6 tasks at once; each task has keys of its own, so their order is known.
async fn place_many(app: &App<Documents>) {
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

/// State and events of one service, a reactor that publishes in another, a view of a third: each on documents, each event once.
#[tokio::test]
async fn documents_to_documents_by_a_reactor_to_a_view_keeps_everything_in_order() {
    let (folder, ground) = (tempfile::tempdir().unwrap(), Ground::new());
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = Service::new("orders", database(&folder, "orders")).publishes::<Placed>();
    let orders = start(orders, bus()).await;
    let history = Service::new("history", database(&folder, "history")).publishes::<Confirmed>();
    let history = start(history.react(Reactor::from_start("confirm").on(confirm)), bus()).await;
    let report = Service::new("report", database(&folder, "report"));
    let report = start(report.view(View::new("rows", 1).on(copy_confirmed)), bus()).await;
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
async fn documents_feed_a_view_in_sqlite() {
    let (folder, ground) = (tempfile::tempdir().unwrap(), Ground::new());
    let orders = Service::new("orders", database(&folder, "orders")).publishes::<Placed>();
    let orders = start(orders, Arc::clone(&ground.bus) as Arc<dyn Bus>).await;
    let history = ground.history().await;
    place_many(&orders.app).await;
    assert_in_order(&until_copied(&history.app, 300).await);
}

/// Adds up the cents of each order.
async fn add(event: Placed, tx: &mut Tx) -> Handled {
    let sum = tx.get(&SUMS, &event.order).await?.unwrap_or(0);
    Ok(tx.put(&SUMS, &event.order, &(sum + event.cents)).await?)
}

/// The next version counts twice.
async fn add_twice(event: Placed, tx: &mut Tx) -> Handled {
    let sum = tx.get(&SUMS, &event.order).await?.unwrap_or(0);
    Ok(tx.put(&SUMS, &event.order, &(sum + 2 * event.cents)).await?)
}

/// The version that is read, and what it says of an order.
async fn sum(app: &App<Documents>, order: &str) -> (u32, Option<i64>) {
    let live = app.view("sums").await.unwrap();
    let reading = app.database().read().await.unwrap().of_view(live.tables());
    (live.version(), reading.get(&SUMS, order).await.unwrap())
}

#[tokio::test]
async fn a_view_of_documents_is_built_beside_the_one_that_is_read() {
    let (folder, ground) = (tempfile::tempdir().unwrap(), Ground::new());
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = Service::new("orders", database(&folder, "orders")).publishes::<Placed>();
    let orders = start(orders, bus()).await;
    let first = || View::new("sums", 1).tables("{sums}").on(add);
    let report = start(Service::new("report", database(&folder, "report")).view(first()), bus()).await;
    for cents in 1..=10 {
        place(&orders.app, "o1", cents).await;
    }
    eventually("the first build has all", || async { sum(&report.app, "o1").await == (1, Some(55)) }).await;
    report.shutdown().await;
    let second = View::new("sums", 2).tables("{sums} {more}").on(add_twice).replaces(first());
    let report = start(Service::new("report", database(&folder, "report")).view(second), bus()).await;
    place(&orders.app, "o1", 5).await;
    eventually("the second build is read", || async { sum(&report.app, "o1").await == (2, Some(120)) }).await;
    report.shutdown().await;
}

#[tokio::test]
async fn a_world_crashes_a_service_on_documents_too() {
    let folder = tempfile::tempdir().unwrap();
    let orders_file = folder.path().join("orders.redb").to_str().unwrap().to_owned();
    let world = World::new();
    let service = |database| Service::new("orders", database).publishes::<Placed>();
    let orders = world.start_on(move || Documents::open(&orders_file).unwrap(), service).await;
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

/// Starts a service once the tasks of one that was dropped have let its file go.
async fn once_free(start: impl AsyncFn() -> tombolo::Result<Running<Documents>>) -> Running<Documents> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let free = async {
        loop {
            looks.tick().await;
            match start().await {
                Err(error) if error.to_string().contains("is open in another process") => {}
                started => return started.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.expect("the file is free within 20 s")
}

/// Where a service was stopped, and where it was dropped in the middle, it goes on: nothing is missing, nothing doubled.
#[tokio::test]
async fn a_service_on_documents_goes_on_where_it_was() {
    let (folder, ground) = (tempfile::tempdir().unwrap(), Ground::new());
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let orders = async || {
        once_free(async || {
            let service = Service::new("orders", database(&folder, "orders")).publishes::<Placed>();
            service.bus(bus()).start(Settings::default()).await
        })
        .await
    };
    let history = async || {
        once_free(async || {
            let service = Service::new("history", database(&folder, "history"));
            let settings =
                Settings { replica: Some(1), lease: Lease(Duration::from_secs(2)), ..Settings::default() };
            service.view(View::new("rows", 1).on(copy)).bus(bus()).start(settings).await
        })
        .await
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

async fn parked(app: &App<Documents>) -> Vec<ParkedEvent> {
    app.database().parked(&ParkedFilter::default(), 1_000).await.unwrap()
}

#[tokio::test]
async fn a_key_is_parked_in_documents_and_comes_back_in_order() {
    let (folder, ground) = (tempfile::tempdir().unwrap(), Ground::new());
    let bus = || Arc::clone(&ground.bus) as Arc<dyn Bus>;
    let (trouble, clock) = (Arc::new(AtomicBool::new(true)), Clock::default());
    let orders = Service::new("orders", database(&folder, "orders")).publishes::<Placed>();
    let orders = start(orders, bus()).await;
    let history = Service::new("history", database(&folder, "history"))
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
