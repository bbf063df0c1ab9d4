//! What a service costs its database when nothing happens. In a process of its own, because statements are counted where
//! sqlx logs them, for the whole process.

#![cfg(all(feature = "sqlite", feature = "postgres", feature = "mysql"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, MySqlPool, PgPool};
use tombolo::mysql::Mysql;
use tombolo::postgres::Postgres;
use tombolo::sqlite::Sqlite;
use tombolo::{Database, Event, Handled, Reactor, Running, Service, Settings, View};
use tombolo_bus::Bus;
use tombolo_bus::embedded::{Log, Options};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

/// Renewals of leases between which statements are counted; so long that everything that comes by itself came.
const RENEWALS: usize = 4;
/// How long a test waits for them.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize, JsonSchema)]
struct Placed {
    order: String,
}

impl Event for Placed {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

/// Every statement that sqlx has run, and when.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<Vec<(Instant, String)>>>);

struct Summary(String);

impl Visit for Summary {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "summary" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut summary = Summary(String::new());
            event.record(&mut summary);
            self.0.lock().unwrap().push((Instant::now(), summary.0));
        }
    }
}

impl Statements {
    /// Waits until the leases were renewed so often, and returns the statements from the first renewal to the last,
    /// without that, and how long it took.
    async fn between_renewals(&self) -> (Vec<String>, Duration) {
        self.0.lock().unwrap().clear();
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let began = Instant::now();
        loop {
            look.tick().await;
            assert!(began.elapsed() < PATIENCE, "the leases were not renewed {RENEWALS} times");
            let seen = self.0.lock().unwrap();
            let renewals: Vec<usize> = (0..seen.len()).filter(|&n| is_renewal(&seen[n].1)).collect();
            if let [first, .., last] = renewals[..]
                && renewals.len() > RENEWALS
            {
                let statements = seen[first..last].iter().map(|(_, statement)| statement.clone()).collect();
                return (statements, seen[last].0 - seen[first].0);
            }
        }
    }
}

/// The one that renews all leases of a process, which begins the same everywhere but on PostgreSQL.
fn is_renewal(statement: &str) -> bool {
    statement.starts_with("UPDATE tombolo_member") || statement.starts_with("WITH me AS")
}

async fn keep_sqlite(_event: Placed, _tx: &mut tombolo::sqlite::Tx) -> Handled {
    Ok(())
}

async fn keep_postgres(_event: Placed, _tx: &mut tombolo::postgres::Tx) -> Handled {
    Ok(())
}

async fn keep_mysql(_event: Placed, _tx: &mut tombolo::mysql::Tx) -> Handled {
    Ok(())
}

async fn start<D: Database>(service: Service<D>, bus: &Arc<dyn Bus>) -> Running<D> {
    service.publishes::<Placed>().bus(Arc::clone(bus)).start(Settings::default()).await.unwrap()
}

/// Fails unless a service that has a relay, a view and a reactor is quiet.
async fn assert_quiet(what: &str, statements: &Statements) {
    // The first round still has what came after the start.
    statements.between_renewals().await;
    let (found, took) = statements.between_renewals().await;
    let each_second = found.len() as f64 / took.as_secs_f64();
    eprintln!(
        "{what}: {} statements in {took:.1?}: {each_second:.2} each second\n{}",
        found.len(),
        found.join("\n")
    );
    assert!(each_second < 1.0, "{what}: {each_second:.2} statements each second:\n{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_asks_its_database_less_than_once_a_second() {
    let statements = Statements::default();
    let only_sqlx =
        tracing_subscriber::filter::Targets::new().with_target("sqlx::query", tracing::Level::DEBUG);
    tracing_subscriber::registry().with(statements.clone().with_filter(only_sqlx)).init();
    let bus: Arc<dyn Bus> = Log::in_memory(Options::default()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let database = Sqlite::open(folder.path().join("orders.db").to_str().unwrap()).unwrap();
    let orders = Service::new("orders", database)
        .view(View::new("copies", 1).on(keep_sqlite))
        .react(Reactor::from_start("copier").on(keep_sqlite));
    let orders = start(orders, &bus).await;
    assert_quiet("sqlite", &statements).await;
    orders.shutdown().await;
    on_postgres(&statements).await;
    on_mariadb(&statements).await;
}

async fn on_postgres(statements: &Statements) {
    let Ok(url) = std::env::var("TOMBOLO_TEST_POSTGRES") else {
        return eprintln!(
            "skipped: postgres: TOMBOLO_TEST_POSTGRES is not set; run cargo xtask test --install"
        );
    };
    let name = format!("idle_{}", Uuid::new_v4().simple());
    let admin = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    let (place, options) = url.split_once('?').unwrap_or((&url, ""));
    let host = place.rsplit_once('/').filter(|(host, _)| host.contains("//") && !host.ends_with('/'));
    let host = host.map_or(place, |(host, _)| host);
    let database = Postgres::open(&format!("{host}/{name}?{options}")).unwrap();
    let bus: Arc<dyn Bus> = Log::in_memory(Options::default()).unwrap();
    let orders = Service::new("orders", database.clone())
        .view(View::new("copies", 1).on(keep_postgres))
        .react(Reactor::from_start("copier").on(keep_postgres));
    let orders = start(orders, &bus).await;
    assert_quiet("postgres", statements).await;
    orders.shutdown().await;
    database.pool().close().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(&admin).await.unwrap();
}

async fn on_mariadb(statements: &Statements) {
    let Ok(url) = std::env::var("TOMBOLO_TEST_MARIADB") else {
        return eprintln!(
            "skipped: mariadb: TOMBOLO_TEST_MARIADB is not set; run cargo xtask test --install"
        );
    };
    let name = format!("idle_{}", Uuid::new_v4().simple());
    let admin = MySqlPool::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let database = Mysql::open(&format!("{server}/{name}")).unwrap();
    let bus: Arc<dyn Bus> = Log::in_memory(Options::default()).unwrap();
    let orders = Service::new("orders", database.clone())
        .view(View::new("copies", 1).on(keep_mysql))
        .react(Reactor::from_start("copier").on(keep_mysql));
    let orders = start(orders, &bus).await;
    assert_quiet("mariadb", statements).await;
    orders.shutdown().await;
    database.pool().close().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(&admin).await.unwrap();
}
