//! Before: a route, a transaction, a table. Whoever wants to know what was sent has to ask.

use std::error::Error;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use uuid::Uuid;

#[derive(Deserialize)]
struct SendParcel {
    order_id: String,
    weight_grams: i64,
}

#[derive(Serialize)]
struct Parcel {
    id: String,
}

pub(crate) async fn serve(listener: TcpListener, pool: SqlitePool) -> Result<(), Box<dyn Error>> {
    Ok(axum::serve(listener, router(pool)).await?)
}

pub(crate) fn router(pool: SqlitePool) -> Router {
    Router::new().route("/parcels", post(send)).with_state(pool)
}

async fn send(
    State(pool): State<SqlitePool>,
    Json(body): Json<SendParcel>,
) -> Result<(StatusCode, Json<Parcel>), (StatusCode, String)> {
    let parcel = Parcel { id: Uuid::now_v7().to_string() };
    insert(&pool, &parcel, &body)
        .await
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok((StatusCode::CREATED, Json(parcel)))
}

async fn insert(pool: &SqlitePool, parcel: &Parcel, body: &SendParcel) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO parcels (id, order_id, weight_grams) VALUES (?, ?, ?)")
        .bind(&parcel.id)
        .bind(&body.order_id)
        .bind(body.weight_grams)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
