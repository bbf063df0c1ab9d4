//! Reading one's own writes: what a write says of itself, and what a reader makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Path, State as Of};
use axum::routing::post;
use axum::{Json, Router};
use reqwest::{Client, Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Freshness, Handled, Positions, Problem, Running, Service, State, View, reject};

use crate::support::{Ground, Placed, copy, eventually, place, until_copied, with_copies};

type App = Of<tombolo::App<Sqlite>>;

/// Writes that a test follows by reads, one by one.
const WRITES: usize = 2_000;
const BOUND: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(30);

async fn place_by_http(Of(app): App, Path(order): Path<String>) -> Result<(), Problem> {
    place(&app, &order, 1).await;
    Ok(())
}

async fn copies_of(Of(app): App, Path(order): Path<String>) -> Result<Json<i64>, Problem> {
    app.fresh("copies").await?;
    let count = sqlx::query_scalar("SELECT count(*) FROM copies WHERE id = ?").bind(order);
    Ok(Json(count.fetch_one(app.database().pool()).await?))
}

fn routes() -> Router<tombolo::App<Sqlite>> {
    Router::new().route("/orders/{order}", post(place_by_http).get(copies_of))
}

async fn pair(ground: &Ground) -> (Running<Sqlite>, Running<Sqlite>) {
    let orders = ground.start(ground.orders_service().routes(routes())).await;
    let history = ground.start(ground.history_service().routes(routes())).await;
    (orders, history)
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn write(client: &Client, url: &str, order: &str) -> String {
    let response = client.post(format!("{url}/orders/{order}")).send().await.unwrap();
    header(&response.error_for_status().unwrap(), "tombolo-position").unwrap().to_owned()
}

async fn read(client: &Client, url: &str, order: &str, positions: &str) -> Response {
    let request = client.get(format!("{url}/orders/{order}")).header("tombolo-position", positions);
    request.send().await.unwrap()
}

/// Writes by one service, each read from the other at once: how many were stale.
pub(crate) async fn stale_reads(orders: &str, history: &str, writes: usize) -> usize {
    let client = Client::new();
    eventually("a topic that is made and followed", async || {
        let positions = write(&client, orders, "first").await;
        let response = read(&client, history, "first", &positions).await;
        header(&response, "tombolo-freshness") == Some("current")
    })
    .await;
    let mut stale = 0;
    for n in 0..writes {
        let order = format!("o{n}");
        let positions = write(&client, orders, &order).await;
        let response = read(&client, history, &order, &positions).await;
        let current = header(&response, "tombolo-freshness") == Some("current");
        let count: i64 = response.error_for_status().unwrap().json().await.unwrap();
        assert!(!current || count == 1, "{order} is said to be there: {count}");
        stale += usize::from(count == 0);
    }
    stale
}

#[tokio::test]
async fn a_reader_sees_its_own_write() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    assert_eq!(stale_reads(&orders.url, &history.url, WRITES).await, 0);
}

#[tokio::test]
async fn a_write_says_where_it_went_and_a_read_does_not() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    let client = Client::new();
    let positions: Positions = write(&client, &orders.url, "o1").await.parse().unwrap();
    let [position] = positions.each() else { panic!("{positions}") };
    assert_eq!((position.topic.as_str(), position.sequence), ("orders", Some(1)));
    assert_eq!(position.key_hash, tombolo_event::KeyHash::of("o1"));
    let response = client.get(format!("{}/orders/o1", history.url)).send().await.unwrap();
    assert_eq!(header(&response, "tombolo-position"), None);
    assert_eq!(header(&response, "tombolo-freshness"), None, "nothing was asked for");
}

