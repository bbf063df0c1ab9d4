//! The operators' half of SQLite.
//!
//! takes: requests · writes: one row each, then its outcome · commits: the outcome with the work, in the transaction of
//! both · if we crash here: the request waits · if it repeats: it has its outcome, and the repeat is refused.
//!
//! Invariant: an outcome is written once.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tombolo_event::ServiceName;
use tombolo_event::operator::{Outcome, PartitionOf, Request};
use uuid::Uuid;

use super::Sqlite;
use crate::Result;
use crate::port::requests::{REQUESTS_KEPT_MAX, REQUESTS_OPEN_MAX, Requests, not_open, too_many};

const COLUMNS: &str =
    "id, subscription, topic, partition, action, detail, asked_by, asked_ms, done, outcome, done_ms";

#[async_trait]
impl Requests for Sqlite {
    async fn ask(&self, requests: &[Request]) -> Result<()> {
        self.write(&self.writer, async |connection| {
            let waiting = sqlx::query_scalar("SELECT count(*) FROM tombolo_request WHERE done_ms IS NULL");
            let waiting: i64 = waiting.fetch_one(&mut *connection).await?;
            if waiting as usize + requests.len() > REQUESTS_OPEN_MAX {
                return Err(too_many(waiting));
            }
            forget_old(connection).await?;
            for request in requests {
                insert(connection, request).await?;
            }
            Ok(())
        })
        .await
    }

    async fn open_requests(&self, subscription: &str) -> Result<Vec<Request>> {
        let open = select("WHERE done_ms IS NULL AND subscription = ? ORDER BY id");
        let open = sqlx::query(open).bind(subscription).fetch_all(&self.pool).await?;
        open.iter().map(request).collect()
    }

    async fn has_open_requests(&self) -> Result<bool> {
        let open = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tombolo_request WHERE done_ms IS NULL)");
        Ok(open.fetch_one(&self.pool).await?)
    }

    async fn finish(&self, id: Uuid, outcome: &Outcome) -> Result<()> {
        self.write(&self.writer, async |connection| finish(connection, id, outcome).await).await
    }

    async fn request(&self, id: Uuid) -> Result<Option<Request>> {
        let found = sqlx::query(select("WHERE id = ?")).bind(id).fetch_optional(&self.pool).await?;
        found.as_ref().map(request).transpose()
    }

    async fn requests(&self, most: usize) -> Result<Vec<Request>> {
        let rows = sqlx::query(select("ORDER BY id DESC LIMIT ?"));
        let rows = rows.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?;
        rows.iter().map(request).collect()
    }
}

fn select(rest: &'static str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM tombolo_request {rest}"))
}

/// Writes the outcome, in whatever transaction the connection is in.
pub(super) async fn finish(connection: &mut SqliteConnection, id: Uuid, outcome: &Outcome) -> Result<()> {
    let finished = sqlx::query(
        "UPDATE tombolo_request SET done = ?, outcome = ?, done_ms = ? WHERE id = ? AND done_ms IS NULL",
    );
    let finished = finished.bind(outcome.done).bind(&outcome.text).bind(outcome.at.as_millisecond()).bind(id);
    match finished.execute(connection).await?.rows_affected() {
        0 => Err(not_open(id)),
        _ => Ok(()),
    }
}

async fn forget_old(connection: &mut SqliteConnection) -> Result<()> {
    let old = sqlx::query(
        "DELETE FROM tombolo_request WHERE done_ms IS NOT NULL AND id <
             (SELECT id FROM tombolo_request WHERE done_ms IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
    );
    old.bind(REQUESTS_KEPT_MAX as i64 - 1).execute(connection).await?;
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, request: &Request) -> Result<()> {
    let insert = sqlx::query(
        "INSERT INTO tombolo_request (id, subscription, topic, partition, action, detail, asked_by, asked_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    );
    let of = request.of.as_ref();
    let insert = insert.bind(request.id).bind(&request.subscription);
    let insert = insert.bind(of.map(|of| of.topic.as_str())).bind(of.map(|of| of.partition));
    let insert = insert.bind(&request.action).bind(request.detail.to_string()).bind(&request.asked_by);
    insert.bind(request.asked_at.as_millisecond()).execute(connection).await?;
    Ok(())
}

fn request(row: &SqliteRow) -> Result<Request> {
    let (topic, partition): (Option<String>, Option<u32>) = (row.try_get(2)?, row.try_get(3)?);
    let of = match topic.zip(partition) {
        Some((topic, partition)) => Some(PartitionOf { topic: ServiceName::new(topic)?, partition }),
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
