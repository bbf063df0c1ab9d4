//! The processes that are killed: the bus, a producer, a consumer with a view and a reactor.
//!
//! Nothing here guards against doubles: a double would show. What differs between databases is a [`Store`].

mod sqlite;
mod postgres;
#[cfg(feature = "engines")]
mod mysql;
#[cfg(feature = "engines")]
mod mongodb;

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
use tombolo::{
    App, Attempt, Database, Effect, Event, Handled, HandlerError, Problem, Reactor, Service, Settings,
};
use tombolo::{State as Given, Transaction, View};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::Server;
use uuid::Uuid;

use crate::mutant;
use crate::office::Letter;

/// How a process is told how long its leases are.
pub(crate) const LEASE_MS: &str = "TOMBOLO_FAULTS_LEASE_MS";

/// How a process is told where letters go; without it there are none.
pub(crate) const LETTERS: &str = "TOMBOLO_FAULTS_LETTERS";
/// The view.
pub(crate) const VIEW: &str = "copies";
/// What the keys of orders begin with whose handler fails now and then, and of those that kill the process each time.
pub(crate) const SOUR: &str = "sour";
pub(crate) const DEADLY: &str = "deadly";

/// The body of a heap of orders, at most.
const HEAP_BYTES_MAX: usize = 64 << 20;

/// One of so many orders of a sour key is hard to handle, and its handler fails so often.
const SOUR_EVERY: i64 = 3;
const SOUR_FAILS: f64 = 0.6;

/// What a role needs of its database beyond what Tombolo does.
pub(crate) trait Store: Database {
    /// What makes the table of the copies.
    const COPIES: &'static str;

    /// Makes the table in which orders are kept, in the order in which they came.
    fn make_orders(self) -> impl Future<Output = tombolo::Result<()>> + Send;

    /// Keeps an order.
    fn keep_order(tx: &mut Self::Tx, placed: &Placed) -> impl Future<Output = tombolo::Result<()>> + Send;

    /// Keeps a copy of one, in the build of the view.
    fn keep_copy(tx: &mut Self::Tx, placed: &Placed) -> impl Future<Output = tombolo::Result<()>> + Send;
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
        D::keep_order(&mut tx, placed).await?;
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
    if event.key.starts_with(DEADLY) {
        std::process::abort();
    }
    if event.key.starts_with(SOUR) && event.n % SOUR_EVERY == 0 && rand::random_bool(SOUR_FAILS) {
        return Err(std::io::Error::other("a sour order").into());
    }
    Ok(D::keep_copy(tx, &event).await?)
}

/// Where letters go.
#[derive(Clone)]
struct Office {
    url: String,
    http: reqwest::Client,
}

/// Sends a letter about each order, with a key by which a repeat is known.
async fn letter(event: Placed, office: Given<Office>, attempt: Attempt) -> Result<(), HandlerError> {
    let letter = Letter { key: attempt.key.to_string(), order: event.id };
    office.0.http.post(&office.0.url).json(&letter).send().await?.error_for_status()?;
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
    Service::new("orders", database).setup(Store::make_orders).routes(routes()).publishes::<Placed>()
}

fn history<D: Store>(database: D) -> Service<D> {
    let history = Service::new("history", database)
        .publishes::<Seen>()
        .view(View::new(VIEW, 1).tables(D::COPIES).on(copy::<D>))
        .react(Reactor::from_start("seen").on(react::<D>));
    match std::env::var(LETTERS) {
        Ok(url) => history
            .state(Office { url, http: reqwest::Client::new() })
            .effect(Effect::from_start("letters").on(letter)),
        Err(_) => history,
    }
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
        #[cfg(feature = "engines")]
        url if url.starts_with("mysql") => serve(orders(mysql(&url)?)).await,
        #[cfg(feature = "engines")]
        url if url.starts_with("mongodb") => serve(orders(mongodb(&url).await?)).await,
        url => serve(orders(sqlite(&url)?)).await,
    }
}

pub(crate) async fn consumer() -> tombolo::Result<()> {
    match database_url() {
        url if url.starts_with("postgres") => serve(history(postgres(&url)?)).await,
        #[cfg(feature = "engines")]
        url if url.starts_with("mysql") => serve(history(mysql(&url)?)).await,
        #[cfg(feature = "engines")]
        url if url.starts_with("mongodb") => serve(history(mongodb(&url).await?)).await,
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

#[cfg(feature = "engines")]
fn mysql(url: &str) -> tombolo::Result<tombolo::mysql::Mysql> {
    Ok(mutant::in_mysql(tombolo::mysql::Mysql::open(url)?.with_idle_in_transaction(lease() / 2)))
}

#[cfg(feature = "engines")]
async fn mongodb(url: &str) -> tombolo::Result<tombolo::mongodb::Mongodb> {
    Ok(mutant::in_mongodb(tombolo::mongodb::Mongodb::open(url).await?))
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
