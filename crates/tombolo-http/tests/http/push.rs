//! Push subscriptions: order, parking, retries, and who may make one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::stage::{Made, Stage, credential};
use crate::subscriber::{Does, Got, Subscriber, nobody};

/// A subscription to `posts` that is tried again quickly.
fn to(url: &str, more: Value) -> Value {
    let mut settings = json!({
        "name": "mail", "topic": "posts", "url": url, "timeout_ms": 2000,
        "retry": {"first_ms": 5, "max_ms": 40, "attempts": 2},
    });
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    settings
}

fn event(id: &'static str, key: &'static str) -> (&'static str, &'static str, Value) {
    (id, key, json!({"n": id.parse::<u64>().unwrap()}))
}

fn ids(got: &[Got]) -> Vec<&str> {
    got.iter().map(|it| it.header("ce-id").unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_cloudevents_in_both_modes() {
    let (binary, structured) = (Subscriber::well().await, Subscriber::well().await);
    let mut made = Made::push(to(&binary.url(), json!({})));
    made.push.extend(Made::push(to(&structured.url(), json!({"name": "index", "mode": "structured"}))).push);
    let stage = made.start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    let got = binary.gets(1).await.remove(0);
    assert_eq!(
        (got.header("ce-id"), got.header("ce-type"), got.header("ce-subject")),
        (Some("1"), Some("T"), Some("a"))
    );
    assert_eq!((got.header("ce-specversion"), got.header("ce-source")), (Some("1.0"), Some("/test")));
    assert_eq!((got.header("content-type"), got.body.as_str()), (Some("application/json"), r#"{"n":1}"#));
    assert_eq!(
        (got.header("tombolo-subscription"), got.header("tombolo-attempt")),
        (Some("mail"), Some("1"))
    );
    assert!(!got.is_marked());
    let got = structured.gets(1).await.remove(0);
    assert_eq!(got.header("content-type"), Some("application/cloudevents+json"));
    assert_eq!(
        (&got.json()["id"], &got.json()["data"], &got.json()["sequence"]),
        (&json!("1"), &json!({"n": 1}), &json!("1"))
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn later_events_of_a_parked_key_wait_and_other_keys_flow_and_redrive_is_in_order() {
    let is_well = Arc::new(AtomicBool::new(false));
    let behaviour = {
        let is_well = is_well.clone();
        move |got: &Got, _| match got.n() == 1 && !is_well.load(Ordering::SeqCst) {
            true => Does::Answers(500, ""),
            false => Does::Answers(204, ""),
        }
    };
    let subscriber = Subscriber::that(behaviour).await;
    let stage = Made::push(to(&subscriber.url(), json!({}))).start().await;
    stage
        .publish_all(
            "posts",
            &[event("1", "a"), event("2", "b"), event("3", "a"), event("4", "a"), event("5", "b")],
        )
        .await;
    stage.stands_when("mail", |it| it["parked"] == 3 && it["lag"]["events"] == 0).await;
    let got = subscriber.got();
    let tries: Vec<_> = got
        .iter()
        .filter(|it| it.n() == 1)
        .map(|it| (it.header("tombolo-attempt").unwrap(), it.is_marked()))
        .collect();
    assert_eq!(tries, [("1", false), ("2", true)]);
    assert_eq!(ids(&got).into_iter().filter(|it| *it != "1").collect::<Vec<_>>(), ["2", "5"]);
    let parked = stage.parked("mail").await;
    let seen: Vec<_> = parked.iter().map(|it| it["attempts"].as_u64().unwrap()).collect();
    assert_eq!(seen, [2, 0, 0]);
    let id = parked[0]["id"].as_str().unwrap();
    let (status, shown) = stage.call(stage.client.get(stage.of("mail", &format!("/parked/{id}")))).await;
    assert_eq!((status, &shown["event"]["data"]["n"], &shown["key"]), (200, &json!(1), &json!("a")));

    // It fails again: nothing of the key overtakes it.
    let (_, answer) = stage.act("mail", "redrive", json!({})).await;
    assert_eq!(answer["redriven"], 3);
    subscriber.gets(5).await;
    stage.stands_when("mail", |it| it["in_flight"] == 0).await;
    assert_eq!(stage.parked("mail").await[0]["attempts"], 3);
    is_well.store(true, Ordering::SeqCst);
    stage.publish_all("posts", &[event("6", "a")]).await;
    let (status, answer) = stage.act("mail", "redrive", json!({"id": id})).await;
    assert_eq!((status, answer["redriven"].as_u64().is_some_and(|it| it >= 3)), (200, true), "{answer:#}");
    stage.stands_when("mail", |it| it["parked"] == 0 && it["lag"]["events"] == 0).await;
    let of_a: Vec<u64> = subscriber.got()[5..].iter().map(Got::n).collect();
    assert_eq!(of_a, [1, 3, 4, 6]);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_is_discarded_lets_its_key_go_on() {
    let subscriber = Subscriber::that(|got, _| Does::Answers(if got.n() == 1 { 400 } else { 200 }, "")).await;
    let stage = Made::push(to(&subscriber.url(), json!({}))).start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    stage.stands_when("mail", |it| it["parked"] == 1).await;
    let id = stage.parked("mail").await[0]["id"].as_str().unwrap().to_owned();
    let discard = stage.client.delete(stage.of("mail", &format!("/parked/{id}")));
    assert_eq!(stage.call(discard.try_clone().unwrap()).await.0, 204);
    assert_eq!(stage.call(discard).await.0, 404);
    stage.publish_all("posts", &[event("2", "a")]).await;
    subscriber.gets_when(|got| got.iter().any(|it| it.n() == 2)).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_full_of_parked_events_is_stuck_and_loses_nothing() {
    let is_well = Arc::new(AtomicBool::new(false));
    let behaviour = {
        let is_well = is_well.clone();
        move |_: &Got, _| Does::Answers(if is_well.load(Ordering::SeqCst) { 200 } else { 500 }, "")
    };
    let subscriber = Subscriber::that(behaviour).await;
    let stage = Made::push(to(&subscriber.url(), json!({"parked_max": 2}))).start().await;
    stage.publish_all("posts", &[event("1", "a"), event("2", "b"), event("3", "c"), event("4", "a")]).await;
    stage.stands_when("mail", |it| it["state"] == "stuck" && it["parked"] == 2).await;
    is_well.store(true, Ordering::SeqCst);
    stage.act("mail", "redrive", json!({})).await;
    stage.stands_when("mail", |it| it["parked"] == 0 && it["lag"]["events"] == 0).await;
    let mut last: Vec<u64> = subscriber.got().iter().map(Got::n).collect();
    last.sort_unstable();
    last.dedup();
    assert_eq!(last, [1, 2, 3, 4]);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_asks_for_time_gets_it_and_is_not_counted() {
    let behaviour = |_: &Got, before| match before {
        0..3 => Does::Answers(if before == 0 { 429 } else { 503 }, "retry-after: 0\r\n"),
        3 => Does::Answers(503, "retry-after: 1\r\n"),
        _ => Does::Answers(200, ""),
    };
    let subscriber = Subscriber::that(behaviour).await;
    let stage = Made::push(to(&subscriber.url(), json!({}))).start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    subscriber.gets(4).await;
    let asked = std::time::Instant::now();
    let got = subscriber.gets(5).await;
    assert!(asked.elapsed().as_millis() > 800, "{:?}", asked.elapsed());
    assert!(got.iter().all(|it| it.header("tombolo-attempt") == Some("1")));
    assert!(!got[0].is_marked() && got[4].is_marked());
    assert_eq!(stage.stands_when("mail", |it| it["lag"]["events"] == 0).await["parked"], 0);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_gone_is_paused_until_somebody_resumes_it() {
    let subscriber =
        Subscriber::that(|_, before| Does::Answers(if before == 0 { 410 } else { 200 }, "")).await;
    let made = Made::push(to(&subscriber.url(), json!({})));
    let stage = made.start().await;
    stage.publish_all("posts", &[event("1", "a"), event("2", "a")]).await;
    let stands = stage.stands_when("mail", |it| it["state"] == "paused").await;
    assert!(stands["detail"].as_str().unwrap().contains("410"));
    let stage = stage.restart(&made).await;
    assert_eq!(stage.stands("mail").await["state"], "paused");
    stage.act("mail", "resume", json!({})).await;
    assert_eq!(ids(&subscriber.gets(3).await), ["1", "1", "2"]);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was_and_marks_nothing_that_had_ended() {
    let subscriber = Subscriber::well().await;
    for order in ["key", "serial"] {
        let before = subscriber.got().len();
        let made = Made::push(to(&subscriber.url(), json!({"order": order})));
        let stage = made.start().await;
        stage.publish_all("posts", &[event("1", "a"), event("2", "b")]).await;
        subscriber.gets(before + 2).await;
        stage.stands_when("mail", |it| it["lag"]["events"] == 0).await;
        let stage = stage.restart(&made).await;
        stage.publish_all("posts", &[event("3", "a"), event("4", "b")]).await;
        let got = subscriber.gets(before + 4).await;
        let mut last = ids(&got[before..]);
        last.sort_unstable();
        assert_eq!(last, ["1", "2", "3", "4"]);
        assert!(got.iter().all(|it| !it.is_marked()));
        stage.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_events_back_and_a_reset_sends_them_again_marked() {
    let subscriber = Subscriber::well().await;
    let stage = Made::push(to(&subscriber.url(), json!({"order": "serial"}))).start().await;
    stage.act("mail", "pause", json!({"reason": "a holiday"})).await;
    stage.publish_all("posts", &[event("1", "a"), event("2", "a")]).await;
    let stands = stage.stands_when("mail", |it| it["lag"]["events"] == 2).await;
    assert_eq!((&stands["state"], &stands["detail"]), (&json!("paused"), &json!("a holiday")));
    assert!(subscriber.got().is_empty());
    stage.act("mail", "resume", json!({})).await;
    subscriber.gets(2).await;
    stage.stands_when("mail", |it| it["lag"]["events"] == 0).await;
    let (status, _) = stage.act("mail", "reset", json!({"to": "start"})).await;
    assert_eq!(status, 200);
    stage.publish_all("posts", &[event("3", "a")]).await;
    let got = subscriber.gets(5).await;
    let seen: Vec<_> = ids(&got).into_iter().zip(got.iter().map(Got::is_marked)).collect();
    assert_eq!(seen, [("1", false), ("2", false), ("1", true), ("2", true), ("3", false)]);
    let (status, problem) = stage.act("mail", "reset", json!({})).await;
    assert_eq!((status, &problem["parameter"]), (400, &json!("to")));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_is_skipped_by_request_and_the_next_follows() {
    let subscriber = Subscriber::that(|got, _| Does::Answers(if got.n() == 1 { 500 } else { 200 }, "")).await;
    let more = json!({"order": "serial", "retry": {"first_ms": 60_000, "max_ms": 60_000, "attempts": 9}});
    let stage = Made::push(to(&subscriber.url(), more)).start().await;
    stage.publish_all("posts", &[event("1", "a"), event("2", "a")]).await;
    stage.stands_when("mail", |it| it["failing"][0]["attempts"] == 1).await;
    let (status, answer) = stage.act("mail", "skip", json!({})).await;
    assert_eq!((status, &answer["skipped"]["sequence"]), (200, &json!(1)));
    assert_eq!(ids(&subscriber.gets(2).await), ["1", "2"]);
    assert_eq!(stage.act("mail", "skip", json!({})).await.0, 404);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_wanted_types_come_and_a_late_one_begins_now() {
    let (other, now) = (Subscriber::well().await, Subscriber::well().await);
    let made = Made::push(to(&other.url(), json!({"types": ["U"]})));
    let stage = made.start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    stage.stands_when("mail", |it| it["lag"]["events"] == 0 && it["state"] == "current").await;
    assert!(other.got().is_empty());
    let made = Made::push(to(&now.url(), json!({"name": "late", "from": "now"})));
    let stage = stage.restart(&made).await;
    stage.stands_when("late", |it| it["state"] == "current").await;
    stage.publish_all("posts", &[event("2", "a")]).await;
    assert_eq!(ids(&now.gets(1).await), ["2"]);
    stage.end().await;
}

/// A target that allows this bus, and one that says nothing of it.
async fn put(stage: &Stage, name: &str, token: Option<&str>, body: Value) -> (u16, Value) {
    let mut request = stage.client.put(stage.of(name, "")).body(body.to_string());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    stage.call(request).await
}

fn loopback_allowed() -> Made {
    let mut made = Made::default();
    made.webhooks.origin = "bus.example".into();
    made.webhooks.allow = vec!["127.0.0.0/8".parse().unwrap()];
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_the_operators_gets_nothing_before_it_has_allowed_it() {
    let allows = Arc::new(AtomicBool::new(false));
    let behaviour = {
        let allows = allows.clone();
        move |got: &Got, _| match got.method == "OPTIONS" && allows.load(Ordering::SeqCst) {
            true => Does::Answers(200, "webhook-allowed-origin: bus.example\r\n"),
            false => Does::Answers(200, ""),
        }
    };
    let subscriber = Subscriber::that(behaviour).await;
    let made = loopback_allowed();
    let stage = made.start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    let body = json!({"topic": "posts", "url": subscriber.url(), "retry": {"first_ms": 1, "max_ms": 5, "attempts": 2}});
    assert_eq!(put(&stage, "mail", None, body.clone()).await.0, 201);
    let got = subscriber.gets(5).await;
    assert!(
        got.iter()
            .all(|it| it.method == "OPTIONS" && it.header("webhook-request-origin") == Some("bus.example"))
    );
    assert_eq!(stage.stands("mail").await["state"], "not-allowed-yet");
    allows.store(true, Ordering::SeqCst);
    let got = subscriber.gets_when(|got| got.iter().any(|it| it.method == "POST")).await;
    assert_eq!(got.last().unwrap().header("ce-id"), Some("1"));

    // Once allowed, it is not asked again; another target is.
    stage.stands_when("mail", |it| it["lag"]["events"] == 0).await;
    let stage = stage.restart(&made).await;
    stage.publish_all("posts", &[event("2", "a")]).await;
    let asked = got.len();
    assert_eq!(subscriber.gets(asked + 1).await[asked].method, "POST");
    let second = Subscriber::that(|_, _| Does::Answers(200, "")).await;
    let mut moved = body.clone();
    moved["url"] = json!(second.url());
    assert_eq!(put(&stage, "mail", None, moved).await.0, 200);
    stage.publish_all("posts", &[event("3", "a")]).await;
    assert_eq!(second.gets(2).await[1].method, "OPTIONS");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_public_is_refused_unless_its_network_is_allowed() {
    let subscriber = Subscriber::that(|_, _| Does::Answers(200, "webhook-allowed-origin: *\r\n")).await;
    let stage = Made::default().start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    let port = subscriber.address.port();
    for host in
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "0.0.0.0"]
    {
        let url = format!("http://{host}:{port}/events");
        let (status, problem) = put(&stage, "mail", None, json!({"topic": "posts", "url": url})).await;
        assert_eq!((status, &problem["parameter"]), (403, &json!("url")), "{host}");
    }
    stage.end().await;
    assert!(subscriber.got().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_checked_again_when_the_connection_is_made() {
    // Made while loopback was allowed; then it is not any more, as when a name leads elsewhere later.
    let subscriber = Subscriber::that(|_, _| Does::Answers(200, "webhook-allowed-origin: *\r\n")).await;
    let stage = loopback_allowed().start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    let url = format!("http://localhost:{}/events", subscriber.address.port());
    let body = json!({"topic": "posts", "url": url, "retry": {"first_ms": 1, "max_ms": 5, "attempts": 2}});
    assert_eq!(put(&stage, "mail", None, body).await.0, 201);
    stage.stands_when("mail", |it| it["state"] == "current").await;
    let before = subscriber.got().len();
    let stage = stage.restart(&Made::default()).await;
    stage.publish_all("posts", &[event("2", "a")]).await;
    let stands = stage
        .stands_when("mail", |it| it["detail"].as_str().is_some_and(|it| it.contains("not public")))
        .await;
    assert_eq!(stands["lag"]["events"], 1);
    assert_eq!(subscriber.got().len(), before);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sees_and_changes_its_own_subscriptions_alone() {
    let mut made = loopback_allowed();
    made.credentials = vec![credential("mail"), credential("index"), credential("operator")];
    made.credentials[1].reads = Some(Vec::new());
    made.push = Made::push(to(&format!("http://{}/", nobody().await), json!({"name": "fixed"}))).push;
    let stage = made.start().await;
    let body = json!({"topic": "posts", "url": format!("http://{}/", nobody().await)});
    assert_eq!(put(&stage, "mine", None, body.clone()).await.0, 401);
    assert_eq!(put(&stage, "mine", Some("index"), body.clone()).await.0, 403, "it may not read the topic");
    assert_eq!(put(&stage, "mine", Some("mail"), body.clone()).await.0, 201);
    assert_eq!(put(&stage, "mine", Some("operator"), body.clone()).await.0, 200);
    assert_eq!(
        put(&stage, "fixed", Some("operator"), body.clone()).await.0,
        403,
        "it is in the configuration"
    );
    for (token, status, count) in [("mail", 200, 1), ("index", 404, 0), ("operator", 200, 2)] {
        let get = stage.client.get(stage.of("mine", "")).bearer_auth(token);
        assert_eq!(stage.call(get).await.0, status, "{token}");
        let list = stage.client.get(format!("{}/subscriptions", stage.url)).bearer_auth(token);
        assert_eq!(stage.call(list).await.1["subscriptions"].as_array().unwrap().len(), count);
    }
    let delete = stage.client.delete(stage.of("mine", ""));
    assert_eq!(stage.call(delete.try_clone().unwrap().bearer_auth("index")).await.0, 404);
    assert_eq!(stage.call(delete.bearer_auth("operator")).await.0, 204);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_subscription_is_refused_by_the_parameter() {
    let stage = loopback_allowed().start().await;
    let url = format!("http://{}/", nobody().await);
    for (body, parameter) in [
        (json!({"topic": "posts", "url": "ftp://a/"}), "url"),
        (json!({"topic": "posts", "url": url, "concurrency": 0}), "concurrency"),
        (json!({"topic": "posts", "url": url, "timeout_ms": 0}), "timeout_ms"),
        (json!({"topic": "posts", "url": url, "retry": {"max_ms": 0}}), "max_ms"),
    ] {
        let (status, problem) = put(&stage, "mail", None, body).await;
        assert_eq!((status, &problem["parameter"]), (400, &json!(parameter)));
    }
    assert_eq!(put(&stage, "Mail", None, json!({"topic": "posts", "url": url})).await.0, 400);
    let list = json!({"topic": "posts", "url": url, "retry": [5, 40, 2]});
    assert_eq!(put(&stage, "mail", None, list).await.0, 400);
    let (status, problem) = put(&stage, "mail", None, json!({"topic": "posts", "url": url, "odd": 1})).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("odd"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_action_does_not_take_is_refused_and_does_nothing() {
    let stage = Made::push(to(&format!("http://{}/", nobody().await), json!({}))).start().await;
    stage.publish_all("posts", &[event("1", "a")]).await;
    for (action, body) in [
        ("pause", "[]"),
        ("pause", r#"["a release"]"#),
        ("pause", r#"{"to": "start"}"#),
        ("resume", r#"{"reason": "a release"}"#),
        ("redrive", r#"{"sequence": 7}"#),
        ("skip", r#"{"partition": 1}"#),
        ("skip", r#"{"sequence": 0.5}"#),
        ("reset", ""),
        ("reset", r#"{"to": "start", "sequence": 7}"#),
        ("reset", r#"{"to": "yesterday"}"#),
    ] {
        let request = stage.client.post(stage.of("mail", &format!("/{action}"))).body(body);
        let (status, problem) = stage.call(request).await;
        assert_eq!(status, 400, "{action} {body}: {problem}");
    }
    assert_ne!(stage.stands("mail").await["state"], "paused");
    let of = |rest: &str| stage.of("mail", rest);
    assert_eq!(stage.call(stage.client.get(of("/parked/7"))).await.0, 400);
    assert_eq!(stage.call(stage.client.post(of("/parked"))).await.0, 405);
    assert_eq!(stage.call(stage.client.post(of("/nothing"))).await.0, 404);
    // JSON knows no whole numbers.
    assert_eq!(stage.act("mail", "reset", json!({"partition": 0.0, "sequence": 0.0})).await.0, 200);
    stage.end().await;
}
