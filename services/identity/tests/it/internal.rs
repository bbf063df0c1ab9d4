//! Internal tokens: what a call carries by itself, what a door vouches for, and what lets nobody in.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use reqwest::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tombolo::auth::door::Place;
use tombolo::auth::mutant::Mutant;
use tombolo::auth::{Auth, Caller, Door, INTERNAL_HEADER, Refusal, User, Way};
use tombolo::bus::Bus;
use tombolo::sqlite::Sqlite;
use tombolo::{App, Problem, Question, Running, Service};
use tombolo_bus::Registration;

use crate::doors::{Manner, corpus};
use crate::stage::{Answer, Stage, eventually};
use crate::stub::Own;

/// Who asks, as the callee sees it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Who {}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Seen {
    service: Option<String>,
    user: Option<String>,
    roles: Vec<String>,
}

impl Question for Who {
    const NAME: &'static str = "test.who.v1";
    type Answer = Seen;
}

async fn who(_: Who, app: App<Sqlite>) -> Result<Seen, Problem> {
    let user = match app.user() {
        Err(Refusal::Nobody) => None,
        user => Some(user?),
    };
    let service = match app.caller() {
        Err(Refusal::NoService) => None,
        caller => Some(caller?.service),
    };
    Ok(Seen {
        service,
        roles: user.clone().map(|user| user.roles).unwrap_or_default(),
        user: user.map(|user| user.id),
    })
}

/// A service that asks `next` whoever asks it, and answers the same itself.
fn asks(stage: &Stage, name: &str, next: &'static str, auth: Auth) -> Service<Sqlite> {
    let ask = async move |_: Option<User>, State(app): State<App<Sqlite>>| {
        app.call(next, &Who {}).await.map(Json).map_err(Problem::from)
    };
    let plain = async move |State(app): State<App<Sqlite>>| {
        app.call(next, &Who {}).await.map(Json).map_err(Problem::from)
    };
    let routes = Router::new()
        .route("/ask", get(ask))
        .route("/ask-unseen", get(plain))
        .route("/service", get(async |caller: Caller| caller.service))
        .route("/service-or-not", get(async |caller: Option<Caller>| Json(caller)));
    stage.asking(name, auth).routes(routes).answer(who)
}

/// A service that a test speaks for: registered with a key of the test's own.
async fn register(stage: &Stage, service: &str, keys: &[Value]) {
    let descriptor = json!({
        "service": service, "partitions": 1, "database": "none",
        "publishes": [], "subscriptions": [], "answers": [], "asks": [], "keys": keys,
    });
    let (service, descriptor) = (service.parse().unwrap(), descriptor.to_string());
    stage.bus.register(&Registration { service, replica: 1, url: String::new(), descriptor }).await.unwrap();
}

/// Asks a route with an internal token, and an access token if there is one.
pub(crate) async fn show(
    stage: &Stage,
    service: &Running<Sqlite>,
    path: &str,
    internal: &str,
    bearer: Option<&str>,
) -> Answer {
    let request = stage.http.get(format!("{}{path}", service.url)).header(INTERNAL_HEADER, internal);
    stage.send(bearer.into_iter().fold(request, |request, token| request.bearer_auth(token))).await
}