#[tokio::test]
async fn a_read_that_waited_in_vain_says_that_it_may_be_stale() {
    let ground = Ground::new();
    let orders = ground.start(ground.orders_service().routes(routes())).await;
    let open = Arc::new(AtomicBool::new(false));
    let history = with_copies(Service::new("history", ground.database("history")))
        .state(Arc::clone(&open))
        .routes(routes())
        .view(View::new("copies", 1).on(copy_when_open));
    let history = ground.start(history).await;
    let client = Client::new();
    let positions = write(&client, &orders.url, "o1").await;
    let request = client.get(format!("{}/orders/o1", history.url)).header("tombolo-position", &positions);
    let response = request.header("tombolo-deadline-ms", "40").send().await.unwrap();
    let partition = tombolo_event::partition_of("o1", 8);
    let said = format!("stale; topic=orders; partition={partition}");
    assert_eq!(header(&response, "tombolo-freshness"), Some(&*said));
    assert_eq!(response.json::<i64>().await.unwrap(), 0);
    open.store(true, Ordering::SeqCst);
    let asked = positions.parse().unwrap();
    let found = history.app.wait_for("copies", &asked, BOUND).await.unwrap();
    assert_eq!(found, Freshness::Current);
}

async fn copy_when_open(event: Placed, State(open): State<Arc<AtomicBool>>, tx: &mut Tx) -> Handled {
    if !open.load(Ordering::SeqCst) {
        // As if the database were away: nobody's fault, so it is tried until it works.
        return Err(sqlx::Error::PoolTimedOut.into());
    }
    copy(event, tx).await
}

async fn copy_unless_bad(event: Placed, tx: &mut Tx) -> Handled {
    if event.order == "bad" { Err(reject("the order is bad")) } else { copy(event, tx).await }
}

#[tokio::test]
async fn a_read_says_that_a_write_is_parked_and_the_other_keys_are_current() {
    let ground = Ground::new();
    let orders = ground.start(ground.orders_service().routes(routes())).await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .routes(routes())
        .view(View::new("copies", 1).on(copy_unless_bad));
    let history = ground.start(history).await;
    let client = Client::new();
    let bad = write(&client, &orders.url, "bad").await;
    let behind = write(&client, &orders.url, "bad").await;
    let good = write(&client, &orders.url, "good").await;
    let said = format!("parked; topic=orders; partition={}", tombolo_event::partition_of("bad", 8));
    for positions in [bad, behind.clone(), format!("{good}, {behind}")] {
        let response = read(&client, &history.url, "bad", &positions).await;
        assert_eq!(header(&response, "tombolo-freshness"), Some(&*said));
    }
    let response = read(&client, &history.url, "good", &good).await;
    assert_eq!(header(&response, "tombolo-freshness"), Some("current"));
}

#[tokio::test]
async fn a_wrong_position_is_the_clients_mistake_and_says_why() {
    let ground = Ground::new();
    let history = ground.start(ground.history_service().routes(routes())).await;
    let client = Client::new();
    let other = "products/1/00000000000000aa/0198c0de-0000-7000-8000-000000000001/1";
    for (wrong, says) in
        [("orders/1", "pass on the header"), (other, "which copies does not read (it reads orders)")]
    {
        let response = read(&client, &history.url, "o1", wrong).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
        let text = response.text().await.unwrap();
        assert!(text.contains(says), "{text}");
    }
    let unknown = history.app.wait_for("titles", &Positions::default(), SHORT).await.unwrap_err();
    assert!(unknown.to_string().contains("it has: copies"), "{unknown}");
}

/// A token that left positions out cannot be answered for.
#[tokio::test]
async fn positions_that_were_left_out_may_be_stale() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    let client = Client::new();
    let positions = write(&client, &orders.url, "o1").await;
    let response = read(&client, &history.url, "o1", &format!("{positions}, more")).await;
    assert_eq!(header(&response, "tombolo-freshness"), Some("stale; more"));
    assert_eq!(response.json::<i64>().await.unwrap(), 1, "it waited for those that are there");
}

#[tokio::test]
async fn a_replica_that_holds_no_partition_can_tell_too() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    place(&orders.app, "first", 1).await;
    until_copied(&history.app, 1).await;
    let other = ground.start(ground.history_service().routes(routes())).await;
    let client = Client::new();
    for n in 0..50 {
        let order = format!("o{n}");
        let positions = write(&client, &orders.url, &order).await;
        let response = read(&client, &other.url, &order, &positions).await;
        assert_eq!(header(&response, "tombolo-freshness"), Some("current"));
        assert_eq!(response.json::<i64>().await.unwrap(), 1);
    }
}

