//! `orders` on SQLite.

use sqlx::SqliteConnection;
use tombolo::Result;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::view::Live;

use super::Store;
use crate::Order;

impl Store for Sqlite {
    const CATALOG: &'static str = "
        CREATE TABLE {users} (id TEXT PRIMARY KEY, email TEXT NOT NULL) STRICT;
        CREATE TABLE {products} (id TEXT PRIMARY KEY, price_cents INTEGER NOT NULL) STRICT;";

    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("sqlite.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn insert(tx: &mut Tx, order: &Order) -> Result<()> {
        let insert =
            "INSERT INTO orders (id, user_id, product_id, quantity, price_cents) VALUES (?, ?, ?, ?, ?)";
        sqlx::query(insert)
            .bind(&order.id)
            .bind(&order.user_id)
            .bind(&order.product_id)
            .bind(order.quantity)
            .bind(order.price_cents)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn find(&self, id: &str) -> Result<Option<Order>> {
        find_on(&mut *self.pool().acquire().await?, id).await
    }

    async fn find_in(tx: &mut Tx, id: &str) -> Result<Option<Order>> {
        find_on(tx, id).await
    }

    async fn of_user(&self, user_id: &str) -> Result<Vec<Order>> {
        let orders = sqlx::query_as("SELECT * FROM orders_with_state WHERE user_id = ? ORDER BY id");
        Ok(orders.bind(user_id).fetch_all(self.pool()).await?)
    }

    async fn decide(tx: &mut Tx, order_id: &str, outcome: &str) -> Result<bool> {
        let insert = "INSERT INTO order_outcomes (order_id, outcome) VALUES (?, ?) ON CONFLICT DO NOTHING";
        let decided = sqlx::query(insert).bind(order_id).bind(outcome).execute(&mut **tx).await?;
        Ok(decided.rows_affected() > 0)
    }

    async fn add_user(tx: &mut Tx, id: &str, email: &str) -> Result<()> {
        let insert = tx.sql("INSERT INTO {users} (id, email) VALUES (?, ?)")?;
        sqlx::query(insert).bind(id).bind(email).execute(&mut **tx).await?;
        Ok(())
    }

    async fn add_product(tx: &mut Tx, id: &str, price_cents: i64) -> Result<()> {
        let insert = tx.sql("INSERT INTO {products} (id, price_cents) VALUES (?, ?)")?;
        sqlx::query(insert).bind(id).bind(price_cents).execute(&mut **tx).await?;
        Ok(())
    }

    async fn set_price(tx: &mut Tx, id: &str, price_cents: i64) -> Result<()> {
        let update = tx.sql("UPDATE {products} SET price_cents = ? WHERE id = ?")?;
        sqlx::query(update).bind(price_cents).bind(id).execute(&mut **tx).await?;
        Ok(())
    }

    async fn email(&self, catalog: &Live, user_id: &str) -> Result<Option<String>> {
        let email = sqlx::query_scalar(catalog.sql("SELECT email FROM {users} WHERE id = ?")?);
        Ok(email.bind(user_id).fetch_optional(self.pool()).await?)
    }

    async fn price_cents(&self, catalog: &Live, product_id: &str) -> Result<Option<i64>> {
        let price = sqlx::query_scalar(catalog.sql("SELECT price_cents FROM {products} WHERE id = ?")?);
        Ok(price.bind(product_id).fetch_optional(self.pool()).await?)
    }
}

async fn find_on(connection: &mut SqliteConnection, id: &str) -> Result<Option<Order>> {
    let order = sqlx::query_as("SELECT * FROM orders_with_state WHERE id = ?").bind(id);
    Ok(order.fetch_optional(connection).await?)
}
