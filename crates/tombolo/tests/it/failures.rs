//! Handlers that fail: what waits, what flows on, and what is never passed over.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::Tx;
use tombolo::{Event, Handled, Service, View};
use tombolo_db::{ParkedFilter, Parking, Tries};

use crate::support::{Ground, Placed, copies, eventually, place, subscription};

/// A later version of the same type, from a producer that was deployed first.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PlacedLater {
    order: String,
}

impl Event for PlacedLater {
    const TYPE: &'static str = "orders.placed.v2";
    fn key(&self) -> String {
        self.order.clone()
    }
}

#[tokio::test]
async fn an_unknown_version_of_a_handled_type_is_not_passed_over() {
    let ground = Ground::new();
    let orders = ground.start(ground.orders_service().publishes::<PlacedLater>()).await;
    let history = ground.history().await;
    let mut tx = orders.app.begin().await.unwrap();
    tx.publish(&PlacedLater { order: "same".into() }).unwrap();
    tx.commit().await.unwrap();
    place(&orders.app, "same", 1).await;
    eventually("both parked", || async {
        subscription(&history.app).is_some_and(|status| (status.parked_keys, status.parked_events) == (1, 2))
    })
    .await;
    let parked = history.app.database().parked(&ParkedFilter::default(), 10).await.unwrap();
    assert!(parked[0].tries.error.as_ref().unwrap().contains("orders.placed.v2"), "{parked:?}");
    assert_eq!(parked[1].tries, Tries::default(), "it waits behind the other");
    assert!(copies(&history.app).await.is_empty());
}

async fn publish_from_a_view(event: Placed, tx: &mut Tx) -> Handled {
    tx.publish(&event).ok();
    Ok(())
}

#[tokio::test]
async fn a_view_that_publishes_is_refused_even_if_it_swallows_the_error() {
    let ground = Ground::new();
    let history = Service::new("orders", ground.database("orders"))
        .publishes::<Placed>()
        .view(View::new("echo", 1).on(publish_from_a_view));
    let orders = ground.start(history).await;
    let mut tx = orders.app.begin().await.unwrap();
    tx.publish(&Placed { order: "o1".into(), cents: 1 }).unwrap();
    tx.commit().await.unwrap();
    eventually("a refusal", || async {
        let parked = orders.app.database().parked(&ParkedFilter::default(), 10).await.unwrap();
        let error = parked.into_iter().find_map(|event| event.tries.error);
        error.is_some_and(|error| error.contains("views only keep their tables"))
    })
    .await;
}

#[tokio::test]
async fn an_undeclared_type_poisons_the_transaction() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let mut tx = orders.app.begin().await.unwrap();
    sqlx::query("INSERT INTO orders (id, cents) VALUES ('o1', 1)").execute(&mut *tx).await.unwrap();
    let refused = tx.publish(&PlacedLater { order: "o1".into() }).unwrap_err();
    assert!(refused.to_string().contains("orders.placed.v2, which it did not declare"), "{refused}");
    assert_eq!(tx.commit().await.unwrap_err().kind(), tombolo_db::Kind::Poisoned);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(orders.app.database().pool())
        .await
        .unwrap();
    assert_eq!(rows, 0);
}
