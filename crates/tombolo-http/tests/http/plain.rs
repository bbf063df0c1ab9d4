//! Plain events: the contract of small hand-written buses, and what happens to real subscribers.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::stage::{Made, Stage, credential};
use crate::subscriber::{Does, Got, Subscriber, nobody};

/// Plain events with subscribers at these addresses, tried again quickly.
fn to(urls: &[(&str, String)]) -> Value {
    let subscribers = urls.iter().map(|(name, url)| {
        json!({"name": name, "url": url, "timeout_ms": 2000, "retry": {"first_ms": 5, "max_ms": 40, "attempts": 3}})
    });
    json!({"listen": ["127.0.0.1:0", "[::1]:0"], "topic": "events", "subscribers": subscribers.collect::<Vec<_>>()})
}

fn one(subscriber: &Subscriber) -> Value {
    to(&[("one", subscriber.url())])
}

async fn all(stage: &Stage) -> String {
    stage.client.get(format!("http://{}/events", stage.plain())).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_kept_byte_for_byte_and_posted_to_every_subscriber() {
    let (first, second) = (Subscriber::well().await, Subscriber::well().await);
    let stage = Made::plain(to(&[("first", first.url()), ("second", second.url())])).start().await;
    let bodies =
        [r#"{"type": "PostCreated", "data": {"id": 1}}"#, r#"{ "Type":"x","N":1.0e0, "ü":"\u00fc" }"#, "{}"];
    assert_eq!(all(&stage).await, "[]");
    for body in bodies {
        let url = format!("http://{}/events", stage.plain());
        let request = stage.client.post(url).header("content-type", "text/plain").body(body);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    assert_eq!(all(&stage).await, format!("[{}]", bodies.join(",")));
    for subscriber in [&first, &second] {
        let got = subscriber.gets(3).await;
        assert_eq!(got.iter().map(|it| it.body.as_str()).collect::<Vec<_>>(), bodies);
        for event in &got {
            assert_eq!((event.method.as_str(), event.path.as_str()), ("POST", "/events"));
            assert_eq!(event.header("content-type"), Some("application/json"));
            assert!(!event.is_marked());
        }
        assert_eq!(got[2].connection, 1, "the connection is kept");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_on_both_families_and_says_what_it_does_not_take() {
    let stage = Made::plain(to(&[])).start().await;
    let addresses = stage.door.plain_addresses();
    assert!(addresses.iter().any(|it| it.is_ipv4()) && addresses.iter().any(|it| it.is_ipv6()));
    for address in addresses {
        let url = format!("http://{address}/events");
        for odd in ["", "[]", "{\"a\": 1", "7"] {
            let (status, problem) = stage.call(stage.client.post(&url).body(odd)).await;
            assert_eq!((status, &problem["type"]), (400, &json!("urn:tombolo:problem:malformed")));
        }
        let (status, _) = stage.call(stage.client.get(format!("http://{address}/other"))).await;
        assert_eq!(status, 404);
        let options = stage.client.request(reqwest::Method::OPTIONS, &url).header("origin", "http://a");
        let answer = options.send().await.unwrap();
        assert_eq!(answer.status(), 204);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_configured_origins_may_use_it() {
    let mut settings = to(&[]);
    settings["cors"] = json!(["http://page"]);
    let stage = Made::plain(settings).start().await;
    let url = format!("http://{}/events", stage.plain());
    let asked = |origin: &'static str| {
        let request = stage.client.request(reqwest::Method::OPTIONS, &url).header("origin", origin);
        request.header("access-control-request-headers", "content-type").send()
    };
    let answer = asked("http://page").await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://page");
    assert_eq!(answer.headers()["access-control-allow-headers"], "content-type");
    assert!(!asked("http://other").await.unwrap().headers().contains_key("access-control-allow-origin"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_is_who_proved_to_call_and_a_wrong_token_is_refused() {
    let made = Made { credentials: vec![credential("posts")], ..Made::plain(to(&[])) };
    let stage = made.start().await;
    let url = format!("http://{}/events", stage.plain());
    for (token, status) in [(Some("posts"), 200), (Some("wrong"), 401), (None, 200)] {
        let mut request = stage.client.post(&url).body("{}");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    let read = stage.client.get(format!("{}/topics/events/partitions/0/events", stage.url));
    let (_, events) = stage.call(read.bearer_auth("posts")).await;
    assert_eq!((&events[0]["source"], &events[1]["source"]), (&json!("posts"), &json!("anonymous")));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_publish_from_inside_their_handlers() {
    // Each event up to 20 is answered only after the next one was taken by the bus.
    let publish_to = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let (told, mut numbers) = tokio::sync::mpsc::unbounded_channel();
    let handler = {
        let publish_to = publish_to.clone();
        move |axum::Json(event): axum::Json<Value>| {
            let (publish_to, told) = (publish_to.clone(), told.clone());
            async move {
                let n = event["n"].as_u64().unwrap();
                if n < 20 {
                    let next = reqwest::Client::new().post(publish_to.get().unwrap());
                    assert_eq!(
                        next.body(json!({"n": n + 1}).to_string()).send().await.unwrap().status(),
                        200
                    );
                }
                told.send(n).unwrap();
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    let routes = axum::Router::new().route("/events", axum::routing::post(handler));
    let stop = CancellationToken::new();
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    let serving = tokio::spawn(served.into_future());
    let stage = Made::plain(to(&[("one", url)])).start().await;
    publish_to.set(format!("http://{}/events", stage.plain())).unwrap();
    stage.post_numbers(1..=1).await;
    for expected in 1..=20 {
        let n = tokio::time::timeout(crate::stage::SOON, numbers.recv()).await.unwrap();
        assert_eq!(n, Some(expected));
    }
    stage.end().await;
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_down_for_a_while_gets_everything_in_order_when_it_is_back() {
    let address = nobody().await;
    let stage = Made::plain(to(&[("one", format!("http://{address}/events"))])).start().await;
    stage.post_numbers(1..=30).await;
    // Far more refusals than an event may fail.
    let refused =
        |it: &Value| it["state"] == "stuck" && it["detail"].as_str().is_some_and(|it| it.contains("refused"));
    stage.stands_when("events.one", refused).await;
    for _ in 0..5 {
        stage.act("events.one", "resume", json!({})).await;
        stage.stands_when("events.one", refused).await;
    }
    let subscriber = Subscriber::at(address, |_, _| Does::Answers(200, "")).await;
    subscriber.gets(30).await;
    assert_eq!(subscriber.numbers(), (1..=30).collect::<Vec<_>>());
    let stands = stage.stands_when("events.one", |it| it["state"] == "current").await;
    assert_eq!((&stands["parked"], &stands["lag"]["events"]), (&json!(0), &json!(0)));
    assert!(subscriber.got().iter().all(|it| !it.is_marked() && it.header("tombolo-attempt") == Some("1")));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_counts_as_delivered_where_that_is_said() {
    let subscriber = Subscriber::that(|_, _| Does::Nothing).await;
    let mut settings = one(&subscriber);
    settings["subscribers"][0]["answers"] = json!(false);
    settings["subscribers"][0]["timeout_ms"] = json!(50);
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=4).await;
    subscriber.gets(4).await;
    stage.stands_when("events.one", |it| it["lag"]["events"] == 0).await;
    assert_eq!(subscriber.numbers(), [1, 2, 3, 4]);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_a_failure_where_one_is_expected() {
    let subscriber =
        Subscriber::that(|_, before| if before == 0 { Does::Nothing } else { Does::Answers(200, "") }).await;
    let mut settings = one(&subscriber);
    settings["subscribers"][0]["timeout_ms"] = json!(50);
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=1).await;
    let got = subscriber.gets(2).await;
    assert_eq!((got[1].n(), got[1].header("tombolo-attempt"), got[1].is_marked()), (1, Some("2"), true));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_crashes_on_an_event_is_not_driven_into_a_loop() {
    let crashes = |got: &Got, _| if got.n() == 2 { Does::Breaks } else { Does::Answers(200, "") };
    let subscriber = Subscriber::that(crashes).await;
    let stage = Made::plain(one(&subscriber)).start().await;
    stage.post_numbers(1..=4).await;
    let got = subscriber.gets_when(|got| got.last().is_some_and(|it| it.n() == 4)).await;
    let tries: Vec<&Got> = got.iter().filter(|it| it.n() == 2).collect();
    // One more where a kept connection was used: that it broke may have had another reason.
    assert!((3..=4).contains(&tries.len()), "{tries:#?}");
    assert!(!tries[0].is_marked() && tries[1..].iter().all(|it| it.is_marked()));
    let others: Vec<u64> = got.iter().map(Got::n).filter(|n| *n != 2).collect();
    assert_eq!(others, [1, 3, 4]);
    let parked = stage.parked("events.one").await;
    assert_eq!((parked.len(), &parked[0]["sequence"], &parked[0]["attempts"]), (1, &json!(2), &json!(3)));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_is_closed_as_it_is_used_costs_nothing_but_a_mark() {
    // The second request of every connection is read and dropped.
    let closes = |got: &Got, _| if got.turn == 2 { Does::Breaks } else { Does::Answers(200, "") };
    let subscriber = Subscriber::that(closes).await;
    let mut settings = one(&subscriber);
    // Had it counted, it would be parked at once.
    settings["subscribers"][0]["retry"] = json!({"first_ms": 60_000, "max_ms": 60_000, "attempts": 1});
    let stage = Made::plain(settings).start().await;
    stage.post_numbers(1..=3).await;
    let got = subscriber.gets(5).await;
    let seen: Vec<(u64, bool)> = got.iter().map(|it| (it.n(), it.is_marked())).collect();
    assert_eq!(seen, [(1, false), (2, false), (2, true), (3, false), (3, true)]);
    assert_eq!(stage.stands_when("events.one", |it| it["lag"]["events"] == 0).await["parked"], 0);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_closed_while_idle_is_not_used_and_nothing_is_marked() {
    let subscriber = Subscriber::that(|_, _| Does::Answers(200, "connection: close\r\n")).await;
    let stage = Made::plain(one(&subscriber)).start().await;
    stage.post_numbers(1..=10).await;
    let got = subscriber.gets(10).await;
    assert_eq!(subscriber.numbers(), (1..=10).collect::<Vec<_>>());
    assert!(got.iter().all(|it| !it.is_marked() && it.turn == 1));
    stage.end().await;
}
