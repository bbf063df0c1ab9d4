//! What is published for later, in SQLite.
//!
//! takes: events with a due time · writes: the table of later, then the outbox with its numbers · commits: with the
//! transaction that publishes; moved under the leader's epoch, in one synced transaction · if we crash here: it is in one
//! of the two tables, never in both or none · if it repeats: what was moved is not there to be moved again.
//!
//! Invariant: what is moved gets its number as a commit's events do, as the only writer, so that its place among the
//! events of its key is the moment at which it became due.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use tombolo_event::{EventId, KeyHash};

use super::generations;
use super::transaction::write_rows;
use crate::outgoing::Row;
use crate::port::due_us;
use crate::{Result, RoundLimit};

/// Keeps events until they are due. One that is kept already, under the same id, is the same.
pub(super) async fn keep(connection: &mut SqliteConnection, later: &[Row]) -> Result<()> {
    for row in later {
        sqlx::query(
            "INSERT INTO tombolo_later (id, due_us, key_hash, event_type, bytes) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(row.id.0)
        .bind(row.due.map(due_us))
        .bind(row.key_hash.0.cast_signed())
        .bind(row.event_type.as_str())
        .bind(&row.bytes[..])
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Takes one back; whether it was there.
pub(super) async fn withdraw(connection: &mut SqliteConnection, id: EventId) -> Result<bool> {
    let gone = sqlx::query("DELETE FROM tombolo_later WHERE id = ?").bind(id.0).execute(connection).await?;
    Ok(gone.rows_affected() > 0)
}

/// What is due at `now`, by when it is: one however large, and no more than the limit.
pub(super) async fn due(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: RoundLimit,
) -> Result<Vec<Row>> {
    let query = sqlx::query(
        "SELECT id, key_hash, event_type, bytes FROM tombolo_later WHERE due_us <= ? ORDER BY due_us, nth LIMIT ?",
    );
    let mut found = query.bind(now.as_microsecond()).bind(limit.rows.max(1) as i64).fetch(connection);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(found) = found.try_next().await? {
        let key_hash = KeyHash(found.try_get::<i64, _>(1)?.cast_unsigned());
        let stored: Vec<u8> = found.try_get(3)?;
        bytes += stored.len();
        if !rows.is_empty() && bytes > limit.bytes {
            break;
        }
        rows.push(Row {
            id: EventId(found.try_get(0)?),
            key_hash,
            event_type: found.try_get(2)?,
            bytes: stored.into(),
            due: None,
        });
    }
    Ok(rows)
}

/// Writes what is due to the end of the outbox.
pub(super) async fn publish(connection: &mut SqliteConnection, due: &[Row]) -> Result<()> {
    let generations = generations::read(connection).await?;
    write_rows(connection, due, &generations).await.map(|_numbers| ())
}

/// Removes it from where it was kept.
pub(super) async fn remove(connection: &mut SqliteConnection, due: &[Row]) -> Result<()> {
    let ids: Vec<String> = due.iter().map(|row| row.id.0.simple().to_string()).collect();
    sqlx::query("DELETE FROM tombolo_later WHERE id IN (SELECT unhex(value) FROM json_each(?))")
        .bind(crate::json_text(&ids)?)
        .execute(connection)
        .await?;
    Ok(())
}
