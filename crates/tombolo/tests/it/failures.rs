//! Handlers that fail: what waits, what flows on, and what is never passed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::Tx;
use tombolo::status::State as Status;
use tombolo::{Event, Handled, Service, State, View, reject};

use crate::support::{Ground, Placed, copies, eventually, place, subscription, until_copied, with_copies};

#[derive(Clone, Default)]
struct Trouble {
    on: Arc<AtomicBool>,
    tries: Arc<AtomicU32>,
}

/// Fails for the order "bad" while there is trouble, after it has written.
async fn copy_unless_bad(event: Placed, State(trouble): State<Trouble>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(&event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    if event.order == "bad" && trouble.on.load(Ordering::SeqCst) {
        trouble.tries.fetch_add(1, Ordering::SeqCst);
        return Err(reject("the order is bad"));
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_event_waits_and_the_other_partitions_flow_on() {
    let ground = Ground::new();
    let trouble = Trouble::default();
    trouble.on.store(true, Ordering::SeqCst);
    let orders = ground.orders().await;
    place(&orders.app, "bad", 1).await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .state(trouble.clone())
        .view(View::new("copies", 1).on(copy_unless_bad));
    let history = ground.start(history).await;
    eventually("three tries", || async { trouble.tries.load(Ordering::SeqCst) >= 3 }).await;
    assert!(copies(&history.app).await.is_empty(), "a failed try leaves nothing");
    for n in 0..40 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    // What shares the partition of "bad" waits behind it; everything else is there.
    let behind = (0..40)
        .filter(|n| tombolo_event::partition_of(&format!("o{n}"), 8) == tombolo_event::partition_of("bad", 8))
        .count();
    assert_eq!(until_copied(&history.app, 40 - behind).await.len(), 40 - behind);
    let status = subscription(&history.app).unwrap();
    let waiting = status.partitions.iter().find(|partition| partition.attempts > 0).unwrap();
    assert!(waiting.error.as_ref().unwrap().contains("the order is bad"), "{waiting:?}");
    assert!(status.state >= Status::Waiting);
    trouble.on.store(false, Ordering::SeqCst);
    let all = until_copied(&history.app, 41).await;
    assert_eq!(all.iter().filter(|(order, _)| order == "bad").count(), 1);
    eventually("nothing behind", || async { subscription(&history.app).unwrap().state == Status::Live })
        .await;
}

async fn panic_once(event: Placed, State(trouble): State<Trouble>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    assert!(trouble.tries.fetch_add(1, Ordering::SeqCst) > 0, "the first try panics");
    Ok(())
}

#[tokio::test]
async fn a_panic_counts_as_a_failed_try() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .state(Trouble::default())
        .view(View::new("copies", 1).on(panic_once));
    let history = ground.start(history).await;
    place(&orders.app, "o1", 1).await;
    assert_eq!(until_copied(&history.app, 1).await.len(), 1);
}

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
    let error = || {
        subscription(&history.app)
            .and_then(|status| status.partitions.into_iter().find_map(|partition| partition.error))
    };
    eventually("a refusal", || async { error().is_some_and(|error| error.contains("orders.placed.v2")) })
        .await;
    assert!(copies(&history.app).await.is_empty(), "what is behind it waits");
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
    let error = || {
        subscription(&orders.app)
            .and_then(|status| status.partitions.into_iter().find_map(|partition| partition.error))
    };
    eventually("a refusal", || async {
        error().is_some_and(|error| error.contains("views only keep their tables"))
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
