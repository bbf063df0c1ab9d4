//! SQLite under the benches. Invariant: transactions begin as ours do, as writers.

use std::ops::Range;

use tombolo_db::sqlite::{Sqlite, Tx};

use super::ground::{INSERT_SEEN, INSERT_TICK, Store, Ticked};
use crate::error::Result;

const BEGIN: &str = "BEGIN IMMEDIATE";

impl Store for Sqlite {
    async fn insert_tick(tx: &mut Tx, number: i64, text: &str) -> sqlx::Result<()> {
        sqlx::query(INSERT_TICK).bind(number).bind(text).execute(&mut **tx).await?;
        Ok(())
    }

    async fn insert_seen(tx: &mut Tx, number: i64) -> sqlx::Result<()> {
        sqlx::query(INSERT_SEEN).bind(number).execute(&mut **tx).await?;
        Ok(())
    }

    async fn seen(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar("SELECT coalesce(max(number) + 1, 0) FROM seen").fetch_one(self.pool()).await
    }

    async fn hand_commit(&self, numbers: Range<i64>) -> Result<()> {
        let mut tx = self.pool().begin_with(BEGIN).await?;
        for number in numbers {
            let ticked = Ticked::new(number);
            sqlx::query(INSERT_TICK).bind(number).bind(&ticked.text).execute(&mut *tx).await?;
            sqlx::query("INSERT INTO hand_outbox (position, event) VALUES ($1, $2)")
                .bind(number)
                .bind(serde_json::to_string(&ticked)?)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn hand_take(&self, most: i64) -> Result<Vec<(i64, String)>> {
        let rows = sqlx::query_as("SELECT position, event FROM hand_outbox ORDER BY position LIMIT $1");
        Ok(rows.bind(most).fetch_all(self.pool()).await?)
    }

    async fn hand_apply(&self, rows: &[(i64, String)]) -> Result<()> {
        let mut tx = self.pool().begin_with(BEGIN).await?;
        for (_, event) in rows {
            let ticked: Ticked = serde_json::from_str(event)?;
            sqlx::query(INSERT_SEEN).bind(ticked.number).execute(&mut *tx).await?;
        }
        let last = rows.last().map_or(0, |(position, _)| *position);
        sqlx::query("UPDATE hand_cursor SET position = $1").bind(last).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    async fn hand_remove(&self, to: i64) -> Result<()> {
        let remove = sqlx::query("DELETE FROM hand_outbox WHERE position <= $1").bind(to);
        remove.execute(self.pool()).await?;
        Ok(())
    }

    async fn insert_raw(&self, numbers: Range<i64>, each: i64) -> Result<()> {
        for first in numbers.clone().step_by(each as usize) {
            let mut tx = self.pool().begin_with(BEGIN).await?;
            for number in first..(first + each).min(numbers.end) {
                sqlx::query(INSERT_SEEN).bind(number).execute(&mut *tx).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}
