//! The views' part of MongoDB: collections of its own for each build, `order_history_v1_b1.orders`.
//!
//! ```text
//!  make    the collections, as often as anybody likes ── the row, once
//!  drop    the row is dropped, with cursors and what is parked ── the collections
//! ```
//!
//! Invariant: a build is seen only while all of its collections stand, and the pointer moves in the transaction that
//! compared the cursors, which it has touched: whoever moves one meanwhile is refused, or this is.

mod compare;

use std::collections::BTreeSet;
use std::time::Duration;

use ::mongodb::ClientSession;
use ::mongodb::bson::{Document, doc};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::cursors::goal;
use super::rows::{
    self, BUILD, BuildRow, CALL, CURSOR, MEMBER, OPENING, PARKED, ParkedRow, SUBSCRIPTION, VIEW, ViewRow,
    now_ms,
};
use super::session::Tries;
use super::{Mongodb, millis};
use crate::mutant::Mutant;
use crate::tables::{Apart, Tables, declares_collections};
use crate::views::{At, Known, Making, READERS_HEAR_WITHIN, behind, find, one, refusal};
use crate::{
    Build, BuildId, Compared, Error, Kind, Result, Sample, Switch, Switched, ViewState, Views, Wanted,
};

#[async_trait]
impl Views for Mongodb {
    async fn views(&self) -> Result<Vec<ViewState>> {
        let views: Vec<ViewRow> = self.look(VIEW, doc! {}, doc! { "_id": 1 }).await?;
        let builds: Vec<BuildRow> = self.look(BUILD, doc! { "dropped_ms": null }, order()).await?;
        let state = |row: ViewRow| {
            let its = builds.iter().filter(|build| build.view == row.view).map(build);
            let live = BuildId { version: row.version, number: row.number };
            ViewState { view: row.view.clone(), live, epoch: row.epoch, builds: its.collect() }
        };
        Ok(views.into_iter().map(state).filter(|state| !state.builds.is_empty()).collect())
    }

    async fn make_build(&self, wanted: &Wanted) -> Result<Option<Build>> {
        let mut tries = Tries::new();
        let mut standing = None;
        loop {
            let mut session = self.session().await?;
            let made = self.make_now(&mut session, wanted, standing).await;
            match tries.end(&mut session, made).await? {
                Some(Made::There(build)) => return Ok(build),
                Some(Made::Needs(number)) => {
                    self.make_collections(&Build::new(wanted, number)).await?;
                    standing = Some(number);
                }
                None => {}
            }
        }
    }

    async fn switch(&self, switch: &Switch) -> Result<Switched> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let switched = self.switch_now(&mut session, switch).await;
            if let Some(switched) = tries.end(&mut session, switched).await? {
                return Ok(switched);
            }
        }
    }

    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()> {
        let until_ms = self.server_ms().await? + millis(lease);
        let change = doc! {
            "$inc": { "lease_epoch": 1_i64 }, "$set": { "holder": rows::id(holder), "until_ms": until_ms },
        };
        self.rows::<Document>(CURSOR).update_many(doc! { "subscription": subscription }, change).await?;
        Ok(())
    }

    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()> {
        let mut tries = Tries::new();
        let dropped = loop {
            let mut session = self.session().await?;
            let dropped = self.drop_now(&mut session, view, id).await;
            if let Some(dropped) = tries.end(&mut session, dropped).await? {
                break dropped;
            }
        };
        // A repeat after an interruption finds what it left.
        let tables = tables(&dropped);
        for name in tables.names() {
            self.database.collection::<Document>(&tables.collection(name)?).drop().await?;
        }
        Ok(())
    }

    async fn compare(&self, old: &Build, new: &Build, sample: Sample) -> Result<Vec<Compared>> {
        compare::compare(self, old, new, sample).await
    }

    fn tables(&self, build: &Build) -> Tables {
        tables(build)
    }
}

/// What a try to make a build came to.
enum Made {
    /// It is there, or was dropped.
    There(Option<Build>),
    /// Its collections have to be there first, for this number.
    Needs(u32),
}

