//! Identity crashed at the points of its path: what it answered is there, and its database and its topic agree.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo::Event;
use tombolo::testing::{Part, World};
use tombolo_identity::{Config, SealingKey};

use crate::stage::{ISSUER, PASSWORD};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Registered {
    user_id: String,
}

impl Event for Registered {
    const TYPE: &'static str = "identity.registered.v1";
    fn key(&self) -> String {
        self.user_id.clone()
    }
}

const POINTS: [&str; 5] = [
    "outbox.before-commit",
    "outbox.after-commit",
    "relay.before-append",
    "relay.after-append",
    "relay.after-remove",
];

/// What a request that may end in a crash was answered, if it was.
async fn ask(identity: &Part, path: &str, body: &Value) -> Option<Value> {
    let answer = identity.try_request(Method::POST, path, Some(body)).await?;
    let is_done = [StatusCode::OK, StatusCode::CREATED].contains(&answer.status);
    is_done.then(|| serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test]
async fn what_was_answered_outlives_a_crash_and_the_topic_agrees_with_the_database() {
    let world = World::new();
    let key = SealingKey::generate().unwrap();
    let identity = world
        .start(move |database| {
            let mut config = Config::new(ISSUER, key.clone());
            config.without_password = true;
            tombolo_identity::service(database, config).unwrap()
        })
        .await;
    let ada = json!({ "name": "Ada", "email": "ada@example.org", "password": PASSWORD });
    identity.post("/users", &ada).await;
    let (mut registered, mut signed_in) = (BTreeSet::new(), 0);
    for (n, point) in POINTS.iter().cycle().take(3 * POINTS.len()).enumerate() {
        identity.crash_at(point);
        let body = json!({ "name": "Bob", "email": format!("bob{n}@example.org") });
        let made = ask(&identity, "/users", &body).await;
        registered.extend(made.map(|made| made["id"].as_str().unwrap().to_owned()));
        identity.crashed().await;
        identity.restart().await;
        if ask(&identity, "/sign-in", &json!({ "email": "ada@example.org", "password": PASSWORD }))
            .await
            .is_some()
        {
            signed_in += 1;
        }
        identity.crash().await;
        identity.restart().await;
    }
    world.settle().await;
    let database = identity.database();
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT id FROM users").fetch_all(database.pool()).await.unwrap();
    let stored: BTreeSet<String> = stored.into_iter().collect();
    let said: Vec<String> =
        world.published::<Registered>().await.into_iter().map(|event| event.user_id).collect();
    assert_eq!(said.len(), stored.len(), "each once");
    assert_eq!(said.into_iter().collect::<BTreeSet<_>>(), stored);
    assert!(registered.is_subset(&stored), "what was answered is there");
    assert!(
        registered.len() >= 3 && stored.len() > registered.len(),
        "some were answered, and some only kept"
    );
    let sessions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(database.pool()).await.unwrap();
    assert_eq!((sessions, signed_in), (15, 15));
}
