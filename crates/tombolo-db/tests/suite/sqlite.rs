//! Databases of SQLite in a temporary folder.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, SqlStr, SqlitePool};
use tombolo_db::conformance::{Abilities, Ability, Fixture, Foreign, ForeignRow, Own};
use tombolo_db::sqlite::{Sqlite, Tx};
use tombolo_db::{Committed, Database, Outgoing};

pub(crate) const ABILITIES: Abilities = Abilities {
    late_commits: Ability::Cannot("SQLite has a single writer, so no commit is late"),
    failures_abort: Ability::Cannot("a failed statement of SQLite undoes only itself"),
    unsafe_settings: Ability::Can,
    absence: Ability::Cannot("SQLite makes a file that is not there"),
    bare_statements: Ability::Can,
    columns: Ability::Can,
    foreign: Ability::Can,
};

pub(crate) struct Files {
    folder: tempfile::TempDir,
    made: AtomicU32,
    #[cfg(feature = "mutants")]
    pub(crate) fault: Option<tombolo_db::mutant::Mutant>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            made: AtomicU32::new(0),
            #[cfg(feature = "mutants")]
            fault: None,
        }
    }

    fn next(&self) -> String {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{number}.db")).to_str().unwrap().to_owned()
    }

    fn open(&self, path: &str) -> Sqlite {
        let database = Sqlite::open(path).unwrap();
        #[cfg(feature = "mutants")]
        if let Some(fault) = self.fault {
            return database.with_mutant(fault);
        }
        database
    }
}

#[async_trait]
impl Fixture for Files {
    type Database = Sqlite;

    async fn fresh(&self) -> Sqlite {
        let database = self.open(&self.next());
        let make = sqlx::query("CREATE TABLE effect (k TEXT PRIMARY KEY, v INTEGER)");
        make.execute(database.pool()).await.unwrap();
        database
    }

    async fn reopen(&self, database: &Sqlite) -> Sqlite {
        self.open(database.pool().connect_options().get_filename().to_str().unwrap())
    }

    async fn unsafe_setting(&self) -> Sqlite {
        let options = SqliteConnectOptions::new().filename(self.next()).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Normal);
        Sqlite::new(SqlitePool::connect_lazy_with(options)).unwrap()
    }

    async fn absent(&self) -> Sqlite {
        unreachable!("the abilities say that it cannot")
    }

    async fn write(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES (?, ?)").bind(key).bind(value);
        insert.execute(&mut **tx).await.map(|_| ())
    }

    async fn count(&self, tx: &mut Tx, key: &str) -> i64 {
        let count =
            "INSERT INTO effect (k, v) VALUES (?, 1) ON CONFLICT (k) DO UPDATE SET v = v + 1 RETURNING v";
        sqlx::query_scalar(count).bind(key).fetch_one(&mut **tx).await.unwrap()
    }

    async fn write_own(
        &self,
        database: &Sqlite,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> tombolo_db::Result<Committed> {
        if how == Own::None {
            return database.write_outgoing(&mut *database.pool().acquire().await?, outgoing).await;
        }
        let mut tx = database.pool().begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO effect (k, v) VALUES (?, 1)").bind(key).execute(&mut *tx).await?;
        let committed = database.write_outgoing(&mut tx, outgoing).await?;
        match how {
            Own::Committed => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        Ok(committed)
    }

    async fn read(&self, database: &Sqlite, key: &str) -> Option<i64> {
        let read = sqlx::query_scalar("SELECT v FROM effect WHERE k = ?").bind(key);
        read.fetch_optional(database.pool()).await.unwrap()
    }

    async fn insert(&self, tx: &mut Tx, sql: SqlStr, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let values = format!("{} VALUES (?, ?)", sql.as_str());
        sqlx::query(AssertSqlSafe(values)).bind(key).bind(value).execute(&mut **tx).await.map(|_| ())
    }

    async fn sum(&self, database: &Sqlite, sql: SqlStr) -> Option<i64> {
        sqlx::query_scalar(sql).fetch_one(database.pool()).await.ok()
    }

    async fn foreign(&self, database: &Sqlite) -> Box<dyn Foreign> {
        Box::new(Other { transaction: database.pool().begin_with("BEGIN IMMEDIATE").await.unwrap() })
    }

    async fn foreign_key(&self, database: &Sqlite, key: &str) {
        let insert = sqlx::query("INSERT INTO effect (k, v) VALUES (?, 0)").bind(key);
        insert.execute(database.pool()).await.unwrap();
    }

    async fn mend_foreign(&self, database: &Sqlite, key: &str, event_type: &str) {
        let mend = "UPDATE tombolo_events SET event_type = ?, parked = NULL WHERE event_key = ?";
        sqlx::query(mend).bind(event_type).bind(key).execute(database.pool()).await.unwrap();
    }

    async fn size(&self, database: &Sqlite) -> u64 {
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(database.pool()).await.unwrap();
        let bytes: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(database.pool()).await.unwrap();
        (pages * bytes).unsigned_abs()
    }
}

/// A transaction of another program.
struct Other {
    transaction: sqlx::Transaction<'static, sqlx::Sqlite>,
}

#[async_trait]
impl Foreign for Other {
    async fn publish(&mut self, row: &ForeignRow) -> Result<(), sqlx::Error> {
        let id = row.id.map(|id| id.to_string());
        let insert =
            sqlx::query("INSERT INTO tombolo_events (id, event_type, event_key, data) VALUES (?, ?, ?, ?)");
        let insert = insert.bind(id).bind(&row.event_type).bind(&row.key).bind(&row.data);
        insert.execute(&mut *self.transaction).await.map(drop)
    }

    async fn count(&mut self, key: &str) -> i64 {
        let count = sqlx::query_scalar("UPDATE effect SET v = v + 1 WHERE k = ? RETURNING v").bind(key);
        count.fetch_one(&mut *self.transaction).await.unwrap()
    }

    async fn apply(&mut self, subscription: &str, sequence: i64, id: uuid::Uuid) -> Result<(), sqlx::Error> {
        let apply = sqlx::query(
            "INSERT INTO tombolo_apply (subscription, topic, partition, sequence, id) VALUES (?, 'notes', 0, ?, ?)",
        );
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
