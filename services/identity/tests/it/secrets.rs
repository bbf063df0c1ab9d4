//! No secret is in the database as it is, in an event, or in a refusal.

use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::json;
use tombolo::bus::Bus;
use tombolo_bus::Read;
use tombolo_event::{Cursor, ServiceName};
use tombolo_identity::SealingKey;

use crate::stage::{PASSWORD, Stage, eventually};

/// The bytes of every event that identity published.
async fn events(stage: &Stage, expected: usize) -> Vec<Vec<u8>> {
    let name = ServiceName::new("identity").unwrap();
    eventually("the events are on the bus", async || {
        let tails = stage.bus.tails(&name).await.unwrap();
        tails.iter().map(|tail| tail.sequence as usize).sum::<usize>() >= expected
    })
    .await;
    let topic = stage.bus.topic(&name).await.unwrap();
    let mut events = Vec::new();
    for partition in 0..topic.partitions() {
        let read = Read::to_tail(&name, partition, Cursor::start(topic.incarnation));
        let mut batches = stage.bus.read(read).await.unwrap();
        while let Some(batch) = batches.next().await {
            events.extend(batch.unwrap().records.into_iter().map(|record| record.bytes.to_vec()));
        }
    }
    events
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn no_secret_is_in_the_database_or_in_an_event() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, first) = identity.user("ada@example.org").await;
    let second = identity.refreshed(&first.refresh).await;
    identity.block(&ada).await;
    identity.unblock(&ada).await;
    let events = events(&stage, 3).await;
    identity.running.shutdown().await;
    let mut places: Vec<(String, Vec<u8>)> =
        events.into_iter().enumerate().map(|(n, bytes)| (format!("event {n}"), bytes)).collect();
    for entry in std::fs::read_dir(stage.folder()).unwrap() {
        let path = entry.unwrap().path();
        places.push((path.display().to_string(), std::fs::read(path).unwrap()));
    }
    assert!(places.iter().any(|(_, bytes)| holds(bytes, "ada@example.org")), "what is no secret is found");
    for (place, bytes) in &places {
        for secret in [PASSWORD, &first.refresh, &first.access, &second.refresh, &second.access] {
            assert!(!holds(bytes, secret), "a secret is in {place}");
        }
    }
    for (place, bytes) in places.iter().filter(|(place, _)| place.starts_with("event")) {
        assert!(!holds(bytes, "argon2"), "the hash of a password is in {place}");
    }
}

#[tokio::test]
async fn without_the_key_that_sealed_them_the_signing_keys_sign_nothing() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    identity.running.shutdown().await;
    let mut config = stage.config();
    config.sealing_key = SealingKey::generate().unwrap();
    let other = stage.identity_with(config).await;
    let sign_in = other.post("/sign-in", json!({ "email": "ada@example.org", "password": PASSWORD })).await;
    assert_eq!(sign_in.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(sign_in.text.contains("another key-encryption key"), "{}", sign_in.text);
    assert!(!other.refresh(&tokens.refresh).await.status.is_success());
}
