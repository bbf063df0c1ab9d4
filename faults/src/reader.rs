//! What the checks read of a service's database, past everything that Tombolo says of it.
//!
//! Invariant: nothing is written.

#[cfg(feature = "engines")]
pub(crate) mod mongodb;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::process::Outcome;

/// What the tables of the build that is read have in front of their names.
const LIVE: &str = "SELECT namespace FROM tombolo.build JOIN tombolo.view USING (view, version, build)";

/// (id, key, n), in the order of application.
pub(crate) type Rows = Vec<(String, String, i64)>;

/// What there is a number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// What the producer committed.
    Orders,
    /// The rows of an outbox.
    Waiting,
    Parked,
    /// How many orders the last of the subscriptions has behind it.
    Applied,
}

impl Count {
    /// As PostgreSQL takes it.
    fn sql(self) -> &'static str {
        match self {
            Self::Orders => "SELECT count(*) FROM orders",
            Self::Waiting => "SELECT count(*) FROM tombolo.outbox",
            Self::Parked => "SELECT count(*) FROM tombolo.parked",
            Self::Applied => {
                "SELECT CAST(coalesce(min(behind), 0) AS BIGINT) FROM
                (SELECT sum(sequence) AS behind FROM tombolo.cursor WHERE topic = 'orders' GROUP BY subscription) AS each_one"
            }
        }
    }
}

/// A connection of the checks. Queries are written as PostgreSQL takes them.
pub(crate) enum Reader {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    #[cfg(feature = "engines")]
    Mysql(sqlx::MySqlConnection),
    #[cfg(feature = "engines")]
    Mongodb(mongodb::Documents),
}

/// Does the same with the connection of each kind that speaks SQL, and something else with documents.
macro_rules! each {
    ($reader:expr, $connection:ident => $done:expr, $documents:ident => $other:expr) => {
        match $reader {
            Reader::Sqlite($connection) => $done,
            Reader::Postgres($connection) => $done,
            #[cfg(feature = "engines")]
            Reader::Mysql($connection) => $done,
            #[cfg(feature = "engines")]
            Reader::Mongodb($documents) => $other,
        }
    };
}

impl Reader {
    pub(crate) async fn sqlite(url: &str) -> Outcome<Self> {
        Ok(Self::Sqlite(SqliteConnection::connect(&format!("{url}?mode=ro")).await?))
    }

    pub(crate) async fn postgres(url: &str) -> Outcome<Self> {
        Ok(Self::Postgres(PgConnection::connect(url).await?))
    }

    #[cfg(feature = "engines")]
    pub(crate) async fn mysql(url: &str) -> Outcome<Self> {
        Ok(Self::Mysql(sqlx::MySqlConnection::connect(url).await?))
    }

    #[cfg(feature = "engines")]
    pub(crate) async fn mongodb(url: &str) -> Outcome<Self> {
        Ok(Self::Mongodb(mongodb::Documents::open(url).await?))
    }

    pub(crate) async fn count(&mut self, what: Count) -> Outcome<i64> {
        let query = self.dialect(what.sql());
        Ok(each!(self,
            connection => sqlx::query_scalar(query).fetch_one(connection).await?,
            documents => documents.count(what).await?))
    }

    /// The table of the copies, of the build that is read.
    pub(crate) async fn copies(&mut self) -> Outcome<String> {
        let query = self.dialect(LIVE);
        let namespace: String = each!(self,
            connection => sqlx::query_scalar(query).fetch_one(connection).await?,
            documents => documents.live().await?);
        Ok(match self {
            Self::Sqlite(_) => format!("\"{namespace}_copies\""),
            Self::Postgres(_) => format!("\"{namespace}\".copies"),
            #[cfg(feature = "engines")]
            Self::Mysql(_) => format!("`{namespace}_copies`"),
            #[cfg(feature = "engines")]
            Self::Mongodb(_) => format!("{namespace}.copies"),
        })
    }

    /// How many copies there are.
    pub(crate) async fn count_copies(&mut self) -> Outcome<i64> {
        let copies = self.copies().await?;
        let query = self.dialect(&format!("SELECT count(*) FROM {copies}"));
        Ok(each!(self,
            connection => sqlx::query_scalar(query).fetch_one(connection).await?,
            documents => documents.size(&copies).await?))
    }

    /// The orders, in the order in which they came.
    pub(crate) async fn orders(&mut self) -> Outcome<Rows> {
        self.rows("orders").await
    }

    /// The copies of the build that is read, in the order in which they were written.
    pub(crate) async fn copied(&mut self) -> Outcome<Rows> {
        let copies = self.copies().await?;
        self.rows(&copies).await
    }

    async fn rows(&mut self, table: &str) -> Outcome<Rows> {
        let query = self.dialect(&format!("SELECT id, key, n FROM {table} ORDER BY place"));
        Ok(each!(self,
            connection => sqlx::query_as(query).fetch_all(connection).await?,
            documents => documents.rows(table).await?))
    }

    /// Ends it before anybody does something to the files.
    pub(crate) async fn close(self) -> Outcome<()> {
        each!(self, connection => connection.close().await?, documents => documents.close().await);
        Ok(())
    }

    fn dialect(&self, query: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(match self {
            Self::Sqlite(_) => prefixed(query),
            Self::Postgres(_) => query.to_owned(),
            #[cfg(feature = "engines")]
            Self::Mysql(_) => prefixed(query).replace(" key,", " `key`,").replace("AS BIGINT", "AS SIGNED"),
            #[cfg(feature = "engines")]
            Self::Mongodb(_) => String::new(),
        })
    }
}

/// In SQLite and MariaDB a prefix stands for the schema.
fn prefixed(query: &str) -> String {
    query.replace("tombolo.", "tombolo_")
}