/// An event that nobody could number in time is known by its id where it is applied.
#[tokio::test]
async fn a_position_without_a_sequence_is_found_by_its_id() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    let client = Client::new();
    let mut positions: Positions = write(&client, &orders.url, "o1").await.parse().unwrap();
    positions.each_mut().iter_mut().for_each(|position| position.sequence = None);
    let found = history.app.wait_for("copies", &positions, BOUND).await.unwrap();
    assert_eq!(found, Freshness::Current);
    place(&orders.app, "o1", 2).await;
    until_copied(&history.app, 2).await;
    let found = history.app.wait_for("copies", &positions, SHORT).await.unwrap();
    assert_eq!(found, Freshness::Current, "also when others were applied since");
    positions.each_mut().iter_mut().for_each(|position| position.id = tombolo::EventId::new());
    let found = history.app.wait_for("copies", &positions, SHORT).await.unwrap();
    assert_eq!(found, Freshness::Stale(Some(positions.each()[0].clone())));
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Named {
    product: String,
}

impl Event for Named {
    const TYPE: &'static str = "products.named.v1";
    fn key(&self) -> String {
        self.product.clone()
    }
}

async fn copy_name(event: Named, tx: &mut Tx) -> Handled {
    copy(Placed { order: event.product, cents: 0 }, tx).await
}

#[tokio::test]
async fn writes_to_several_services_are_waited_for_at_once() {
    let ground = Ground::new();
    let orders = ground.start(ground.orders_service().routes(routes())).await;
    let products = Service::new("products", ground.database("products")).publishes::<Named>();
    let products = ground.start(products).await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .view(View::new("copies", 1).on(copy).on(copy_name));
    let history = ground.start(history).await;
    for n in 0..20 {
        let mut tx = products.app.begin().await.unwrap();
        tx.publish(&Named { product: format!("p{n}") }).unwrap();
        let named = tx.commit().await.unwrap().positions;
        let placed = write(&Client::new(), &orders.url, &format!("o{n}")).await;
        let placed: Positions = placed.parse().unwrap();
        let both: Positions = named.into_iter().chain(placed.each().to_vec()).collect();
        let found = history.app.wait_for("copies", &both, BOUND).await.unwrap();
        assert_eq!(found, Freshness::Current);
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM copies")
            .fetch_one(history.app.database().pool())
            .await
            .unwrap();
        assert_eq!(rows, 2 * (n + 1));
    }
}

/// The bus is away: a write is neither refused nor held up, and reads say what they know.
#[tokio::test]
async fn a_write_does_not_wait_for_a_bus_that_is_away() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    let client = Client::new();
    write(&client, &orders.url, "o1").await;
    until_copied(&history.app, 1).await;
    ground.bus.away();
    let positions: Positions = write(&client, &orders.url, "o2").await.parse().unwrap();
    let found = history.app.wait_for("copies", &positions, SHORT).await.unwrap();
    assert!(matches!(found, Freshness::Stale(Some(_))), "{found}");
    ground.bus.back();
    let found = history.app.wait_for("copies", &positions, BOUND).await.unwrap();
    assert_eq!(found, Freshness::Current);
}

/// How many writes a slow test makes: `TOMBOLO_TEST_WRITES`, 5,000 unless it says otherwise.
fn many() -> usize {
    std::env::var("TOMBOLO_TEST_WRITES").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000)
}

#[tokio::test]
#[ignore = "slow: thousands of writes, each followed by a read"]
async fn every_one_of_many_readers_sees_its_own_write() {
    let ground = Ground::new();
    let (orders, history) = pair(&ground).await;
    assert_eq!(stale_reads(&orders.url, &history.url, many()).await, 0);
}

