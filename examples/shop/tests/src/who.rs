//! Who asks: users sign in, order and see their orders, under each strategy; an administrator blocks one, and sees it take effect.

use nix::sys::signal::Signal;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::running::{Shop, text};
use crate::wait::until;

const PASSWORD: &str = "correct horse battery";

/// One of the users, signed in.
struct SignedIn {
    id: String,
    token: String,
}

impl Shop {
    /// A request through the gateway.
    fn through(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.gateway()))
    }

    fn of(&self, method: Method, service: &str, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url(service)))
    }

    async fn sign_up(&self, name: &str) -> SignedIn {
        let email = format!("{name}@example.org");
        let body = json!({ "name": name, "email": email, "password": PASSWORD });
        let (status, said) = answer(self.of(Method::POST, "users", "/users").json(&body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{said}");
        self.sign_in(name).await
    }

    async fn sign_in(&self, name: &str) -> SignedIn {
        let body = json!({ "email": format!("{name}@example.org"), "password": PASSWORD });
        let (status, tokens) = answer(self.of(Method::POST, "users", "/sign-in").json(&body)).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        let token = text(&tokens["access_token"]);
        let (_, me) = answer(self.of(Method::GET, "users", "/me").bearer_auth(&token)).await;
        SignedIn { id: text(&me["id"]), token }
    }

    /// Somebody whom the operator made an administrator.
    async fn administrator(&self) -> SignedIn {
        let root = self.sign_up("root").await;
        let roles = self.of(Method::PUT, "users", &format!("/users/{}/roles", root.id));
        let roles =
            roles.basic_auth("operator", Some("operators-of-the-shop")).json(&json!({ "roles": ["admin"] }));
        let (status, said) = answer(roles).await;
        assert_eq!(status, StatusCode::OK, "{said}");
        self.sign_in("root").await
    }

    async fn my_orders(&self, who: &SignedIn, via: &str) -> (StatusCode, Value) {
        let path = format!("/me/orders?via={via}");
        answer(self.of(Method::GET, "order-history", &path).bearer_auth(&who.token)).await
    }

    async fn order_as(&self, who: &SignedIn, body: Value) -> (StatusCode, Value) {
        answer(self.of(Method::POST, "orders", "/orders").bearer_auth(&who.token).json(&body)).await
    }
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// Users order and see what they ordered, and only as themselves.
async fn ordering(shop: &Shop, ada: &SignedIn, kite: &str) {
    let (status, order) = shop.order_as(ada, json!({ "product_id": kite, "quantity": 2 })).await;
    assert_eq!((status, &order["user_id"]), (StatusCode::CREATED, &json!(ada.id)), "{order}");
    let bob = shop.user("bob").await;
    let for_bob = json!({ "user_id": bob, "product_id": kite, "quantity": 1 });
    assert_eq!(shop.order_as(ada, for_bob).await.0, StatusCode::FORBIDDEN);
    shop.order(&bob, kite, 1).await;
    let nobody = shop.post("orders", "/orders", &json!({ "product_id": kite, "quantity": 1 })).await;
    assert_eq!(nobody.status, StatusCode::UNPROCESSABLE_ENTITY, "{nobody:?}");
    assert_eq!(shop.get("order-history", "/me/orders").await.status, StatusCode::UNAUTHORIZED);
    for via in ["call", "gather", "replica"] {
        until(&format!("ada's orders by {via}"), async || match shop.my_orders(ada, via).await {
            (StatusCode::OK, said) if said["orders"].as_array().unwrap().len() == 1 => Ok(()),
            other => Err(other),
        })
        .await;
    }
    let cancel = |token: &str| {
        let path = format!("/orders/{}/cancel", text(&order["id"]));
        shop.of(Method::POST, "orders", &path).bearer_auth(token)
    };
    let (status, said) = answer(cancel(&ada.token)).await;
    assert_eq!(
        (status, &said["type"]),
        (StatusCode::FORBIDDEN, &json!("urn:tombolo:auth:role-missing")),
        "{said}"
    );
    let root = shop.administrator().await;
    let (status, said) = answer(cancel(&root.token)).await;
    assert_eq!((status, &said["state"]), (StatusCode::OK, &json!("cancelled")), "{said}");
    let block = shop.of(Method::POST, "users", &format!("/users/{}/block", ada.id)).bearer_auth(&root.token);
    let (status, said) = answer(block).await;
    assert_eq!((status, &said["blocked"]), (StatusCode::OK, &json!(true)), "{said}");
}

/// What an operator sees of a block.
async fn blocked(shop: &Shop, way: &str, ada: &SignedIn) {
    let arguments = ["auth", "propagation", &ada.id, "--wait", "30", "--format", "json"];
    let said: Value = serde_json::from_str(&shop.tombolo(&arguments).await).unwrap();
    assert_eq!((&said["blocked"], &said["user"]), (&json!(true), &json!(ada.id)), "{said}");
    let processes = said["processes"].as_array().unwrap();
    let names: Vec<_> = processes.iter().map(|process| text(&process["service"])).collect();
    assert_eq!(names, ["gateway", "order-history", "orders"], "{said}");
    for process in processes {
        let way = if process["service"] == "gateway" { "local" } else { way };
        assert_eq!((&process["in_effect"], &process["checks"]), (&json!(true), &json!(way)), "{said}");
        assert_eq!(process["since"].is_string(), way == "local", "{said}");
    }
    // At once: nothing is left to wait for.
    assert_eq!(shop.my_orders(ada, "replica").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        shop.order_as(ada, json!({ "product_id": "any", "quantity": 1 })).await.0,
        StatusCode::UNAUTHORIZED
    );
    let unknown = shop.try_tombolo(&["auth", "propagation", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
}

#[tokio::test]
async fn users_order_as_themselves_under_local_checks_and_a_block_is_seen_to_take_effect() {
    let shop = Shop::start_checking("local").await;
    let (ada, kite) = (shop.sign_up("ada").await, shop.product("Kite", 2_490).await);
    ordering(&shop, &ada, &kite).await;
    blocked(&shop, "local", &ada).await;
    let pid = shop.pid("order-history").await.unwrap();
    assert!(shop.signal(pid, Signal::SIGSTOP));
    let silent = shop.try_tombolo(&["auth", "propagation", &ada.id]).await;
    assert!(shop.signal(pid, Signal::SIGCONT));
    let said = String::from_utf8_lossy(&silent.stderr).into_owned();
    assert!(silent.status.code() == Some(4) && said.contains("order-history 1"), "{silent:?}");
    shop.end().await;
}

#[tokio::test]
async fn users_order_as_themselves_under_central_checks_by_one_changed_line() {
    let shop = Shop::start_checking("central").await;
    let (ada, kite) = (shop.sign_up("ada").await, shop.product("Kite", 2_490).await);
    ordering(&shop, &ada, &kite).await;
    blocked(&shop, "central", &ada).await;
    shop.end().await;
}

#[tokio::test]
async fn users_order_as_themselves_through_the_gateway_and_whoever_is_blocked_stands_before_the_door() {
    let shop = Shop::start_checking("gateway").await;
    let (ada, kite) = (shop.sign_up("ada").await, shop.product("Kite", 2_490).await);
    let order = json!({ "product_id": kite, "quantity": 2 });
    let place = |body: &Value| shop.through(Method::POST, "/orders").json(body);
    let (status, said) = answer(place(&order).bearer_auth(&ada.token)).await;
    assert_eq!((status, &said["user_id"]), (StatusCode::CREATED, &json!(ada.id)), "{said}");
    // Nobody is somebody by saying so.
    let claimed = place(&order).header("x-user-id", &ada.id).header("tombolo-internal-token", &ada.token);
    assert_eq!(answer(claimed).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let mine = || shop.through(Method::GET, "/me/orders?via=replica").bearer_auth(&ada.token);
    until("ada's orders through the gateway", async || match answer(mine()).await {
        (StatusCode::OK, said) if said["orders"].as_array().unwrap().len() == 1 => Ok(()),
        other => Err(other),
    })
    .await;
    let root = shop.administrator().await;
    let block = shop.through(Method::POST, &format!("/users/{}/block", ada.id)).bearer_auth(&root.token);
    assert_eq!(answer(block).await.0, StatusCode::OK);
    until("the block at the gateway", async || match answer(mine()).await {
        (StatusCode::UNAUTHORIZED, said) if said["type"] == "urn:tombolo:auth:token-refused" => Ok(()),
        other => Err(other),
    })
    .await;
    shop.end().await;
}

#[tokio::test]
async fn behind_a_gateway_a_token_is_not_taken_past_it() {
    let shop = Shop::start_checking("gateway").await;
    let (ada, kite) = (shop.sign_up("ada").await, shop.product("Kite", 2_490).await);
    let (status, said) = shop.my_orders(&ada, "replica").await;
    assert_eq!(
        (status, &said["type"]),
        (StatusCode::UNAUTHORIZED, &json!("urn:tombolo:auth:token-refused")),
        "{said}"
    );
    shop.order(&ada.id, &kite, 1).await;
    shop.end().await;
}
