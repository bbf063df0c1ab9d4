//! Reading two builds of a view in SQLite, to compare them.
//!
//! Invariant: everything is read in one transaction, and so in one snapshot.

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row, Transaction};

use super::super::Sqlite;
use crate::comparing::{Column, Common, Snapshot};
use crate::{Build, Result};

/// A transaction that only reads.
pub(super) async fn snapshot(database: &Sqlite) -> Result<Transaction<'static, sqlx::Sqlite>> {
    Ok(database.pool.begin().await?)
}

#[async_trait]
impl Snapshot for Transaction<'static, sqlx::Sqlite> {
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>> {
        let columns = sqlx::query(
            "SELECT c.name, c.pk > 0 FROM sqlite_schema AS t, pragma_table_info(t.name) AS c
             WHERE t.type = 'table' AND t.name = ? ORDER BY c.cid",
        );
        let rows = columns.bind(format!("{}_{table}", build.namespace)).fetch_all(&mut **self).await?;
        rows.iter().map(|row| Ok(Column { name: row.try_get(0)?, key: row.try_get(1)? })).collect()
    }

    async fn each(
        &mut self,
        build: &Build,
        table: &str,
        common: &Common,
        with: &mut (dyn FnMut(String, String) + Send),
    ) -> Result<()> {
        let key: Vec<String> = common.key.iter().map(|column| value(column)).collect();
        let named = |column: &String| format!("'{}', {}", column.replace('\'', "''"), value(column));
        let row: Vec<String> = common.columns.iter().map(named).collect();
        let select = format!(
            "SELECT json_array({}), json_object({}) FROM \"{}_{table}\"",
            key.join(", "),
            row.join(", "),
            build.namespace
        );
        let mut rows = sqlx::query(AssertSqlSafe(select)).fetch(&mut **self);
        while let Some(row) = rows.try_next().await? {
            with(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(())
    }
}

/// A column as JSON takes it, which knows no bytes.
fn value(column: &str) -> String {
    let column = column.replace('"', "\"\"");
    format!("CASE typeof(\"{column}\") WHEN 'blob' THEN 'x' || hex(\"{column}\") ELSE \"{column}\" END")
}
