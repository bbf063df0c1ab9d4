//! PostgreSQL under a role. Invariant: nothing guards against doubles.

use sqlx::AssertSqlSafe;
use tombolo::postgres::{Postgres, Tx};

use super::{Placed, Store};

impl Store for Postgres {
    async fn table(self, name: &'static str) -> tombolo::Result<()> {
        let columns = "place BIGSERIAL PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n BIGINT NOT NULL";
        let create = format!("CREATE TABLE IF NOT EXISTS {name} ({columns})");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(self.pool()).await?;
        Ok(())
    }

    async fn insert(tx: &mut Tx, insert: &'static str, row: &Placed) -> sqlx::Result<()> {
        sqlx::query(insert).bind(&row.id).bind(&row.key).bind(row.n).execute(&mut **tx).await?;
        Ok(())
    }
}