fn says(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// A door that runs for as long as it is held.
pub(crate) struct Open {
    door: Arc<Door>,
    _running: AbortOnDropHandle<()>,
}

pub(crate) async fn open(stage: &Stage, name: &str, auth: Auth) -> Open {
    let bus = Arc::clone(&stage.bus) as Arc<dyn Bus>;
    let door = Arc::new(Door::open(auth, &Place::named(name), Some(bus), &stage.clock).unwrap());
    let running = Arc::clone(&door);
    let running = tokio::spawn(async move { running.run(CancellationToken::new()).await });
    door.ready().await;
    assert!(door.is_ready());
    Open { door, _running: AbortOnDropHandle::new(running) }
}

impl Open {
    pub(crate) async fn user(&self, token: &str) -> Option<User> {
        let headers = [("authorization", format!("Bearer {token}"))];
        let headers =
            headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        self.door.check(&headers.collect(), Way::Local).await.ok().flatten()
    }

    pub(crate) fn sign(&self, user: Option<&User>, callee: &str) -> String {
        self.door.sign(user, callee).unwrap().to_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_call_carries_the_service_and_the_user_along_a_chain() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let _stock = stage.start(asks(&stage, "stock", "nobody", identity.local())).await;
    let _products = stage.start(asks(&stage, "products", "stock", identity.central())).await;
    let orders = stage.start(asks(&stage, "orders", "products", identity.local())).await;
    let asked = stage.ask(&orders, "/ask", &tokens.access).await;
    assert_eq!(asked.body, json!({ "service": "orders", "user": ada, "roles": [] }), "{asked:?}");
    // Nobody looked whether the token is right, so nobody vouches for it.
    let unseen = stage.ask(&orders, "/ask-unseen", &tokens.access).await;
    assert_eq!(unseen.body, json!({ "service": "orders", "user": null, "roles": [] }), "{unseen:?}");
    let nobody = stage.send(stage.http.get(format!("{}/ask", orders.url))).await;
    assert_eq!(nobody.body, json!({ "service": "orders", "user": null, "roles": [] }), "{nobody:?}");
}

#[tokio::test]
async fn a_route_can_be_for_services_alone() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let orders = stage.start(asks(&stage, "orders", "products", identity.local())).await;
    let gateway = open(&stage, "gateway", identity.local()).await;
    let plain = stage.ask(&orders, "/service", &tokens.access).await;
    assert_eq!(plain.status, StatusCode::UNAUTHORIZED);
    assert_eq!(plain.body["type"], "urn:tombolo:auth:service-only");
    let called = show(&stage, &orders, "/service", &gateway.sign(None, "orders"), None).await;
    assert_eq!((called.status, called.text.as_str()), (StatusCode::OK, "gateway"));
    let or_not = stage.ask(&orders, "/service-or-not", &tokens.access).await;
    assert_eq!((or_not.status, or_not.text.as_str()), (StatusCode::OK, "null"));
    let wrong = show(&stage, &orders, "/service-or-not", "a.b.c", None).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "a wrong one is refused all the same");
}

#[tokio::test]
async fn no_internal_token_of_the_corpus_lets_anybody_in_whatever_else_is_shown() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let local = stage.start(asks(&stage, "orders", "products", identity.local())).await;
    for key in [Own::new("k1", Algorithm::ES256), Own::new("k2", Algorithm::EdDSA)] {
        let (wide, other) = (Own::new("wide", Algorithm::ES384), Own::new(&key.kid, key.algorithm));
        register(&stage, "partner", &[key.jwk(), wide.jwk()]).await;
        register(&stage, "products", &[other.jwk()]).await;
        let manner = Manner::internal(&stage.clock, "partner", "orders");
        let right = manner.sign(&key);
        // The key was registered behind the service's back, which may have looked just now.
        eventually("the key is found", async || {
            show(&stage, &local, "/who", &right, None).await.status == StatusCode::OK
        })
        .await;
        let mut corpus = corpus(&key, &manner);
        corpus.push(("an access token".into(), tokens.access.clone()));
        corpus.push(("another service's key of the same name".into(), manner.sign(&other)));
        corpus.push(("a key of another curve".into(), manner.sign(&wide)));
        corpus.push(("two tokens".into(), format!("{right}, {right}")));
        assert!(corpus.len() > 75, "{}", corpus.len());
        for (what, token) in corpus {
            // Some of them no header can hold.
            if reqwest::header::HeaderValue::from_str(&token).is_err() {
                continue;
            }
            for bearer in [None, Some(tokens.access.as_str())] {
                let answer = show(&stage, &local, "/who", &token, bearer).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {token}");
                assert_eq!(answer.body["type"], "urn:tombolo:auth:internal-token-refused", "{what}");
            }
        }
        for (what, bearer) in [("an internal token as an access token", &right)] {
            assert_eq!(stage.status(&local, bearer).await, StatusCode::UNAUTHORIZED, "{what}");
            let me = identity.as_user(reqwest::Method::GET, "/me", bearer).await;
            assert_eq!(me.status, StatusCode::UNAUTHORIZED, "{what}, at identity");
        }
    }
}

