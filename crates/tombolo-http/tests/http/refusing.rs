//! Every bad input has its status, its problem document, and leaves nothing behind.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tombolo_bus::server::Credential;
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;

use crate::stage::{BATCH, STRUCTURED, Stage, event, read};

/// What is refused: content type, body, status, the problem's type, and a member of its document.
type Refused = (&'static str, String, u16, &'static str, Option<(&'static str, Value)>);

fn with(name: &str, value: Value) -> String {
    let mut event = event("1", "p");
    event[name] = value;
    event.to_string()
}

fn without(name: &str) -> String {
    let mut event = event("1", "p");
    event.as_object_mut().unwrap().remove(name);
    event.to_string()
}

fn bodies() -> [Refused; 8] {
    [
        (STRUCTURED, "{".into(), 400, "malformed", None),
        (STRUCTURED, "[]".into(), 400, "malformed", None),
        (STRUCTURED, "\u{feff}{}".into(), 400, "malformed", None),
        ("application/json", "{}".into(), 415, "content-type", None),
        ("", "{}".into(), 415, "content-type", None),
        ("application/cloudevents+xml", "{}".into(), 415, "content-type", None),
        (STRUCTURED, with("data", json!("x".repeat(1 << 20))), 413, "too-large", None),
        (STRUCTURED, "x".repeat(5 << 20), 413, "too-large", None),
    ]
}

fn attributes() -> [Refused; 8] {
    let of = |name: &'static str| Some(("attribute", json!(name)));
    [
        (STRUCTURED, without("id"), 400, "missing-attribute", of("id")),
        (STRUCTURED, without("specversion"), 400, "missing-attribute", of("specversion")),
        (STRUCTURED, with("specversion", json!("2.0")), 400, "specversion", None),
        (STRUCTURED, with("id", json!("")), 400, "invalid-attribute", of("id")),
        (STRUCTURED, with("time", json!("yesterday")), 400, "invalid-attribute", of("time")),
        (STRUCTURED, with("Upper", json!("x")), 400, "invalid-attribute", None),
        (STRUCTURED, with("odd", json!({})), 400, "invalid-attribute", of("odd")),
        (STRUCTURED, with("subject", json!("x".repeat(513))), 400, "invalid-attribute", None),
    ]
}

fn batches() -> [Refused; 2] {
    let (one, two) = (event("1", "p"), event("2", "p"));
    let of = |index: usize| Some(("index", json!(index)));
    [
        (BATCH, format!("[{one},{two},7]"), 400, "malformed", of(2)),
        (BATCH, format!("[{one},{}]", without("type")), 400, "missing-attribute", of(1)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_refused_by_name_and_nothing_is_stored() {
    let stage = Stage::start().await;
    for (content_type, body, status, kind, member) in
        bodies().into_iter().chain(attributes()).chain(batches())
    {
        let (found, problem) = stage.post("/topics/posts/events", content_type, body).await;
        let kind = json!(format!("urn:tombolo:problem:{kind}"));
        assert_eq!((found.as_u16(), &problem["type"]), (status, &kind), "{problem}");
        if let Some((name, value)) = member {
            assert_eq!(problem[name], value, "{problem}");
        }
    }
    assert!(stage.bus.topics().await.unwrap().is_empty());
    let odd = stage.post("/topics/Posts/events", STRUCTURED, event("1", "p").to_string()).await;
    assert_eq!(odd.0, StatusCode::BAD_REQUEST);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_in_a_problem_document() {
    let stage = Stage::start().await;
    for (path, status) in [
        ("/nothing", 404),
        ("/topics/none", 404),
        ("/topics/none/events", 404),
        ("/topics/none/partitions/x/events", 400),
        ("/topics/none/events?limit=0", 400),
        ("/topics/none/events?limit=99999", 400),
        ("/topics/none/events?wait=-1", 400),
        ("/topics/none/events?wait=NaN", 400),
        ("/topics/none/events?odd=1", 400),
    ] {
        let (found, problem) = stage.get(path).await;
        assert_eq!(found.as_u16(), status, "{path}: {problem}");
    }
    let deleted = stage.client.delete(stage.at("/topics")).send().await.unwrap();
    assert_eq!(read(deleted).await.0, StatusCode::METHOD_NOT_ALLOWED);
    stage.end().await;
}

fn credential(identity: &str, reads: Option<&[&str]>) -> Credential {
    let reads = reads.map(|names| names.iter().map(|name| ServiceName::new(*name).unwrap()).collect());
    Credential {
        identity: identity.parse::<Identity>().unwrap(),
        tokens: vec![Credential::hash(identity)],
        certificates: Vec::new(),
        reads,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_publishes_and_the_source_is_the_one_that_was_proved() {
    let stage = Stage::start().await;
    let services = ["posts", "comments", "query"];
    let mut known: Vec<Credential> =
        services.iter().map(|name| credential(&format!("service/{name}"), Some(&["posts"]))).collect();
    known.push(credential("operator", None));
    stage.credentials.replace(known);
    let publish = async |token: Option<&str>, topic: &str| {
        let url = stage.at(&format!("/topics/{topic}/events"));
        let request = stage
            .client
            .post(url)
            .header("content-type", STRUCTURED)
            .body(event(&format!("{token:?}"), "p").to_string());
        read(
            token
                .into_iter()
                .fold(request, |request, token| request.bearer_auth(token))
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    for asking in services {
        for topic in services {
            let (status, problem) = publish(Some(&format!("service/{asking}")), topic).await;
            let expected = if asking == topic { StatusCode::CREATED } else { StatusCode::FORBIDDEN };
            assert_eq!(status, expected, "{asking} to {topic}: {problem}");
        }
    }
    for token in [None, Some("service/other"), Some("")] {
        assert_eq!(publish(token, "posts").await.0, StatusCode::UNAUTHORIZED, "{token:?}");
    }
    let reading = async |token: &str, topic: &str| {
        let request = stage.client.get(stage.at(&format!("/topics/{topic}/events"))).bearer_auth(token);
        read(request.send().await.unwrap()).await
    };
    let (status, events) = reading("service/query", "posts").await;
    assert_eq!(
        (status, &events[0]["source"], &events[0]["originsource"]),
        (StatusCode::OK, &json!("posts"), &json!("/posts"))
    );
    assert_eq!(reading("service/query", "comments").await.0, StatusCode::FORBIDDEN);
    assert_eq!(reading("service/comments", "comments").await.0, StatusCode::OK);
    // A token that was replaced is none any more.
    stage.credentials.replace(vec![credential("operator", None)]);
    assert_eq!(reading("service/comments", "comments").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(reading("operator", "comments").await.0, StatusCode::OK);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streaming_protocol_asks_for_the_same_credentials() {
    use tombolo_bus::server::{Client, Listen};
    let stage = Stage::start().await;
    stage.publish("posts", &event("1", "p")).await;
    stage.credentials.replace(vec![credential("service/posts", None)]);
    let address = Listen::Tcp { host: "127.0.0.1".into(), port: stage.port };
    let posts = Identity::Service(ServiceName::new("posts").unwrap());
    let without = Client::new(&address, &posts).unwrap();
    assert_eq!(without.topics().await.unwrap_err().kind(), tombolo_bus::Kind::Unauthenticated);
    let wrong = Client::with_token(&address, &posts, "other").unwrap();
    assert_eq!(wrong.topics().await.unwrap_err().kind(), tombolo_bus::Kind::Unauthenticated);
    let right = Client::with_token(&address, &posts, "service/posts").unwrap();
    assert_eq!(right.topics().await.unwrap().len(), 1);
    for client in [without, wrong, right] {
        client.close().await;
    }
    stage.end().await;
}
