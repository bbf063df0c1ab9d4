//! The views' part of MySQL and MariaDB: a prefix for the tables of each build.
//!
//! ```text
//!  make    row (made: not yet) ── the declaration ── made, and read if it is the first
//!  drop    dropped, with cursors and what is parked ── DROP TABLE … ── cleared
//! ```
//!
//! These servers commit after each statement that makes or drops a table. So a row says what is about to happen before it does,
//! and whoever comes next finishes what was interrupted, one at a time.
//!
//! Invariant: a build is seen only while all of its tables stand, and the pointer moves in the transaction
//! that compared the cursors, which it has locked: they stand still meanwhile.

mod compare;
mod making;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tombolo_event::{Incarnation, ServiceName};
use uuid::Uuid;

use super::session::Session;
use super::{Mysql, micros, signed, unsigned};
use crate::comparing;
use crate::mutant::Mutant;
use crate::tables::{Apart, Tables};
use crate::views::{At, Known, READERS_HEAR_WITHIN, behind, one, refusal};
use crate::{Build, BuildId, Compared, Goal, Result, Sample, Switch, Switched, ViewState, Views, Wanted};

#[async_trait]
impl Views for Mysql {
    async fn views(&self) -> Result<Vec<ViewState>> {
        let rows = sqlx::query(self.sql(
            "SELECT b.view, b.version, b.build, b.subscription, b.namespace, b.tables, b.switches, b.live_epoch,
                    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.made) DIV 1000, v.version, v.build, v.epoch
             FROM tombolo_view AS v
             JOIN tombolo_build AS b ON b.view = v.view AND b.made IS NOT NULL AND b.dropped IS NULL
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
        let mut making = self.making().await?;
        let made = self.make(making.connection(), wanted).await;
        making.end().await?;
        made
    }

    async fn switch(&self, switch: &Switch) -> Result<Switched> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let switched = self.switch_within(&mut session, switch).await;
        match &switched {
            Ok(Switched::Done(_)) => session.commit().await?,
            _ => session.rollback().await?,
        }
        switched
    }

    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()> {
        let held = sqlx::query(self.sql(
            "UPDATE tombolo_cursor FORCE INDEX (PRIMARY)
             SET holder = ?, until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, lease_epoch = lease_epoch + 1
             WHERE subscription = ?",
        ));
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        held.bind(holder).bind(micros(lease)).bind(subscription).execute(&mut *session).await?;
        Ok(session.commit().await?)
    }

    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()> {
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        let dropped = self.drop_within(&mut session, view, id).await;
        match &dropped {
            Ok(()) => session.commit().await?,
            Err(_) => session.rollback().await?,
        }
        dropped?;
        let mut making = self.making().await?;
        let cleared = self.clear(making.connection(), view).await;
        making.end().await?;
        cleared
    }

    async fn compare(&self, old: &Build, new: &Build, sample: Sample) -> Result<Vec<Compared>> {
        let (tables, others) = (self.tables(old), self.tables(new));
        let names = tables.names().chain(others.names()).map(str::to_owned).collect();
        let mut snapshot = compare::snapshot(self).await?;
        let compared = comparing::compare(&mut snapshot, names, [old, new], sample).await?;
        snapshot.end().await?;
        Ok(compared)
    }

    fn tables(&self, build: &Build) -> Tables {
        let declared = build.tables.as_deref().unwrap_or_default();
        Tables::new(build.of(), Apart::ByPrefix('`'), &build.namespace, declared)
    }
}

impl Mysql {
    async fn switch_within(&self, connection: &mut MySqlConnection, switch: &Switch) -> Result<Switched> {
        let (live, epoch) = self.pointer(connection, &switch.view).await?;
        if epoch != switch.epoch {
            return Ok(Switched::Elsewhere(epoch));
        }
        let known = self.known(connection, &switch.view, switch.to.version).await?;
        let Known { build: to, dropped, .. } = one(known, &switch.view, switch.to)?;
        if dropped {
            return Err(refusal::dropped(&to.subscription));
        }
        let from = self.subscription_of(connection, &switch.view, live).await?;
        let cursors = self.locked_cursors(connection, &from, &to.subscription).await?;
        let is_compared = !self.mutation.is(Mutant::SwitchUncompared);
        if let Some(behind) = behind(switch, &cursors, &from, &to.subscription).filter(|_| is_compared) {
            return Ok(behind);
        }
        let keys = self.parked_keys(connection, &to.subscription).await?;
        if keys > 0 && !switch.accept_parked {
            return Ok(Switched::Parked(keys));
        }
        self.point(connection, &switch.view, switch.to, epoch + 1).await?;
        Ok(Switched::Done(epoch + 1))
    }

