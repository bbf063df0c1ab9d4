//! The database that identity owns in a test: a file, or a database of its own on the server that the test program names
//! (`SERVER` in its `main.rs`), which goes with the test.
//!
//! Invariant: no two tests share a database.

use std::env;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, FromRow, MySqlConnection, PgConnection, SqliteConnection};
use tombolo::bus::Bus;
#[cfg(feature = "mysql")]
use tombolo::mysql::Mysql;
#[cfg(feature = "postgres")]
use tombolo::postgres::Postgres;
use tombolo::settings::database_kind;
use tombolo::sqlite::Sqlite;
use tombolo::{Clock, Service, Settings};
use tombolo_identity::{Config, Store, service};
use uuid::Uuid;

/// One database.
pub(crate) struct Ground {
    pub(crate) address: String,
    /// The address of another database on the same server.
    server: Option<String>,
}

/// What identity is started with, beside its database.
pub(crate) struct With {
    pub(crate) config: Config,
    /// None if its settings name the bus.
    pub(crate) bus: Option<Arc<dyn Bus>>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
}

/// Identity, on whichever database.
pub(crate) struct Ran {
    pub(crate) url: String,
    shutdown: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

impl Ran {
    pub(crate) async fn shutdown(self) {
        (self.shutdown)().await;
    }
}

impl Ground {
    /// On the server, or in the folder; there, too, with a line that says so, if no server is known.
    pub(crate) async fn new(folder: &Path) -> Self {
        let in_folder = || format!("sqlite://{}", folder.join("identity.db").display());
        let Some(variable) = crate::SERVER else { return Self { address: in_folder(), server: None } };
        let Some(server) = env::var(variable).ok().filter(|url| !url.is_empty()) else {
            eprintln!("on SQLite instead: {variable} is not set; run cargo xtask test --install");
            return Self { address: in_folder(), server: None };
        };
        let name = format!("identity_{}", &Uuid::new_v4().simple().to_string()[..12]);
        let address = format!("{}/{name}", server.trim_end_matches('/').rsplit_once('/').unwrap().0);
        let create = match database_kind(&server) {
            "mysql" => format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"),
            _ => format!("CREATE DATABASE {name}"),
        };
        run(&server, create).await;
        Self { address, server: Some(server) }
    }

    /// Identity on this database; each call is one more replica.
    pub(crate) async fn start(&self, with: With) -> Ran {
        let address = &self.address;
        let config = with.config.clone();
        match database_kind(address) {
            #[cfg(feature = "postgres")]
            "postgres" => started(service(Postgres::open(address).unwrap(), config).unwrap(), with).await,
            #[cfg(feature = "mysql")]
            "mysql" => started(service(Mysql::open(address).unwrap(), config).unwrap(), with).await,
            _ => started(service(Sqlite::open(address).unwrap(), config).unwrap(), with).await,
        }
    }

    /// The rows that a query finds.
    pub(crate) async fn rows<T>(&self, query: &'static str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, MySqlRow>,
        T: Send + Unpin,
    {
        let address = &self.address;
        let found = match database_kind(address) {
            "postgres" => {
                let mut connection = PgConnection::connect(address).await.unwrap();
                sqlx::query_as(query).fetch_all(&mut connection).await
            }
            "mysql" => {
                let mut connection = MySqlConnection::connect(address).await.unwrap();
                sqlx::query_as(query).fetch_all(&mut connection).await
            }
            _ => {
                let mut connection = SqliteConnection::connect(address).await.unwrap();
                sqlx::query_as(query).fetch_all(&mut connection).await
            }
        };
        found.unwrap()
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        self.rows::<(i64,)>(query).await[0].0
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let name = self.address.rsplit_once('/').unwrap().1.to_owned();
        // On a thread and a runtime of its own: what is dropped cannot wait.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(drop_database(&server, &name));
        });
        dropping.join().unwrap();
    }
}

/// Removes a database, and ends whatever is at work on it: a transaction that nobody will go on with would be waited for.
async fn drop_database(server: &str, name: &str) {
    if database_kind(server) != "mysql" {
        return run(server, format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }
    let mut connection = MySqlConnection::connect(server).await.unwrap();
    let at_work = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ?";
    let at_work: Vec<i64> = sqlx::query_scalar(at_work).bind(name).fetch_all(&mut connection).await.unwrap();
    for id in at_work {
        // It may have ended by itself.
        sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}"))).execute(&mut connection).await.ok();
    }
    run(server, format!("DROP DATABASE {name}")).await;
}

async fn run(server: &str, statement: String) {
    let statement = sqlx::raw_sql(AssertSqlSafe(statement));
    let done = match database_kind(server) {
        "mysql" => statement.execute(&mut MySqlConnection::connect(server).await.unwrap()).await.map(drop),
        _ => statement.execute(&mut PgConnection::connect(server).await.unwrap()).await.map(drop),
    };
    done.unwrap();
}

async fn started<D: Store>(service: Service<D>, with: With) -> Ran {
    let service = service.clock(with.clock);
    let service = match with.bus {
        Some(bus) => service.bus(bus),
        None => service,
    };
    let running = service.start(with.settings).await.unwrap();
    let url = running.url.clone();
    Ran { url, shutdown: Box::new(move || Box::pin(running.shutdown())) }
}
