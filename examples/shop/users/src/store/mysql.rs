//! `users` on MariaDB and MySQL.

use tombolo::Result;
use tombolo::mysql::{Mysql, Tx};

use super::Store;
use crate::User;

impl Store for Mysql {
    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("mysql.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn insert(tx: &mut Tx, user: &User) -> Result<()> {
        sqlx::query("INSERT INTO users (id, name, email) VALUES (?, ?, ?)")
            .bind(&user.id)
            .bind(&user.name)
            .bind(&user.email)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn find(&self, id: &str) -> Result<Option<User>> {
        let user = sqlx::query_as("SELECT id, name, email FROM users WHERE id = ?").bind(id);
        Ok(user.fetch_optional(self.pool()).await?)
    }

    async fn list(&self) -> Result<Vec<User>> {
        let users = sqlx::query_as("SELECT id, name, email FROM users ORDER BY id LIMIT 1000");
        Ok(users.fetch_all(self.pool()).await?)
    }
}
