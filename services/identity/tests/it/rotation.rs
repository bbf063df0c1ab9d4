//! The keys: rotated without a false refusal, gone when their tokens are, and asked for no more often than they may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tombolo::auth::mutant::Mutant;

use crate::stage::{ISSUER, Stage};
use crate::stub::{Own, Stub};

/// Longer than a key is published before it signs.
const PUBLISHED: Duration = Duration::from_secs(6 * 60);

#[tokio::test]
async fn rotations_under_load_refuse_nobody() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, first) = identity.user("ada@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    let over = Arc::new(AtomicBool::new(false));
    let load = async {
        let (mut tokens, mut checked, mut kids) = (first, 0, std::collections::BTreeSet::new());
        while !over.load(Ordering::SeqCst) {
            let next = identity.refreshed(&tokens.refresh).await;
            kids.insert(jsonwebtoken::decode_header(&next.access).unwrap().kid.unwrap());
            for token in [&tokens.access, &next.access] {
                assert_eq!(stage.status(&orders, token).await, StatusCode::OK, "after {checked} checks");
                checked += 1;
            }
            tokens = next;
        }
        (checked, kids.len())
    };
    let rotating = async {
        for _ in 0..4 {
            stage.clock.advance(PUBLISHED);
            let rotated = identity.as_operator(Method::POST, "/keys/rotate", None).await;
            assert_eq!(rotated.status, StatusCode::NO_CONTENT, "{rotated:?}");
            // A few tokens of this key, before the next one.
            for _ in 0..5 {
                identity.sign_in("ada@example.org").await;
            }
        }
        over.store(true, Ordering::SeqCst);
    };
    let ((checked, kids), ()) = futures_util::join!(load, rotating);
    assert!(checked > 10 && kids >= 4, "{checked} checks of tokens by {kids} keys");
}

#[tokio::test]
async fn a_key_that_services_may_not_have_yet_does_not_sign() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    identity.user("ada@example.org").await;
    stage.clock.advance(PUBLISHED);
    assert_eq!(identity.as_operator(Method::POST, "/keys/rotate", None).await.status, StatusCode::NO_CONTENT);
    let again = identity.as_operator(Method::POST, "/keys/rotate", None).await;
    assert_eq!(
        (again.status, again.body["type"].as_str()),
        (StatusCode::CONFLICT, Some("urn:tombolo:identity:key-too-new"))
    );
}

#[tokio::test]
async fn the_keys_are_rotated_when_it_is_time() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let first = kid(&tokens.access);
    stage.clock.advance(Duration::from_secs(29 * 24 * 3600));
    let tokens = identity.refreshed(&tokens.refresh).await;
    assert_eq!(kid(&tokens.access), first);
    stage.clock.advance(Duration::from_secs(2 * 24 * 3600));
    let tokens = identity.refreshed(&tokens.refresh).await;
    assert_ne!(kid(&tokens.access), first);
}

#[tokio::test]
async fn an_old_key_signs_nobody_in_once_the_tokens_of_its_time_have_ended() {
    let stage = Stage::new();
    let mut config = stage.config();
    config.token_life = Duration::from_secs(24 * 3600);
    let generous = stage.identity_with(config).await;
    let (_, tokens) = generous.user("ada@example.org").await;
    generous.running.shutdown().await;
    let identity = stage.identity().await;
    let orders = stage.behind("orders", identity.local()).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    stage.clock.advance(PUBLISHED);
    assert_eq!(identity.as_operator(Method::POST, "/keys/rotate", None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK, "as long as a token lives");
    stage.clock.advance(Duration::from_secs(15 * 60 + 60));
    assert_eq!(identity.as_user(Method::GET, "/me", &tokens.access).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::UNAUTHORIZED);
}

/// A flood of tokens that name keys which nobody knows, and how often the issuer was asked meanwhile.
async fn flood(stage: &Stage, name: &str, mutant: Option<Mutant>) -> (usize, usize) {
    let key = Own::new("k1", Algorithm::ES256);
    let stub = Stub::new(vec![key.jwk()]).await;
    let auth = mutant.into_iter().fold(stub.auth().without_blocks(), |auth, mutant| auth.with_mutant(mutant));
    let service = stage.behind(name, auth).await;
    let now = stage.clock.now().as_second();
    let claims = json!({ "iss": ISSUER, "sub": "ada", "aud": "tombolo", "exp": now + 6_000, "iat": now, "jti": "t", "client_id": "c" });
    let token = |kid: &str| key.sign(&json!({ "typ": "at+jwt", "alg": "ES256", "kid": kid }), &claims);
    assert_eq!(stage.status(&service, &token("k1")).await, StatusCode::OK);
    let pour = async || {
        let unknown = (0..100).map(|n| token(&format!("unknown-{n}")));
        let asked = unknown.map(|token| async move { (stage, token) });
        for (stage, token) in futures_util::future::join_all(asked).await {
            assert_eq!(stage.status(&service, &token).await, StatusCode::UNAUTHORIZED);
        }
    };
    pour().await;
    let at_first = stub.asked();
    stage.clock.advance(Duration::from_secs(31));
    futures_util::future::join(pour(), pour()).await;
    let later = stub.asked() - at_first;
    let new = Own { kid: "k2".into(), ..key.clone() };
    stub.publish(vec![key.jwk(), new.jwk()]);
    stage.clock.advance(Duration::from_secs(31));
    assert_eq!(
        stage.status(&service, &token("k2")).await,
        StatusCode::OK,
        "a new key is found in the next interval"
    );
    (at_first, later)
}

#[tokio::test]
async fn a_flood_of_unknown_keys_asks_the_issuer_once_in_an_interval() {
    let stage = Stage::new();
    assert_eq!(flood(&stage, "orders", None).await, (1, 1));
    let (at_first, _) = flood(&stage, "products", Some(Mutant::AsksEachTime)).await;
    assert!(at_first > 50, "the mutant is caught: {at_first}");
}

#[tokio::test]
async fn tokens_may_be_signed_by_ed25519_too_and_the_change_refuses_nobody() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, by_curve) = identity.user("ada@example.org").await;
    identity.running.shutdown().await;
    let mut config = stage.config();
    config.algorithm = Algorithm::EdDSA;
    let identity = stage.identity_with(config).await;
    let orders = stage.behind("orders", identity.local()).await;
    for _ in 0..2 {
        stage.clock.advance(PUBLISHED);
        assert_eq!(
            identity.as_operator(Method::POST, "/keys/rotate", None).await.status,
            StatusCode::NO_CONTENT
        );
    }
    let by_edwards = identity.sign_in("ada@example.org").await;
    assert_eq!(jsonwebtoken::decode_header(&by_edwards.access).unwrap().alg, Algorithm::EdDSA);
    for tokens in [by_curve, by_edwards] {
        assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
        assert_eq!(identity.as_user(Method::GET, "/me", &tokens.access).await.status, StatusCode::OK);
    }
}
