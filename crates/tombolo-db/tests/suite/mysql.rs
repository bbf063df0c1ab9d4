//! Databases of a MariaDB or MySQL server: one for each case.

use std::str::FromStr;
use std::sync::Mutex;

use async_trait::async_trait;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, SqlStr};
use tombolo_db::conformance::{Abilities, Ability, Fixture, Foreign, ForeignRow, Own};
use tombolo_db::mysql::{Mysql, Tx};
use tombolo_db::{Committed, Database, Outgoing};

pub(crate) const ABILITIES: Abilities = Abilities {
    late_commits: Ability::Can,
    failures_abort: Ability::Can,
    unsafe_settings: Ability::Can,
    absence: Ability::Can,
    bare_statements: Ability::Can,
    columns: Ability::Can,
    foreign: Ability::Can,
};

/// Names the server that the tests may use.
const VARIABLE: &str = "TOMBOLO_TEST_MARIADB";

pub(crate) struct Server {
    server: MySqlConnectOptions,
    name: String,
    made: Mutex<Vec<String>>,
    #[cfg(feature = "mutants")]
    pub(crate) fault: Option<tombolo_db::mutant::Mutant>,
}

impl Server {
    pub(crate) async fn start(name: &str) -> Option<Self> {
        let Ok(url) = std::env::var(VARIABLE) else {
            eprintln!("skipped: mariadb: {VARIABLE} is not set; run cargo xtask test --install");
            return None;
        };
        Some(Self {
            server: MySqlConnectOptions::from_str(&url).unwrap(),
            name: format!("tombolo_{name}_{}", uuid::Uuid::now_v7().simple()),
            made: Mutex::default(),
            #[cfg(feature = "mutants")]
            fault: None,
        })
    }

    pub(crate) async fn remove(&self) {
        let mut connection = MySqlConnection::connect_with(&self.server).await.unwrap();
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        for database in made {
            let drop = format!("DROP DATABASE {database}");
            sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
        }
    }

    async fn make(&self) -> String {
        let name = {
            let mut made = self.made.lock().unwrap();
            let name = format!("{}_{}", self.name, made.len());
            made.push(name.clone());
            name
        };
        let mut connection = MySqlConnection::connect_with(&self.server).await.unwrap();
        let make = format!(
            "CREATE DATABASE {name}; CREATE TABLE {name}.effect (k varchar(40) PRIMARY KEY, v bigint)"
        );
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut connection).await.unwrap();
        name
    }

    fn pool(&self, database: &str) -> MySqlPool {
        MySqlPoolOptions::new().max_connections(10).connect_lazy_with(self.server.clone().database(database))
    }

    fn open(&self, name: &str) -> Mysql {
        let database = Mysql::new(self.pool(name));
        // The first has Tombolo's own prefix, the others have another.
        let is_first = name.ends_with("_0");
        let database = if is_first { database } else { database.with_prefix("inbox_").unwrap() };
        #[cfg(feature = "mutants")]
        if let Some(fault) = self.fault {
            return database.with_mutant(fault);
        }
        database
    }
}

#[async_trait]
impl Fixture for Server {
    type Database = Mysql;

    async fn fresh(&self) -> Mysql {
        let name = self.make().await;
        self.open(&name)
    }

    async fn reopen(&self, database: &Mysql) -> Mysql {
        self.open(database.pool().connect_options().get_database().unwrap())
    }

    async fn unsafe_setting(&self) -> Mysql {
        let name = self.make().await;
        let options = MySqlPoolOptions::new().after_connect(|connection, _| {
            Box::pin(
                async move { sqlx::query("SET SESSION sql_mode = ''").execute(connection).await.map(|_| ()) },
            )
        });
        Mysql::new(options.connect_lazy_with(self.server.clone().database(&name)))
    }

    async fn absent(&self) -> Mysql {
        Mysql::new(self.pool("tombolo_that_nobody_made"))
    }

    async fn write(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES (?, ?)").bind(key).bind(value);
        insert.execute(&mut **tx).await.map(|_| ())
    }

    async fn count(&self, tx: &mut Tx, key: &str) -> i64 {
        let count = "INSERT INTO effect (k, v) VALUES (?, 1) ON DUPLICATE KEY UPDATE v = v + 1";
        sqlx::query(count).bind(key).execute(&mut **tx).await.unwrap();
        let value = sqlx::query_scalar("SELECT v FROM effect WHERE k = ?").bind(key);
        value.fetch_one(&mut **tx).await.unwrap()
    }

