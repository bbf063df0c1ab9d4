//! What a service has in its own database, whichever that is, read as only a test may.
//!
//! Invariant: nothing is written.

use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, FromRow, MySqlConnection, PgConnection, SqliteConnection};

/// A row that can be read from each.
pub(crate) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, MySqlRow> + Send + Unpin
{
}

impl<T> Row for T where
    T: for<'r> FromRow<'r, SqliteRow>
        + for<'r> FromRow<'r, PgRow>
        + for<'r> FromRow<'r, MySqlRow>
        + Send
        + Unpin
{
}

/// A service's database.
pub(crate) enum Database {
    Sqlite(String),
    Postgres(String),
    Mysql(String),
}

impl Database {
    pub(crate) fn at(url: &str) -> Self {
        match url.split_once(':') {
            Some(("sqlite", _)) => Self::Sqlite(url.into()),
            Some(("postgres", _)) => Self::Postgres(url.into()),
            Some(("mysql", _)) => Self::Mysql(url.into()),
            _ => panic!("nothing is known of {url}"),
        }
    }

    /// The rows of a query.
    pub(crate) async fn rows<T: Row>(&self, query: &str) -> Vec<T> {
        let query = AssertSqlSafe(query.to_owned());
        match self {
            Self::Sqlite(url) => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
            Self::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
            Self::Mysql(url) => {
                let mut connection = MySqlConnection::connect(url).await.unwrap();
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
        }
    }

    /// The rows of a query on the live build of the service's one view, whose tables are named in braces.
    pub(crate) async fn view_rows<T: Row>(&self, query: &str) -> Vec<T> {
        let own = if matches!(self, Self::Postgres(_)) { "tombolo." } else { "tombolo_" };
        let live = format!("SELECT namespace FROM {own}view JOIN {own}build USING (view, version, build)");
        let live: Vec<(String,)> = self.rows(&live).await;
        let [(live,)] = &live[..] else { panic!("expected one view, found {live:?}") };
        let table =
            if matches!(self, Self::Postgres(_)) { format!("\"{live}\".") } else { format!("{live}_") };
        self.rows(&query.replace('{', &table).replace('}', "")).await
    }
}
