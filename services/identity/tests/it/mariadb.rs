//! Identity on MariaDB, where transactions run beside each other.

use std::env;
use std::sync::Arc;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use tombolo::bus::Bus;
use tombolo::mysql::Mysql;
use tombolo::{Running, Settings};
use uuid::Uuid;

use crate::stage::{OPERATOR, PASSWORD, Stage, Tokens};

/// A database of a test's own, which goes with it.
struct Scratch {
    server: String,
    name: String,
}

impl Scratch {
    /// None, with a line that says so, where there is no server.
    fn new() -> Option<Self> {
        let Some(url) = env::var("TOMBOLO_TEST_MARIADB").ok().filter(|url| !url.is_empty()) else {
            eprintln!("skipped: mariadb: TOMBOLO_TEST_MARIADB is not set; run cargo xtask test --install");
            return None;
        };
        let name = format!("identity_{}", &Uuid::new_v4().simple().to_string()[..12]);
        Some(Self { server: url.trim_end_matches('/').rsplit_once('/').unwrap().0.to_owned(), name })
    }

    async fn start(&self, stage: &Stage) -> Running<Mysql> {
        let database = Mysql::open(&format!("{}/{}", self.server, self.name)).unwrap();
        let service = tombolo_identity::service(database, stage.config()).unwrap();
        let bus = Arc::clone(&stage.bus) as Arc<dyn Bus>;
        service.bus(bus).clock(stage.clock.clone()).start(Settings::default()).await.unwrap()
    }

    async fn end(self) {
        let url = env::var("TOMBOLO_TEST_MARIADB").unwrap();
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        let drop = AssertSqlSafe(format!("DROP DATABASE {}", self.name));
        sqlx::raw_sql(drop).execute(&mut connection).await.unwrap();
    }
}

async fn post(http: &Client, at: &Running<Mysql>, path: &str, body: &Value) -> (StatusCode, Value) {
    let answer = http.post(format!("{}{path}", at.url)).json(body).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

async fn sign_in(http: &Client, at: &Running<Mysql>, email: &str) -> (StatusCode, Value) {
    post(http, at, "/sign-in", &json!({ "email": email, "password": PASSWORD })).await
}

async fn refresh(http: &Client, at: &Running<Mysql>, token: &str) -> (StatusCode, Value) {
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let answer = http.post(format!("{}/token", at.url)).form(&form).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

async fn as_operator(stage: &Stage, at: &Running<Mysql>, method: Method, path: &str) -> Value {
    let request = stage.http.request(method, format!("{}{path}", at.url));
    let answer = stage.send(request.basic_auth(OPERATOR.0, Some(OPERATOR.1))).await;
    assert!(answer.status.is_success(), "{path}: {answer:?}");
    answer.body
}

#[tokio::test]
async fn users_sign_in_refresh_and_are_blocked() {
    let Some(scratch) = Scratch::new() else { return };
    let stage = Stage::new();
    let identity = scratch.start(&stage).await;
    for email in ["ada@example.org", "adá@example.org"] {
        let body = json!({ "name": "Ada", "email": email, "password": PASSWORD });
        assert_eq!(post(&stage.http, &identity, "/users", &body).await.0, StatusCode::ACCEPTED);
    }
    let users = as_operator(&stage, &identity, Method::GET, "/users?query=ad").await;
    assert_eq!(users.as_array().unwrap().len(), 2, "é is not e: {users}");
    let body = json!({ "name": "Eve", "email": "ADA@example.org", "password": "another horse battery" });
    assert_eq!(post(&stage.http, &identity, "/users", &body).await.0, StatusCode::ACCEPTED);
    let (status, tokens) = sign_in(&stage.http, &identity, "ada@example.org").await;
    assert_eq!(status, StatusCode::OK, "the first one keeps the address: {tokens}");
    let tokens = Tokens::in_body(&tokens);

    let asked = (0..50).map(|_| refresh(&stage.http, &identity, &tokens.refresh));
    let answers = futures_util::future::join_all(asked).await;
    let mut successors: Vec<_> = answers.iter().map(|(_, body)| body["refresh_token"].clone()).collect();
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK), "{answers:?}");
    successors.dedup();
    assert_eq!(successors.len(), 1, "fifty at once give one successor");

    let orders = stage.behind("orders", stage.local_at(&identity.url)).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    let ada = stage.ask(&orders, "/who", &tokens.access).await.body["id"].as_str().unwrap().to_owned();
    as_operator(&stage, &identity, Method::POST, &format!("/users/{ada}/block")).await;
    crate::stage::eventually("orders hears of it", async || {
        stage.status(&orders, &tokens.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(sign_in(&stage.http, &identity, "ada@example.org").await.0, StatusCode::FORBIDDEN);
    let successor = successors[0].as_str().unwrap();
    assert_eq!(refresh(&stage.http, &identity, successor).await.0, StatusCode::BAD_REQUEST);
    identity.shutdown().await;
    scratch.end().await;
}

/// Blocks and unblocks beside sign-ins and refreshes of the same user, at two replicas.
#[tokio::test]
async fn what_happens_at_once_ends_in_one_order() {
    let Some(scratch) = Scratch::new() else { return };
    let stage = Stage::new();
    let (first, second) = (scratch.start(&stage).await, scratch.start(&stage).await);
    let body = json!({ "name": "Ada", "email": "ada@example.org", "password": PASSWORD });
    assert_eq!(post(&stage.http, &first, "/users", &body).await.0, StatusCode::ACCEPTED);
    let tokens = Tokens::in_body(&sign_in(&stage.http, &second, "ada@example.org").await.1);
    let me = stage.http.get(format!("{}/me", first.url)).bearer_auth(&tokens.access);
    let ada = stage.send(me).await.body["id"].as_str().unwrap().to_owned();
    for round in 0..5 {
        let (block, unblock) = (format!("/users/{ada}/block"), format!("/users/{ada}/unblock"));
        let signing = futures_util::future::join_all(
            [&first, &second, &first, &second].map(|at| sign_in(&stage.http, at, "ada@example.org")),
        );
        let blocking = async {
            as_operator(&stage, &first, Method::POST, &block).await;
            as_operator(&stage, &second, Method::POST, &unblock).await
        };
        let (signed, _) = futures_util::future::join(signing, blocking).await;
        let said = [StatusCode::OK, StatusCode::FORBIDDEN];
        assert!(signed.iter().all(|(status, _)| said.contains(status)), "round {round}: {signed:?}");
    }
    let user = as_operator(&stage, &first, Method::GET, &format!("/users/{ada}")).await;
    assert_eq!(user["blocked"], false, "{user}");
    first.shutdown().await;
    second.shutdown().await;
    scratch.end().await;
}