    async fn write_own(
        &self,
        database: &Mysql,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> tombolo_db::Result<Committed> {
        if how == Own::None {
            return database.write_outgoing(&mut *database.pool().acquire().await?, outgoing).await;
        }
        let mut tx = database.pool().begin().await?;
        sqlx::query("INSERT INTO effect (k, v) VALUES (?, 1)").bind(key).execute(&mut *tx).await?;
        let committed = database.write_outgoing(&mut tx, outgoing).await?;
        match how {
            Own::Committed => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        Ok(committed)
    }

    async fn read(&self, database: &Mysql, key: &str) -> Option<i64> {
        let read = sqlx::query_scalar("SELECT v FROM effect WHERE k = ?").bind(key);
        read.fetch_optional(database.pool()).await.unwrap()
    }

    async fn insert(&self, tx: &mut Tx, sql: SqlStr, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let values = format!("{} VALUES (?, ?)", sql.as_str());
        sqlx::query(AssertSqlSafe(values)).bind(key).bind(value).execute(&mut **tx).await.map(|_| ())
    }

    async fn sum(&self, database: &Mysql, sql: SqlStr) -> Option<i64> {
        // The server has no type of that name in a cast.
        let sql = sql.as_str().replace("AS bigint", "AS signed");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(database.pool()).await.ok()
    }

    async fn foreign(&self, database: &Mysql) -> Box<dyn Foreign> {
        let transaction = database.pool().begin().await.unwrap();
        Box::new(Other { transaction, prefix: prefix_of(database) })
    }

    async fn foreign_key(&self, database: &Mysql, key: &str) {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES (?, 0)").bind(key);
        insert.execute(database.pool()).await.unwrap();
    }

    async fn mend_foreign(&self, database: &Mysql, key: &str, event_type: &str) {
        let mend = "UPDATE tombolo_events SET event_type = ?, parked = NULL WHERE event_key = ?";
        let mend = AssertSqlSafe(mend.replace("tombolo_", prefix_of(database)));
        sqlx::query(mend).bind(event_type).bind(key).execute(database.pool()).await.unwrap();
    }

    async fn size(&self, database: &Mysql) -> u64 {
        // Waits until what was deleted is gone from the pages.
        sqlx::raw_sql("SET GLOBAL innodb_max_purge_lag_wait = 0").execute(database.pool()).await.unwrap();
        let size = sqlx::query_scalar(
            "SELECT CAST(SUM(file_size) AS SIGNED) FROM information_schema.innodb_sys_tablespaces
             WHERE name LIKE CONCAT(DATABASE(), '/%outbox')",
        );
        let size: i64 = size.fetch_one(database.pool()).await.unwrap();
        size.unsigned_abs()
    }
}

/// What the names of a database's tables begin with: the first has Tombolo's own prefix, the others have another.
fn prefix_of(database: &Mysql) -> &'static str {
    let is_first = database.pool().connect_options().get_database().unwrap().ends_with("_0");
    if is_first { "tombolo_" } else { "inbox_" }
}

/// A transaction of another program.
struct Other {
    transaction: sqlx::Transaction<'static, sqlx::MySql>,
    prefix: &'static str,
}

#[async_trait]
impl Foreign for Other {
    async fn publish(&mut self, row: &ForeignRow) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO tombolo_events (id, event_type, event_key, data) VALUES (?, ?, ?, ?)";
        let insert = sqlx::query(AssertSqlSafe(sql.replace("tombolo_", self.prefix)));
        let insert = insert.bind(row.id.map(|id| id.to_string())).bind(&row.event_type);
        let insert = insert.bind(&row.key).bind(&row.data);
        insert.execute(&mut *self.transaction).await.map(drop)
    }

    async fn count(&mut self, key: &str) -> i64 {
        let count = sqlx::query("UPDATE effect SET v = v + 1 WHERE k = ?").bind(key);
        count.execute(&mut *self.transaction).await.unwrap();
        let value = sqlx::query_scalar("SELECT v FROM effect WHERE k = ? FOR UPDATE").bind(key);
        value.fetch_one(&mut *self.transaction).await.unwrap()
    }

    async fn apply(&mut self, subscription: &str, sequence: i64, id: uuid::Uuid) -> Result<(), sqlx::Error> {
        let sql = format!("CALL {}apply(?, 'notes', 0, ?, ?)", self.prefix);
        let apply = sqlx::query(AssertSqlSafe(sql)).bind(subscription).bind(sequence).bind(id.to_string());
        apply.execute(&mut *self.transaction).await.map(drop)
    }

    async fn end(self: Box<Self>, how: Own) {
        match how {
            Own::Committed => self.transaction.commit().await.unwrap(),
            _ => self.transaction.rollback().await.unwrap(),
        }
    }
}
