//! What is read is contiguous and goes on where a reader was.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tombolo_bus::Bus;
use tombolo_event::ServiceName;

use crate::stage::{BATCH, Stage, event, read};

const BOUND: Duration = Duration::from_secs(20);

async fn filled(count: usize) -> Stage {
    let stage = Stage::start().await;
    let batch: Vec<Value> = (0..count).map(|at| event(&at.to_string(), &format!("p{}", at % 9))).collect();
    assert_eq!(
        stage.post("/topics/posts/events", BATCH, Value::Array(batch).to_string()).await.0,
        StatusCode::OK
    );
    stage
}

/// Reads pages until there is nothing, from token to token.
async fn by_pages(stage: &Stage, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let response =
            stage.client.get(stage.at(&format!("{path}?limit={limit}&after={after}"))).send().await.unwrap();
        after = response.headers()["tombolo-cursor"].to_str().unwrap().to_owned();
        let (_, events) = read(response).await;
        if events.as_array().unwrap().is_empty() {
            return all;
        }
        all.extend(events.as_array().unwrap().clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_give_everything_once_and_in_order() {
    let stage = filled(100).await;
    for limit in [1, 7, 1000] {
        let all = by_pages(&stage, "/topics/posts/events", limit).await;
        assert_eq!(all.len(), 100);
        for key in 0..9 {
            let of_key = all.iter().filter(|it| it["subject"] == format!("p{key}"));
            let ids: Vec<usize> = of_key.map(|it| it["id"].as_str().unwrap().parse().unwrap()).collect();
            assert!(ids.is_sorted() && !ids.is_empty(), "{ids:?}");
        }
    }
    let mut of_partitions = 0;
    for partition in 0..8 {
        let path = format!("/topics/posts/partitions/{partition}/events");
        let sequences: Vec<String> = by_pages(&stage, &path, 3)
            .await
            .iter()
            .map(|it| it["sequence"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(sequences, (1..=sequences.len()).map(|at| at.to_string()).collect::<Vec<_>>());
        of_partitions += sequences.len();
    }
    assert_eq!(of_partitions, 100);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_is_answered_as_soon_as_something_comes() {
    let stage = filled(1).await;
    for path in ["/topics/posts/events", "/topics/posts/partitions/0/events"] {
        let first = stage.client.get(stage.at(path)).send().await.unwrap();
        let after = first.headers()["tombolo-cursor"].to_str().unwrap().to_owned();
        let waiting = stage.client.get(stage.at(&format!("{path}?wait=20&after={after}"))).send();
        let publishing = async {
            // In whichever partition: one of these keys is in each.
            for at in 0..40 {
                stage.publish("posts", &event(&format!("{path}{at}"), &format!("k{at}"))).await;
            }
        };
        let (answer, ()) =
            tokio::time::timeout(BOUND, async { tokio::join!(waiting, publishing) }).await.unwrap();
        let (_, events) = read(answer.unwrap()).await;
        assert!(!events.as_array().unwrap().is_empty());
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_events() {
    let stage = filled(30).await;
    let request = stage.client.get(stage.at("/topics/posts/events")).header("accept", "application/x-ndjson");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 30);
    stage.end().await;
}

/// Reads server-sent events until there are `count`, and gives them with the id of the last.
async fn sent(stage: &Stage, path: &str, last: Option<&str>, count: usize) -> (Vec<Value>, String) {
    let mut request = stage.client.get(stage.at(path)).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut response = request.send().await.unwrap();
    let (mut text, mut events, mut id) = (String::new(), Vec::new(), String::new());
    let reading = async {
        while events.len() < count {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
            while let Some((message, rest)) = text.split_once("\n\n") {
                for line in message.lines() {
                    match line.split_once(": ") {
                        Some(("id", value)) => id = value.to_owned(),
                        Some(("data", value)) => events.push(serde_json::from_str(value).unwrap()),
                        _ => {}
                    }
                }
                text = rest.to_owned();
                if events.len() == count {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(BOUND, reading).await.unwrap();
    (events, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_behind_its_last_event() {
    let stage = filled(60).await;
    for path in ["/topics/posts/events", "/topics/posts/partitions/4/events"] {
        let whole = match path.contains("partitions") {
            true => by_pages(&stage, path, 100).await.len(),
            false => 60,
        };
        assert!(whole > 3, "{path}");
        let (mut events, id) = sent(&stage, path, None, whole / 2).await;
        let (rest, _) = sent(&stage, path, Some(&id), whole - whole / 2).await;
        events.extend(rest);
        let mut ids: Vec<&str> = events.iter().map(|it| it["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), whole);
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_of_another_life_of_the_topic_is_refused() {
    let stage = filled(5).await;
    let response = stage.client.get(stage.at("/topics/posts/events")).send().await.unwrap();
    let cursor = response.headers()["tombolo-cursor"].to_str().unwrap().to_owned();
    let other = cursor.replacen(&cursor[..36], "00000000-0000-4000-8000-000000000000", 1);
    for (after, expected) in
        [(&*other, StatusCode::CONFLICT), ("odd", StatusCode::BAD_REQUEST), (&*cursor, StatusCode::OK)]
    {
        assert_eq!(stage.get(&format!("/topics/posts/events?after={after}")).await.0, expected, "{after}");
    }
    let (status, problem) = stage.get("/topics/posts/partitions/0/events?after=99").await;
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:tombolo:problem:other-place")));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_key_the_order_stays_where_a_topic_is_divided() {
    let stage = filled(50).await;
    // An outbox's topic is divided by its relay; here the same is done to a topic with an epoch of its own.
    let name = ServiceName::new("posts").unwrap();
    let topic = stage.bus.topic(&name).await.unwrap();
    let generations = topic.generations.and(3).unwrap();
    stage.bus.divide(&name, topic.incarnation, topic.epoch, &generations).await.unwrap();
    let stage = stage.again(|_| {}).await;
    let batch: Vec<Value> = (50..100).map(|at| event(&at.to_string(), &format!("p{}", at % 9))).collect();
    assert_eq!(
        stage.post("/topics/posts/events", BATCH, Value::Array(batch).to_string()).await.0,
        StatusCode::OK
    );
    for all in [
        by_pages(&stage, "/topics/posts/events", 7).await,
        sent(&stage, "/topics/posts/events", None, 100).await.0,
    ] {
        assert_eq!(all.len(), 100);
        for key in 0..9 {
            let of_key = all.iter().filter(|it| it["subject"] == format!("p{key}"));
            let ids: Vec<usize> = of_key.map(|it| it["id"].as_str().unwrap().parse().unwrap()).collect();
            assert!(ids.is_sorted(), "{key}: {ids:?}");
        }
    }
    stage.end().await;
}
