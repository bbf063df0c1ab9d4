//! A subscriber that rebuilds itself by asking for all events, while deliveries wait for it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::stage::{Made, SOON, Stage, credential};
use crate::subscriber::{Does, Got, Subscriber, nobody};

/// Plain events with one subscriber, which is waited for as long as a test takes.
fn recovering(url: &str, recovers: &str) -> Value {
    json!({"listen": ["127.0.0.1:0"], "topic": "events", "subscribers": [{
        "name": "query", "url": url, "recovers": recovers, "recover_ms": 60_000, "addresses": ["127.0.0.1"],
        "retry": {"first_ms": 5, "max_ms": 20, "attempts": 3},
    }]})
}

async fn snapshot(stage: &Stage, token: Option<&str>) -> Vec<u64> {
    let mut request = stage.client.get(format!("http://{}/events", stage.plain()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let events: Vec<Value> =
        serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap();
    events.iter().map(|event| event["n"].as_u64().unwrap()).collect()
}

/// Whether the bus has seen that it is there, and waits for it to ask.
fn is_waited_for(stands: &Value) -> bool {
    stands["in_flight"] == 0 && stands["state"] == "behind"
}

async fn one_that_rebuilds_itself(recovers: &str, token: Option<&str>) {
    let address = nobody().await;
    let made = Made {
        credentials: vec![credential("query"), credential("operator")],
        ..Made::plain(recovering(&format!("http://{address}/events"), recovers))
    };
    let made = if token.is_some() { made } else { Made { credentials: Vec::new(), ..made } };
    let mut stage = made.start().await;
    stage.client = authorised(token.map(|_| "operator"));
    stage.post_numbers(1..=10).await;
    stage.stands_when("events.query", |it| it["state"] == "stuck").await;
    let subscriber = Subscriber::at(address, |_, _| Does::Answers(200, "")).await;
    stage.stands_when("events.query", is_waited_for).await;
    stage.post_numbers(11..=12).await;
    let seen = snapshot(&stage, token).await;
    assert_eq!(seen, (1..=12).collect::<Vec<_>>());
    stage.stands_when("events.query", |it| it["state"] == "current").await;
    stage.post_numbers(13..=15).await;
    subscriber.gets(3).await;
    assert_eq!(subscriber.numbers(), [13, 14, 15], "nothing twice, nothing missed");
    stage.end().await;
}

fn authorised(token: Option<&str>) -> reqwest::Client {
    let header = |token: &str| ("authorization".parse().unwrap(), format!("Bearer {token}").parse().unwrap());
    reqwest::Client::builder().default_headers(token.map(header).into_iter().collect()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_that_is_recovering_goes_on_behind_its_snapshot() {
    one_that_rebuilds_itself("only-one", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_known_by_its_address_goes_on_behind_its_snapshot() {
    one_that_rebuilds_itself("by-address", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_known_by_its_credential_goes_on_behind_its_snapshot() {
    one_that_rebuilds_itself("by-credential", Some("query")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_who_asks_for_all_events_moves_nothing() {
    for (recovers, token) in [("never", None), ("by-credential", Some("other"))] {
        let address = nobody().await;
        let made = Made {
            credentials: vec![credential("other"), credential("operator")],
            ..Made::plain(recovering(&format!("http://{address}/events"), recovers))
        };
        let mut stage = made.start().await;
        stage.client = authorised(Some("operator"));
        stage.post_numbers(1..=3).await;
        stage.stands_when("events.query", |it| it["state"] == "stuck").await;
        assert_eq!(snapshot(&stage, token).await.len(), 3);
        let stands = stage.stands("events.query").await;
        assert_eq!((&stands["lag"]["events"], &stands["cursors"][0]["sequence"]), (&json!(3), &json!(0)));
        stage.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_well_and_asks_for_all_events_moves_nothing() {
    let gate = Arc::new(Semaphore::new(0));
    let behaviour = {
        let gate = gate.clone();
        move |got: &Got, _| if got.n() == 1 { Does::Answers(200, "") } else { Does::Waits(gate.clone()) }
    };
    let subscriber = Subscriber::that(behaviour).await;
    let mut settings = recovering(&subscriber.url(), "only-one");
    // It is not waited for: it never asks at start.
    settings["subscribers"][0]["recover_ms"] = json!(1);
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=1).await;
    stage.stands_when("events.query", |it| it["state"] == "current").await;
    stage.post_numbers(2..=4).await;
    subscriber.gets(2).await;
    assert_eq!(snapshot(&stage, None).await.len(), 4);
    gate.add_permits(3);
    subscriber.gets(4).await;
    assert_eq!(subscriber.numbers(), [1, 2, 3, 4]);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_not_sent_whole_moves_nothing() {
    let address = nobody().await;
    let stage = Made::plain(recovering(&format!("http://{address}/events"), "only-one")).start().await;
    // More than all buffers on the way hold.
    let large = json!({"n": 1, "filler": "x".repeat(700_000)}).to_string();
    for _ in 0..24 {
        assert_eq!(stage.post_plain(large.clone()).await.status(), 200);
    }
    stage.stands_when("events.query", |it| it["state"] == "stuck").await;
    let mut cut = tokio::net::TcpStream::connect(stage.plain()).await.unwrap();
    cut.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = vec![0; 100_000];
    cut.read_exact(&mut some).await.unwrap();
    drop(cut);
    let subscriber = Subscriber::at(address, |_, _| Does::Answers(200, "")).await;
    stage.stands_when("events.query", is_waited_for).await;
    let stands = stage.stands("events.query").await;
    assert_eq!(stands["cursors"][0]["sequence"], 0, "{stands:#}");
    // Whole this time.
    assert_eq!(snapshot(&stage, None).await.len(), 24);
    let stands = stage.stands_when("events.query", |it| it["state"] == "current").await;
    assert_eq!(stands["cursors"][0]["sequence"], 24);
    assert!(subscriber.got().is_empty());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_moves_the_cursor_after_the_delivery_under_way_has_ended() {
    let gate = Arc::new(Semaphore::new(0));
    let behaviour = {
        let gate = gate.clone();
        move |_: &Got, _| Does::Waits(gate.clone())
    };
    let subscriber = Subscriber::that(behaviour).await;
    let mut settings = recovering(&subscriber.url(), "only-one");
    settings["subscribers"][0]["recover_ms"] = json!(1);
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=3).await;
    // It was not asked in time, so that the first delivery has begun; since the bus began, none has succeeded.
    subscriber.gets(1).await;
    assert_eq!(snapshot(&stage, None).await, [1, 2, 3]);
    assert_eq!(stage.stands("events.query").await["cursors"][0]["sequence"], 0);
    gate.add_permits(100);
    stage.stands_when("events.query", |it| it["cursors"][0]["sequence"] == 3).await;
    stage.post_numbers(4..=4).await;
    subscriber.gets(2).await;
    assert_eq!(subscriber.numbers(), [1, 4], "2 and 3 came with the snapshot");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_ask_gets_its_deliveries_after_a_while() {
    let subscriber = Subscriber::well().await;
    let mut settings = recovering(&subscriber.url(), "only-one");
    settings["subscribers"][0]["recover_ms"] = json!(30);
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=3).await;
    tokio::time::timeout(SOON, subscriber.gets(3)).await.unwrap();
    assert_eq!(subscriber.numbers(), [1, 2, 3]);
    stage.end().await;
}
