//! Events as rows of a table: inserted many at a time by several connections, read in pages by their number.

use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use futures_util::StreamExt;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::types::Uuid;

use super::Bare;
use crate::error::Result;
use crate::topic::{BATCH_EVENTS, EVENT_BYTES};

/// As many as bring anything.
const CONNECTIONS: u32 = 8;
/// The rows of a page, more of which are not faster.
const PAGE: i64 = 4_000;

pub(super) struct Rows {
    pool: PgPool,
    table: String,
    next: AtomicI64,
}

impl Rows {
    pub(super) async fn make(url: &str, name: &str) -> Result<Self> {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?;
        let table = format!("\"{name}\"");
        let create = format!(
            "CREATE TABLE {table} (sequence bigint PRIMARY KEY, id uuid NOT NULL, event_type text NOT NULL, bytes bytea NOT NULL)"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await?;
        Ok(Self { pool, table, next: AtomicI64::new(1) })
    }

    async fn insert(&self, events: usize) -> Result<()> {
        let count = i64::try_from(events)?;
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
        let insert = format!(
            "INSERT INTO {} SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::bytea[])",
            self.table
        );
        sqlx::query(AssertSqlSafe(insert))
            .bind((first..first + count).collect::<Vec<_>>())
            .bind(ids)
            .bind(vec!["bench.written.v1"; events])
            .bind(vec![vec![b'e'; EVENT_BYTES]; events])
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

#[async_trait]
impl Bare for Rows {
    async fn one(&self) -> Result<()> {
        self.insert(1).await
    }

    async fn many(&self, batches: usize) -> Result<()> {
        let mut inserts = futures_util::stream::iter(0..batches)
            .map(|_| self.insert(BATCH_EVENTS))
            .buffer_unordered(CONNECTIONS as usize);
        while let Some(done) = inserts.next().await {
            done?;
        }
        Ok(())
    }

    async fn read(&self, events: usize) -> Result<()> {
        let page = format!(
            "SELECT sequence, id, event_type, bytes FROM {} WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            self.table
        );
        let (mut after, mut read) = (0, 0);
        while read < events {
            let rows: Vec<(i64, Uuid, String, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(page.clone()))
                .bind(after)
                .bind(PAGE)
                .fetch_all(&self.pool)
                .await?;
            let Some(last) = rows.last() else { return Err(crate::error::Error::new("too few rows")) };
            after = last.0;
            read += rows.len();
        }
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {}", self.table))).execute(&self.pool).await?;
        Ok(())
    }
}
