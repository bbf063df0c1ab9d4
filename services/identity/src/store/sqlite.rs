//! SQLite, which has one writer: a transaction that was begun has no other beside it.

use sqlx::sqlite::SqliteRow;
use tombolo::Result;
use tombolo::sqlite::{Sqlite, Tx};

use super::{Sql, Statement, Words};

impl Sql for Sqlite {
    type Row = SqliteRow;

    const WORDS: Words = Words {
        locked: "",
        unlocked: "",
        insert_new: "INSERT",
        unless_there: " ON CONFLICT DO NOTHING",
        like: "LIKE",
    };

    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("sqlite.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn run(tx: &mut Tx, statement: Statement<'_>) -> Result<u64> {
        Ok(statement.query::<sqlx::Sqlite>().execute(&mut **tx).await?.rows_affected())
    }

    async fn find(tx: &mut Tx, statement: Statement<'_>) -> Result<Vec<SqliteRow>> {
        Ok(statement.query::<sqlx::Sqlite>().fetch_all(&mut **tx).await?)
    }

    async fn look(&self, statement: Statement<'_>) -> Result<Vec<SqliteRow>> {
        Ok(statement.query::<sqlx::Sqlite>().fetch_all(self.pool()).await?)
    }
}
