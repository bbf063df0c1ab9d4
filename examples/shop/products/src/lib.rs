//! `products`: what can be bought. Owns titles and prices, says when they change, and answers what something is called.
//!
//! Its database keeps documents by key, not tables: a catalogue is read by its ids, and a book has other details than a kite.

mod store;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tombolo::{App, Event, Problem, Question, Service, Transaction};
use uuid::Uuid;

pub use store::Store;

/// The most products that are listed.
const LISTED_MAX: usize = 1_000;

/// The most products that one question can name.
const IDS_MAX: usize = 1_000;
/// The longest title, in characters.
const TITLE_CHARS_MAX: usize = 200;

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductAdded {
    product_id: String,
    title: String,
    price_cents: i64,
}

impl Event for ProductAdded {
    const TYPE: &'static str = "products.added.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

/// Carries the whole product as it is after the change, so that a reader need not have seen the one before.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductChanged {
    product_id: String,
    title: String,
    price_cents: i64,
}

impl Event for ProductChanged {
    const TYPE: &'static str = "products.changed.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

/// What are these products? Asked by call and by gather.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductsByIds {
    product_ids: Vec<String>,
}

impl Question for ProductsByIds {
    const NAME: &'static str = "products.by-ids.v1";
    type Answer = Vec<Product>;
}

/// What can be bought.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Product {
    id: String,
    title: String,
    price_cents: i64,
    /// What is said of it beyond that: pages of a book, colours of a kite.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    details: Map<String, Value>,
}

#[derive(Deserialize)]
struct Add {
    title: String,
    price_cents: i64,
    #[serde(default)]
    details: Map<String, Value>,
}

#[derive(Deserialize)]
struct Change {
    title: Option<String>,
    price_cents: Option<i64>,
    details: Option<Map<String, Value>>,
}

fn check(product: &Product) -> Result<(), Problem> {
    let title = product.title.trim().chars().count();
    if !(1..=TITLE_CHARS_MAX).contains(&title) {
        return Err(refusal(format!("found a title of {title} characters; expected 1 to {TITLE_CHARS_MAX}")));
    }
    if product.price_cents < 0 {
        let detail = format!("found price_cents {}; expected a price from 0", product.price_cents);
        return Err(refusal(detail));
    }
    Ok(())
}

fn refusal(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

async fn add<D: Store>(
    State(app): State<App<D>>,
    Json(body): Json<Add>,
) -> Result<(StatusCode, Json<Product>), Problem> {
    let Add { title, price_cents, details } = body;
    let product = Product { id: Uuid::now_v7().to_string(), title, price_cents, details };
    check(&product)?;
    let mut tx = app.begin().await?;
    D::put(&mut tx, &product).await?;
    tx.publish(&ProductAdded {
        product_id: product.id.clone(),
        title: product.title.clone(),
        price_cents: product.price_cents,
    })?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(product)))
}

async fn change<D: Store>(
    State(app): State<App<D>>,
    Path(id): Path<String>,
    Json(body): Json<Change>,
) -> Result<Json<Product>, Problem> {
    let mut tx = app.begin().await?;
    let mut product = D::find_in(&mut tx, &id).await?.ok_or_else(|| unknown(&id))?;
    product.title = body.title.unwrap_or(product.title);
    product.price_cents = body.price_cents.unwrap_or(product.price_cents);
    product.details = body.details.unwrap_or(product.details);
    check(&product)?;
    D::put(&mut tx, &product).await?;
    tx.publish(&ProductChanged {
        product_id: id,
        title: product.title.clone(),
        price_cents: product.price_cents,
    })?;
    tx.commit().await?;
    Ok(Json(product))
}

fn unknown(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no product {id:?}"))
}

async fn show<D: Store>(State(app): State<App<D>>, Path(id): Path<String>) -> Result<Json<Product>, Problem> {
    let product = app.database().find(&id).await?;
    product.map(Json).ok_or_else(|| unknown(&id))
}

async fn list<D: Store>(State(app): State<App<D>>) -> Result<Json<Vec<Product>>, Problem> {
    Ok(Json(app.database().list(LISTED_MAX).await?))
}

async fn products_by_ids<D: Store>(question: ProductsByIds, app: App<D>) -> Result<Vec<Product>, Problem> {
    if question.product_ids.len() > IDS_MAX {
        let found = question.product_ids.len();
        return Err(refusal(format!("found {found} product ids; expected at most {IDS_MAX}: ask in parts")));
    }
    Ok(app.database().find_all(&question.product_ids.into_iter().collect()).await?)
}

/// The service on its own database.
#[must_use]
pub fn service<D: Store>(database: D) -> Service<D> {
    Service::new("products", database)
        .routes(
            Router::new()
                .route("/products", post(add::<D>).get(list::<D>))
                .route("/products/{id}", get(show::<D>).patch(change::<D>)),
        )
        .publishes::<ProductAdded>()
        .publishes::<ProductChanged>()
        .answer(products_by_ids::<D>)
}
