//! Reading two builds of a view in MySQL and MariaDB, to compare them.
//!
//! Invariant: everything is read in one transaction, and so in one snapshot.

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, MySql, Row, Transaction};

use super::super::Mysql;
use crate::comparing::{Column, Common, Snapshot};
use crate::{Build, Result};

/// The types whose values are bytes, which JSON does not know.
const OF_BYTES: &str =
    "('binary', 'varbinary', 'tinyblob', 'blob', 'mediumblob', 'longblob', 'bit', 'geometry')";

/// A transaction that only reads, all of it as of its beginning.
pub(super) struct Moment(Transaction<'static, MySql>);

pub(super) async fn snapshot(database: &Mysql) -> Result<Moment> {
    let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
                 START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
    Ok(Moment(database.pool.begin_with(begin).await?))
}

impl Moment {
    pub(super) async fn end(self) -> Result<()> {
        Ok(self.0.rollback().await?)
    }

    /// A column as JSON takes it.
    async fn values(&mut self, build: &Build, table: &str, columns: &[String]) -> Result<Vec<String>> {
        let bytes = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT column_name FROM information_schema.columns
             WHERE table_schema = DATABASE() AND table_name = ? AND data_type IN {OF_BYTES}"
        )));
        let bytes = bytes.bind(format!("{}_{table}", build.namespace));
        let bytes: Vec<String> = bytes.fetch_all(&mut *self.0).await?;
        let value = |column: &String| match (quoted(column), bytes.contains(column)) {
            (column, true) => format!("CONCAT('x', HEX({column}))"),
            (column, false) => column,
        };
        Ok(columns.iter().map(value).collect())
    }
}

fn quoted(column: &str) -> String {
    format!("`{}`", column.replace('`', "``"))
}

#[async_trait]
impl Snapshot for Moment {
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>> {
        let columns = sqlx::query(
            "SELECT c.column_name, c.column_key = 'PRI'
             FROM information_schema.columns AS c
             JOIN information_schema.tables AS t ON t.table_schema = c.table_schema AND t.table_name = c.table_name
             WHERE c.table_schema = DATABASE() AND c.table_name = ? AND t.table_type = 'BASE TABLE'
             ORDER BY c.ordinal_position",
        );
        let rows = columns.bind(format!("{}_{table}", build.namespace)).fetch_all(&mut *self.0).await?;
        rows.iter().map(|row| Ok(Column { name: row.try_get(0)?, key: row.try_get(1)? })).collect()
    }

    async fn each(
        &mut self,
        build: &Build,
        table: &str,
        common: &Common,
        with: &mut (dyn FnMut(String, String) + Send),
    ) -> Result<()> {
        let key = self.values(build, table, &common.key).await?.join(", ");
        let values = self.values(build, table, &common.columns).await?;
        let named = |(column, value): (&String, String)| format!("'{}', {value}", escaped(column));
        let row: Vec<String> = common.columns.iter().zip(values).map(named).collect();
        let select = format!(
            "SELECT CAST(JSON_ARRAY({key}) AS CHAR), CAST(JSON_OBJECT({}) AS CHAR) FROM `{}_{table}`",
            row.join(", "),
            build.namespace
        );
        let mut rows = sqlx::query(AssertSqlSafe(select)).persistent(false).fetch(&mut *self.0);
        while let Some(row) = rows.try_next().await? {
            with(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(())
    }
}

/// The name of a column as text in SQL.
fn escaped(column: &str) -> String {
    column.replace('\\', "\\\\").replace('\'', "''")
}
