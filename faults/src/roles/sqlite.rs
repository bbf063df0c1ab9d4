//! SQLite under a role. Invariant: nothing guards against doubles.

use sqlx::AssertSqlSafe;
use tombolo::sqlite::{Sqlite, Tx};

use super::{Placed, Store};

impl Store for Sqlite {
    async fn table(self, name: &'static str) -> tombolo::Result<()> {
        let columns = "place INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL";
        let create = format!("CREATE TABLE IF NOT EXISTS {name} ({columns}) STRICT");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(self.pool()).await?;
        Ok(())
    }

    async fn insert(tx: &mut Tx, insert: &'static str, row: &Placed) -> sqlx::Result<()> {
        sqlx::query(insert).bind(&row.id).bind(&row.key).bind(row.n).execute(&mut **tx).await?;
        Ok(())
    }
}
