//! Who is asking, found out at the door: a token is checked once, and the service behind gets the gateway's own word for it.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tombolo::Clock;
use tombolo::auth::door::Place;
use tombolo::auth::{Auth, Door};
use tombolo_gateway::{Gateway, Outside};

use crate::stage::{Service, get as ask, settings, status};

const ISSUER: &str = "http://issuer.test";

/// An issuer with one key.
struct Issuer {
    key: EncodingKey,
    keys_at: String,
}

impl Issuer {
    async fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("k1".into());
        let keys = json!({ "keys": [jwk] });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keys_at = format!("http://{}/keys", listener.local_addr().unwrap());
        let routes = Router::new().route("/keys", get(async move || Json(keys.clone())));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { key, keys_at }
    }

    fn token(&self, user: &str) -> String {
        let mut header = Header::new(Algorithm::ES256);
        (header.typ, header.kid) = (Some("at+jwt".into()), Some("k1".into()));
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": "tombolo", "iat": now, "exp": now + 600, "jti": "j", "client_id": "c", "roles": [],
        });
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    async fn gateway(&self, text: &str) -> Gateway {
        let auth = Auth::local(ISSUER).keys_at(&self.keys_at);
        let door = Door::open(auth, &Place::named("gateway"), None, &Clock::default()).unwrap();
        Gateway::start(settings(text), Outside { log: None, door: Some(Arc::new(door)) }).await.unwrap()
    }
}

fn route(service: &Service, lines: &str) -> String {
    format!(
        "[[gateway.route]]\nname = \"all\"\nupstreams = [\"{}\"]\ncallee = \"orders\"\n{lines}\n",
        service.url()
    )
}

/// What the gateway vouched for in the last request that the service saw.
fn vouched(service: &Service) -> Value {
    let headers = service.last().headers;
    let token = headers["tombolo-internal-token"].to_str().unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&claims).unwrap()
}

#[tokio::test]
async fn a_token_is_checked_once_and_the_service_gets_the_gateways_word() {
    let (issuer, service) = (Issuer::new().await, Service::start("orders").await);
    let gateway = issuer.gateway(&route(&service, "auth = \"required\"")).await;
    let bearer = format!("Authorization: Bearer {}\r\n", issuer.token("ada"));
    let forged = format!(
        "{bearer}Tombolo-Internal-Token: forged\r\nTombolo_Internal_Token: forged\r\nX-User-Id: admin\r\n"
    );
    assert_eq!(status(&ask(&gateway, "/", &forged).await), 200);
    let claims = vouched(&service).to_string();
    assert!(
        claims.contains("\"ada\"") && claims.contains("\"orders\"") && claims.contains("gateway"),
        "{claims}"
    );
    let headers = service.last().headers;
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-user-id"));
    assert_eq!(headers.get_all("tombolo-internal-token").iter().count(), 1);
    for wrong in ["", "Authorization: Bearer nothing\r\n", &bearer.replace("Bearer ey", "Bearer ez")] {
        let before = service.requests();
        let answer = ask(&gateway, "/", wrong).await;
        assert_eq!(status(&answer), 401, "{wrong}");
        assert!(
            answer.contains("urn:tombolo:auth:") && answer.contains("www-authenticate: Bearer"),
            "{answer}"
        );
        assert!(answer.contains("x-request-id: "));
        assert_eq!(service.requests(), before);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn who_shows_no_token_is_nobody_where_that_is_enough() {
    let (issuer, service) = (Issuer::new().await, Service::start("orders").await);
    let gateway = issuer.gateway(&route(&service, "auth = \"optional\"")).await;
    assert_eq!(status(&ask(&gateway, "/", "Tombolo-Internal-Token: forged\r\n").await), 200);
    let claims = vouched(&service).to_string();
    assert!(claims.contains("\"orders\"") && !claims.contains("ada"), "{claims}");
    assert_eq!(status(&ask(&gateway, "/", "Authorization: Bearer nothing\r\n").await), 401);
    gateway.stop().await;
}

#[tokio::test]
async fn a_route_that_passes_passes_the_token_and_one_that_takes_none_does_not() {
    let (issuer, service) = (Issuer::new().await, Service::start("orders").await);
    for (auth, passes) in [("pass", true), ("none", false)] {
        let gateway = issuer.gateway(&route(&service, &format!("auth = \"{auth}\""))).await;
        ask(&gateway, "/", "Authorization: Bearer mine\r\nTombolo-Internal-Token: forged\r\n").await;
        let headers = service.last().headers;
        assert_eq!(headers.contains_key("authorization"), passes);
        assert!(!headers.contains_key("tombolo-internal-token"));
        gateway.stop().await;
    }
}

#[tokio::test]
async fn users_are_counted_and_held_apart() {
    let (issuer, service) = (Issuer::new().await, Service::start("orders").await);
    let rate = "auth = \"required\"\nrate = { by = \"user\", per_s = 1, burst = 2 }";
    let gateway = issuer.gateway(&route(&service, rate)).await;
    let (ada, bob) = (issuer.token("ada"), issuer.token("bob"));
    let mut seen = Vec::new();
    for token in [&ada, &ada, &ada, &bob] {
        seen.push(status(&ask(&gateway, "/", &format!("Authorization: Bearer {token}\r\n")).await));
    }
    assert_eq!(seen, [200, 200, 429, 200]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_route_that_asks_for_tokens_needs_an_issuer() {
    let text = "[[gateway.route]]\nservice = \"a\"\nauth = \"required\"\n";
    let error = Gateway::start(settings(text), Outside::default()).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("asks for a token") && error.contains("issuer = "), "{error}");
}
