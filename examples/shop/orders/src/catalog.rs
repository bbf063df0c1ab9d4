//! The small copies of users and products that `orders` keeps, so that known products sell while `products` is down.
//!
//! What it does not know, it asks the owner for once.

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Handled, Problem, Question, View};

use crate::App;

/// Of everything that `users` says, `orders` needs that somebody exists, and where to write to.
#[derive(Serialize, Deserialize, JsonSchema)]
struct UserRegistered {
    user_id: String,
    email: String,
}

impl Event for UserRegistered {
    const TYPE: &'static str = "users.registered.v1";
    fn key(&self) -> String {
        self.user_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductAdded {
    product_id: String,
    price_cents: i64,
}

impl Event for ProductAdded {
    const TYPE: &'static str = "products.added.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductChanged {
    product_id: String,
    price_cents: i64,
}

impl Event for ProductChanged {
    const TYPE: &'static str = "products.changed.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct UserById {
    user_id: String,
}

impl Question for UserById {
    const NAME: &'static str = "users.by-id.v1";
    type Answer = Option<User>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProductsByIds {
    product_ids: Vec<String>,
}

impl Question for ProductsByIds {
    const NAME: &'static str = "products.by-ids.v1";
    type Answer = Vec<Priced>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct User {
    email: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Priced {
    id: String,
    price_cents: i64,
}

/// Version 1 had no addresses. Until this one is built, what it does not know yet is asked of its owner.
pub(crate) fn view() -> View<Sqlite> {
    View::new("catalog", 2)
        .tables(
            "CREATE TABLE {users} (id TEXT PRIMARY KEY, email TEXT NOT NULL) STRICT;
             CREATE TABLE {products} (id TEXT PRIMARY KEY, price_cents INTEGER NOT NULL) STRICT;",
        )
        .on(user_registered)
        .on(product_added)
        .on(product_changed)
}

async fn user_registered(event: UserRegistered, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("INSERT INTO {users} (id, email) VALUES (?, ?)")?)
        .bind(event.user_id)
        .bind(event.email)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_added(event: ProductAdded, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("INSERT INTO {products} (id, price_cents) VALUES (?, ?)")?)
        .bind(event.product_id)
        .bind(event.price_cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_changed(event: ProductChanged, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("UPDATE {products} SET price_cents = ? WHERE id = ?")?)
        .bind(event.price_cents)
        .bind(event.product_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Makes sure that the user exists.
pub(crate) async fn check_user(app: &App, user_id: &str) -> Result<(), Problem> {
    match email(app, user_id).await? {
        Some(_) => Ok(()),
        None => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("there is no user {user_id:?}; register it at users first"),
        )),
    }
}

/// The user's address, if there is such a user: by the copy, else by asking `users`.
pub(crate) async fn email(app: &App, user_id: &str) -> tombolo::Result<Option<String>> {
    let catalog = app.view("catalog").await?;
    let known = sqlx::query_scalar(catalog.sql("SELECT email FROM {users} WHERE id = ?")?).bind(user_id);
    if let Some(email) = known.fetch_optional(app.database().pool()).await? {
        return Ok(Some(email));
    }
    let user = app.call("users", &UserById { user_id: user_id.to_owned() }).await?;
    Ok(user.map(|user| user.email))
}

/// The price now: by the copy, else by asking `products`.
pub(crate) async fn price_cents(app: &App, product_id: &str) -> Result<i64, Problem> {
    let catalog = app.view("catalog").await?;
    let known =
        sqlx::query_scalar(catalog.sql("SELECT price_cents FROM {products} WHERE id = ?")?).bind(product_id);
    if let Some(price_cents) = known.fetch_optional(app.database().pool()).await? {
        return Ok(price_cents);
    }
    let answer = app.call("products", &ProductsByIds { product_ids: vec![product_id.to_owned()] }).await?;
    answer.into_iter().next().map(|product| product.price_cents).ok_or_else(|| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("there is no product {product_id:?}; add it at products first"),
        )
    })
}
