//! The first step: what happens is published, in the transaction that changes the state. Pool, transaction, routes and
//! server stay the service's own.

use std::error::Error;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use tombolo::sqlite::Sqlite;
use tombolo::{App, Event, Service, Settings};
use uuid::Uuid;

/// New: what is said to others.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ParcelSent {
    pub(crate) parcel_id: String,
    pub(crate) order_id: String,
}

impl Event for ParcelSent {
    const TYPE: &'static str = "parcels.sent.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Deserialize)]
struct SendParcel {
    order_id: String,
    weight_grams: i64,
}

#[derive(Serialize)]
struct Parcel {
    id: String,
}

/// New: the outbox beside the pool.
#[derive(Clone)]
struct Shared {
    pool: SqlitePool,
    outbox: App<Sqlite>,
}

/// New: what Tombolo knows of the service.
pub(crate) fn service(pool: SqlitePool) -> tombolo::Result<Service<Sqlite>> {
    Ok(Service::new("parcels", Sqlite::new(pool)?).publishes::<ParcelSent>())
}

pub(crate) async fn serve(
    listener: TcpListener,
    pool: SqlitePool,
    settings: Settings,
) -> Result<(), Box<dyn Error>> {
    let running = service(pool.clone())?.start_beside(settings).await?;
    // Its own routes, and Tombolo's (/health, /metrics, /tombolo/status, …) beside them.
    let router = router(pool, running.app.clone()).merge(running.router.clone());
    axum::serve(listener, router).await?;
    running.shutdown().await;
    Ok(())
}

pub(crate) fn router(pool: SqlitePool, outbox: App<Sqlite>) -> Router {
    Router::new().route("/parcels", post(send)).with_state(Shared { pool, outbox })
}

async fn send(
    State(shared): State<Shared>,
    Json(body): Json<SendParcel>,
) -> Result<(StatusCode, Json<Parcel>), (StatusCode, String)> {
    let parcel = Parcel { id: Uuid::now_v7().to_string() };
    insert(&shared, &parcel, &body)
        .await
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok((StatusCode::CREATED, Json(parcel)))
}

async fn insert(shared: &Shared, parcel: &Parcel, body: &SendParcel) -> tombolo::Result<()> {
    let mut tx = shared.pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO parcels (id, order_id, weight_grams) VALUES (?, ?, ?)")
        .bind(&parcel.id)
        .bind(&body.order_id)
        .bind(body.weight_grams)
        .execute(&mut *tx)
        .await?;
    // New: the event commits with the parcel, or not at all; then the relay is told.
    let sent = ParcelSent { parcel_id: parcel.id.clone(), order_id: body.order_id.clone() };
    shared.outbox.publish(&mut tx, &sent).await?;
    tx.commit().await?;
    shared.outbox.wake();
    Ok(())
}
