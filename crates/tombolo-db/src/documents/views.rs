//! The views' part of the store: collections of its own for each build.
//!
//! Invariant: collections and row of a build appear and go in one transaction, and the pointer moves in the transaction
//! that compared the cursors: it is the only writer, so they stand still meanwhile.

mod compare;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use uuid::Uuid;

use super::Documents;
use super::cursors::{LAST, goals, of};
use super::outbox::millis;
use super::rows::{
    self, BUILD, BuildRow, CURSOR, CursorRow, Json, MEMBER, PARKED, ParkedRow, SUBSCRIPTION, VIEW, ViewRow,
    now_ms,
};
use super::store::Synced;
use super::{collection, parked};
use crate::mutant::Mutant;
use crate::tables::{Apart, Tables, declares_collections};
use crate::views::{At, Known, Making, READERS_HEAR_WITHIN, behind, find, one, refusal};
use crate::{
    Build, BuildId, Compared, Error, Kind, Result, Sample, Switch, Switched, ViewState, Views, Wanted,
};

#[async_trait]
impl Views for Documents {
    async fn views(&self) -> Result<Vec<ViewState>> {
        self.store.read(states).await
    }

    async fn make_build(&self, wanted: &Wanted) -> Result<Option<Build>> {
        let wanted = wanted.clone();
        self.store.write(Synced::Now, move |transaction| make(transaction, &wanted)).await
    }

    async fn switch(&self, switch: &Switch) -> Result<Switched> {
        let (asked, is_compared) = (switch.clone(), !self.mutation.is(Mutant::SwitchUncompared));
        let switch = move |transaction: &WriteTransaction| self::switch(transaction, &asked, is_compared);
        self.store.write(Synced::Now, switch).await
    }

    async fn hold(&self, subscription: &str, holder: Uuid, lease: Duration) -> Result<()> {
        let subscription = subscription.to_owned();
        let hold = move |transaction: &WriteTransaction| {
            let mut cursors = transaction.open_table(CURSOR)?;
            let until_ms = now_ms() + millis(lease);
            for ((topic, partition), row) in of(&cursors, &subscription)? {
                let lease_epoch = row.lease_epoch + 1;
                let row = CursorRow { holder: Some(holder), until_ms, lease_epoch, ..row };
                rows::put(&mut cursors, (&*subscription, topic.as_str(), partition), &row)?;
            }
            Ok(())
        };
        self.store.write(Synced::Later, hold).await
    }

    async fn drop_build(&self, view: &str, id: BuildId) -> Result<()> {
        let view = view.to_owned();
        self.store.write(Synced::Now, move |transaction| drop_build(transaction, &view, id)).await
    }

    async fn compare(&self, old: &Build, new: &Build, sample: Sample) -> Result<Vec<Compared>> {
        compare::compare(self, old, new, sample).await
    }

    fn tables(&self, build: &Build) -> Tables {
        tables(build)
    }
}

/// The collections of a build.
fn tables(build: &Build) -> Tables {
    let declared = build.tables.as_deref().unwrap_or_default();
    Tables::new(build.of(), Apart::Collections, &build.namespace, declared)
}

fn states(snapshot: &ReadTransaction) -> Result<Vec<ViewState>> {
    let builds = snapshot.open_table(BUILD)?;
    let mut states: Vec<ViewState> = Vec::new();
    for found in ReadableTable::iter(&snapshot.open_table(VIEW)?)? {
        let (view, row) = found?;
        let (view, row) = (view.value(), rows::read::<ViewRow>(row.value())?);
        let all = known(&builds, view, 0..=u32::MAX)?.into_iter().filter(|known| !known.known.dropped);
        let all: Vec<Build> = all.map(|known| known.known.build).collect();
        let live = BuildId { version: row.version, number: row.number };
        if !all.is_empty() {
            states.push(ViewState { view: view.to_owned(), live, epoch: row.epoch, builds: all });
        }
    }
    Ok(states)
}