impl Mongodb {
    /// Makes the row of a build, if its collections stand for the number that it gets.
    async fn make_now(
        &self,
        session: &mut ClientSession,
        wanted: &Wanted,
        standing: Option<u32>,
    ) -> Result<Made> {
        let number = match find(&self.of_version(session, &wanted.view, wanted.version).await?, wanted)? {
            Making::There(build) => return Ok(Made::There(build)),
            Making::New(number) => self.free_number(session, wanted, number).await?,
        };
        if standing != Some(number) {
            return Ok(Made::Needs(number));
        }
        self.touch(session, OPENING).await?;
        let build = Build::new(wanted, number);
        let row = BuildRow {
            place: place(&build.view, build.id),
            view: build.view.clone(),
            version: build.id.version,
            number,
            subscription: build.subscription.clone(),
            namespace: build.namespace.clone(),
            tables: build.tables.clone(),
            request: wanted.request,
            switches: build.switches,
            live_epoch: None,
            left_ms: None,
            made_ms: build.made_at.as_millisecond(),
            dropped_ms: None,
        };
        self.put(session, BUILD, row.place.clone(), &row).await?;
        if self.view_row(session, &build.view).await?.is_none() {
            self.point(session, &build.view, build.id, 1).await?;
        }
        Ok(Made::There(Some(build)))
    }

    async fn make_collections(&self, build: &Build) -> Result<()> {
        let Some(declared) = &build.tables else { return Ok(()) };
        if !declares_collections(declared) {
            return Err(Error::new(
                Kind::View,
                format!(
                    "cannot make the collections of {}: found {declared:?}; expected their names in braces and nothing else, as \"{{orders}} {{orders_by_user}}\"",
                    build.of()
                ),
            ));
        }
        let tables = tables(build);
        for name in tables.names() {
            self.make_collection(&tables.collection(name)?).await?;
        }
        Ok(())
    }

    /// A subscription of the build's name that is older than the view's own collections has its cursors at events which those
    /// do not have: then the number is passed over.
    async fn free_number(&self, session: &mut ClientSession, wanted: &Wanted, number: u32) -> Result<u32> {
        let subscription = BuildId { version: wanted.version, number }.subscription(&wanted.view);
        let is_taken = wanted.tables.is_some() && !self.cursors_of(session, &subscription).await?.is_empty();
        Ok(number + u32::from(is_taken))
    }

    async fn switch_now(&self, session: &mut ClientSession, switch: &Switch) -> Result<Switched> {
        let (live, epoch) = self.pointer(session, &switch.view).await?;
        if epoch != switch.epoch {
            return Ok(Switched::Elsewhere(epoch));
        }
        let known = self.of_version(session, &switch.view, switch.to.version).await?;
        let to = one(known, &switch.view, switch.to)?;
        if to.dropped {
            return Err(refusal::dropped(&to.build.subscription));
        }
        let (to, from) = (to.build.subscription, live.subscription(&switch.view));
        let still = doc! { "subscription": { "$in": [&from, &to] } };
        let touch = doc! { "$inc": { "touched": 1_i64 } };
        self.rows::<Document>(CURSOR).update_many(still, touch).session(&mut *session).await?;
        let mut all = Vec::new();
        for subscription in [&from, &to] {
            let rows = self.cursors_of(session, subscription).await?;
            all.extend(rows.iter().map(|row| At { subscription: subscription.clone(), goal: goal(row) }));
        }
        let is_compared = !self.mutation.is(Mutant::SwitchUncompared);
        if let Some(behind) = behind(switch, &all, &from, &to).filter(|_| is_compared) {
            return Ok(behind);
        }
        match self.parked_keys(session, &to).await? {
            keys if keys > 0 && !switch.accept_parked => Ok(Switched::Parked(keys)),
            _ => self.point(session, &switch.view, switch.to, epoch + 1).await.map(Switched::Done),
        }
    }

    /// Drops a build but for its collections; returns it, also if that was done before.
    async fn drop_now(&self, session: &mut ClientSession, view: &str, id: BuildId) -> Result<Build> {
        let (live, _) = self.pointer(session, view).await?;
        if live == id {
            return Err(refusal::live(view, id));
        }
        let rows = self.rows::<BuildRow>(BUILD);
        let found = rows.find_one(doc! { "_id": place(view, id) });
        let row = found.session(&mut *session).await?.ok_or_else(|| refusal::no_build(view, id))?;
        if row.dropped_ms.is_some() {
            return Ok(build(&row));
        }
        if row.left_ms.is_some_and(|left| left > now_ms() - millis(READERS_HEAR_WITHIN)) {
            return Err(refusal::just_live(view, id));
        }
        self.touch(session, OPENING).await?;
        self.forget(session, &row.subscription).await?;
        let dropped = doc! { "$set": { "dropped_ms": now_ms() } };
        let rows = self.rows::<Document>(BUILD);
        let drop = rows.update_one(doc! { "_id": &row.place }, dropped);
        drop.session(session).await?;
        Ok(build(&row))
    }

