//! What operators ask: paused, resumed, redriven, discarded, moved; each carried out by the holder, with its outcome.

use std::time::Duration;

use http::StatusCode;
use reqwest::Client;
use serde_json::{Value, json};
use tombolo::sqlite::Sqlite;
use tombolo::status::State as Status;
use tombolo::{Clock, Running, Settings};
use tombolo_db::Requests;
use tombolo_event::operator::{Action, Ask, Goal, Outcome, PartitionOf, Plan, Preview, Request, Which};
use tombolo_event::{ServiceName, partition_of};

use crate::parking::{LATER, Trouble, applied, history, history_service, until_parked};
use crate::support::{Ground, copies, eventually, place, subscription, until_copied};

const COPIES: &str = "copies-v1";

/// Asks, and waits for what becomes of each request.
async fn ask(running: &Running<Sqlite>, action: Action) -> Vec<Outcome> {
    let ask = Ask { subscription: COPIES.into(), asked_by: "ann@host".into(), action };
    let url = format!("{}/tombolo/requests", running.url);
    let answer = Client::new().post(&url).json(&ask).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED, "{}", answer.text().await.unwrap());
    let asked: Value = answer.json().await.unwrap();
    let ids: Vec<String> = serde_json::from_value(asked["requests"].clone()).unwrap();
    let mut outcomes = Vec::new();
    for id in ids {
        eventually("an outcome", || async { request(&url, &id).await.outcome.is_some() }).await;
        outcomes.push(request(&url, &id).await.outcome.unwrap());
    }
    outcomes
}

async fn request(url: &str, id: &str) -> Request {
    Client::new().get(format!("{url}/{id}")).send().await.unwrap().json().await.unwrap()
}

async fn refused(running: &Running<Sqlite>, path: &str, body: &Value) -> (StatusCode, String) {
    let answer = Client::new().post(format!("{}{path}", running.url)).json(body).send().await.unwrap();
    let status = answer.status();
    (status, answer.json::<Value>().await.unwrap()["detail"].as_str().unwrap().to_owned())
}

async fn preview(running: &Running<Sqlite>, to: Goal) -> Preview {
    let plan = Plan { subscription: COPIES.into(), to };
    let url = format!("{}/tombolo/requests/preview", running.url);
    Client::new().post(url).json(&plan).send().await.unwrap().json().await.unwrap()
}

fn of(key: &str) -> PartitionOf {
    PartitionOf { topic: ServiceName::new("orders").unwrap(), partition: partition_of(key, 8) }
}

#[tokio::test]
async fn a_paused_subscription_handles_nothing_until_it_is_resumed_not_even_after_a_restart() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    place(&orders.app, "o1", 1).await;
    until_copied(&history.app, 1).await;
    let outcomes = ask(&history, Action::Pause).await;
    assert_eq!((outcomes.len(), outcomes.iter().all(|outcome| outcome.done)), (8, true));
    let is_paused =
        || async { subscription(&history.app).is_some_and(|status| status.state == Status::Paused) };
    eventually("paused", is_paused).await;
    history.shutdown().await;
    let history = crate::parking::history(&ground, &trouble, &clock).await;
    for n in 2..20 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    eventually("paused again", || async {
        let status = subscription(&history.app);
        status.is_some_and(|status| status.state == Status::Paused && status.partitions.len() == 8)
    })
    .await;
    assert_eq!(copies(&history.app).await.len(), 1);
    let outcomes = ask(&history, Action::Resume).await;
    assert!(outcomes[0].text.contains("ann@host had paused it"), "{outcomes:?}");
    assert_eq!(until_copied(&history.app, 19).await.len(), 19);
}

#[tokio::test]
async fn a_redrive_that_is_told_tries_now_and_says_what_became_of_it() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad", "worse"]).rejecting(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..3 {
        place(&orders.app, "bad", n).await;
        place(&orders.app, "worse", n).await;
    }
    until_parked(&history.app, 6).await;
    let which = |key: &str| Action::Redrive(Which { key: Some(key.into()), event: None });
    let failed = ask(&history, which("bad")).await;
    assert!(!failed[0].done && failed[0].text.contains("1 key failed again"), "{failed:?}");
    trouble.mend("bad");
    let done = ask(&history, which("bad")).await;
    assert!(done[0].done && done[0].text.contains("3 events of orders/"), "{done:?}");
    assert_eq!(applied(&history.app, "bad").await, [0, 1, 2]);
    until_parked(&history.app, 3).await;
    trouble.mend("worse");
    assert!(ask(&history, Action::Redrive(Which::default())).await.iter().all(|outcome| outcome.done));
    until_parked(&history.app, 0).await;
}

