//! Registering, signing in and out, refreshing: what a user does.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::stage::{PASSWORD, Stage, eventually};

#[tokio::test]
async fn whoever_signed_in_is_known_at_a_service_under_each_check() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (id, tokens) = identity.user("ada@example.org").await;
    let local = stage.behind("orders", identity.local()).await;
    let central = stage.behind("products", identity.central()).await;
    for service in [&local, &central] {
        let who = stage.ask(service, "/who", &tokens.access).await;
        assert_eq!((who.status, who.body["id"].as_str()), (StatusCode::OK, Some(id.as_str())), "{who:?}");
        let nobody = stage.send(stage.http.get(format!("{}/who", service.url))).await;
        assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
        assert_eq!(nobody.headers["www-authenticate"], "Bearer");
        assert_eq!(nobody.body["type"], "urn:tombolo:auth:sign-in");
        let maybe = stage.send(stage.http.get(format!("{}/maybe", service.url))).await;
        assert_eq!((maybe.status, maybe.text.as_str()), (StatusCode::OK, "null"));
        let wrong = stage.ask(service, "/maybe", "a.b.c").await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "a wrong token is not nobody");
        let admin = stage.ask(service, "/admin", &tokens.access).await;
        assert_eq!(admin.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_token_ends_by_itself_and_the_refresh_token_gives_another() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    stage.clock.advance(Duration::from_secs(15 * 60 - 1));
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    stage.clock.advance(Duration::from_secs(7));
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::UNAUTHORIZED);
    assert_eq!(identity.as_user(Method::GET, "/me", &tokens.access).await.status, StatusCode::UNAUTHORIZED);
    let next = identity.refreshed(&tokens.refresh).await;
    assert_eq!(stage.status(&orders, &next.access).await, StatusCode::OK);
}

#[tokio::test]
async fn fifty_refreshes_at_once_give_one_successor() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let all = (0..50).map(|_| identity.refreshed(&tokens.refresh));
    let all = futures_util::future::join_all(all).await;
    let successors: BTreeSet<_> = all.into_iter().map(|tokens| tokens.refresh).collect();
    assert_eq!(successors.len(), 1);
    let rows = stage.ground().await.count("SELECT count(*) FROM refresh_tokens").await;
    assert_eq!(rows, 2, "the first token and its one successor");
}

