//! The shop's routes, as a customer uses them.

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::running::{Shop, text};
use crate::wait::until;

/// A status and the document that came with it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    pub(crate) content_type: String,
}

impl Answer {
    /// The sentence of a problem document, which it must be.
    pub(crate) fn detail(&self) -> &str {
        assert_eq!(self.content_type, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status.as_u16(), "{self:?}");
        self.body["detail"].as_str().unwrap()
    }
}

impl Shop {
    /// Asks a service; an error is that no answer came.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: String,
        body: Option<&Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.map_or("", |value| value.to_str().unwrap()).to_owned();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body, content_type })
    }

    pub(crate) async fn post(&self, service: &str, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, format!("{}{path}", self.url(service)), Some(body)).await.unwrap()
    }

    pub(crate) async fn patch(&self, service: &str, path: &str, body: &Value) -> Answer {
        self.ask(Method::PATCH, format!("{}{path}", self.url(service)), Some(body)).await.unwrap()
    }

    pub(crate) async fn get(&self, service: &str, path: &str) -> Answer {
        self.ask(Method::GET, format!("{}{path}", self.url(service)), None).await.unwrap()
    }

    /// Registers a user; returns the id.
    pub(crate) async fn user(&self, name: &str) -> String {
        let email = format!("{name}@example.org");
        let answer = self.post("users", "/users", &json!({ "name": name, "email": email })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let id = text(&answer.body["id"]);
        assert_eq!(answer.body, json!({ "id": id, "name": name, "email": email }));
        id
    }

    /// Adds a product; returns the id.
    pub(crate) async fn product(&self, title: &str, price_cents: i64) -> String {
        let body = json!({ "title": title, "price_cents": price_cents });
        let answer = self.post("products", "/products", &body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let id = text(&answer.body["id"]);
        assert_eq!(answer.body, json!({ "id": id, "title": title, "price_cents": price_cents }));
        id
    }

    /// Changes a product.
    pub(crate) async fn change(&self, product_id: &str, change: Value) {
        let answer = self.patch("products", &format!("/products/{product_id}"), &change).await;
        assert_eq!((answer.status, &answer.body["id"]), (StatusCode::OK, &json!(product_id)), "{answer:?}");
    }

    /// Tries to place an order.
    pub(crate) async fn try_order(&self, user_id: &str, product_id: &str, quantity: i64) -> Answer {
        self.post("orders", "/orders", &order(user_id, product_id, quantity)).await
    }

    /// Places an order; returns it.
    pub(crate) async fn order(&self, user_id: &str, product_id: &str, quantity: i64) -> Value {
        let answer = self.try_order(user_id, product_id, quantity).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        assert_eq!(answer.body["user_id"], user_id);
        assert_eq!(answer.body["product_id"], product_id);
        assert_eq!(answer.body["quantity"], quantity);
        answer.body
    }

    /// Tries to pay an order.
    pub(crate) async fn pay(&self, order_id: &str) -> Answer {
        self.post("orders", &format!("/orders/{order_id}/pay"), &json!({})).await
    }

    /// Waits until an order is in a state.
    pub(crate) async fn until_order_is(&self, order_id: &str, state: &str) {
        until(&format!("order {order_id} to be {state}"), async || {
            let order = self.get("orders", &format!("/orders/{order_id}")).await;
            if order.body["state"] == state { Ok(()) } else { Err(order) }
        })
        .await;
    }

    /// A user's orders in one of the three ways.
    pub(crate) async fn history(&self, user_id: &str, via: &str) -> Answer {
        self.get("order-history", &format!("/users/{user_id}/orders?via={via}")).await
    }

    /// Waits until the replica's answer is as `wanted` says, and returns it.
    pub(crate) async fn replica_with(
        &self,
        user_id: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        until(what, async || {
            let answer = self.history(user_id, "replica").await;
            if answer.status == StatusCode::OK && wanted(&answer.body) {
                Ok(answer.body)
            } else {
                Err(answer)
            }
        })
        .await
    }

    /// Waits until the replica knows so many orders of a user, all with their titles, and the user's name.
    pub(crate) async fn replica_of(&self, user_id: &str, orders: usize) -> Value {
        self.replica_with(user_id, &format!("{orders} orders in the replica"), |history| {
            let lines = history["orders"].as_array().unwrap();
            lines.len() == orders
                && lines.iter().all(|line| line["title"].is_string())
                && !history["user"].is_null()
        })
        .await
    }
}

/// The body of an order.
pub(crate) fn order(user_id: &str, product_id: &str, quantity: i64) -> Value {
    json!({ "user_id": user_id, "product_id": product_id, "quantity": quantity })
}
