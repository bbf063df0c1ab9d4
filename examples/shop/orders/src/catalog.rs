//! The small copies of users and products that `orders` keeps, so that known products sell while `products` is down.
//!
//! What it does not know, it asks the owner for once.

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Event, Handled, Problem, Question, View};

use crate::Store;

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
pub(crate) fn view<D: Store>() -> View<D> {
    View::new("catalog", 2)
        .tables(D::CATALOG)
        .on(user_registered::<D>)
        .on(product_added::<D>)
        .on(product_changed::<D>)
}

async fn user_registered<D: Store>(event: UserRegistered, tx: &mut D::Tx) -> Handled {
    Ok(D::add_user(tx, &event.user_id, &event.email).await?)
}

async fn product_added<D: Store>(event: ProductAdded, tx: &mut D::Tx) -> Handled {
    Ok(D::add_product(tx, &event.product_id, event.price_cents).await?)
}

async fn product_changed<D: Store>(event: ProductChanged, tx: &mut D::Tx) -> Handled {
    Ok(D::set_price(tx, &event.product_id, event.price_cents).await?)
}

/// Makes sure that the user exists.
pub(crate) async fn check_user<D: Store>(app: &App<D>, user_id: &str) -> Result<(), Problem> {
    match email(app, user_id).await? {
        Some(_) => Ok(()),
        None => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("there is no user {user_id:?}; register it at users first"),
        )),
    }
}

/// The user's address, if there is such a user: by the copy, else by asking `users`.
pub(crate) async fn email<D: Store>(app: &App<D>, user_id: &str) -> tombolo::Result<Option<String>> {
    let catalog = app.view("catalog").await?;
    if let Some(email) = app.database().email(&catalog, user_id).await? {
        return Ok(Some(email));
    }
    let user = app.call("users", &UserById { user_id: user_id.to_owned() }).await?;
    Ok(user.map(|user| user.email))
}

/// The price now: by the copy, else by asking `products`.
pub(crate) async fn price_cents<D: Store>(app: &App<D>, product_id: &str) -> Result<i64, Problem> {
    let catalog = app.view("catalog").await?;
    if let Some(price_cents) = app.database().price_cents(&catalog, product_id).await? {
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
