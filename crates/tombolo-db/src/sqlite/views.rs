//! The views' part of SQLite: a prefix for the tables of each build.
//!
//! Invariant: tables and row of a build appear and go in one transaction, and the pointer moves in the transaction
//! that compared the cursors: it is the only writer, so they stand still meanwhile.

mod compare;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::{Incarnation, ServiceName};
use uuid::Uuid;

use super::Sqlite;
use super::outbox::{millis, unsigned};
use crate::comparing;
use crate::mutant::Mutant;
use crate::tables::{Apart, Tables};
use crate::views::{At, Known, Making, READERS_HEAR_WITHIN, behind, find, one, refusal};
use crate::{Build, BuildId, Compared, Goal, Result, Sample, Switch, Switched, ViewState, Views, Wanted};

#[async_trait]
impl Views for Sqlite {
    async fn views(&self) -> Result<Vec<ViewState>> {
        let rows = sqlx::query(
            "SELECT b.view, b.version, b.build, b.subscription, b.namespace, b.tables, b.switches, b.live_epoch,
                    b.made_ms, v.version, v.build, v.epoch
             FROM tombolo_view AS v JOIN tombolo_build AS b ON b.view = v.view AND b.dropped_ms IS NULL
             ORDER BY b.view, b.version, b.build",
        );
        let mut views: Vec<ViewState> = Vec::new();
        for row in rows.fetch_all(&self.pool).await? {
            let build = build(&row)?;
            match views.last_mut() {
                Some(view) if view.view == build.view => view.builds.push(build),
                _ => views.push(state(&row, build)?),
            }
        }
        Ok(views)
    }

    async fn make_build(&self, wanted: &Wanted) -> Result<Option<Build>> {
        self.write(&self.writer, async |connection| {
            let known = known(connection, &wanted.view, wanted.version).await?;
            let number = match find(&known, wanted)? {
                Making::There(build) => return Ok(build),
                Making::New(number) => free_number(connection, wanted, number).await?,
            };
            let build = Build::new(wanted, number);
            self.insert_build(connection, &build, wanted.request).await?;
            Ok(Some(build))
        })
        .await
    }

    async fn switch(&self, switch: &Switch) -> Result<Switched> {
        let is_compared = !self.mutation.is(Mutant::SwitchUncompared);
        self.write(&self.writer, async |connection| {
            let (live, epoch) = pointer(connection, &switch.view).await?;
            if epoch != switch.epoch {
                return Ok(Switched::Elsewhere(epoch));
            }
            let known = known(connection, &switch.view, switch.to.version).await?;
            let to = one(known, &switch.view, switch.to)?;
            if to.dropped {
                return Err(refusal::dropped(&to.build.subscription));
            }
            let to = to.build;
            let from = subscription_of(connection, &switch.view, live).await?;
            let cursors = cursors(connection, &from, &to.subscription).await?;
            if let Some(behind) = behind(switch, &cursors, &from, &to.subscription).filter(|_| is_compared) {
                return Ok(behind);
            }
            match parked_keys(connection, &to.subscription).await? {
                keys if keys > 0 && !switch.accept_parked => Ok(Switched::Parked(keys)),
                _ => point(connection, &switch.view, switch.to, epoch + 1).await.map(Switched::Done),
            }
        })
        .await
    }

    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()> {
        self.write(&self.upkeep, async |connection| {
            let held = sqlx::query(
                "UPDATE tombolo_cursor
                 SET holder = ?, until_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?, lease_epoch = lease_epoch + 1
                 WHERE subscription = ?",
            );
            held.bind(holder).bind(millis(lease)).bind(subscription).execute(connection).await?;
            Ok(())
        })
        .await
    }

    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()> {
        self.write(&self.writer, async |connection| {
            let (live, _) = pointer(connection, view).await?;
            if live == id {
                return Err(refusal::live(view, id));
            }
            let Known { build, dropped, .. } = one(known(connection, view, id.version).await?, view, id)?;
            if dropped {
                return Ok(());
            }
            if was_just_live(connection, &build).await? {
                return Err(refusal::just_live(view, id));
            }
            self.remove_build(connection, &build).await
        })
        .await
    }

    async fn compare(&self, old: &Build, new: &Build, sample: Sample) -> Result<Vec<Compared>> {
        let (tables, others) = (self.tables(old), self.tables(new));
        let names = tables.names().chain(others.names()).map(str::to_owned).collect();
        let mut snapshot = compare::snapshot(self).await?;
        let compared = comparing::compare(&mut snapshot, names, [old, new], sample).await?;
        snapshot.rollback().await?;
        Ok(compared)
    }

