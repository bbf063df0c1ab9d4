//! The second step: one subscription. The service keeps its own list of what there is to send, from the events of `orders`,
//! and no longer has to ask for it. Everything else is as in the step before.

use std::error::Error;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Handled, Service, Settings, View};

use crate::outbox;

/// The fields of `orders.placed.v1` that this service needs; the rest of the event is none of its business.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) quantity: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

pub(crate) fn service(pool: SqlitePool) -> tombolo::Result<Service<Sqlite>> {
    Ok(outbox::service(pool)?.view(View::new("to-send", 1).on(order_placed)))
}

/// The row and the subscription's cursor commit together, so no guard against doubles is needed.
async fn order_placed(event: OrderPlaced, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO to_send (order_id, quantity) VALUES (?, ?)")
        .bind(event.order_id)
        .bind(event.quantity)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(crate) async fn serve(
    listener: TcpListener,
    pool: SqlitePool,
    settings: Settings,
) -> Result<(), Box<dyn Error>> {
    let running = service(pool.clone())?.start_beside(settings).await?;
    let router = outbox::router(pool, running.app.clone()).merge(running.router.clone());
    axum::serve(listener, router).await?;
    running.shutdown().await;
    Ok(())
}