#[tokio::test]
async fn an_old_refresh_token_shown_again_ends_the_session_everywhere() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, first) = identity.user("ada@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    let second = identity.refreshed(&first.refresh).await;
    let third = identity.refreshed(&second.refresh).await;
    // Within the grace, but its successor was used.
    let replayed = identity.refresh(&first.refresh).await;
    assert_eq!(
        (replayed.status, replayed.body["error"].as_str()),
        (StatusCode::BAD_REQUEST, Some("invalid_grant"))
    );
    assert_eq!(identity.refresh(&third.refresh).await.status, StatusCode::BAD_REQUEST, "the family is gone");
    assert_eq!(identity.as_user(Method::GET, "/me", &third.access).await.status, StatusCode::UNAUTHORIZED);
    eventually("orders hears that the session has ended", async || {
        stage.status(&orders, &third.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
}

#[tokio::test]
async fn a_used_refresh_token_gives_nothing_once_the_grace_is_over() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, first) = identity.user("ada@example.org").await;
    let second = identity.refreshed(&first.refresh).await;
    stage.clock.advance(Duration::from_secs(11));
    assert_eq!(identity.refresh(&first.refresh).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(identity.refresh(&second.refresh).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    stage.clock.advance(Duration::from_secs(29 * 24 * 3600));
    let tokens = identity.refreshed(&tokens.refresh).await;
    stage.clock.advance(Duration::from_secs(31 * 24 * 3600));
    assert_eq!(identity.refresh(&tokens.refresh).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn signing_out_ends_one_session_or_all() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, here) = identity.user("ada@example.org").await;
    let (there, elsewhere) =
        (identity.sign_in("ada@example.org").await, identity.sign_in("ada@example.org").await);
    let orders = stage.behind("orders", identity.local()).await;
    let out = identity.as_user(Method::POST, "/sign-out", &here.access).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    eventually("orders hears of it", async || {
        stage.status(&orders, &here.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(stage.status(&orders, &there.access).await, StatusCode::OK);
    let out = identity.as_user(Method::POST, "/sign-out/everywhere", &there.access).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    eventually("orders hears of it", async || {
        stage.status(&orders, &elsewhere.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    let again = identity.sign_in("ada@example.org").await;
    assert_eq!(stage.status(&orders, &again.access).await, StatusCode::OK);
}

#[tokio::test]
async fn a_new_password_ends_every_session_and_the_old_one_signs_nobody_in() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let change = |current: &str| {
        let body = json!({ "current": current, "new": "another horse battery" });
        stage.send(stage.http.post(identity.url("/me/password")).bearer_auth(&tokens.access).json(&body))
    };
    assert_eq!(change("wrong horse battery").await.status, StatusCode::UNAUTHORIZED);
    let changed = change(PASSWORD).await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    let access = changed.body["access_token"].as_str().unwrap();
    assert_eq!(identity.as_user(Method::GET, "/me", access).await.status, StatusCode::OK);
    assert_eq!(identity.as_user(Method::GET, "/me", &tokens.access).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(identity.refresh(&tokens.refresh).await.status, StatusCode::BAD_REQUEST);
    let old = identity.post("/sign-in", json!({ "email": "ada@example.org", "password": PASSWORD })).await;
    assert_eq!(old.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nobody_is_told_whether_an_account_exists() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let register = |email: &str| {
        identity.post("/users", json!({ "name": "Ada", "email": email, "password": "another horse" }))
    };
    identity.register("ada@example.org").await;
    let (taken, free) = (register("Ada@Example.org").await, register("bob@example.org").await);
    assert_eq!((taken.status, &taken.text), (free.status, &free.text));
    let sign_in =
        |email: &str| identity.post("/sign-in", json!({ "email": email, "password": "wrong horse" }));
    let (known, unknown) = (sign_in("ada@example.org").await, sign_in("eve@example.org").await);
    assert_eq!((known.status, &known.text), (unknown.status, &unknown.text));
    assert_eq!(known.status, StatusCode::UNAUTHORIZED);
    identity.sign_in("ada@example.org").await;
    let users = stage.ground().await.count("SELECT count(*) FROM users").await;
    assert_eq!(users, 2, "a user whose address was taken is not kept");
}

#[tokio::test]
async fn guessing_ends_soon_alike_for_accounts_that_are_there_and_not() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    identity.register("ada@example.org").await;
    for email in ["ada@example.org", "eve@example.org"] {
        let guess = || identity.post("/sign-in", json!({ "email": email, "password": "wrong horse" }));
        let answers = futures_util::future::join_all((0..30).map(|_| guess())).await;
        let refused = answers.iter().filter(|answer| answer.status == StatusCode::UNAUTHORIZED).count();
        assert!((9..=10).contains(&refused), "{refused} guesses at {email} were checked");
        let limited = answers.iter().find(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).unwrap();
        assert_eq!(limited.body["type"], "urn:tombolo:identity:too-many-guesses");
        assert!(limited.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    }
}

#[tokio::test]
async fn whoever_registers_without_a_password_cannot_sign_in() {
    let stage = Stage::new();
    let strict = stage.identity().await;
    let body = json!({ "name": "Ada", "email": "ada@example.org" });
    assert_eq!(strict.post("/users", body.clone()).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    strict.running.shutdown().await;
    let mut config = stage.config();
    config.without_password = true;
    let open = stage.identity_with(config).await;
    let made = open.post("/users", body).await;
    assert_eq!((made.status, made.body["name"].as_str()), (StatusCode::CREATED, Some("Ada")), "{made:?}");
    let sign_in = open.post("/sign-in", json!({ "email": "ada@example.org", "password": "" })).await;
    assert_eq!(sign_in.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn administrators_find_users_and_give_roles_and_others_do_not() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let (_, bob) = identity.user("bob@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    for (method, path) in [
        (Method::GET, "/users".to_owned()),
        (Method::GET, format!("/users/{ada}")),
        (Method::POST, format!("/users/{ada}/block")),
        (Method::POST, format!("/users/{ada}/unblock")),
        (Method::POST, "/keys/rotate".to_owned()),
    ] {
        let refused = identity.as_user(method, &path, &bob.access).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
    }
    let roles = json!({ "roles": ["admin", "seller"] });
    let given = identity.as_operator(Method::PUT, &format!("/users/{ada}/roles"), Some(roles)).await;
    assert_eq!(given.status, StatusCode::OK, "{given:?}");
    eventually("orders hears of the role, with the old token", async || {
        stage.ask(&orders, "/admin", &tokens.access).await.status == StatusCode::OK
    })
    .await;
    let found = identity.as_user(Method::GET, "/users?query=bob", &tokens.access).await;
    assert_eq!(found.body.as_array().map(Vec::len), Some(1), "{found:?}");
    identity.as_operator(Method::PUT, &format!("/users/{ada}/roles"), Some(json!({ "roles": [] }))).await;
    assert_eq!(identity.as_user(Method::GET, "/users", &tokens.access).await.status, StatusCode::FORBIDDEN);
    eventually("orders hears that the role is gone", async || {
        stage.ask(&orders, "/admin", &tokens.access).await.status == StatusCode::FORBIDDEN
    })
    .await;
}

#[tokio::test]
async fn every_refusal_is_a_problem_document_with_its_type() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let post = |path: &str, kind: &'static str, body: &'static str| {
        stage.send(stage.http.post(identity.url(path)).header("content-type", kind).body(body))
    };
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    for (path, kind, body, status) in [
        ("/users", json, "{", 400),
        ("/users", json, r#"{"name":1}"#, 422),
        ("/users", "text/plain", "{}", 415),
        ("/users", json, r#"{"name":"","email":"a@b","password":"12345678"}"#, 422),
        ("/users", json, r#"{"name":"A","email":"ab","password":"12345678"}"#, 422),
        ("/users", json, r#"{"name":"A","email":"a@b","password":"1234567"}"#, 422),
        ("/sign-in", json, "[]", 422),
        ("/sign-in", json, r#"{"email":"a@b","password":"12345678"}"#, 401),
        ("/sign-out", json, "", 401),
        ("/token", form, "", 400),
        ("/token", json, "{}", 400),
        ("/token", form, "grant_type=password&refresh_token=a", 400),
        ("/token", form, "grant_type=refresh_token&refresh_token=a", 400),
        ("/token", form, "grant_type=refresh_token&refresh_token=a&refresh_token=b", 400),
        ("/introspect", form, "token=a", 401),
        ("/users/nobody/block", form, "", 401),
    ] {
        let refused = post(path, kind, body).await;
        assert_eq!(refused.status.as_u16(), status, "{path} {body}: {refused:?}");
        assert_eq!(refused.headers["content-type"], "application/problem+json", "{path} {body}");
        let uri = refused.body["type"].as_str().unwrap_or_default();
        assert!(uri.starts_with("urn:tombolo:"), "{path} {body}: {refused:?}");
    }
    let none = identity.as_operator(Method::POST, "/users/nobody/block", None).await;
    assert_eq!(
        (none.status, none.body["type"].as_str()),
        (StatusCode::NOT_FOUND, Some("urn:tombolo:identity:no-user"))
    );
}

/// `é` is not `e`, and a zero byte is in no text that a database of any kind keeps.
#[tokio::test]
async fn an_address_that_only_looks_alike_is_another_and_one_that_nobody_can_have_is_nobodys() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    for email in ["ada@example.org", "adá@example.org"] {
        identity.register(email).await;
        identity.sign_in(email).await;
    }
    let users = identity.as_operator(Method::GET, "/users?query=AD", None).await;
    assert_eq!(users.body.as_array().unwrap().len(), 2, "{users:?}");
    let strange = json!({ "name": "Eve", "email": "eve\0@example.org", "password": PASSWORD });
    assert_eq!(identity.post("/users", strange.clone()).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(identity.post("/sign-in", strange).await.status, StatusCode::UNAUTHORIZED);
    for (method, path) in [(Method::GET, "/users/%00"), (Method::POST, "/users/%00/block")] {
        assert_eq!(identity.as_operator(method, path, None).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}
