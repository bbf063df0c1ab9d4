//! `products`: what can be bought. Owns titles and prices, says when they change, and answers what something is called.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::Sqlite;
use tombolo::{Event, Problem, Question, Service};
use uuid::Uuid;

type App = tombolo::App<Sqlite>;

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

#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
struct Product {
    id: String,
    title: String,
    price_cents: i64,
}

#[derive(Deserialize)]
struct Add {
    title: String,
    price_cents: i64,
}

#[derive(Deserialize)]
struct Change {
    title: Option<String>,
    price_cents: Option<i64>,
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

async fn add(State(app): State<App>, Json(body): Json<Add>) -> Result<(StatusCode, Json<Product>), Problem> {
    let product =
        Product { id: Uuid::now_v7().to_string(), title: body.title, price_cents: body.price_cents };
    check(&product)?;
    let mut tx = app.begin().await?;
    sqlx::query("INSERT INTO products (id, title, price_cents) VALUES (?, ?, ?)")
        .bind(&product.id)
        .bind(&product.title)
        .bind(product.price_cents)
        .execute(&mut *tx)
        .await?;
    tx.publish(&ProductAdded {
        product_id: product.id.clone(),
        title: product.title.clone(),
        price_cents: product.price_cents,
    })?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(product)))
}

async fn change(
    State(app): State<App>,
    Path(id): Path<String>,
    Json(body): Json<Change>,
) -> Result<Json<Product>, Problem> {
    let mut tx = app.begin().await?;
    let found: Option<Product> = sqlx::query_as("SELECT id, title, price_cents FROM products WHERE id = ?")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let mut product = found.ok_or_else(|| unknown(&id))?;
    product.title = body.title.unwrap_or(product.title);
    product.price_cents = body.price_cents.unwrap_or(product.price_cents);
    check(&product)?;
    sqlx::query("UPDATE products SET title = ?, price_cents = ? WHERE id = ?")
        .bind(&product.title)
        .bind(product.price_cents)
        .bind(&id)
        .execute(&mut *tx)
        .await?;
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

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Product>, Problem> {
    let product = sqlx::query_as("SELECT id, title, price_cents FROM products WHERE id = ?").bind(&id);
    product.fetch_optional(app.database().pool()).await?.map(Json).ok_or_else(|| unknown(&id))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<Product>>, Problem> {
    let products = sqlx::query_as("SELECT id, title, price_cents FROM products ORDER BY id LIMIT 1000");
    Ok(Json(products.fetch_all(app.database().pool()).await?))
}

async fn products_by_ids(question: ProductsByIds, app: App) -> Result<Vec<Product>, Problem> {
    if question.product_ids.len() > IDS_MAX {
        let found = question.product_ids.len();
        return Err(refusal(format!("found {found} product ids; expected at most {IDS_MAX}: ask in parts")));
    }
    let mut query = sqlx::QueryBuilder::new("SELECT id, title, price_cents FROM products WHERE id IN (");
    let mut ids = query.separated(", ");
    for id in &question.product_ids {
        ids.push_bind(id);
    }
    query.push(")");
    Ok(query.build_query_as().fetch_all(app.database().pool()).await?)
}

/// The service on its own database.
#[must_use]
pub fn service(database: Sqlite) -> Service<Sqlite> {
    Service::new("products", database)
        .setup(async |database: Sqlite| {
            sqlx::raw_sql(include_str!("schema.sql")).execute(database.pool()).await?;
            Ok(())
        })
        .routes(
            Router::new()
                .route("/products", post(add).get(list))
                .route("/products/{id}", get(show).patch(change)),
        )
        .publishes::<ProductAdded>()
        .publishes::<ProductChanged>()
        .answer(products_by_ids)
}
