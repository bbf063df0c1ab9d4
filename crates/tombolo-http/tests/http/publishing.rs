//! What is published is there once, whatever is repeated, restarted or removed.

use std::collections::BTreeSet;
use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tombolo_bus::feed::{FED_BY_BUS, is_fed_by_bus};
use tombolo_bus::{Bus, Kind, TopicSpec};
use tombolo_event::{Generations, ServiceName};

use crate::stage::{BATCH, Stage, event};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_stored_before_it_is_answered_and_read_as_it_was_given() {
    let stage = Stage::start().await;
    let given = json!({"specversion": "1.0", "id": "1", "source": "/posts", "type": "PostCreated", "subject": "p1",
        "partitionkey": "k", "time": "2026-11-29T12:00:00Z", "datacontenttype": "application/json", "flag": true, "count": 7,
        "dataschema": "https://example.org/post", "data": {"title": "Grüße"}});
    let (status, placed) = stage.publish("posts", &given).await;
    assert_eq!(
        (status, &placed["sequence"], &placed["repeated"]),
        (StatusCode::CREATED, &json!(1), &json!(false))
    );
    let mut read = stage.all("posts").await.remove(0);
    assert_eq!(read.as_object_mut().unwrap().remove("sequence"), Some(json!("1")));
    assert_eq!(read, given);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_answered_with_the_place_of_the_first() {
    let stage = Stage::start().await;
    let (_, first) = stage.publish("posts", &event("1", "p")).await;
    let (status, again) = stage.publish("posts", &event("1", "p")).await;
    assert_eq!((status, &again["repeated"]), (StatusCode::OK, &json!(true)));
    assert_eq!(
        (&again["partition"], &again["sequence"], &again["id"]),
        (&first["partition"], &first["sequence"], &first["id"])
    );
    // Another source or another topic: another event.
    let other = json!({"specversion": "1.0", "id": "1", "source": "/other", "type": "T", "subject": "p"});
    assert_eq!(stage.publish("posts", &other).await.0, StatusCode::CREATED);
    assert_eq!(stage.publish("comments", &event("1", "p")).await.0, StatusCode::CREATED);
    assert_eq!(stage.all("posts").await.len(), 2);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_again_with_other_content_is_refused() {
    let stage = Stage::start().await;
    stage.publish("posts", &event("1", "p")).await;
    let mut other = event("1", "p");
    other["data"] = json!({"id": "other"});
    let (status, problem) = stage.publish("posts", &other).await;
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:tombolo:problem:id-reused")));
    // In one batch as well, where neither is stored yet.
    let mut twin = event("2", "p");
    twin["data"] = json!("other");
    let (status, problem) =
        stage.post("/topics/posts/events", BATCH, json!([event("2", "p"), twin]).to_string()).await;
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:tombolo:problem:id-reused")));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_with_one_id_are_one_event() {
    let stage = Stage::start().await;
    let one = event("1", "p");
    let all = futures_util::future::join_all((0..50).map(|_| stage.publish("posts", &one))).await;
    let first = all.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    let places: BTreeSet<String> =
        all.iter().map(|(_, it)| format!("{}/{}", it["partition"], it["sequence"])).collect();
    assert_eq!((first, places.len(), stage.all("posts").await.len()), (1, 1, 1));
    stage.end().await;
}

/// Whether ids are found again after what was done to their file.
async fn are_found_after(meanwhile: impl FnOnce(&Path)) {
    let stage = Stage::start().await;
    let batch: Vec<Value> = (0..500).map(|at| event(&at.to_string(), &format!("p{}", at % 7))).collect();
    let body = Value::Array(batch).to_string();
    assert_eq!(stage.post("/topics/posts/events", BATCH, body.clone()).await.0, StatusCode::OK);
    let stage = stage.again(meanwhile).await;
    stage.publish("posts", &event("new", "p1")).await;
    let (status, placed) = stage.post("/topics/posts/events", BATCH, body).await;
    assert_eq!(status, StatusCode::OK, "{placed}");
    assert!(placed["events"].as_array().unwrap().iter().all(|it| it["repeated"] == true));
    assert_eq!(stage.all("posts").await.len(), 501);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_after_a_restart() {
    are_found_after(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_where_their_folder_was_removed() {
    are_found_after(|folder| std::fs::remove_dir_all(Stage::ids_folder(folder)).unwrap()).await;
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copied(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_where_their_folder_is_an_older_copy() {
    let stage = Stage::start().await;
    stage.publish("posts", &event("a", "p")).await;
    let copy = tempfile::tempdir().unwrap();
    let stage = stage.again(|folder| copied(&Stage::ids_folder(folder), copy.path())).await;
    stage.publish("posts", &event("b", "p")).await;
    stage.publish("posts", &event("c", "q")).await;
    let stage = stage
        .again(|folder| {
            std::fs::remove_dir_all(Stage::ids_folder(folder)).unwrap();
            copied(copy.path(), &Stage::ids_folder(folder));
        })
        .await;
    for (id, subject) in [("a", "p"), ("b", "p"), ("c", "q")] {
        assert_eq!(stage.publish("posts", &event(id, subject)).await.0, StatusCode::OK, "{id}");
    }
    assert_eq!(stage.all("posts").await.len(), 3);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_log_does_not_have_is_new_again() {
    let stage = Stage::start().await;
    stage.publish("posts", &event("a", "p")).await;
    let copy = tempfile::tempdir().unwrap();
    let stage = stage.again(|folder| copied(&folder.join("log"), copy.path())).await;
    stage.publish("posts", &event("b", "p")).await;
    let stage = stage
        .again(|folder| {
            std::fs::remove_dir_all(folder.join("log")).unwrap();
            copied(copy.path(), &folder.join("log"));
        })
        .await;
    assert_eq!(stage.publish("posts", &event("a", "p")).await.0, StatusCode::OK);
    assert_eq!(stage.publish("posts", &event("b", "p")).await.0, StatusCode::CREATED);
    assert_eq!(stage.publish("posts", &event("b", "p")).await.0, StatusCode::OK);
    assert_eq!(stage.all("posts").await.len(), 2);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_batch_is_stored_if_one_id_of_it_was_used_for_another_event() {
    let stage = Stage::start().await;
    stage.publish("posts", &event("1", "p")).await;
    let mut other = event("1", "p");
    other["data"] = json!("other");
    let body = json!([event("2", "p"), other, event("3", "q")]).to_string();
    let (status, problem) = stage.post("/topics/posts/events", BATCH, body).await;
    assert_eq!((status, &problem["index"]), (StatusCode::CONFLICT, &json!(1)));
    assert_eq!(stage.all("posts").await.len(), 1);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_an_outbox_feeds_takes_nothing_else() {
    let stage = Stage::start().await;
    let name = ServiceName::new("orders").unwrap();
    let topic =
        stage.bus.ensure_topic(&TopicSpec::new(name.clone(), Generations::first(4).unwrap())).await.unwrap();
    stage.bus.raise_epoch(&name, topic.incarnation, 1).await.unwrap();
    let (status, problem) = stage.publish("orders", &event("1", "p")).await;
    assert_eq!(
        (status, &problem["type"]),
        (StatusCode::CONFLICT, &json!("urn:tombolo:problem:fed-by-outbox"))
    );
    assert!(stage.bus.tails(&name).await.unwrap().iter().all(|tail| tail.sequence == 0));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_cannot_feed_a_topic_that_the_bus_feeds() {
    let stage = Stage::start().await;
    stage.publish("posts", &event("1", "p")).await;
    let name = ServiceName::new("posts").unwrap();
    let topic = stage.bus.topic(&name).await.unwrap();
    assert!(is_fed_by_bus(topic.epoch) && topic.epoch > FED_BY_BUS);
    let refused = stage.bus.raise_epoch(&name, topic.incarnation, 1).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::OlderEpoch);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_topic_again_does_not_disturb_who_publishes_to_it() {
    let stage = Stage::start().await;
    let make = async |partitions: u32| {
        let request =
            stage.client.put(stage.at("/topics/posts")).body(json!({"partitions": partitions}).to_string());
        crate::stage::read(request.send().await.unwrap()).await
    };
    assert_eq!(make(3).await.1["generations"], json!([3]));
    for id in 0..20 {
        assert_eq!(stage.publish("posts", &event(&id.to_string(), "p")).await.0, StatusCode::CREATED);
        assert_eq!(make(3).await.0, StatusCode::OK);
    }
    assert_eq!(make(4).await.0, StatusCode::CONFLICT);
    assert_eq!(make(0).await.0, StatusCode::BAD_REQUEST);
    stage.end().await;
}