#[cfg(all(feature = "postgres", feature = "nats"))]
mod on_postgres {
    use axum::extract::{Path, State as Of};
    use axum::routing::post;
    use axum::{Json, Router};
    use reqwest::Client;
    use tombolo::postgres::Postgres;
    use tombolo::{Positions, Problem, Running, Service, Settings, View};
    use tombolo_bus::Bus;

    use super::{Arc, Ground, WRITES, eventually, read, stale_reads, write};
    use crate::engines;

    type App = Of<tombolo::App<Postgres>>;

    async fn place_by_http(Of(app): App, Path(order): Path<String>) -> Result<(), Problem> {
        engines::place(&app, &order, 1).await;
        Ok(())
    }

    async fn copies_of(Of(app): App, Path(order): Path<String>) -> Result<Json<i64>, Problem> {
        app.fresh("rows").await?;
        let count = sqlx::query_scalar("SELECT count(*) FROM rows WHERE id = $1").bind(order);
        Ok(Json(count.fetch_one(app.database().pool()).await?))
    }

    async fn start(service: Service<Postgres>, ground: &Ground) -> Running<Postgres> {
        let routes = Router::new().route("/orders/{order}", post(place_by_http).get(copies_of));
        let service = service.setup(engines::table).routes(routes);
        service.bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap()
    }

    async fn pair(ground: &Ground) -> Option<(Running<Postgres>, Running<Postgres>, Postgres)> {
        let (source, target) = (engines::postgres().await?, engines::postgres().await?);
        let orders = Service::new("orders", source).publishes::<crate::support::Placed>();
        let orders = start(orders, ground).await;
        Some((orders, start(history(target.clone()), ground).await, target))
    }

    fn history(database: Postgres) -> Service<Postgres> {
        Service::new("history", database).view(View::new("rows", 1).on(engines::copy))
    }

    #[tokio::test]
    async fn a_reader_sees_its_own_write() {
        let ground = Ground::new();
        let Some((orders, history, _)) = pair(&ground).await else { return };
        assert_eq!(stale_reads(&orders.url, &history.url, WRITES / 4).await, 0);
    }

    /// The relay numbers, but the response waits for it no longer than its bound.
    #[tokio::test]
    async fn a_write_is_numbered_if_the_relay_is_quick_and_answered_if_not() {
        let ground = Ground::new();
        let Some((orders, history, _)) = pair(&ground).await else { return };
        let client = Client::new();
        let numbered = async |order: &str| {
            let positions: Positions = write(&client, &orders.url, order).await.parse().unwrap();
            positions.each()[0].sequence.is_some()
        };
        eventually("a position with its number", || numbered("o1")).await;
        ground.bus.away();
        let positions = write(&client, &orders.url, "o2").await;
        ground.bus.back();
        let response = read(&client, &history.url, "o2", &positions).await;
        assert_eq!(response.headers()["tombolo-freshness"], "current");
    }

    #[tokio::test]
    async fn a_replica_that_holds_no_partition_can_tell_too() {
        let ground = Ground::new();
        let Some((orders, holder, database)) = pair(&ground).await else { return };
        assert_eq!(stale_reads(&orders.url, &holder.url, 1).await, 0);
        let other = start(history(database), &ground).await;
        let client = Client::new();
        for n in 1..50 {
            let positions = write(&client, &orders.url, &format!("r{n}")).await;
            let response = read(&client, &other.url, &format!("r{n}"), &positions).await;
            let said = response.headers()["tombolo-freshness"].to_str().unwrap().to_owned();
            let count = response.json::<i64>().await.unwrap();
            assert!(count == 1 && said == "current", "{positions}: {count}, {said}");
        }
    }

    #[tokio::test]
    #[ignore = "slow: thousands of writes, each followed by a read"]
    async fn every_one_of_many_readers_sees_its_own_write() {
        let ground = Ground::new();
        let Some((orders, history, _)) = pair(&ground).await else { return };
        assert_eq!(stale_reads(&orders.url, &history.url, super::many()).await, 0);
    }
}
