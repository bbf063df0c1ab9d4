//! The processes that are killed: the bus, a producer, a consumer with a view and a reactor.
//!
//! Nothing here guards against doubles: a double would show. What differs between databases is a [`Store`].

mod sqlite;
mod postgres;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tombolo::postgres::Postgres;
use tombolo::settings::Lease;
use tombolo::sqlite::Sqlite;
use tombolo::{App, Database, Event, Handled, Problem, Reactor, Service, Settings, Transaction, View};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::Server;
use uuid::Uuid;

use crate::mutant;

/// How a process is told how long its leases are.
pub(crate) const LEASE_MS: &str = "TOMBOLO_FAULTS_LEASE_MS";

/// The body of a heap of orders, at most.
const HEAP_BYTES_MAX: usize = 64 << 20;

const INSERT_ORDER: &str = "INSERT INTO orders (id, key, n) VALUES ($1, $2, $3)";
const INSERT_COPY: &str = "INSERT INTO copies (id, key, n) VALUES ($1, $2, $3)";

/// What a role needs of its database beyond what Tombolo does.
pub(crate) trait Store: Database {
    /// Makes the table in which orders or copies are kept, in the order in which they came.
    fn table(self, name: &'static str) -> impl Future<Output = tombolo::Result<()>> + Send;

    /// Keeps an order, or a copy of one.
    fn insert(
        tx: &mut Self::Tx,
        insert: &'static str,
        row: &Placed,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// What the producer says. `n` counts up for each key, so that a reordering shows.
#[derive(Serialize, Deserialize, JsonSchema, Clone)]
pub(crate) struct Placed {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) n: i64,
    /// Weight.
    #[serde(default)]
    pub(crate) pad: String,
}

impl Placed {
    /// The `n`th order of a key.
    pub(crate) fn new(key: &str, n: i64) -> Self {
        Self { id: Uuid::now_v7().to_string(), key: key.to_owned(), n, pad: String::new() }
    }
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

async fn place<D: Store>(app: State<App<D>>, Json(placed): Json<Placed>) -> Result<StatusCode, Problem> {
    place_many(app, Json(vec![placed])).await
}

async fn place_many<D: Store>(
    State(app): State<App<D>>,
    Json(many): Json<Vec<Placed>>,
) -> Result<StatusCode, Problem> {
    let mut tx = app.begin().await?;
    for placed in &many {
        D::insert(&mut tx, INSERT_ORDER, placed).await?;
        if goes_by_later(&placed.key) {
            tx.outgoing().publish_at(placed, Timestamp::now())?;
        } else {
            tx.outgoing().publish(placed)?;
        }
    }
    tx.commit().await?;
    Ok(StatusCode::CREATED)
}

/// Every other key is kept for later and due at once, so that there is always something to move. One order of a key is on its
/// way at a time, so the order in which they are due is that of their numbers.
fn goes_by_later(key: &str) -> bool {
    key.ends_with(['1', '3', '5', '7', '9'])
}

async fn copy<D: Store>(event: Placed, tx: &mut D::Tx) -> Handled {
    D::insert(tx, INSERT_COPY, &event).await?;
    Ok(())
}

async fn react<D: Store>(event: Placed, tx: &mut D::Tx) -> Handled {
    tx.outgoing().publish(&Seen { id: event.id, key: event.key })?;
    Ok(())
}

fn routes<D: Store>() -> Router<App<D>> {
    Router::new()
        .route("/orders", post(place::<D>))
        .route("/orders/many", post(place_many::<D>))
        .layer(DefaultBodyLimit::max(HEAP_BYTES_MAX))
}

fn orders<D: Store>(database: D) -> Service<D> {
    Service::new("orders", database)
        .setup(|database| database.table("orders"))
        .routes(routes())
        .publishes::<Placed>()
}

fn history<D: Store>(database: D) -> Service<D> {
    Service::new("history", database)
        .setup(|database| database.table("copies"))
        .publishes::<Seen>()
        .view(View::new("copies", 1).on(copy::<D>))
        .react(Reactor::from_start("seen").on(react::<D>))
}

/// Runs until it is killed, at the barrier that the environment names or from outside.
async fn serve<D: Store>(service: Service<D>) -> tombolo::Result<()> {
    log_to_stderr();
    tombolo::barriers::install_from_env()?;
    let settings = Settings { lease: Lease(lease()), ..Settings::from_env()? };
    service.start(settings).await?.failed().await
}

/// How long the leases are, so that a pause outlasts one soon.
fn lease() -> Duration {
    let told = std::env::var(LEASE_MS).ok().and_then(|told| told.parse().ok());
    told.map_or(Lease::default().0, Duration::from_millis)
}

/// What a process warns of stands in its log.
fn log_to_stderr() {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).with_ansi(false).init();
}

fn database_url() -> String {
    tombolo::settings::database_or("sqlite:unnamed.db")
}

pub(crate) async fn producer() -> tombolo::Result<()> {
    match database_url() {
        url if url.starts_with("postgres") => serve(orders(postgres(&url)?)).await,
        url => serve(orders(sqlite(&url)?)).await,
    }
}

pub(crate) async fn consumer() -> tombolo::Result<()> {
    match database_url() {
        url if url.starts_with("postgres") => serve(history(postgres(&url)?)).await,
        url => serve(history(sqlite(&url)?)).await,
    }
}

fn sqlite(url: &str) -> tombolo::Result<Sqlite> {
    Ok(mutant::in_sqlite(Sqlite::open(url)?))
}

/// A stopped holder of a transaction is cut off before its lease ends.
fn postgres(url: &str) -> tombolo::Result<Postgres> {
    Ok(mutant::in_postgres(Postgres::open(url)?.with_idle_in_transaction(lease() / 2)))
}

pub(crate) async fn bus(folder: &Path, socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
    log_to_stderr();
    tombolo::barriers::install_from_env()?;
    let (log, _recovered) = Log::open(&folder.join("log"), mutant::in_log(Options::default()))?;
    let listen = [format!("tombolo+unix://{}", socket.display()).parse()?];
    let server = Server::bind(&listen, log).await?;
    server.serve(CancellationToken::new()).await?;
    Ok(())
}
