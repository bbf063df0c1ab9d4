//! Bodies and ids that nobody should send.

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::doors::order;
use crate::running::Shop;

/// Sent as it is.
async fn raw(shop: &Shop, service: &str, path: &str, kind: &str, body: &str) -> (StatusCode, String) {
    let request = shop.client.request(Method::POST, format!("{}{path}", shop.url(service)));
    let response = request.header(header::CONTENT_TYPE, kind).body(body.to_owned()).send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

#[tokio::test]
async fn a_body_that_is_not_what_the_route_takes_gets_a_4xx_that_says_what_is_wrong() {
    let shop = Shop::start().await;
    let routes = [("users", "/users"), ("products", "/products"), ("orders", "/orders")];
    for (service, path) in routes {
        for (kind, body, status) in [
            ("application/json", "", 400),
            ("application/json", "{", 400),
            ("application/json", "[]", 422),
            ("application/json", "{}", 422),
            ("text/plain", "{}", 415),
        ] {
            let (found, said) = raw(&shop, service, path, kind, body).await;
            assert_eq!(found.as_u16(), status, "{service} {kind} {body:?}: {said}");
            assert!(said.len() > 20, "{service} {kind} {body:?}: {said}");
        }
        let (found, said) = raw(&shop, service, path, "application/json", "{}").await;
        assert!(said.contains("missing field"), "{found} {said}");
    }
    shop.end().await;
}

#[tokio::test]
async fn a_value_that_cannot_be_meant_is_refused_by_name() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    let long = "x".repeat(1_500_000);
    let wrong: Vec<(&str, &str, Value, &str)> = vec![
        ("users", "/users", json!({ "name": " ", "email": "a@b" }), "name"),
        ("users", "/users", json!({ "name": "a", "email": "nowhere" }), "email"),
        ("users", "/users", json!({ "name": long, "email": "a@b" }), "name"),
        ("products", "/products", json!({ "title": "", "price_cents": 1 }), "title"),
        ("products", "/products", json!({ "title": "a", "price_cents": -1 }), "price_cents"),
        ("products", "/products", json!({ "title": long, "price_cents": 1 }), "title"),
        ("orders", "/orders", order(&ada, &kite, 0), "quantity"),
        ("orders", "/orders", order(&ada, &kite, -3), "quantity"),
        ("orders", "/orders", order(&ada, &kite, i64::MAX), "quantity"),
    ];
    for (service, path, body, named) in wrong {
        let answer = shop.post(service, path, &body).await;
        assert_eq!(
            answer.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{service}: {:.300}",
            format!("{answer:?}")
        );
        let detail = answer.detail();
        assert!(detail.contains(named) && detail.contains("expected"), "{service} {named}: {:.300}", detail);
        assert!(detail.len() < 1_000, "the answer repeats the whole body");
    }
    let path = format!("/products/{kite}");
    let answer = shop.patch("products", &path, &json!({ "price_cents": -1 })).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
    let unchanged = shop.get("products", &path).await;
    assert_eq!(unchanged.body["price_cents"], 2_490);
    shop.end().await;
}

#[tokio::test]
async fn an_odd_id_is_an_unknown_one_and_nothing_worse() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    for id in
        ["0", "%20", "%00", "..%2F..%2Fetc", "'%20OR%201=1--", "%F0%9F%AA%81", "a%22b", &"9".repeat(3_000)]
    {
        for (service, path) in [
            ("users", format!("/users/{id}")),
            ("products", format!("/products/{id}")),
            ("orders", format!("/orders/{id}")),
        ] {
            let answer = shop.get(service, &path).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{service} {id}: {answer:?}");
            assert!(!answer.detail().is_empty());
        }
        let answer = shop.patch("products", &format!("/products/{id}"), &json!({ "title": "x" })).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{id}: {answer:?}");
        for via in ["call", "gather", "replica"] {
            let answer = shop.history(id, via).await;
            assert_eq!(
                (answer.status, &answer.body["orders"]),
                (StatusCode::OK, &json!([])),
                "{id} {via}: {answer:?}"
            );
        }
    }
    for id in ["", " ", "\0", "' OR 1=1--", "🪁", &"9".repeat(100_000)] {
        for body in [order(id, &kite, 1), order(&ada, id, 1)] {
            let answer = shop.post("orders", "/orders", &body).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{:.300}", format!("{answer:?}"));
        }
    }
    let invalid = shop.get("users", "/users/%FF").await;
    assert_eq!(invalid.status, StatusCode::BAD_REQUEST, "{invalid:?}");
    let unknown = shop.history(&ada, "telepathy").await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST, "{unknown:?}");
    let said = unknown.body.as_str().unwrap();
    assert!(said.contains("telepathy") && said.contains("replica"), "{said}");
    shop.end().await;
}