    fn tables(&self, build: &Build) -> Tables {
        let declared = build.tables.as_deref().unwrap_or_default();
        Tables::new(build.of(), Apart::ByPrefix('"'), &build.namespace, declared)
    }
}

impl Sqlite {
    async fn insert_build(
        &self,
        connection: &mut SqliteConnection,
        build: &Build,
        request: Option<Uuid>,
    ) -> Result<()> {
        if let Some(declared) = &build.tables {
            let sql = self.tables(build).resolve(declared)?;
            let made = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await;
            made.map_err(|error| refusal::not_made(build, error))?;
        }
        sqlx::query(
            "INSERT INTO tombolo_build (view, version, build, subscription, namespace, tables, switches, request)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&build.view)
        .bind(build.id.version)
        .bind(build.id.number)
        .bind(&build.subscription)
        .bind(&build.namespace)
        .bind(&build.tables)
        .bind(build.switches)
        .bind(request)
        .execute(&mut *connection)
        .await?;
        let first = sqlx::query(
            "INSERT INTO tombolo_view (view, version, build, epoch) VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
        );
        let first = first.bind(&build.view).bind(build.id.version).bind(build.id.number);
        if first.execute(&mut *connection).await?.rows_affected() > 0 {
            point(connection, &build.view, build.id, 1).await?;
        }
        Ok(())
    }

    async fn remove_build(&self, connection: &mut SqliteConnection, build: &Build) -> Result<()> {
        for (kind, name) in owned(connection, build, &self.tables(build)).await? {
            let drop = format!("DROP {kind} \"{name}\"");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
        }
        for gone in [
            "DELETE FROM tombolo_cursor WHERE subscription = ?",
            "DELETE FROM tombolo_parked WHERE subscription = ?",
            "DELETE FROM tombolo_member WHERE subscription = ?",
            "DELETE FROM tombolo_subscription WHERE subscription = ?",
            "UPDATE tombolo_build SET dropped_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE subscription = ?",
        ] {
            sqlx::query(gone).bind(&build.subscription).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// What a build made that does not go by itself: views, then tables, the last first. Indexes and triggers go with theirs.
async fn owned(
    connection: &mut SqliteConnection,
    build: &Build,
    tables: &Tables,
) -> Result<Vec<(String, String)>> {
    let names: Vec<String> = tables.names().map(|name| format!("{}_{name}", build.namespace)).collect();
    let owned = sqlx::query(
        "SELECT upper(type), name FROM sqlite_schema
         WHERE type IN ('table', 'view') AND name IN (SELECT value FROM json_each(?))
         ORDER BY type DESC, rowid DESC",
    );
    let rows = owned.bind(crate::json_text(&names)?).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Points to a build, whose own wish to be switched to is fulfilled by that.
async fn point(connection: &mut SqliteConnection, view: &str, to: BuildId, epoch: u64) -> Result<u64> {
    sqlx::query("UPDATE tombolo_build SET left_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE view = ? AND live_epoch = ?")
        .bind(view)
        .bind(epoch as i64 - 1)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "UPDATE tombolo_build SET live_epoch = ?, switches = 0 WHERE view = ? AND version = ? AND build = ?",
    )
    .bind(epoch as i64)
    .bind(view)
    .bind(to.version)
    .bind(to.number)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE tombolo_view SET version = ?, build = ?, epoch = ? WHERE view = ?")
        .bind(to.version)
        .bind(to.number)
        .bind(epoch as i64)
        .bind(view)
        .execute(connection)
        .await?;
    Ok(epoch)
}

async fn pointer(connection: &mut SqliteConnection, view: &str) -> Result<(BuildId, u64)> {
    let pointer = sqlx::query("SELECT version, build, epoch FROM tombolo_view WHERE view = ?").bind(view);
    let Some(row) = pointer.fetch_optional(connection).await? else { return Err(refusal::no_view(view)) };
    let live = BuildId { version: row.try_get(0)?, number: row.try_get(1)? };
    Ok((live, unsigned(row.try_get(2)?)))
}

async fn subscription_of(connection: &mut SqliteConnection, view: &str, id: BuildId) -> Result<String> {
    let own = sqlx::query_scalar(
        "SELECT subscription FROM tombolo_build WHERE view = ? AND version = ? AND build = ?",
    );
    Ok(own.bind(view).bind(id.version).bind(id.number).fetch_one(connection).await?)
}

async fn cursors(connection: &mut SqliteConnection, from: &str, to: &str) -> Result<Vec<At>> {
    let rows = sqlx::query(
        "SELECT subscription, topic, partition, incarnation, sequence FROM tombolo_cursor
         WHERE subscription IN (?, ?)",
    );
    rows.bind(from).bind(to).fetch_all(connection).await?.iter().map(at).collect()
}

async fn parked_keys(connection: &mut SqliteConnection, subscription: &str) -> Result<u64> {
    let keys =
        sqlx::query_scalar("SELECT count(DISTINCT key_hash) FROM tombolo_parked WHERE subscription = ?");
    Ok(unsigned(keys.bind(subscription).fetch_one(connection).await?))
}

/// Every build of a version, in order.
async fn known(connection: &mut SqliteConnection, view: &str, version: u32) -> Result<Vec<Known>> {
    let known = sqlx::query(
        "SELECT view, version, build, subscription, namespace, tables, switches, live_epoch, made_ms, request, dropped_ms
         FROM tombolo_build WHERE view = ? AND version = ? ORDER BY build",
    );
    let rows = known.bind(view).bind(version).fetch_all(connection).await?;
    let known = |row: &SqliteRow| {
        let dropped: Option<i64> = row.try_get(10)?;
        Ok(Known { build: build(row)?, request: row.try_get(9)?, dropped: dropped.is_some() })
    };
    rows.iter().map(known).collect()
}

/// A subscription of the build's name that is older than the view's own tables has its cursors at events which those
/// tables do not have: then the number is passed over.
async fn free_number(connection: &mut SqliteConnection, wanted: &Wanted, number: u32) -> Result<u32> {
    let subscription = BuildId { version: wanted.version, number }.subscription(&wanted.view);
    let is_taken =
        sqlx::query("SELECT 1 FROM tombolo_cursor WHERE subscription = ? LIMIT 1").bind(subscription);
    let is_taken = wanted.tables.is_some() && is_taken.fetch_optional(connection).await?.is_some();
    Ok(number + u32::from(is_taken))
}

async fn was_just_live(connection: &mut SqliteConnection, build: &Build) -> Result<bool> {
    let just = sqlx::query(
        "SELECT 1 FROM tombolo_build
         WHERE subscription = ? AND left_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER) - ?",
    );
    let just = just.bind(&build.subscription).bind(millis(READERS_HEAR_WITHIN));
    Ok(just.fetch_optional(connection).await?.is_some())
}

/// Whether the build of a subscription was dropped, so that nobody opens it again.
pub(super) async fn check_not_dropped(connection: &mut SqliteConnection, subscription: &str) -> Result<()> {
    let dropped =
        sqlx::query("SELECT 1 FROM tombolo_build WHERE subscription = ? AND dropped_ms IS NOT NULL");
    match dropped.bind(subscription).fetch_optional(connection).await? {
        Some(_) => Err(refusal::dropped(subscription)),
        None => Ok(()),
    }
}

fn build(row: &SqliteRow) -> Result<Build> {
    let made: i64 = row.try_get(8)?;
    Ok(Build {
        view: row.try_get(0)?,
        id: BuildId { version: row.try_get(1)?, number: row.try_get(2)? },
        subscription: row.try_get(3)?,
        namespace: row.try_get(4)?,
        tables: row.try_get(5)?,
        switches: row.try_get(6)?,
        live_epoch: row.try_get::<Option<i64>, _>(7)?.map(unsigned),
        made_at: Timestamp::from_millisecond(made).unwrap_or_default(),
    })
}

fn state(row: &SqliteRow, first: Build) -> Result<ViewState> {
    let live = BuildId { version: row.try_get(9)?, number: row.try_get(10)? };
    Ok(ViewState { view: first.view.clone(), live, epoch: unsigned(row.try_get(11)?), builds: vec![first] })
}

fn at(row: &SqliteRow) -> Result<At> {
    let topic: String = row.try_get(1)?;
    let goal = Goal {
        topic: ServiceName::new(topic)?,
        partition: row.try_get(2)?,
        incarnation: Incarnation(row.try_get(3)?),
        sequence: unsigned(row.try_get(4)?),
    };
    Ok(At { subscription: row.try_get(0)?, goal })
}