    /// Marks a build as dropped: from then on nobody sees it, opens its subscription or switches to it. Its cursors go with the
    /// mark, so that a worker which writes to its tables does not commit.
    async fn drop_within(&self, connection: &mut MySqlConnection, view: &str, id: BuildId) -> Result<()> {
        let (live, _) = self.pointer(connection, view).await?;
        if live == id {
            return Err(refusal::live(view, id));
        }
        let known = self.known(connection, view, id.version).await?;
        let Known { build, dropped, .. } = one(known, view, id)?;
        if dropped {
            return Ok(());
        }
        if self.was_just_live(connection, &build).await? {
            return Err(refusal::just_live(view, id));
        }
        for gone in [
            "DELETE d FROM tombolo_cursor AS d FORCE INDEX (PRIMARY) WHERE subscription = ?",
            "DELETE d FROM tombolo_parked AS d FORCE INDEX (PRIMARY) WHERE subscription = ?",
            "DELETE d FROM tombolo_member AS d FORCE INDEX (PRIMARY) WHERE subscription = ?",
            "DELETE d FROM tombolo_subscription AS d FORCE INDEX (PRIMARY) WHERE subscription = ?",
            "UPDATE tombolo_build SET dropped = UTC_TIMESTAMP(6) WHERE subscription = ?",
        ] {
            sqlx::query(self.sql(gone)).bind(&build.subscription).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Points to a build, whose own wish to be switched to is fulfilled by that.
    async fn point(
        &self,
        connection: &mut MySqlConnection,
        view: &str,
        to: BuildId,
        epoch: u64,
    ) -> Result<()> {
        let left =
            self.sql("UPDATE tombolo_build SET left_at = UTC_TIMESTAMP(6) WHERE view = ? AND live_epoch = ?");
        sqlx::query(left).bind(view).bind(epoch as i64 - 1).execute(&mut *connection).await?;
        let marked = sqlx::query(self.sql(
            "UPDATE tombolo_build SET live_epoch = ?, switches = false WHERE view = ? AND version = ? AND build = ?",
        ));
        let marked = marked.bind(epoch as i64).bind(view).bind(signed(to.version)).bind(signed(to.number));
        marked.execute(&mut *connection).await?;
        let moved =
            sqlx::query(self.sql("UPDATE tombolo_view SET version = ?, build = ?, epoch = ? WHERE view = ?"));
        let moved = moved.bind(signed(to.version)).bind(signed(to.number)).bind(epoch as i64).bind(view);
        moved.execute(connection).await?;
        Ok(())
    }

    /// Where the pointer is, which stays there until the transaction ends.
    async fn pointer(&self, connection: &mut MySqlConnection, view: &str) -> Result<(BuildId, u64)> {
        let pointer =
            sqlx::query(self.sql("SELECT version, build, epoch FROM tombolo_view WHERE view = ? FOR UPDATE"));
        let row = pointer.bind(view).fetch_optional(connection).await?;
        let Some(row) = row else { return Err(refusal::no_view(view)) };
        Ok((id(&row, 0)?, unsigned(row.try_get(2)?)))
    }

    async fn subscription_of(
        &self,
        connection: &mut MySqlConnection,
        view: &str,
        id: BuildId,
    ) -> Result<String> {
        let own = sqlx::query_scalar(
            self.sql("SELECT subscription FROM tombolo_build WHERE view = ? AND version = ? AND build = ?"),
        );
        Ok(own.bind(view).bind(signed(id.version)).bind(signed(id.number)).fetch_one(connection).await?)
    }

    /// The cursors of two subscriptions, which stand still until the transaction ends.
    async fn locked_cursors(
        &self,
        connection: &mut MySqlConnection,
        from: &str,
        to: &str,
    ) -> Result<Vec<At>> {
        let rows = sqlx::query(self.sql(
            "SELECT subscription, topic, `partition`, incarnation, sequence FROM tombolo_cursor FORCE INDEX (PRIMARY)
             WHERE subscription IN (?, ?) ORDER BY subscription, topic, `partition` LOCK IN SHARE MODE",
        ));
        rows.bind(from).bind(to).fetch_all(connection).await?.iter().map(at).collect()
    }

    /// An event is parked in the transaction that moves its cursor, which is locked by now.
    async fn parked_keys(&self, connection: &mut MySqlConnection, subscription: &str) -> Result<u64> {
        let keys = sqlx::query_scalar(
            self.sql("SELECT COUNT(DISTINCT key_hash) FROM tombolo_parked WHERE subscription = ?"),
        );
        Ok(unsigned(keys.bind(subscription).fetch_one(connection).await?))
    }

    /// Every build of a version that was made, in order.
    async fn known(&self, connection: &mut MySqlConnection, view: &str, version: u32) -> Result<Vec<Known>> {
        let known = sqlx::query(self.sql(
            "SELECT view, version, build, subscription, namespace, tables, switches, live_epoch,
                    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', made) DIV 1000, request, dropped IS NOT NULL
             FROM tombolo_build WHERE view = ? AND version = ? AND made IS NOT NULL ORDER BY build",
        ));
        let rows = known.bind(view).bind(signed(version)).fetch_all(connection).await?;
        let known = |row: &MySqlRow| {
            Ok(Known { build: build(row)?, request: row.try_get(9)?, dropped: row.try_get(10)? })
        };
        rows.iter().map(known).collect()
    }

    async fn was_just_live(&self, connection: &mut MySqlConnection, build: &Build) -> Result<bool> {
        let just = sqlx::query_scalar(self.sql(
            "SELECT COALESCE(left_at > UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND, false)
             FROM tombolo_build WHERE subscription = ?",
        ));
        let just = just.bind(micros(READERS_HEAR_WITHIN)).bind(&build.subscription);
        Ok(just.fetch_one(connection).await?)
    }

    /// Whether the build of a subscription was dropped, so that nobody opens it again.
    pub(super) async fn check_not_dropped(
        &self,
        connection: &mut MySqlConnection,
        subscription: &str,
    ) -> Result<()> {
        let dropped = sqlx::query_scalar(self.sql(
            "SELECT EXISTS (SELECT 1 FROM tombolo_build WHERE subscription = ? AND dropped IS NOT NULL)",
        ));
        match dropped.bind(subscription).fetch_one(connection).await? {
            true => Err(refusal::dropped(subscription)),
            false => Ok(()),
        }
    }
}

/// The build that a row names at `column` and the next.
fn id(row: &MySqlRow, column: usize) -> Result<BuildId> {
    let (version, number): (i32, i32) = (row.try_get(column)?, row.try_get(column + 1)?);
    Ok(BuildId { version: version.unsigned_abs(), number: number.unsigned_abs() })
}

fn build(row: &MySqlRow) -> Result<Build> {
    let made_ms: Option<i64> = row.try_get(8)?;
    Ok(Build {
        view: row.try_get(0)?,
        id: id(row, 1)?,
        subscription: row.try_get(3)?,
        namespace: row.try_get(4)?,
        tables: row.try_get(5)?,
        switches: row.try_get(6)?,
        live_epoch: row.try_get::<Option<i64>, _>(7)?.map(unsigned),
        made_at: made_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default(),
    })
}

fn state(row: &MySqlRow, first: Build) -> Result<ViewState> {
    let (live, epoch) = (id(row, 9)?, unsigned(row.try_get(11)?));
    Ok(ViewState { view: first.view.clone(), live, epoch, builds: vec![first] })
}

fn at(row: &MySqlRow) -> Result<At> {
    let topic: String = row.try_get(1)?;
    let goal = Goal {
        topic: ServiceName::new(topic)?,
        partition: row.try_get::<i32, _>(2)?.unsigned_abs(),
        incarnation: Incarnation(row.try_get(3)?),
        sequence: unsigned(row.try_get(4)?),
    };
    Ok(At { subscription: row.try_get(0)?, goal })
}