fn make(transaction: &WriteTransaction, wanted: &Wanted) -> Result<Option<Build>> {
    let mut builds = transaction.open_table(BUILD)?;
    let known = of_version(&builds, &wanted.view, wanted.version)?;
    let number = match find(&known, wanted)? {
        Making::There(build) => return Ok(build),
        Making::New(number) => free_number(transaction, wanted, number)?,
    };
    let build = Build::new(wanted, number);
    make_collections(transaction, &build)?;
    let row = BuildRow {
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
    rows::put(&mut builds, (&*build.view, build.id.version, number), &row)?;
    drop(builds);
    let is_first = transaction.open_table(VIEW)?.get(&*build.view)?.is_none();
    if is_first {
        point(transaction, &build.view, build.id, 1)?;
    }
    Ok(Some(build))
}

fn make_collections(transaction: &WriteTransaction, build: &Build) -> Result<()> {
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
        transaction.open_table(collection::table(&tables.collection(name)?))?;
    }
    Ok(())
}

/// A subscription of the build's name that is older than the view's own collections has its cursors at events which those
/// do not have: then the number is passed over.
fn free_number(transaction: &WriteTransaction, wanted: &Wanted, number: u32) -> Result<u32> {
    let subscription = BuildId { version: wanted.version, number }.subscription(&wanted.view);
    let is_taken =
        wanted.tables.is_some() && !of(&transaction.open_table(CURSOR)?, &subscription)?.is_empty();
    Ok(number + u32::from(is_taken))
}

fn switch(transaction: &WriteTransaction, switch: &Switch, is_compared: bool) -> Result<Switched> {
    let (live, epoch) = pointer(transaction, &switch.view)?;
    if epoch != switch.epoch {
        return Ok(Switched::Elsewhere(epoch));
    }
    let builds = transaction.open_table(BUILD)?;
    let to = one(of_version(&builds, &switch.view, switch.to.version)?, &switch.view, switch.to)?;
    if to.dropped {
        return Err(refusal::dropped(&to.build.subscription));
    }
    let (to, from) = (to.build.subscription, live.subscription(&switch.view));
    drop(builds);
    let cursors = transaction.open_table(CURSOR)?;
    let mut all = Vec::new();
    for subscription in [&from, &to] {
        let at = |goal| At { subscription: subscription.clone(), goal };
        all.extend(goals(&cursors, subscription)?.into_iter().map(at));
    }
    if let Some(behind) = behind(switch, &all, &from, &to).filter(|_| is_compared) {
        return Ok(behind);
    }
    match parked_keys(transaction, &to)? {
        keys if keys > 0 && !switch.accept_parked => Ok(Switched::Parked(keys)),
        _ => point(transaction, &switch.view, switch.to, epoch + 1).map(Switched::Done),
    }
}

fn drop_build(transaction: &WriteTransaction, view: &str, id: BuildId) -> Result<()> {
    let (live, _) = pointer(transaction, view)?;
    if live == id {
        return Err(refusal::live(view, id));
    }
    let mut builds = transaction.open_table(BUILD)?;
    let key = (view, id.version, id.number);
    let row: BuildRow = rows::get(&builds, key)?.ok_or_else(|| refusal::no_build(view, id))?;
    if row.dropped_ms.is_some() {
        return Ok(());
    }
    if row.left_ms.is_some_and(|left| left > now_ms() - millis(READERS_HEAR_WITHIN)) {
        return Err(refusal::just_live(view, id));
    }
    let tables = tables(&build(view, id, &row));
    for name in tables.names() {
        transaction.delete_table(collection::table(&tables.collection(name)?))?;
    }
    forget(transaction, &row.subscription)?;
    rows::put(&mut builds, key, &BuildRow { dropped_ms: Some(now_ms()), ..row })
}

