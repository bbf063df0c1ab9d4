//! Reading two builds of a view in PostgreSQL, to compare them.
//!
//! Invariant: everything is read in one transaction, and so in one snapshot.

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row, Transaction};

use super::super::Postgres;
use crate::comparing::{Column, Common, Snapshot};
use crate::{Build, Result};

/// A transaction that only reads, all of it as of its first statement.
pub(super) async fn snapshot(database: &Postgres) -> Result<Transaction<'static, sqlx::Postgres>> {
    Ok(database.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
}

#[async_trait]
impl Snapshot for Transaction<'static, sqlx::Postgres> {
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>> {
        let columns = sqlx::query(
            "SELECT a.attname::text, coalesce(a.attnum = ANY(i.indkey), false)
             FROM pg_class AS c
             JOIN pg_namespace AS n ON n.oid = c.relnamespace
             JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p') ORDER BY a.attnum",
        );
        let rows = columns.bind(&build.namespace).bind(table).fetch_all(&mut **self).await?;
        rows.iter().map(|row| Ok(Column { name: row.try_get(0)?, key: row.try_get(1)? })).collect()
    }

    async fn each(
        &mut self,
        build: &Build,
        table: &str,
        common: &Common,
        with: &mut (dyn FnMut(String, String) + Send),
    ) -> Result<()> {
        let quoted = |columns: &[String]| {
            let columns = columns.iter().map(|column| format!("t.\"{}\"", column.replace('"', "\"\"")));
            columns.collect::<Vec<_>>().join(", ")
        };
        let select = format!(
            "SELECT jsonb_build_array({})::text, to_jsonb(r)::text
             FROM \"{}\".\"{table}\" AS t, LATERAL (SELECT {}) AS r",
            quoted(&common.key),
            build.namespace,
            quoted(&common.columns)
        );
        let mut rows = sqlx::query(AssertSqlSafe(select)).fetch(&mut **self);
        while let Some(row) = rows.try_next().await? {
            with(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(())
    }
}
