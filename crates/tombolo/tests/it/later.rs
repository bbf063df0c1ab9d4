//! What is published for later: it comes when its time has come by the service's clock, once, and in that order.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::settings::Lease;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Clock, Event, EventId, Handled, Reactor, Received, Running, Service, Settings, View};
use tombolo_bus::Bus;
use tombolo_db::{ParkedFilter, Parking};

use crate::support::{App, Ground, Placed, copies, eventually, place, until_copied, with_copies};

const DAY: Duration = Duration::from_secs(86_400);

/// `orders`, whose clock the test moves, with a lease so short that its status is soon that of now.
async fn orders(ground: &Ground, clock: &Clock) -> Running<Sqlite> {
    let service = ground.orders_service().clock(clock.clone()).bus(Arc::clone(&ground.bus) as Arc<dyn Bus>);
    let settings = Settings { lease: Lease(Duration::from_secs(1)), ..Settings::default() };
    service.start(settings).await.unwrap()
}

/// So many days from now on by `clock`.
fn in_days(clock: &Clock, days: i64) -> Timestamp {
    clock.now() + SignedDuration::from_hours(24 * days)
}

async fn place_at(app: &App, order: &str, cents: i64, due: Timestamp) -> EventId {
    let mut tx = app.begin().await.unwrap();
    let id = tx.publish_at(&Placed { order: order.into(), cents }, due).unwrap();
    assert!(tx.commit().await.unwrap().positions.is_empty());
    id
}

async fn until_waiting(app: &App, rows: u64) -> tombolo::status::RelayStatus {
    let status = || app.status().relay.unwrap_or_default();
    eventually(&format!("{rows} events that are kept for later"), || async {
        status().leading && status().later_rows == rows
    })
    .await;
    status()
}

fn cents(copies: &[(String, i64)]) -> Vec<i64> {
    copies.iter().map(|(_, cents)| *cents).collect()
}

#[tokio::test]
async fn an_event_for_later_comes_when_its_time_has_come() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let (orders, history) = (orders(&ground, &clock).await, ground.history().await);
    let due = in_days(&clock, 30);
    place_at(&orders.app, "later", 1, due).await;
    place(&orders.app, "now", 2).await;
    assert_eq!(cents(&until_copied(&history.app, 1).await), [2]);
    let status = until_waiting(&orders.app, 1).await;
    assert!(status.next_due.unwrap().duration_since(due).as_micros() <= 1, "{status:?}");
    let metrics = orders.app.metrics().expose();
    assert!(metrics.contains("tombolo_later_rows{service=\"orders\"} 1"), "{metrics}");
    clock.advance(29 * DAY);
    place(&orders.app, "still now", 3).await;
    assert_eq!(cents(&until_copied(&history.app, 2).await), [2, 3]);
    clock.advance(DAY);
    assert_eq!(cents(&until_copied(&history.app, 3).await), [2, 3, 1]);
    assert_eq!(until_waiting(&orders.app, 0).await.next_due, None);
}

#[tokio::test]
async fn events_for_later_come_in_the_order_in_which_they_are_due() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let (orders, history) = (orders(&ground, &clock).await, ground.history().await);
    for day in [5, 2, 4, 1, 3] {
        place_at(&orders.app, "one key", day, in_days(&clock, day)).await;
    }
    place(&orders.app, "one key", 0).await;
    until_copied(&history.app, 1).await;
    clock.advance(2 * DAY);
    until_copied(&history.app, 3).await;
    place(&orders.app, "one key", 100).await;
    until_copied(&history.app, 4).await;
    clock.advance(10 * DAY);
    assert_eq!(cents(&until_copied(&history.app, 6).await), [0, 1, 2, 100, 3, 4, 5]);
}

#[tokio::test]
async fn what_was_due_long_ago_comes_at_once() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let (orders, history) = (orders(&ground, &clock).await, ground.history().await);
    place_at(&orders.app, "o1", 1, in_days(&clock, -400)).await;
    place_at(&orders.app, "o1", 2, Timestamp::MIN).await;
    place_at(&orders.app, "never", 3, Timestamp::MAX).await;
    let mut come = cents(&until_copied(&history.app, 2).await);
    come.sort_unstable();
    assert_eq!(come, [1, 2]);
    until_waiting(&orders.app, 1).await;
}

#[tokio::test]
async fn nothing_for_later_is_lost_or_doubled_by_restarts_and_crashes() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let history = ground.history().await;
    let mut placed = 0;
    for round in 0..8 {
        let orders = orders(&ground, &clock).await;
        for _ in 0..10 {
            place_at(&orders.app, &format!("k{}", placed % 3), placed, in_days(&clock, 1)).await;
            placed += 1;
        }
        clock.advance(DAY);
        if round % 2 == 0 {
            // Dropped at any moment of the move: tasks end where they are, as in a crash.
            drop(orders);
        } else {
            orders.shutdown().await;
        }
    }
    let orders = orders(&ground, &clock).await;
    clock.advance(DAY);
    let copies = until_copied(&history.app, placed as usize).await;
    assert_eq!(copies.len(), placed as usize);
    for key in ["k0", "k1", "k2"] {
        let of_key: Vec<_> = copies.iter().filter(|(order, _)| order == key).cloned().collect();
        assert!(cents(&of_key).is_sorted(), "{of_key:?}");
    }
    until_waiting(&orders.app, 0).await;
}