#[tokio::test]
async fn behind_a_gateway_only_the_gateway_vouches_for_users() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders = stage.start(asks(&stage, "orders", "products", Auth::gateway())).await;
    let (gateway, partner) =
        (open(&stage, "gateway", identity.local()).await, open(&stage, "partner", identity.local()).await);
    let user = gateway.user(&tokens.access).await.unwrap();
    let through = show(&stage, &orders, "/who", &gateway.sign(Some(&user), "orders"), None).await;
    assert_eq!((through.status, &through.body["id"]), (StatusCode::OK, &json!(ada)), "{through:?}");
    let anonymous = gateway.sign(None, "orders");
    assert_eq!(
        show(&stage, &orders, "/who", &anonymous, None).await.body["type"],
        "urn:tombolo:auth:sign-in"
    );
    assert_eq!(show(&stage, &orders, "/maybe", &anonymous, Some(&tokens.access)).await.text, "null");
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::UNAUTHORIZED, "past the gateway");
    assert_eq!(stage.ask(&orders, "/maybe", &tokens.access).await.status, StatusCode::UNAUTHORIZED);
    let of_partner = partner.sign(Some(&user), "orders");
    assert_eq!(show(&stage, &orders, "/who", &of_partner, None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(show(&stage, &orders, "/service", &of_partner, None).await.text, "partner");
    let named = stage.start(asks(&stage, "other", "products", Auth::gateway().doors(&["partner"]))).await;
    let taken = show(&stage, &named, "/who", &partner.sign(Some(&user), "other"), None).await;
    assert_eq!(taken.status, StatusCode::OK, "{taken:?}");
}

#[tokio::test]
async fn a_block_ends_what_a_door_has_vouched_for() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders = stage.start(asks(&stage, "orders", "products", Auth::gateway())).await;
    let gateway = open(&stage, "gateway", identity.local()).await;
    let user = gateway.user(&tokens.access).await.unwrap();
    let token = gateway.sign(Some(&user), "orders");
    assert_eq!(show(&stage, &orders, "/who", &token, None).await.status, StatusCode::OK);
    identity.block(&ada).await;
    eventually("orders hears of it", async || {
        show(&stage, &orders, "/who", &token, None).await.status == StatusCode::UNAUTHORIZED
    })
    .await;
    eventually("the gateway hears of it", async || gateway.user(&tokens.access).await.is_none()).await;
    let late = open(&stage, "late", identity.local()).await;
    assert!(late.user(&tokens.access).await.is_none(), "a door that opens later knows it, too");
}

#[tokio::test]
async fn an_internal_token_is_short_and_ends_with_the_token_that_it_stands_for() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let orders = stage.start(asks(&stage, "orders", "products", identity.local())).await;
    let gateway = open(&stage, "gateway", identity.local()).await;
    let user = gateway.user(&tokens.access).await.unwrap();
    let (now, token) = (stage.clock.now().as_second(), gateway.sign(Some(&user), "orders"));
    assert_eq!(says(&token)["exp"], now + 60);
    let ends = says(&tokens.access)["exp"].as_i64().unwrap();
    stage.clock.advance(Duration::from_secs(15 * 60 - 7));
    let last = gateway.sign(Some(&user), "orders");
    assert_eq!(says(&last)["exp"], ends);
    assert_eq!(
        show(&stage, &orders, "/who", &token, None).await.status,
        StatusCode::UNAUTHORIZED,
        "it has ended"
    );
    assert_eq!(show(&stage, &orders, "/who", &last, None).await.status, StatusCode::OK);
    stage.clock.advance(Duration::from_secs(13));
    assert_eq!(
        show(&stage, &orders, "/who", &last, None).await.status,
        StatusCode::UNAUTHORIZED,
        "remembered or not"
    );
}

#[tokio::test]
async fn a_token_for_another_service_is_not_taken_though_its_key_is_known() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let gateway = open(&stage, "gateway", identity.local()).await;
    let user = gateway.user(&tokens.access).await.unwrap();
    let token = gateway.sign(Some(&user), "products");
    let orders = stage.behind("orders", Auth::gateway()).await;
    assert_eq!(show(&stage, &orders, "/who", &token, None).await.status, StatusCode::UNAUTHORIZED);
    let mutant = stage.behind("mutant", Auth::gateway().with_mutant(Mutant::TakesForOthers)).await;
    assert_eq!(
        show(&stage, &mutant, "/who", &token, None).await.status,
        StatusCode::OK,
        "the mutant is caught"
    );
}

#[tokio::test]
async fn a_service_that_was_started_again_is_known_by_its_new_key_alone() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let orders = stage.start(asks(&stage, "orders", "products", identity.local())).await;
    let first = open(&stage, "gateway", identity.local()).await;
    let old = first.sign(None, "orders");
    assert_eq!(show(&stage, &orders, "/service", &old, None).await.status, StatusCode::OK);
    drop(first);
    let second = open(&stage, "gateway", identity.local()).await;
    let new = second.sign(None, "orders");
    eventually("the new key is found", async || {
        show(&stage, &orders, "/service", &new, None).await.status == StatusCode::OK
    })
    .await;
    assert_eq!(show(&stage, &orders, "/service", &old, None).await.status, StatusCode::UNAUTHORIZED);
}
