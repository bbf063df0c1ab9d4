//! The processes that are killed: the bus, a producer, a consumer with a view and a reactor.
//!
//! Nothing here guards against doubles: a double would show.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Handled, Problem, Reactor, Service, Settings, View};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::Server;

type App = tombolo::App<Sqlite>;

/// What the producer says. `n` counts up for each key, so that a reordering shows.
#[derive(Serialize, Deserialize, JsonSchema, Clone)]
pub(crate) struct Placed {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) n: i64,
}

impl Event for Placed {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

/// What the consumer's reactor says of each.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) key: String,
}

impl Event for Seen {
    const TYPE: &'static str = "history.seen.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

async fn place(State(app): State<App>, Json(placed): Json<Placed>) -> Result<StatusCode, Problem> {
    let mut tx = app.begin().await?;
    sqlx::query("INSERT INTO orders (id, key, n) VALUES (?, ?, ?)")
        .bind(&placed.id)
        .bind(&placed.key)
        .bind(placed.n)
        .execute(&mut *tx)
        .await?;
    tx.publish(&placed)?;
    tx.commit().await?;
    Ok(StatusCode::CREATED)
}

async fn copy(event: Placed, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, key, n) VALUES (?, ?, ?)")
        .bind(event.id)
        .bind(event.key)
        .bind(event.n)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn react(event: Placed, tx: &mut Tx) -> Handled {
    tx.publish(&Seen { id: event.id, key: event.key })?;
    Ok(())
}

async fn table(database: Sqlite, name: &'static str) -> tombolo::Result<()> {
    let columns = "place INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL";
    let create = format!("CREATE TABLE IF NOT EXISTS {name} ({columns}) STRICT");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(database.pool()).await?;
    Ok(())
}

fn database() -> tombolo::Result<Sqlite> {
    Ok(Sqlite::open(tombolo::settings::database_or("sqlite:unnamed.db"))?)
}

/// Runs until it is killed, at the barrier that the environment names or from outside.
async fn serve(service: Service<Sqlite>) -> tombolo::Result<()> {
    tombolo::barriers::install_from_env()?;
    service.start(Settings::from_env()?).await?.failed().await
}

pub(crate) async fn producer() -> tombolo::Result<()> {
    let service = Service::new("orders", database()?)
        .setup(async |database| table(database, "orders").await)
        .routes(Router::new().route("/orders", post(place)))
        .publishes::<Placed>();
    serve(service).await
}

pub(crate) async fn consumer() -> tombolo::Result<()> {
    let service = Service::new("history", database()?)
        .setup(async |database| table(database, "copies").await)
        .publishes::<Seen>()
        .view(View::new("copies", 1).on(copy))
        .react(Reactor::from_start("seen").on(react));
    serve(service).await
}

pub(crate) async fn bus(folder: &str) -> Result<(), Box<dyn std::error::Error>> {
    tombolo::barriers::install_from_env()?;
    let (log, _recovered) = Log::open(format!("{folder}/log").as_ref(), Options::default())?;
    let listen = [format!("tombolo+unix://{folder}/bus.sock").parse()?];
    let server = Server::bind(&listen, log).await?;
    server.serve(CancellationToken::new()).await?;
    Ok(())
}
