//! `order-history` on PostgreSQL.

use tombolo::Result;
use tombolo::postgres::{Postgres, Tx};
use tombolo::view::Live;

use super::Store;
use crate::replica::OrderPlaced;
use crate::{Line, User};

impl Store for Postgres {
    const TABLES: &'static str = include_str!("postgres.sql");

    async fn add_user(tx: &mut Tx, id: &str, name: &str) -> Result<()> {
        let insert = tx.sql("INSERT INTO {users} (user_id, name) VALUES ($1, $2)")?;
        sqlx::query(insert).bind(id).bind(name).execute(&mut **tx).await?;
        Ok(())
    }

    async fn add_product(tx: &mut Tx, id: &str, title: &str) -> Result<()> {
        let insert = tx.sql("INSERT INTO {products} (product_id, title) VALUES ($1, $2)")?;
        sqlx::query(insert).bind(id).bind(title).execute(&mut **tx).await?;
        Ok(())
    }

    async fn set_title(tx: &mut Tx, id: &str, title: &str) -> Result<()> {
        let update = tx.sql("UPDATE {products} SET title = $1 WHERE product_id = $2")?;
        sqlx::query(update).bind(title).bind(id).execute(&mut **tx).await?;
        Ok(())
    }

    async fn add_order(tx: &mut Tx, order: &OrderPlaced) -> Result<()> {
        let insert = tx.sql(
            "INSERT INTO {orders} (order_id, user_id, product_id, quantity, price_cents, state)
             VALUES ($1, $2, $3, $4, $5, 'open')",
        )?;
        sqlx::query(insert)
            .bind(&order.order_id)
            .bind(&order.user_id)
            .bind(&order.product_id)
            .bind(order.quantity)
            .bind(order.price_cents)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn set_state(tx: &mut Tx, order_id: &str, state: &str) -> Result<()> {
        let update = tx.sql("UPDATE {orders} SET state = $1 WHERE order_id = $2")?;
        sqlx::query(update).bind(state).bind(order_id).execute(&mut **tx).await?;
        Ok(())
    }

    async fn user(&self, view: &Live, user_id: &str) -> Result<Option<User>> {
        let user = view.sql("SELECT user_id AS id, name FROM {users} WHERE user_id = $1")?;
        Ok(sqlx::query_as(user).bind(user_id).fetch_optional(self.pool()).await?)
    }

    async fn orders(&self, view: &Live, user_id: &str) -> Result<Vec<Line>> {
        let orders = view.sql(
            "SELECT o.order_id, o.product_id, p.title, o.quantity, o.price_cents, o.state
             FROM {orders} o LEFT JOIN {products} p USING (product_id)
             WHERE o.user_id = $1 ORDER BY o.order_id",
        )?;
        Ok(sqlx::query_as(orders).bind(user_id).fetch_all(self.pool()).await?)
    }
}
