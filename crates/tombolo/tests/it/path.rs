//! The path when the weather is fine: one commit here, one row there, in order.

use axum::Router;
use axum::extract::Path;
use axum::routing::post;
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Handled, Problem, Reactor, Received, Service, State, View};
use tombolo_bus::{Bus, Read};
use tombolo_event::{Cursor, Envelope, ServiceName};

use crate::support::{Ground, Placed, copies, copy, eventually, place, until_copied, with_copies};

#[tokio::test]
async fn an_order_reaches_a_view_in_another_database() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    place(&orders.app, "o1", 1250).await;
    assert_eq!(until_copied(&history.app, 1).await, [("o1".to_owned(), 1250)]);
    orders.shutdown().await;
    history.shutdown().await;
}

#[tokio::test]
async fn events_of_one_key_are_applied_in_order_and_once() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    for n in 0..200 {
        place(&orders.app, ["a", "b", "c"][n % 3], n as i64).await;
    }
    let copies = until_copied(&history.app, 200).await;
    assert_eq!(copies.len(), 200);
    for key in ["a", "b", "c"] {
        let applied: Vec<i64> =
            copies.iter().filter(|(order, _)| order == key).map(|(_, cents)| *cents).collect();
        assert!(applied.is_sorted(), "{key}: {applied:?}");
    }
}

#[tokio::test]
async fn a_service_that_was_down_or_is_new_catches_up() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    for n in 0..50 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    let history = ground.history().await;
    until_copied(&history.app, 50).await;
    history.shutdown().await;
    for n in 50..80 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    let history = ground.history().await;
    let mut seen: Vec<i64> =
        until_copied(&history.app, 80).await.into_iter().map(|(_, cents)| cents).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..80).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_transaction_that_is_dropped_leaves_neither_state_nor_event() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    {
        let mut tx = orders.app.begin().await.unwrap();
        sqlx::query("INSERT INTO orders (id, cents) VALUES ('lost', 1)").execute(&mut *tx).await.unwrap();
        tx.publish(&Placed { order: "lost".into(), cents: 1 }).unwrap();
    }
    place(&orders.app, "kept", 2).await;
    assert_eq!(until_copied(&history.app, 1).await, [("kept".to_owned(), 2)]);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(orders.app.database().pool())
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn the_outbox_is_empty_once_all_is_published() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    for n in 0..20 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    until_copied(&history.app, 20).await;
    eventually("an empty outbox", || async {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM tombolo_outbox")
            .fetch_one(orders.app.database().pool())
            .await
            .unwrap();
        rows == 0
    })
    .await;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Confirmed {
    order: String,
    by: String,
}

impl Event for Confirmed {
    const TYPE: &'static str = "mail.confirmed.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn confirm(placed: Received<Placed>, State(by): State<String>, tx: &mut Tx) -> Handled {
    tx.publish(&Confirmed { order: placed.event.order, by })?;
    Ok(())
}

async fn copy_confirmed(event: Received<Confirmed>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(format!("{} by {} from {}", event.event.order, event.event.by, event.source))
        .bind(event.sequence as i64)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_reactor_publishes_what_follows() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let mail = Service::new("mail", ground.database("mail"))
        .state("robot".to_owned())
        .publishes::<Confirmed>()
        .react(Reactor::from_start("confirm").on(confirm));
    let mail = ground.start(mail).await;
    let reader = with_copies(Service::new("reader", ground.database("reader")))
        .view(View::new("confirmed", 1).on(copy_confirmed));
    let reader = ground.start(reader).await;
    place(&orders.app, "o1", 5).await;
    assert_eq!(until_copied(&reader.app, 1).await, [("o1 by robot from mail".to_owned(), 1)]);
    drop(mail);
}

#[tokio::test]
async fn a_reactor_from_now_does_not_see_what_was_before() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    place(&orders.app, "before", 1).await;
    until_copied(&history.app, 1).await;
    let late =
        with_copies(Service::new("late", ground.database("late"))).react(Reactor::from_now("late").on(copy));
    let late = ground.start(late).await;
    eventually("a cursor for each partition", || async {
        late.app.status().subscriptions.first().is_some_and(|late| late.partitions.len() == 8)
    })
    .await;
    place(&orders.app, "after", 2).await;
    assert_eq!(until_copied(&late.app, 1).await, [("after".to_owned(), 2)]);
}

/// With the transactions of a hundred writers at once, nothing is lost, doubled or reordered.
#[tokio::test]
async fn many_writers_at_once_lose_nothing() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let app: tombolo::App<Sqlite> = orders.app.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    place(&app, &format!("w{writer}"), n).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let all = until_copied(&history.app, 500).await;
    assert_eq!(all.len(), 500);
    for writer in 0..20 {
        let applied: Vec<i64> =
            all.iter().filter(|(order, _)| *order == format!("w{writer}")).map(|(_, cents)| *cents).collect();
        assert_eq!(applied, (0..25).collect::<Vec<_>>());
    }
    assert_eq!(copies(&history.app).await.len(), 500);
}

async fn place_by_http(
    axum::extract::State(app): AppState,
    Path(order): Path<String>,
) -> Result<(), Problem> {
    let mut tx = app.begin().await?;
    tx.publish(&Placed { order, cents: 1 })?;
    tx.commit().await?;
    Ok(())
}

type AppState = axum::extract::State<tombolo::App<Sqlite>>;

/// The first event of a topic, once it is there.
async fn first_event(ground: &Ground, topic: &str) -> Envelope {
    let name = ServiceName::new(topic).unwrap();
    eventually("a topic with an event", || async {
        ground.bus.tails(&name).await.is_ok_and(|tails| tails.iter().any(|tail| tail.sequence > 0))
    })
    .await;
    let tails = ground.bus.tails(&name).await.unwrap();
    let partition = tails.iter().find(|tail| tail.sequence > 0).unwrap().partition;
    let start = Cursor::start(ground.bus.topic(&name).await.unwrap().incarnation);
    let mut batches = ground.bus.read(Read::to_tail(&name, partition, start)).await.unwrap();
    let batch = batches.next().await.unwrap().unwrap();
    Envelope::decode(batch.records[0].bytes.clone()).unwrap()
}

#[tokio::test]
async fn a_trace_is_followed_from_the_request_through_every_event() {
    let ground = Ground::new();
    let routes = Router::new().route("/orders/{order}", post(place_by_http));
    let orders = ground.start(ground.orders_service().routes(routes)).await;
    let mail = Service::new("mail", ground.database("mail"))
        .state("robot".to_owned())
        .publishes::<Confirmed>()
        .react(Reactor::from_start("confirm").on(confirm));
    let mail = ground.start(mail).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = reqwest::Client::new().post(format!("{}/orders/o1", orders.url));
    let header = format!("00-{trace}-b7ad6b7169203331-01");
    request.header("traceparent", header).send().await.unwrap().error_for_status().unwrap();
    let placed = first_event(&ground, "orders").await;
    let confirmed = first_event(&ground, "mail").await;
    assert_eq!(placed.trace.unwrap().trace_id(), trace);
    assert_eq!(confirmed.trace.unwrap().trace_id(), trace);
    assert_eq!(confirmed.causation, Some(placed.id));
    assert_eq!(confirmed.correlation, Some(placed.id.to_string()));
    drop(mail);
}