#[tokio::test]
async fn what_is_discarded_is_never_handled_and_what_was_behind_it_is() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]).rejecting(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..4 {
        place(&orders.app, "bad", n).await;
    }
    let parked = until_parked(&history.app, 4).await;
    trouble.is_over();
    let first = Action::Discard(Which { key: None, event: Some(parked[0].id) });
    let outcomes = ask(&history, first).await;
    let named = format!("1 event of orders/{} discarded: {}", parked[0].partition, parked[0].sequence);
    assert!(outcomes[0].text.contains(&named), "{outcomes:?}");
    until_parked(&history.app, 0).await;
    assert_eq!(applied(&history.app, "bad").await, [1, 2, 3]);
    let all = history.app.database().requests(10).await.unwrap();
    assert_eq!((all.len(), all[0].asked_by.as_str()), (1, "ann@host"), "each request is on record");
}

#[tokio::test]
async fn a_view_is_reset_only_by_force_and_handles_exactly_what_the_preview_said() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..30 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    until_copied(&history.app, 30).await;
    let all = preview(&history, Goal::Start).await;
    assert!(all.needs_force && all.warning.unwrap().contains("views rebuild"));
    assert_eq!(all.moves.iter().map(|to| to.events).sum::<u64>(), 30);
    let some = preview(&history, Goal::Sequence { of: of("o7"), sequence: 2 }).await;
    let again = some.moves[0].events;
    let to: Vec<_> = some.moves.into_iter().map(|to| to.to).collect();
    let refused = ask(&history, Action::Reset { to: to.clone(), force: false }).await;
    assert!(!refused[0].done && refused[0].text.contains("--force"), "{refused:?}");
    assert_eq!(copies(&history.app).await.len(), 30);
    let done = ask(&history, Action::Reset { to, force: true }).await;
    assert!(done[0].done, "{done:?}");
    let copies = until_copied(&history.app, 30 + again as usize).await;
    place(&orders.app, "o7", 99).await;
    until_copied(&history.app, copies.len() + 1).await;
}

#[tokio::test]
async fn a_reset_to_a_time_goes_back_to_the_first_event_since() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..5 {
        place(&orders.app, "same", n).await;
    }
    until_copied(&history.app, 5).await;
    let time = jiff::Timestamp::now();
    for n in 5..8 {
        place(&orders.app, "same", n).await;
    }
    until_copied(&history.app, 8).await;
    let found = preview(&history, Goal::Time { time }).await;
    assert_eq!((found.moves.len(), found.moves[0].events, found.moves[0].to.sequence), (1, 3, 5));
    assert!(found.moves[0].since.unwrap() >= time);
    let to = found.moves.into_iter().map(|to| to.to).collect();
    ask(&history, Action::Reset { to, force: true }).await;
    until_copied(&history.app, 11).await;
    assert_eq!(applied(&history.app, "same").await, [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]);
}

#[tokio::test]
async fn a_reset_takes_out_what_is_parked_behind_it_and_handles_it_once() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..5 {
        place(&orders.app, "bad", n).await;
    }
    until_parked(&history.app, 5).await;
    trouble.is_over();
    let found = preview(&history, Goal::Start).await;
    let to = found.moves.into_iter().map(|to| to.to).collect();
    ask(&history, Action::Reset { to, force: true }).await;
    until_copied(&history.app, 5).await;
    until_parked(&history.app, 0).await;
    clock.advance(LATER);
    place(&orders.app, "bad", 5).await;
    until_copied(&history.app, 6).await;
    assert_eq!(applied(&history.app, "bad").await, (0..6).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stopped_partition_is_stepped_over_by_name() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    place(&orders.app, "o1", 1).await;
    until_copied(&history.app, 1).await;
    orders.shutdown().await;
    history.shutdown().await;
    ground.bus.replace();
    // Another service of the same name and a database of its own, as after a disaster.
    let orders = ground.start(ground.orders_service_in("orders-anew")).await;
    let history = crate::parking::history(&ground, &trouble, &clock).await;
    for n in 2..4 {
        place(&orders.app, "o1", n).await;
    }
    eventually("it stops", || async {
        subscription(&history.app).is_some_and(|status| status.state == Status::Stopped)
    })
    .await;
    let found = preview(&history, Goal::Over { of: of("o1"), sequence: Some(1) }).await;
    assert_eq!(found.moves[0].over.len(), 1, "{found:?}");
    let to = found.moves.into_iter().next().unwrap().to;
    let outcomes = ask(&history, Action::Skip { to }).await;
    assert!(outcomes[0].done && outcomes[0].text.contains("leaves the log"), "{outcomes:?}");
    until_copied(&history.app, 2).await;
    assert_eq!(applied(&history.app, "o1").await, [1, 3]);
}

