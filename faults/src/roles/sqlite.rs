//! SQLite under a role. Invariant: nothing guards against doubles.

use sqlx::{SqlSafeStr, SqlStr};
use tombolo::sqlite::{Sqlite, Tx};

use super::{Placed, Store};

impl Store for Sqlite {
    const COPIES: &'static str = "CREATE TABLE {copies}
        (place INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL) STRICT";

    async fn make_orders(self) -> tombolo::Result<()> {
        let create = "CREATE TABLE IF NOT EXISTS orders
            (place INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL) STRICT";
        sqlx::raw_sql(create).execute(self.pool()).await?;
        Ok(())
    }

    async fn keep_order(tx: &mut Tx, placed: &Placed) -> tombolo::Result<()> {
        insert(tx, "INSERT INTO orders (id, key, n) VALUES ($1, $2, $3)".into_sql_str(), placed).await
    }

    async fn keep_copy(tx: &mut Tx, placed: &Placed) -> tombolo::Result<()> {
        let into = tx.sql("INSERT INTO {copies} (id, key, n) VALUES ($1, $2, $3)")?;
        insert(tx, into, placed).await
    }
}

async fn insert(tx: &mut Tx, into: SqlStr, placed: &Placed) -> tombolo::Result<()> {
    sqlx::query(into).bind(&placed.id).bind(&placed.key).bind(placed.n).execute(&mut **tx).await?;
    Ok(())
}
