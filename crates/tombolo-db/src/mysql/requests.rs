//! The operators' half of MySQL and MariaDB.
//!
//! takes: requests · writes: one row each, then its outcome · commits: the outcome with the work, in the transaction of
//! both · if we crash here: the request waits · if it repeats: it has its outcome, and the repeat is refused.
//!
//! Invariant: an outcome is written once.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::ServiceName;
use tombolo_event::operator::{Outcome, PartitionOf, Request};
use uuid::Uuid;

use super::session::Session;
use super::{Mysql, limit, signed};
use crate::Result;
use crate::port::requests::{REQUESTS_KEPT_MAX, REQUESTS_OPEN_MAX, Requests, not_open, too_many};

#[async_trait]
impl Requests for Mysql {
    async fn ask(&self, requests: &[Request]) -> Result<()> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let waiting =
            sqlx::query_scalar(self.sql("SELECT count(*) FROM tombolo_request WHERE done_ms IS NULL"));
        let waiting: i64 = waiting.fetch_one(&mut *session).await?;
        if waiting as usize + requests.len() > REQUESTS_OPEN_MAX {
            return Err(too_many(waiting));
        }
        let last_kept = sqlx::query_scalar(self.sql(
            "SELECT id FROM tombolo_request WHERE done_ms IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?",
        ));
        let last_kept = last_kept.bind(limit(REQUESTS_KEPT_MAX - 1));
        let last_kept: Option<Uuid> = last_kept.fetch_optional(&mut *session).await?;
        if let Some(last) = last_kept {
            let old = self.sql("DELETE FROM tombolo_request WHERE done_ms IS NOT NULL AND id < ?");
            sqlx::query(old).bind(last).execute(&mut *session).await?;
        }
        for request in requests {
            self.insert_request(&mut session, request).await?;
        }
        Ok(session.commit().await?)
    }

    async fn open_requests(&self, subscription: &str) -> Result<Vec<Request>> {
        let open = sqlx::query(self.sql(
            "SELECT id, subscription, topic, `partition`, action, detail, asked_by, asked_ms, done, outcome, done_ms
             FROM tombolo_request WHERE done_ms IS NULL AND subscription = ? ORDER BY id",
        ));
        open.bind(subscription).fetch_all(&self.pool).await?.iter().map(request).collect()
    }

    async fn has_open_requests(&self) -> Result<bool> {
        let open = sqlx::query_scalar(
            self.sql("SELECT EXISTS (SELECT 1 FROM tombolo_request WHERE done_ms IS NULL)"),
        );
        Ok(open.fetch_one(&self.pool).await?)
    }

    async fn finish(&self, id: Uuid, outcome: &Outcome) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        self.finish_request(&mut connection, id, outcome).await
    }

    async fn request(&self, id: Uuid) -> Result<Option<Request>> {
        let found = sqlx::query(self.sql(
            "SELECT id, subscription, topic, `partition`, action, detail, asked_by, asked_ms, done, outcome, done_ms
             FROM tombolo_request WHERE id = ?",
        ));
        found.bind(id).fetch_optional(&self.pool).await?.as_ref().map(request).transpose()
    }

    async fn requests(&self, most: usize) -> Result<Vec<Request>> {
        let rows = sqlx::query(self.sql(
            "SELECT id, subscription, topic, `partition`, action, detail, asked_by, asked_ms, done, outcome, done_ms
             FROM tombolo_request ORDER BY id DESC LIMIT ?",
        ));
        let rows = rows.bind(limit(most));
        rows.fetch_all(&self.pool).await?.iter().map(request).collect()
    }
}

impl Mysql {
    /// Writes the outcome, in whatever transaction the connection is in.
    pub(super) async fn finish_request(
        &self,
        connection: &mut MySqlConnection,
        id: Uuid,
        outcome: &Outcome,
    ) -> Result<()> {
        let finished = sqlx::query(self.sql(
            "UPDATE tombolo_request SET done = ?, outcome = ?, done_ms = ? WHERE id = ? AND done_ms IS NULL",
        ));
        let finished = finished.bind(outcome.done).bind(&outcome.text);
        let finished = finished.bind(outcome.at.as_millisecond()).bind(id);
        match finished.execute(connection).await?.rows_affected() {
            0 => Err(not_open(id)),
            _ => Ok(()),
        }
    }

    async fn insert_request(&self, connection: &mut MySqlConnection, request: &Request) -> Result<()> {
        let insert = sqlx::query(self.sql(
            "INSERT INTO tombolo_request (id, subscription, topic, `partition`, action, detail, asked_by, asked_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        ));
        let of = request.of.as_ref();
        let insert = insert.bind(request.id).bind(&request.subscription);
        let insert = insert.bind(of.map(|of| of.topic.as_str())).bind(of.map(|of| signed(of.partition)));
        let insert = insert.bind(&request.action).bind(request.detail.to_string());
        let insert = insert.bind(&request.asked_by).bind(request.asked_at.as_millisecond());
        insert.execute(connection).await?;
        Ok(())
    }
}

fn request(row: &MySqlRow) -> Result<Request> {
    let (topic, partition): (Option<String>, Option<i32>) = (row.try_get(2)?, row.try_get(3)?);
    let of = match topic.zip(partition) {
        Some((topic, partition)) => {
            Some(PartitionOf { topic: ServiceName::new(topic)?, partition: partition.unsigned_abs() })
        }
        None => None,
    };
    let detail: String = row.try_get(5)?;
    let time = |ms: i64| Timestamp::from_millisecond(ms).unwrap_or_default();
    let done_ms: Option<i64> = row.try_get(10)?;
    let outcome = match done_ms {
        Some(ms) => Some(Outcome { done: row.try_get(8)?, text: row.try_get(9)?, at: time(ms) }),
        None => None,
    };
    Ok(Request {
        id: row.try_get(0)?,
        subscription: row.try_get(1)?,
        of,
        action: row.try_get(4)?,
        detail: serde_json::from_str(&detail).unwrap_or(Value::String(detail)),
        asked_by: row.try_get(6)?,
        asked_at: time(row.try_get(7)?),
        outcome,
    })
}
