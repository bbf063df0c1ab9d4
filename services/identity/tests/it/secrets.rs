//! No secret is in the database as it is, in an event, or in a refusal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::StatusCode;
use serde_json::json;
use tombolo::bus::{Bus, Log, Options};
use tombolo_identity::SealingKey;

use crate::stage::{PASSWORD, Stage, eventually};

/// Every file under a folder, with its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.push((path, bytes));
        }
    }
    files
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn no_secret_is_in_the_database_or_in_an_event() {
    let stage = Stage::new();
    let small = Options { first_segment_bytes: 64 << 10, prepare_ahead: false, ..Options::default() };
    let (log, _) = Log::open(&stage.folder().join("log"), small).unwrap();
    let identity = stage.identity_on(Arc::clone(&log) as Arc<dyn Bus>).await;
    let (ada, first) = identity.user("ada@example.org").await;
    let second = identity.refreshed(&first.refresh).await;
    identity.block(&ada).await;
    identity.unblock(&ada).await;
    eventually("the three events are on the bus", async || {
        let tails = log.tails(&"identity".parse().unwrap()).await.unwrap();
        tails.iter().map(|tail| tail.sequence).sum::<u64>() == 3
    })
    .await;
    identity.running.shutdown().await;
    log.close().await;
    let places = files(stage.folder());
    let with = |text| places.iter().filter(|(_, bytes)| holds(bytes, text)).count();
    assert!(with("ada@example.org") > 1, "what is no secret is found, in the database and in the log");
    for secret in [PASSWORD, &first.refresh, &first.access, &second.refresh, &second.access] {
        assert_eq!(with(secret), 0, "a secret is in a file");
    }
    for (path, bytes) in &places {
        let is_database = path.display().to_string().contains("identity.db");
        assert!(is_database || !holds(bytes, "argon2id"), "the hash of a password is in {}", path.display());
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
