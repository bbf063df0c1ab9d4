//! What the tests share: a bus that does as it is told, services that are started and crashed, waiting for a state.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::{interval, timeout};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::testing::WorldBus;
use tombolo::{Event, Handled, Running, Service, Settings, View};
use tombolo_bus::Bus;

pub(crate) type App = tombolo::App<Sqlite>;

/// How long a test waits for a state before it says that it never came.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, JsonSchema, Clone)]
pub(crate) struct Placed {
    pub(crate) order: String,
    pub(crate) cents: i64,
}

impl Event for Placed {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

/// Waits until `state` holds, looking often, and fails with `what` if it never does.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let mut look = interval(Duration::from_millis(2));
    let seen = timeout(PATIENCE, async {
        while !state().await {
            look.tick().await;
        }
    });
    assert!(seen.await.is_ok(), "never happened: {what}");
}

/// A folder for databases, and the bus that everybody joins.
pub(crate) struct Ground {
    folder: TempDir,
    pub(crate) bus: Arc<WorldBus>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), bus: Arc::new(WorldBus::calm()) }
    }

    pub(crate) fn database(&self, name: &str) -> Sqlite {
        Sqlite::open(self.folder.path().join(format!("{name}.db")).to_str().unwrap()).unwrap()
    }

    pub(crate) async fn start(&self, service: Service<Sqlite>) -> Running<Sqlite> {
        service.bus(Arc::clone(&self.bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap()
    }

    /// A service that places orders.
    pub(crate) async fn orders(&self) -> Running<Sqlite> {
        self.start(self.orders_service()).await
    }

    pub(crate) fn orders_service(&self) -> Service<Sqlite> {
        self.orders_service_in("orders")
    }

    /// The same with another database.
    pub(crate) fn orders_service_in(&self, database: &str) -> Service<Sqlite> {
        Service::new("orders", self.database(database))
            .setup(async |database: Sqlite| {
                sqlx::raw_sql(
                    "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT",
                )
                .execute(database.pool())
                .await?;
                Ok(())
            })
            .publishes::<Placed>()
    }

    /// A service that keeps a copy of them in a view.
    pub(crate) async fn history(&self) -> Running<Sqlite> {
        self.start(self.history_service()).await
    }

    pub(crate) fn history_service(&self) -> Service<Sqlite> {
        with_copies(Service::new("history", self.database("history"))).view(View::new("copies", 1).on(copy))
    }

    /// The same under the same version, with one more type.
    pub(crate) fn history_service_with_more(&self) -> Service<Sqlite> {
        with_copies(Service::new("history", self.database("history")))
            .view(View::new("copies", 1).on(copy).on(forget))
    }
}

/// What `orders` will say one day.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Cancelled {
    order: String,
}

impl Event for Cancelled {
    const TYPE: &'static str = "orders.cancelled.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn forget(event: Cancelled, tx: &mut Tx) -> Handled {
    sqlx::query("DELETE FROM copies WHERE id = ?").bind(event.order).execute(&mut **tx).await?;
    Ok(())
}

/// Adds the table of copies: without any guard against doubles, so that a double shows.
pub(crate) fn with_copies(service: Service<Sqlite>) -> Service<Sqlite> {
    service.setup(async |database: Sqlite| {
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS copies (n INTEGER PRIMARY KEY, id TEXT NOT NULL, cents INTEGER NOT NULL) STRICT")
            .execute(database.pool())
            .await?;
        Ok(())
    })
}

pub(crate) async fn copy(event: Placed, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(crate) async fn place(app: &App, order: &str, cents: i64) {
    let mut tx = app.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO orders (id, cents) VALUES (?, ?) ON CONFLICT DO UPDATE SET cents = excluded.cents",
    )
    .bind(order)
    .bind(cents)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.publish(&Placed { order: order.into(), cents }).unwrap();
    tx.commit().await.unwrap();
}

/// The copies as they were applied: (order, cents) by the order of application.
pub(crate) async fn copies(app: &App) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT id, cents FROM copies ORDER BY n").fetch_all(app.database().pool()).await.unwrap()
}

pub(crate) async fn until_copied(app: &App, count: usize) -> Vec<(String, i64)> {
    eventually(&format!("{count} copies"), || async { copies(app).await.len() >= count }).await;
    copies(app).await
}

/// The status of the first subscription.
pub(crate) fn subscription(app: &App) -> Option<tombolo::status::SubscriptionStatus> {
    app.status().subscriptions.into_iter().next()
}
