//! Databases of a PostgreSQL server: one database for each run, in it a schema for each case.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, SqlStr};
use tombolo_db::conformance::{Abilities, Ability, Fixture, Foreign, ForeignRow, Own};
use tombolo_db::postgres::{Postgres, Tx};
use tombolo_db::{Committed, Database, Outgoing};

pub(crate) const ABILITIES: Abilities = Abilities {
    late_commits: Ability::Can,
    failures_abort: Ability::Can,
    unsafe_settings: Ability::Cannot(
        "its unsafe settings are those of the whole server, which the tests share; a unit test covers the refusal",
    ),
    absence: Ability::Can,
    bare_statements: Ability::Can,
    columns: Ability::Can,
    foreign: Ability::Can,
};

/// Names the server that the tests may use.
const VARIABLE: &str = "TOMBOLO_TEST_POSTGRES";

pub(crate) struct Server {
    server: PgConnectOptions,
    database: String,
    made: AtomicU32,
    #[cfg(feature = "mutants")]
    pub(crate) fault: Option<tombolo_db::mutant::Mutant>,
}

impl Server {
    /// A database of its own on the server, if there is one.
    pub(crate) async fn start(name: &str) -> Option<Self> {
        let Ok(url) = std::env::var(VARIABLE) else {
            eprintln!("skipped: postgres: {VARIABLE} is not set; run cargo xtask test --install");
            return None;
        };
        let server = PgConnectOptions::from_str(&url).unwrap();
        let database = format!("tombolo_{name}_{}_{}", std::process::id(), uuid::Uuid::now_v7().simple());
        let database = database.chars().take(63).collect::<String>();
        let mut connection = PgConnection::connect_with(&server).await.unwrap();
        let make = format!("CREATE DATABASE {database}");
        sqlx::query(AssertSqlSafe(make)).execute(&mut connection).await.unwrap();
        Some(Self {
            server,
            database,
            made: AtomicU32::new(0),
            #[cfg(feature = "mutants")]
            fault: None,
        })
    }

    pub(crate) async fn remove(&self) {
        let mut connection = PgConnection::connect_with(&self.server).await.unwrap();
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
    }

    /// Connections whose plain table is that of `schema`.
    fn pool(&self, schema: &str) -> PgPool {
        let options = self.server.clone().database(&self.database).options([("search_path", schema)]);
        PgPoolOptions::new().max_connections(10).connect_lazy_with(options)
    }

    fn open(&self, schema: &str) -> Postgres {
        let database = Postgres::new(self.pool(schema)).with_schema(schema).unwrap();
        #[cfg(feature = "mutants")]
        if let Some(fault) = self.fault {
            return database.with_mutant(fault);
        }
        database
    }
}

/// The schema that a pool of [`Server::pool`] uses.
async fn schema_of(pool: &PgPool) -> String {
    sqlx::query_scalar("SELECT current_schema()").fetch_one(pool).await.unwrap()
}

#[async_trait]
impl Fixture for Server {
    type Database = Postgres;

    async fn fresh(&self) -> Postgres {
        // The first is Tombolo's default schema, the others are not.
        let schema = match self.made.fetch_add(1, Ordering::Relaxed) {
            0 => "tombolo".to_owned(),
            number => format!("case_{number}"),
        };
        let database = self.open(&schema);
        let make = format!("CREATE SCHEMA {schema}; CREATE TABLE effect (k text PRIMARY KEY, v bigint)");
        sqlx::raw_sql(AssertSqlSafe(make)).execute(database.pool()).await.unwrap();
        database
    }

    async fn reopen(&self, database: &Postgres) -> Postgres {
        self.open(&schema_of(database.pool()).await)
    }

    async fn unsafe_setting(&self) -> Postgres {
        unreachable!("the abilities say that it cannot")
    }

    async fn absent(&self) -> Postgres {
        let nowhere = self.server.clone().database("tombolo_that_nobody_made");
        Postgres::new(PgPoolOptions::new().connect_lazy_with(nowhere))
    }

    async fn write(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES ($1, $2)").bind(key).bind(value);
        insert.execute(&mut **tx).await.map(|_| ())
    }