#[tokio::test]
async fn many_that_are_due_at_once_come_in_bounded_rounds() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let (orders, history) = (orders(&ground, &clock).await, ground.history().await);
    let due = in_days(&clock, 1);
    let mut tx = orders.app.begin().await.unwrap();
    for cents in 0..3_500 {
        tx.publish_at(&Placed { order: format!("k{}", cents % 5), cents }, due).unwrap();
    }
    tx.commit().await.unwrap();
    clock.advance(DAY);
    let copies = until_copied(&history.app, 3_500).await;
    assert_eq!(copies.len(), 3_500);
    let metrics = orders.app.metrics().expose();
    let figure = |name: &str| {
        let of = |line: &&str| line.starts_with("tombolo_relay_round_rows_") && line.contains(name);
        let line = metrics.lines().find(of);
        line.and_then(|line| line.split_whitespace().next_back()?.parse::<f64>().ok()).unwrap()
    };
    assert_eq!(figure("_sum"), 3_500.0, "{metrics}");
    assert_eq!(figure("le=\"1024.0\""), figure("_count"), "a round was larger: {metrics}");
    for key in 0..5 {
        let of_key: Vec<_> =
            copies.iter().filter(|(order, _)| *order == format!("k{key}")).cloned().collect();
        assert!(cents(&of_key).is_sorted());
    }
}

#[tokio::test]
async fn the_leader_learns_what_another_replica_keeps_for_later() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let leader = orders(&ground, &clock).await;
    until_waiting(&leader.app, 0).await;
    let (other, history) = (orders(&ground, &clock).await, ground.history().await);
    place_at(&other.app, "first", 1, in_days(&clock, 1)).await;
    clock.advance(DAY);
    until_copied(&history.app, 1).await;
    place_at(&other.app, "second", 2, in_days(&clock, 1)).await;
    leader.shutdown().await;
    eventually("the other one leads", || async {
        other.app.status().relay.is_some_and(|relay| relay.leading)
    })
    .await;
    clock.advance(DAY);
    assert_eq!(cents(&until_copied(&history.app, 2).await), [1, 2]);
}

#[tokio::test]
async fn a_withdrawn_event_does_not_come() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let (orders, history) = (orders(&ground, &clock).await, ground.history().await);
    let due = in_days(&clock, 1);
    let first = place_at(&orders.app, "o1", 1, due).await;
    let second = place_at(&orders.app, "o2", 2, due).await;
    let mut tx = orders.app.begin().await.unwrap();
    assert!(tx.withdraw(first).await.unwrap());
    tx.commit().await.unwrap();
    clock.advance(DAY);
    assert_eq!(cents(&until_copied(&history.app, 1).await), [2]);
    let mut tx = orders.app.begin().await.unwrap();
    assert!(!tx.withdraw(second).await.unwrap(), "it came already");
    tx.commit().await.unwrap();
    assert_eq!(copies(&history.app).await.len(), 1);
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Reminded {
    order: String,
}

impl Event for Reminded {
    const TYPE: &'static str = "mail.reminded.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn remind(placed: Received<Placed>, tx: &mut Tx) -> Handled {
    tx.publish_at(&Reminded { order: placed.event.order }, placed.time + SignedDuration::from_hours(24))?;
    Ok(())
}

async fn copy_reminded(event: Received<Reminded>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(event.event.order)
        .bind(event.time.as_millisecond())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_reactor_publishes_for_later_and_a_view_may_not() {
    let (ground, clock) = (Ground::new(), Clock::default());
    let orders = ground.orders().await;
    let mail = Service::new("mail", ground.database("mail"))
        .clock(clock.clone())
        .publishes::<Reminded>()
        .react(Reactor::from_start("remind").on(remind));
    let mail = ground.start(mail).await;
    let reader = with_copies(Service::new("reader", ground.database("reader")))
        .publishes::<Reminded>()
        .view(View::new("reminded", 1).on(copy_reminded))
        .view(View::new("reminding", 1).on(remind));
    let reader = ground.start(reader).await;
    let before = Timestamp::now();
    place(&orders.app, "o1", 5).await;
    until_waiting(&mail.app, 1).await;
    clock.advance(DAY);
    let copies = until_copied(&reader.app, 1).await;
    let due = before + SignedDuration::from_hours(24);
    assert!(copies[0].1 >= due.as_millisecond(), "its time is when it was due");
    eventually("the event is parked for the view, with the reason", || async {
        let parked = reader.app.database().parked(&ParkedFilter::default(), 10).await.unwrap();
        let errors = parked.iter().filter_map(|event| event.tries.error.as_deref());
        errors.into_iter().any(|error| error.contains("views only keep their tables"))
    })
    .await;
}
