//! MariaDB under a role. Invariant: nothing guards against doubles.

use sqlx::SqlStr;
use tombolo::mysql::{Mysql, Tx};

use super::{Placed, Store};

impl Store for Mysql {
    const COPIES: &'static str = "CREATE TABLE {copies}
        (place BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(64) NOT NULL, `key` VARCHAR(64) NOT NULL, n BIGINT NOT NULL)";
    const INSERT_ORDER: &'static str = "INSERT INTO orders (id, `key`, n) VALUES (?, ?, ?)";
    const INSERT_COPY: &'static str = "INSERT INTO {copies} (id, `key`, n) VALUES (?, ?, ?)";

    async fn make_orders(self) -> tombolo::Result<()> {
        let create = "CREATE TABLE IF NOT EXISTS orders
            (place BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(64) NOT NULL, `key` VARCHAR(64) NOT NULL, n BIGINT NOT NULL)";
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
