//! The views' part of PostgreSQL: a schema for the tables of each build.
//!
//! Invariant: tables and row of a build appear and go in one transaction, and the pointer moves in the transaction
//! that compared the cursors, which it has locked: they stand still meanwhile.

mod compare;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::{Incarnation, ServiceName};
use uuid::Uuid;

use super::{Postgres, SCHEMA, SCHEMA_BYTES_MAX, millis, signed, unsigned};
use crate::comparing;
use crate::mutant::Mutant;
use crate::tables::{Apart, Tables};
use crate::views::{At, Known, Making, READERS_HEAR_WITHIN, behind, find, one, refusal};
use crate::{
    Build, BuildId, Compared, Error, Goal, Kind, Result, Sample, Switch, Switched, ViewState, Views, Wanted,
};

#[async_trait]
impl Views for Postgres {
    async fn views(&self) -> Result<Vec<ViewState>> {
        let rows = sqlx::query(self.sql(
            "SELECT b.view, b.version, b.build, b.subscription, b.namespace, b.tables, b.switches, b.live_epoch,
                    (extract(epoch FROM b.made) * 1000)::bigint, v.version, v.build, v.epoch
             FROM tombolo.view AS v JOIN tombolo.build AS b ON b.view = v.view AND b.dropped IS NULL
             ORDER BY b.view, b.version, b.build",
        ));
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
        let mut transaction = self.pool.begin().await?;
        self.lock_schema(&mut transaction).await?;
        let known = self.known(&mut transaction, &wanted.view, wanted.version).await?;
        let number = match find(&known, wanted)? {
            Making::There(build) => return Ok(build),
            Making::New(number) => self.free_number(&mut transaction, wanted, number).await?,
        };
        let build = self.new_build(wanted, number)?;
        self.insert_build(&mut transaction, &build, wanted.request).await?;
        transaction.commit().await?;
        Ok(Some(build))
    }

    async fn switch(&self, switch: &Switch) -> Result<Switched> {
        let mut transaction = self.pool.begin().await?;
        let (live, epoch) = self.pointer(&mut transaction, &switch.view).await?;
        if epoch != switch.epoch {
            return Ok(Switched::Elsewhere(epoch));
        }
        let known = self.known(&mut transaction, &switch.view, switch.to.version).await?;
        let Known { build: to, dropped, .. } = one(known, &switch.view, switch.to)?;
        if dropped {
            return Err(refusal::dropped(&to.subscription));
        }
        let from = self.subscription_of(&mut transaction, &switch.view, live).await?;
        let cursors = self.locked_cursors(&mut transaction, &from, &to.subscription).await?;
        let is_compared = !self.mutation.is(Mutant::SwitchUncompared);
        if let Some(behind) = behind(switch, &cursors, &from, &to.subscription).filter(|_| is_compared) {
            return Ok(behind);
        }
        let keys = self.parked_keys(&mut transaction, &to.subscription).await?;
        if keys > 0 && !switch.accept_parked {
            return Ok(Switched::Parked(keys));
        }
        self.point(&mut transaction, &switch.view, switch.to, epoch + 1).await?;
        transaction.commit().await?;
        Ok(Switched::Done(epoch + 1))
    }

    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()> {
        let held = sqlx::query(self.sql(
            "UPDATE tombolo.cursor
             SET holder = $1, until = clock_timestamp() + $2 * interval '1 millisecond', lease_epoch = lease_epoch + 1
             WHERE subscription = $3",
        ));
        held.bind(holder).bind(millis(lease)).bind(subscription).execute(&self.pool).await?;
        Ok(())
    }

    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        let (live, _) = self.pointer(&mut transaction, view).await?;
        if live == id {
            return Err(refusal::live(view, id));
        }
        let known = self.known(&mut transaction, view, id.version).await?;
        let Known { build, dropped, .. } = one(known, view, id)?;
        if dropped {
            return Ok(());
        }
        if self.was_just_live(&mut transaction, &build).await? {
            return Err(refusal::just_live(view, id));
        }
        self.remove_build(&mut transaction, &build).await?;
        Ok(transaction.commit().await?)
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
        Tables::new(build.of(), Apart::BySchema, &build.namespace, declared)
    }
}

