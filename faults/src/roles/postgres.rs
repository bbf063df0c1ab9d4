//! PostgreSQL under a role. Invariant: nothing guards against doubles.

use sqlx::SqlStr;
use tombolo::postgres::{Postgres, Tx};

use super::{Placed, Store};

impl Store for Postgres {
    const COPIES: &'static str = "CREATE TABLE {copies}
        (place BIGSERIAL PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n BIGINT NOT NULL)";

    async fn make_orders(self) -> tombolo::Result<()> {
        let create = "CREATE TABLE IF NOT EXISTS orders
            (place BIGSERIAL PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n BIGINT NOT NULL)";
        sqlx::raw_sql(create).execute(self.pool()).await?;
        Ok(())
    }

    fn sql(tx: &Tx, text: &'static str) -> tombolo_db::Result<SqlStr> {
        tx.sql(text)
    }

    async fn insert(tx: &mut Tx, insert: SqlStr, row: &Placed) -> sqlx::Result<()> {
        sqlx::query(insert).bind(&row.id).bind(&row.key).bind(row.n).execute(&mut **tx).await?;
        Ok(())
    }
}