    /// Removes what a subscription has: cursors, members, types, calls, what is parked.
    async fn forget(&self, session: &mut ClientSession, subscription: &str) -> Result<()> {
        for name in [CURSOR, MEMBER, CALL, PARKED] {
            let its = doc! { "subscription": subscription };
            self.rows::<Document>(name).delete_many(its).session(&mut *session).await?;
        }
        let its = doc! { "_id": subscription };
        self.rows::<Document>(SUBSCRIPTION).delete_many(its).session(session).await?;
        Ok(())
    }

    /// Points to a build, whose own wish to be switched to is fulfilled by that.
    async fn point(&self, session: &mut ClientSession, view: &str, to: BuildId, epoch: u64) -> Result<u64> {
        let builds = self.rows::<Document>(BUILD);
        let left = doc! { "view": view, "live_epoch": super::signed(epoch - 1) };
        let leave = doc! { "$set": { "left_ms": now_ms() } };
        builds.update_many(left, leave).session(&mut *session).await?;
        let live = doc! { "$set": { "live_epoch": super::signed(epoch), "switches": false } };
        builds.update_one(doc! { "_id": place(view, to) }, live).session(&mut *session).await?;
        let row = ViewRow { view: view.to_owned(), version: to.version, number: to.number, epoch };
        self.put(session, VIEW, view, &row).await?;
        Ok(epoch)
    }

    async fn view_row(&self, session: &mut ClientSession, view: &str) -> Result<Option<ViewRow>> {
        Ok(self.rows::<ViewRow>(VIEW).find_one(doc! { "_id": view }).session(session).await?)
    }

    async fn pointer(&self, session: &mut ClientSession, view: &str) -> Result<(BuildId, u64)> {
        let row = self.view_row(session, view).await?.ok_or_else(|| refusal::no_view(view))?;
        Ok((BuildId { version: row.version, number: row.number }, row.epoch))
    }

    async fn parked_keys(&self, session: &mut ClientSession, subscription: &str) -> Result<u64> {
        let its = doc! { "subscription": subscription };
        let rows: Vec<ParkedRow> = self.all(session, PARKED, its, doc! {}).await?;
        Ok(rows.iter().map(|row| row.key_hash).collect::<BTreeSet<i64>>().len() as u64)
    }

    async fn of_version(&self, session: &mut ClientSession, view: &str, version: u32) -> Result<Vec<Known>> {
        let its = doc! { "view": view, "version": i64::from(version) };
        let rows: Vec<BuildRow> = self.all(session, BUILD, its, order()).await?;
        let known = |row: &BuildRow| Known {
            build: build(row),
            request: row.request,
            dropped: row.dropped_ms.is_some(),
        };
        Ok(rows.iter().map(known).collect())
    }

    /// Refuses the subscription of a build that was dropped.
    pub(super) async fn check_not_dropped(
        &self,
        session: &mut ClientSession,
        subscription: &str,
    ) -> Result<()> {
        let dropped = doc! { "subscription": subscription, "dropped_ms": { "$ne": null } };
        match self.rows::<BuildRow>(BUILD).find_one(dropped).session(session).await? {
            Some(_) => Err(refusal::dropped(subscription)),
            None => Ok(()),
        }
    }
}

/// The collections of a build.
fn tables(build: &Build) -> Tables {
    let declared = build.tables.as_deref().unwrap_or_default();
    Tables::new(build.of(), Apart::Dotted, &build.namespace, declared)
}

fn place(view: &str, id: BuildId) -> String {
    format!("{view}/{id}")
}

fn order() -> Document {
    doc! { "view": 1, "version": 1, "number": 1 }
}

fn build(row: &BuildRow) -> Build {
    Build {
        view: row.view.clone(),
        id: BuildId { version: row.version, number: row.number },
        subscription: row.subscription.clone(),
        namespace: row.namespace.clone(),
        tables: row.tables.clone(),
        switches: row.switches,
        live_epoch: row.live_epoch,
        made_at: Timestamp::from_millisecond(row.made_ms).unwrap_or_default(),
    }
}