/// Removes what a subscription has: cursors, members, types, what is parked.
fn forget(transaction: &WriteTransaction, subscription: &str) -> Result<()> {
    let all = (subscription, "", 0)..=(subscription, LAST, u32::MAX);
    transaction.open_table(CURSOR)?.retain_in(all, |_, _| false)?;
    let all = (subscription, 0)..=(subscription, u128::MAX);
    transaction.open_table(MEMBER)?.retain_in(all, |_, _| false)?;
    transaction.open_table(SUBSCRIPTION)?.remove(subscription)?;
    parked::forget(transaction, subscription)
}

/// Points to a build, whose own wish to be switched to is fulfilled by that.
fn point(transaction: &WriteTransaction, view: &str, to: BuildId, epoch: u64) -> Result<u64> {
    let mut builds = transaction.open_table(BUILD)?;
    for FullyKnown { known, row } in known(&builds, view, 0..=u32::MAX)? {
        let id = known.build.id;
        let row = match () {
            () if id == to => BuildRow { live_epoch: Some(epoch), switches: false, ..row },
            () if row.live_epoch == Some(epoch - 1) => BuildRow { left_ms: Some(now_ms()), ..row },
            () => continue,
        };
        rows::put(&mut builds, (view, id.version, id.number), &row)?;
    }
    let row = ViewRow { version: to.version, number: to.number, epoch };
    rows::put(&mut transaction.open_table(VIEW)?, view, &row)?;
    Ok(epoch)
}

fn pointer(transaction: &WriteTransaction, view: &str) -> Result<(BuildId, u64)> {
    let row: Option<ViewRow> = rows::get(&transaction.open_table(VIEW)?, view)?;
    let row = row.ok_or_else(|| refusal::no_view(view))?;
    Ok((BuildId { version: row.version, number: row.number }, row.epoch))
}

fn parked_keys(transaction: &WriteTransaction, subscription: &str) -> Result<u64> {
    let parked = transaction.open_table(PARKED)?;
    let mut keys = std::collections::BTreeSet::new();
    for found in parked.range((subscription, "", 0, 0)..=(subscription, LAST, u32::MAX, u64::MAX))? {
        keys.insert(rows::read::<ParkedRow>(found?.1.value().0)?.key_hash);
    }
    Ok(keys.len() as u64)
}

/// A build with its row.
struct FullyKnown {
    known: Known,
    row: BuildRow,
}

type Builds = (&'static str, u32, u32);

/// Every build of some versions, in order.
fn known(
    builds: &impl ReadableTable<Builds, Json>,
    view: &str,
    versions: std::ops::RangeInclusive<u32>,
) -> Result<Vec<FullyKnown>> {
    let each = builds.range((view, *versions.start(), 0)..=(view, *versions.end(), u32::MAX))?;
    each.map(|found| {
        let (key, row) = found?;
        let ((view, version, number), row) = (key.value(), rows::read::<BuildRow>(row.value())?);
        let build = build(view, BuildId { version, number }, &row);
        let known = Known { build, request: row.request, dropped: row.dropped_ms.is_some() };
        Ok(FullyKnown { known, row })
    })
    .collect()
}

fn of_version(builds: &impl ReadableTable<Builds, Json>, view: &str, version: u32) -> Result<Vec<Known>> {
    Ok(known(builds, view, version..=version)?.into_iter().map(|known| known.known).collect())
}

/// Refuses the subscription of a build that was dropped.
pub(super) fn check_not_dropped(transaction: &WriteTransaction, subscription: &str) -> Result<()> {
    for found in transaction.open_table(BUILD)?.iter()? {
        let row: BuildRow = rows::read(found?.1.value())?;
        if row.subscription == subscription && row.dropped_ms.is_some() {
            return Err(refusal::dropped(subscription));
        }
    }
    Ok(())
}

fn build(view: &str, id: BuildId, row: &BuildRow) -> Build {
    Build {
        view: view.to_owned(),
        id,
        subscription: row.subscription.clone(),
        namespace: row.namespace.clone(),
        tables: row.tables.clone(),
        switches: row.switches,
        live_epoch: row.live_epoch,
        made_at: Timestamp::from_millisecond(row.made_ms).unwrap_or_default(),
    }
}
