//! Bad weather in one process: crashes, a bus that is away or another one, lost acknowledgements, two replicas.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tombolo::settings::Lease;
use tombolo::status::State;
use tombolo::{Event, Settings};
use tombolo_bus::Bus;
use tombolo_db::Publisher;

use crate::support::{Ground, Placed, copies, eventually, place, subscription, until_copied};

#[tokio::test]
async fn a_service_starts_and_writes_while_the_bus_is_away() {
    let ground = Ground::new();
    ground.bus.away();
    let (orders, history) = (ground.orders().await, ground.history().await);
    for n in 0..10 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    ground.bus.back();
    assert_eq!(until_copied(&history.app, 10).await.len(), 10);
}

#[tokio::test]
async fn a_lost_acknowledgement_is_repeated_without_a_double() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    for n in 0..30 {
        if n % 5 == 0 {
            ground.bus.lose_acknowledgements(1);
        }
        place(&orders.app, &format!("o{n}"), n).await;
    }
    until_copied(&history.app, 30).await;
    eventually("every acknowledgement lost", || async { ground.bus.acknowledgements_to_lose() == 0 }).await;
    place(&orders.app, "last", 31).await;
    eventually("the last", || async { copies(&history.app).await.iter().any(|(order, _)| order == "last") })
        .await;
    assert_eq!(copies(&history.app).await.len(), 31);
}

/// As when the signal of another process is lost, at a moment when nothing has happened for a while.
#[tokio::test]
async fn a_row_that_nobody_was_woken_for_is_found_by_the_poll() {
    let ground = Ground::new();
    let settings = Settings { lease: Lease(Duration::from_millis(900)), ..Settings::default() };
    let orders = ground.orders_service().bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(settings);
    let (orders, history) = (orders.await.unwrap(), ground.history().await);
    place(&orders.app, "o1", 1).await;
    until_copied(&history.app, 1).await;
    let renewals = Mutex::new(BTreeSet::new());
    eventually("a quiet relay that has renewed its lease a few times", async || {
        let lease = sqlx::query_scalar("SELECT until_ms FROM tombolo_leader");
        let until: i64 = lease.fetch_one(orders.app.database().pool()).await.unwrap();
        let mut renewals = renewals.lock().unwrap();
        renewals.insert(until);
        renewals.len() > 5
    })
    .await;
    let silent = Publisher {
        service: orders.app.service().clone(),
        declared: Arc::new([Placed::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| ()),
    };
    let mut tx = orders.app.database().begin(&silent).await.unwrap();
    tx.publish(&Placed { order: "o2".into(), cents: 2 }).unwrap();
    tx.commit().await.unwrap();
    assert_eq!(until_copied(&history.app, 2).await.len(), 2);
}

#[tokio::test]
async fn crashed_services_go_on_where_they_were() {
    let ground = Ground::new();
    let mut placed = 0;
    for _ in 0..8 {
        let (orders, history) = (ground.orders().await, ground.history().await);
        for _ in 0..7 {
            place(&orders.app, &format!("o{placed}"), placed).await;
            placed += 1;
        }
        // Dropped at any moment of the path: tasks end where they are, as in a crash.
        drop((orders, history));
    }
    let (orders, history) = (ground.orders().await, ground.history().await);
    let mut seen: Vec<i64> =
        until_copied(&history.app, placed as usize).await.into_iter().map(|(_, cents)| cents).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..placed).collect::<Vec<_>>());
    drop(orders);
}

#[tokio::test]
async fn another_log_under_the_same_name_stops_both_ends_by_name() {
    let ground = Ground::new();
    let (orders, history) = (ground.orders().await, ground.history().await);
    place(&orders.app, "o1", 1).await;
    until_copied(&history.app, 1).await;
    orders.shutdown().await;
    history.shutdown().await;
    ground.bus.replace();
    let orders = ground.orders().await;
    place(&orders.app, "o2", 2).await;
    eventually("the relay stops", || async {
        orders.app.status().relay.is_some_and(|relay| relay.state.starts_with("stopped"))
    })
    .await;
    let history = ground.history().await;
    eventually("the subscription stops", || async {
        subscription(&history.app).is_some_and(|status| status.state == State::Stopped)
    })
    .await;
    assert_eq!(copies(&history.app).await.len(), 1, "nothing is passed over");
}

#[tokio::test]
async fn two_replicas_share_one_outbox_and_one_cursor() {
    let ground = Ground::new();
    let (first, second) = (ground.orders().await, ground.orders().await);
    let (history, other) = (ground.history().await, ground.history().await);
    for n in 0..40 {
        let app = if n % 2 == 0 { &first.app } else { &second.app };
        place(app, &format!("o{n}"), n).await;
    }
    assert_eq!(until_copied(&history.app, 40).await.len(), 40);
    let leading = [&first, &second]
        .iter()
        .filter(|replica| replica.app.status().relay.is_some_and(|relay| relay.leading))
        .count();
    assert_eq!(leading, 1);
    first.shutdown().await;
    history.shutdown().await;
    for n in 40..60 {
        place(&second.app, &format!("o{n}"), n).await;
    }
    assert_eq!(until_copied(&other.app, 60).await.len(), 60);
}