impl Postgres {
    async fn insert_build(
        &self,
        connection: &mut PgConnection,
        build: &Build,
        request: Option<Uuid>,
    ) -> Result<()> {
        if let Some(declared) = &build.tables {
            let sql = self.tables(build).resolve(declared)?;
            let sql = format!("CREATE SCHEMA \"{}\";\n{sql}", build.namespace);
            let made = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await;
            made.map_err(|error| refusal::not_made(build, error))?;
        }
        sqlx::query(self.sql(
            "INSERT INTO tombolo.build (view, version, build, subscription, namespace, tables, switches, request)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        ))
        .bind(&build.view)
        .bind(signed(build.id.version))
        .bind(signed(build.id.number))
        .bind(&build.subscription)
        .bind(&build.namespace)
        .bind(&build.tables)
        .bind(build.switches)
        .bind(request)
        .execute(&mut *connection)
        .await?;
        let first = sqlx::query(self.sql(
            "INSERT INTO tombolo.view (view, version, build, epoch) VALUES ($1, $2, $3, 0) ON CONFLICT DO NOTHING",
        ));
        let first = first.bind(&build.view).bind(signed(build.id.version)).bind(signed(build.id.number));
        if first.execute(&mut *connection).await?.rows_affected() > 0 {
            self.point(connection, &build.view, build.id, 1).await?;
        }
        Ok(())
    }

    /// Points to a build, whose own wish to be switched to is fulfilled by that.
    async fn point(&self, connection: &mut PgConnection, view: &str, to: BuildId, epoch: u64) -> Result<()> {
        sqlx::query(
            self.sql(
                "UPDATE tombolo.build SET left_at = clock_timestamp() WHERE view = $1 AND live_epoch = $2",
            ),
        )
        .bind(view)
        .bind(epoch as i64 - 1)
        .execute(&mut *connection)
        .await?;
        sqlx::query(self.sql(
            "WITH marked AS (
                 UPDATE tombolo.build SET live_epoch = $4, switches = false
                 WHERE view = $1 AND version = $2 AND build = $3)
             UPDATE tombolo.view SET version = $2, build = $3, epoch = $4 WHERE view = $1",
        ))
        .bind(view)
        .bind(signed(to.version))
        .bind(signed(to.number))
        .bind(epoch as i64)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Where the pointer is, which stays there until the transaction ends.
    async fn pointer(&self, connection: &mut PgConnection, view: &str) -> Result<(BuildId, u64)> {
        let pointer = sqlx::query(
            self.sql("SELECT version, build, epoch FROM tombolo.view WHERE view = $1 FOR UPDATE"),
        );
        let row = pointer.bind(view).fetch_optional(connection).await?;
        let Some(row) = row else { return Err(refusal::no_view(view)) };
        Ok((id(&row, 0)?, unsigned(row.try_get(2)?)))
    }

    async fn subscription_of(
        &self,
        connection: &mut PgConnection,
        view: &str,
        id: BuildId,
    ) -> Result<String> {
        let own =
            sqlx::query_scalar(self.sql(
                "SELECT subscription FROM tombolo.build WHERE view = $1 AND version = $2 AND build = $3",
            ));
        Ok(own.bind(view).bind(signed(id.version)).bind(signed(id.number)).fetch_one(connection).await?)
    }

    /// The cursors of two subscriptions, which stand still until the transaction ends.
    async fn locked_cursors(&self, connection: &mut PgConnection, from: &str, to: &str) -> Result<Vec<At>> {
        let rows = sqlx::query(self.sql(
            "SELECT subscription, topic, partition, incarnation, sequence FROM tombolo.cursor
             WHERE subscription IN ($1, $2) ORDER BY subscription, topic, partition FOR SHARE",
        ));
        rows.bind(from).bind(to).fetch_all(connection).await?.iter().map(at).collect()
    }

    /// An event is parked in the transaction that moves its cursor, which is locked by now.
    async fn parked_keys(&self, connection: &mut PgConnection, subscription: &str) -> Result<u64> {
        let keys = sqlx::query_scalar(
            self.sql("SELECT count(DISTINCT key_hash) FROM tombolo.parked WHERE subscription = $1"),
        );
        Ok(unsigned(keys.bind(subscription).fetch_one(connection).await?))
    }

    /// Every build of a version, in order.
    async fn known(&self, connection: &mut PgConnection, view: &str, version: u32) -> Result<Vec<Known>> {
        let known = sqlx::query(self.sql(
            "SELECT view, version, build, subscription, namespace, tables, switches, live_epoch,
                    (extract(epoch FROM made) * 1000)::bigint, request, dropped IS NOT NULL
             FROM tombolo.build WHERE view = $1 AND version = $2 ORDER BY build",
        ));
        let rows = known.bind(view).bind(signed(version)).fetch_all(connection).await?;
        let known = |row: &PgRow| {
            Ok(Known { build: build(row)?, request: row.try_get(9)?, dropped: row.try_get(10)? })
        };
        rows.iter().map(known).collect()
    }

    /// A subscription of the build's name that is older than the view's own tables has its cursors at events which those
    /// tables do not have: then the number is passed over.
    async fn free_number(&self, connection: &mut PgConnection, wanted: &Wanted, number: u32) -> Result<u32> {
        let subscription = BuildId { version: wanted.version, number }.subscription(&wanted.view);
        let is_taken = sqlx::query_scalar(
            self.sql("SELECT EXISTS (SELECT 1 FROM tombolo.cursor WHERE subscription = $1)"),
        );
        let is_taken: bool = is_taken.bind(subscription).fetch_one(connection).await?;
        Ok(number + u32::from(wanted.tables.is_some() && is_taken))
    }

    /// Services that share a database have schemas of their own for Tombolo's tables, and so for their builds.
    fn new_build(&self, wanted: &Wanted, number: u32) -> Result<Build> {
        let mut build = Build::new(wanted, number);
        if &*self.schema != SCHEMA {
            build.namespace = format!("{}_{}", self.schema, build.namespace);
        }
        if wanted.tables.is_some() && build.namespace.len() > SCHEMA_BYTES_MAX {
            let message = format!(
                "the schema of {} would be called {:?}, which has more than {SCHEMA_BYTES_MAX} bytes; give the view a shorter name",
                build.of(),
                build.namespace
            );
            return Err(Error::new(Kind::View, message));
        }
        Ok(build)
    }

    async fn was_just_live(&self, connection: &mut PgConnection, build: &Build) -> Result<bool> {
        let just = sqlx::query_scalar(self.sql(
            "SELECT coalesce(left_at > clock_timestamp() - $2 * interval '1 millisecond', false)
             FROM tombolo.build WHERE subscription = $1",
        ));
        Ok(just.bind(&build.subscription).bind(millis(READERS_HEAR_WITHIN)).fetch_one(connection).await?)
    }

    /// Tables first: whoever writes to them has to end before its cursor goes.
    async fn remove_build(&self, connection: &mut PgConnection, build: &Build) -> Result<()> {
        if build.tables.is_some() {
            let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", build.namespace);
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
        }
        for gone in [
            "DELETE FROM tombolo.cursor WHERE subscription = $1",
            "DELETE FROM tombolo.parked WHERE subscription = $1",
            "DELETE FROM tombolo.member WHERE subscription = $1",
            "DELETE FROM tombolo.subscription WHERE subscription = $1",
            "UPDATE tombolo.build SET dropped = clock_timestamp() WHERE subscription = $1",
        ] {
            sqlx::query(self.sql(gone)).bind(&build.subscription).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Whether the build of a subscription was dropped, so that nobody opens it again.
    pub(super) async fn check_not_dropped(
        &self,
        connection: &mut PgConnection,
        subscription: &str,
    ) -> Result<()> {
        let dropped = sqlx::query_scalar(self.sql(
            "SELECT EXISTS (SELECT 1 FROM tombolo.build WHERE subscription = $1 AND dropped IS NOT NULL)",
        ));
        match dropped.bind(subscription).fetch_one(connection).await? {
            true => Err(refusal::dropped(subscription)),
            false => Ok(()),
        }
    }
}

/// The build that a row names at `column` and the next.
fn id(row: &PgRow, column: usize) -> Result<BuildId> {
    let (version, number): (i32, i32) = (row.try_get(column)?, row.try_get(column + 1)?);
    Ok(BuildId { version: version.unsigned_abs(), number: number.unsigned_abs() })
}

fn build(row: &PgRow) -> Result<Build> {
    Ok(Build {
        view: row.try_get(0)?,
        id: id(row, 1)?,
        subscription: row.try_get(3)?,
        namespace: row.try_get(4)?,
        tables: row.try_get(5)?,
        switches: row.try_get(6)?,
        live_epoch: row.try_get::<Option<i64>, _>(7)?.map(unsigned),
        made_at: Timestamp::from_millisecond(row.try_get(8)?).unwrap_or_default(),
    })
}

fn state(row: &PgRow, first: Build) -> Result<ViewState> {
    let (live, epoch) = (id(row, 9)?, unsigned(row.try_get(11)?));
    Ok(ViewState { view: first.view.clone(), live, epoch, builds: vec![first] })
}

fn at(row: &PgRow) -> Result<At> {
    let topic: String = row.try_get(1)?;
    let goal = Goal {
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(2)?.unsigned_abs(),
        incarnation: Incarnation(row.try_get(3)?),
        sequence: unsigned(row.try_get(4)?),
    };
    Ok(At { subscription: row.try_get(0)?, goal })
}