#[tokio::test]
async fn a_skip_steps_over_the_next_event_and_names_it() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    place(&orders.app, "same", 1).await;
    until_copied(&history.app, 1).await;
    ask(&history, Action::Pause).await;
    for n in 2..5 {
        place(&orders.app, "same", n).await;
    }
    let one = Goal::Over { of: of("same"), sequence: None };
    eventually("it is on the bus", || async {
        let plan = json!(Plan { subscription: COPIES.into(), to: one.clone() });
        let url = format!("{}/tombolo/requests/preview", history.url);
        Client::new().post(url).json(&plan).send().await.unwrap().status() == StatusCode::OK
    })
    .await;
    let found = preview(&history, one).await;
    assert!(found.moves[0].over[0].starts_with("2 (orders.placed.v1 "), "{found:?}");
    let to = found.moves[0].to.clone();
    let outcomes = ask(&history, Action::Skip { to }).await;
    assert!(outcomes[0].text.contains("steps over 1 event: 2 to 2"), "{outcomes:?}");
    ask(&history, Action::Resume).await;
    until_copied(&history.app, 3).await;
    assert_eq!(applied(&history.app, "same").await, [1, 3, 4]);
}

#[tokio::test]
async fn a_request_that_cannot_be_meant_is_refused_with_what_to_do() {
    let ground = Ground::new();
    let (orders, history) =
        (ground.orders().await, history(&ground, &Trouble::default(), &Clock::stopped()).await);
    place(&orders.app, "o1", 1).await;
    until_copied(&history.app, 1).await;
    let pause =
        |subscription: &str| json!({ "subscription": subscription, "asked_by": "ann", "action": "pause" });
    let (status, detail) = refused(&history, "/tombolo/requests", &pause("other")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(detail.contains("it has: copies-v1"), "{detail}");
    let nothing = json!({ "subscription": COPIES, "asked_by": "ann", "action": "redrive", "key": "none" });
    let (status, detail) = refused(&history, "/tombolo/requests", &nothing).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(detail.contains("tombolo parked list"), "{detail}");
    let ahead = json!({ "subscription": COPIES, "to": "over", "topic": "orders", "partition": of("o1").partition, "sequence": 9 });
    let (_, detail) = refused(&history, "/tombolo/requests/preview", &ahead).await;
    assert!(detail.contains("ends at 1 on the bus"), "{detail}");
}

#[tokio::test]
async fn a_door_with_a_token_is_closed_without_it() {
    let ground = Ground::new();
    let service = history_service(&ground, &Trouble::default(), &Clock::stopped());
    let settings =
        Settings { operator_token: Some(tombolo::settings::Secret("secret".into())), ..Settings::default() };
    let bus = std::sync::Arc::clone(&ground.bus) as std::sync::Arc<dyn tombolo_bus::Bus>;
    let history = service.bus(bus).start(settings).await.unwrap();
    for path in ["/tombolo/requests", "/tombolo/parked"] {
        let get = Client::new().get(format!("{}{path}", history.url)).timeout(Duration::from_secs(5));
        assert_eq!(get.try_clone().unwrap().send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert_eq!(get.bearer_auth("secret").send().await.unwrap().status(), StatusCode::OK);
    }
    let unknown = Client::new().get(format!("{}/nowhere", history.url)).send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND, "the door is in front of its own routes alone");
}