    async fn count(&self, tx: &mut Tx, key: &str) -> i64 {
        let count = "INSERT INTO effect AS e (k, v) VALUES ($1, 1) ON CONFLICT (k) DO UPDATE SET v = e.v + 1 RETURNING v";
        sqlx::query_scalar(count).bind(key).fetch_one(&mut **tx).await.unwrap()
    }

    async fn write_own(
        &self,
        database: &Postgres,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> tombolo_db::Result<Committed> {
        if how == Own::None {
            return database.write_outgoing(&mut *database.pool().acquire().await?, outgoing).await;
        }
        let mut tx = database.pool().begin().await?;
        sqlx::query("INSERT INTO effect (k, v) VALUES ($1, 1)").bind(key).execute(&mut *tx).await?;
        let committed = database.write_outgoing(&mut tx, outgoing).await?;
        match how {
            Own::Committed => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        Ok(committed)
    }

    async fn read(&self, database: &Postgres, key: &str) -> Option<i64> {
        let read = sqlx::query_scalar("SELECT v FROM effect WHERE k = $1").bind(key);
        read.fetch_optional(database.pool()).await.unwrap()
    }

    async fn insert(&self, tx: &mut Tx, sql: SqlStr, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let values = format!("{} VALUES ($1, $2)", sql.as_str());
        sqlx::query(AssertSqlSafe(values)).bind(key).bind(value).execute(&mut **tx).await.map(|_| ())
    }

    async fn sum(&self, database: &Postgres, sql: SqlStr) -> Option<i64> {
        sqlx::query_scalar(sql).fetch_one(database.pool()).await.ok()
    }

    async fn foreign(&self, database: &Postgres) -> Box<dyn Foreign> {
        Box::new(Other { transaction: database.pool().begin().await.unwrap() })
    }

    async fn foreign_key(&self, database: &Postgres, key: &str) {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES ($1, 0)").bind(key);
        insert.execute(database.pool()).await.unwrap();
    }

    async fn mend_foreign(&self, database: &Postgres, key: &str, event_type: &str) {
        let mend = "UPDATE events SET event_type = $1, parked = NULL WHERE event_key = $2";
        sqlx::query(mend).bind(event_type).bind(key).execute(database.pool()).await.unwrap();
    }

    async fn size(&self, database: &Postgres) -> u64 {
        // As long as somebody has an older snapshot, a vacuum removes nothing: the server's own analysis may, for a while.
        let snapshots = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL";
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while sqlx::query_scalar::<_, i64>(snapshots).fetch_one(database.pool()).await.unwrap() > 0 {
            look.tick().await;
        }
        sqlx::query("VACUUM outbox").execute(database.pool()).await.unwrap();
        let size = sqlx::query_scalar::<_, i64>("SELECT pg_total_relation_size('outbox')");
        size.fetch_one(database.pool()).await.unwrap().unsigned_abs()
    }
}

/// A transaction of another program.
struct Other {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
}

#[async_trait]
impl Foreign for Other {
    async fn publish(&mut self, row: &ForeignRow) -> Result<(), sqlx::Error> {
        let insert =
            sqlx::query("INSERT INTO events (id, event_type, event_key, data) VALUES ($1, $2, $3, $4)");
        let insert = insert.bind(row.id).bind(&row.event_type).bind(&row.key).bind(&row.data);
        insert.execute(&mut *self.transaction).await.map(drop)
    }

    async fn count(&mut self, key: &str) -> i64 {
        let count = sqlx::query_scalar("UPDATE effect SET v = v + 1 WHERE k = $1 RETURNING v").bind(key);
        count.fetch_one(&mut *self.transaction).await.unwrap()
    }

    async fn apply(&mut self, subscription: &str, sequence: i64, id: uuid::Uuid) -> Result<(), sqlx::Error> {
        let apply = sqlx::query("SELECT apply($1, 'notes', 0, $2, $3)");
        let apply = apply.bind(subscription).bind(sequence).bind(id);
        apply.execute(&mut *self.transaction).await.map(drop)
    }

    async fn end(self: Box<Self>, how: Own) {
        match how {
            Own::Committed => self.transaction.commit().await.unwrap(),
            _ => self.transaction.rollback().await.unwrap(),
        }
    }
}
