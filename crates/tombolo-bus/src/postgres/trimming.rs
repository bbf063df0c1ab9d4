//! Removing what an archive has: where the partition begins is written and committed first, then records go, some at a time.
//!
//! Invariant: no record is removed at or behind where its partition is said to begin.

use tombolo_event::{Cursor, ServiceName};

use super::link::Link;
use super::reader::begin;
use super::topics::{partition_number, signed};
use crate::{Kind, Read, Result};

/// How many records are removed in one transaction.
const RECORDS_AT_ONCE: i64 = 10_000;

/// Removes what lies before `first`.
pub(super) async fn trim(link: &Link, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
    let read = Read::to_tail(topic, partition, first);
    let begun = match begin(link, &read, first).await {
        // Less than was removed before.
        Err(error) if error.kind() == Kind::Trimmed => return Ok(()),
        begun => begun?,
    };
    if first.sequence < 2 {
        return Ok(());
    }
    link.has_beginnings().await?;
    let mut lease = link.lease().await?;
    lease.begin(link).await?;
    let begins = sqlx::query(
        "UPDATE partition SET begins = greatest(begins, $4)
         WHERE topic = $1 AND partition = $2 AND incarnation = $3",
    );
    let begins = begins.bind(begun.topic).bind(partition_number(partition)).bind(first.incarnation.0);
    link.answer(begins.bind(signed(first.sequence)).execute(&mut *lease)).await?;
    lease.commit(link).await?;
    while remove_some(link, begun.topic, partition, first.sequence).await? > 0 {}
    Ok(())
}

async fn remove_some(link: &Link, topic: i32, partition: u32, before: u64) -> Result<u64> {
    let mut lease = link.lease().await?;
    let remove = sqlx::query(
        "DELETE FROM record WHERE topic = $1 AND partition = $2 AND sequence < least($3,
            $4 + (SELECT sequence FROM record WHERE topic = $1 AND partition = $2 ORDER BY sequence LIMIT 1))",
    );
    let remove = remove.bind(topic).bind(partition_number(partition));
    let removed = link.answer(remove.bind(signed(before)).bind(RECORDS_AT_ONCE).execute(&mut *lease)).await?;
    lease.keep();
    Ok(removed.rows_affected())
}

impl Link {
    /// Adds the column that tables of an older program lack.
    async fn has_beginnings(&self) -> Result<()> {
        let mut lease = self.lease().await?;
        let asked = sqlx::query(
            "SELECT 1 FROM pg_attribute WHERE attrelid = 'partition'::regclass AND attname = 'begins' AND NOT attisdropped",
        );
        let is_there = self.answer(asked.fetch_optional(&mut *lease)).await?.is_some();
        if !is_there {
            let add = sqlx::query("ALTER TABLE partition ADD COLUMN IF NOT EXISTS begins bigint");
            self.answer(add.execute(&mut *lease)).await?;
        }
        lease.keep();
        Ok(())
    }
}
