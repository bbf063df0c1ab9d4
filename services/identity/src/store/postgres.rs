//! PostgreSQL, where transactions run beside each other. Its places for values are numbered, and no text in it has a zero byte.

use sqlx::postgres::PgRow;
use tombolo::Result;
use tombolo::postgres::{Postgres, Tx};

use super::{Sql, Statement, Value, Words};

impl Sql for Postgres {
    type Row = PgRow;

    const WORDS: Words = Words {
        locked: " FOR UPDATE",
        unlocked: " FOR UPDATE SKIP LOCKED",
        insert_new: "INSERT",
        unless_there: " ON CONFLICT DO NOTHING",
        like: "ILIKE",
    };

    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("postgres.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn run(tx: &mut Tx, statement: Statement<'_>) -> Result<u64> {
        let Some(statement) = numbered(statement) else { return Ok(0) };
        Ok(statement.query::<sqlx::Postgres>().execute(&mut **tx).await?.rows_affected())
    }

    async fn find(tx: &mut Tx, statement: Statement<'_>) -> Result<Vec<PgRow>> {
        let Some(statement) = numbered(statement) else { return Ok(Vec::new()) };
        Ok(statement.query::<sqlx::Postgres>().fetch_all(&mut **tx).await?)
    }

    async fn look(&self, statement: Statement<'_>) -> Result<Vec<PgRow>> {
        let Some(statement) = numbered(statement) else { return Ok(Vec::new()) };
        Ok(statement.query::<sqlx::Postgres>().fetch_all(self.pool()).await?)
    }
}

/// The statement with `$1`, `$2`, … in the places of its values; none if no row can be meant, because a text in it cannot be stored.
fn numbered(statement: Statement<'_>) -> Option<Statement<'_>> {
    let no_text = |value: &Value<'_>| matches!(value, Value::Text(text) if text.contains('\0'));
    if statement.values.iter().any(no_text) {
        return None;
    }
    let mut text = String::with_capacity(statement.text.len() + 2 * statement.values.len());
    for (number, part) in statement.text.split('?').enumerate() {
        if number > 0 {
            text.push_str(&format!("${number}"));
        }
        text.push_str(part);
    }
    Some(Statement { text, values: statement.values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_number_and_what_cannot_be_stored_means_no_row() {
        let ask = |value| Statement::new("SELECT a FROM b WHERE c = ? AND d > ?").bind(value).bind(7);
        assert_eq!(numbered(ask("x")).unwrap().text, "SELECT a FROM b WHERE c = $1 AND d > $2");
        assert!(numbered(ask("x\0")).is_none());
    }
}
