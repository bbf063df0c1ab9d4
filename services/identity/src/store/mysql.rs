//! MariaDB and MySQL, where transactions run beside each other.

use sqlx::mysql::MySqlRow;
use tombolo::Result;
use tombolo::mysql::{Mysql, Tx};

use super::{Sql, Statement, Words};

impl Sql for Mysql {
    type Row = MySqlRow;

    const WORDS: Words = Words {
        locked: " FOR UPDATE",
        unlocked: " FOR UPDATE SKIP LOCKED",
        insert_new: "INSERT IGNORE",
        unless_there: "",
        like: "LIKE",
    };

    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("mysql.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn run(tx: &mut Tx, statement: Statement<'_>) -> Result<u64> {
        Ok(statement.query::<sqlx::MySql>().execute(&mut **tx).await?.rows_affected())
    }

    async fn find(tx: &mut Tx, statement: Statement<'_>) -> Result<Vec<MySqlRow>> {
        Ok(statement.query::<sqlx::MySql>().fetch_all(&mut **tx).await?)
    }

    async fn look(&self, statement: Statement<'_>) -> Result<Vec<MySqlRow>> {
        Ok(statement.query::<sqlx::MySql>().fetch_all(self.pool()).await?)
    }
}
