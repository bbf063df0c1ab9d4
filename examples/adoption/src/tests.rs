//! Each step does what the one before did, and what it adds.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::json;
use sqlx::SqlitePool;
use tempfile::TempDir;
use tombolo::Settings;
use tombolo::sqlite::Sqlite;
use tombolo::testing::World;
use tower::ServiceExt;

use crate::subscription::OrderPlaced;
use crate::{TABLES, before, outbox, subscription};

async fn ground() -> (TempDir, SqlitePool) {
    let folder = tempfile::tempdir().unwrap();
    let pool = crate::pool(&format!("sqlite:{}/parcels.db", folder.path().display())).await.unwrap();
    (folder, pool)
}

async fn send(router: Router, order_id: &str) -> StatusCode {
    let body = json!({"order_id": order_id, "weight_grams": 800}).to_string();
    let request = Request::post("/parcels").header("content-type", "application/json");
    router.oneshot(request.body(Body::from(body)).unwrap()).await.unwrap().status()
}

async fn parcels(pool: &SqlitePool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM parcels").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn before_it_sends_parcels_and_says_nothing() {
    let (_folder, pool) = ground().await;
    assert_eq!(send(before::router(pool.clone()), "o1").await, StatusCode::CREATED);
    assert_eq!(parcels(&pool).await, 1);
}

#[tokio::test]
async fn with_the_outbox_a_parcel_and_its_event_are_kept_together() {
    let (_folder, pool) = ground().await;
    let settings = Settings { bus: "memory:".into(), ..Settings::default() };
    let running = outbox::service(pool.clone()).unwrap().start_beside(settings).await.unwrap();
    let router = outbox::router(pool.clone(), running.app.clone()).merge(running.router.clone());
    assert_eq!(send(router.clone(), "o1").await, StatusCode::CREATED);
    assert_eq!(parcels(&pool).await, 1);
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let sent = outbox::ParcelSent { parcel_id: "p2".into(), order_id: "o2".into() };
    let position = running.app.publish(&mut tx, &sent).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let again = running.app.publish(&mut tx, &sent).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(position.sequence, again.sequence, "what was rolled back took a number");
    let refused = running.app.publish(&mut *pool.acquire().await.unwrap(), &sent).await.unwrap_err();
    assert!(refused.to_string().contains("without a transaction"), "{refused}");
    let health = Request::get("/health").body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(health).await.unwrap().status(), StatusCode::OK);
    running.shutdown().await;
}

#[tokio::test]
async fn with_a_subscription_it_knows_what_there_is_to_send() {
    let world = World::new();
    let orders = world.fake("orders").publishes::<OrderPlaced>().start().await;
    let parcels = world
        .start(|database: Sqlite| {
            subscription::service(database.pool().clone()).unwrap().setup(async |database: Sqlite| {
                sqlx::raw_sql(TABLES).execute(database.pool()).await?;
                Ok(())
            })
        })
        .await;
    for n in 1..=20 {
        orders.publish(&OrderPlaced { order_id: format!("o{n}"), quantity: n }).await;
        if n == 10 {
            parcels.crash().await;
            parcels.restart().await;
        }
    }
    world.settle().await;
    let to_send: (i64, i64) = sqlx::query_as("SELECT count(*), sum(quantity) FROM to_send")
        .fetch_one(parcels.database().pool())
        .await
        .unwrap();
    assert_eq!(to_send, (20, 210));
}
