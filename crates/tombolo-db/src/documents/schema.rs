//! Tombolo's own tables in the store: made at the first start, checked before anything else.
//!
//! Invariant: a version only adds to the one before it, and a database belongs to one service for good. Looking at a file
//! that is not there does not make it.

use redb::{ReadTransaction, TableDefinition, TableHandle, WriteTransaction};
use tombolo_event::Generations;

use super::failure::missing;
use super::rows::{self, COUNTS, LEADER, ONE, SERVICE, ServiceRow};
use super::store::Synced;
use super::{Documents, generations};
use crate::{Owner, Result, Schema, owner};

/// The version of the tables that this program makes.
pub(super) const VERSION: u32 = 1;

/// What stands in the store beside the collections, as `tombolo schema print` shows it.
#[must_use]
pub fn schema_text() -> String {
    let mut text = format!("version {VERSION} of Tombolo's tables in a file of redb: name, key, value\n");
    each(&mut Shown(&mut text));
    text
}

/// Something to be done with each table.
trait Each {
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(&mut self, table: TableDefinition<'_, K, V>);
}

fn each(with: &mut impl Each) {
    with.table(ONE);
    with.table(rows::PARTITION);
    with.table(rows::OUTBOX);
    with.table(rows::NUMBER);
    with.table(rows::LATER);
    with.table(rows::LATER_ID);
    with.table(rows::KNOWN);
    with.table(rows::HALT);
    with.table(rows::SUBSCRIPTION);
    with.table(rows::CURSOR);
    with.table(rows::MEMBER);
    with.table(rows::CALL);
    with.table(rows::PARKED);
    with.table(rows::PARKED_KEY);
    with.table(rows::REQUEST);
    with.table(rows::OPEN);
    with.table(rows::VIEW);
    with.table(rows::BUILD);
}

struct Shown<'t>(&'t mut String);

impl Each for Shown<'_> {
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(&mut self, table: TableDefinition<'_, K, V>) {
        let (key, value) = (K::type_name(), V::type_name());
        self.0.push_str(&format!("{:<22} {:<34} {}\n", table.name(), key.name(), value.name()));
    }
}

struct Made<'t> {
    transaction: &'t WriteTransaction,
    done: Result<()>,
}

impl Each for Made<'_> {
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(&mut self, table: TableDefinition<'_, K, V>) {
        if self.done.is_ok() {
            self.done = self.transaction.open_table(table).map(drop).map_err(crate::Error::from);
        }
    }
}

impl Documents {
    /// Checks Tombolo's tables, and changes nothing. Returns their version.
    ///
    /// # Errors
    /// `Schema` for tables that are missing or older than this program's, `Unavailable` if another process has the file open.
    pub async fn check(&self) -> Result<i64> {
        if !self.store.is_there() {
            return Err(missing(0));
        }
        let found = self.store.read(version).await?;
        if found < VERSION { Err(missing(found)) } else { Ok(found.into()) }
    }

    pub(super) async fn prepare_tables(&self, owner: &Owner, schema: Schema) -> Result<()> {
        match self.check().await {
            Err(error) if error.kind() == crate::Kind::Schema && schema == Schema::Apply => {
                self.store.write(Synced::Now, apply).await?;
            }
            checked => {
                checked?;
            }
        }
        let owner = owner.clone();
        let looked = owner.clone();
        let is_settled = self.store.read(move |snapshot| is_owned_by(&snapshot.open_table(ONE)?, &looked));
        if is_settled.await? {
            return Ok(());
        }
        self.store.write(Synced::Now, move |transaction| own(transaction, &owner)).await
    }
}

/// The version of the tables that are there; 0 if there are none. A newer one than ours is fine: it only adds.
fn version(snapshot: &ReadTransaction) -> Result<u32> {
    match snapshot.open_table(ONE) {
        Ok(one) => Ok(rows::get(&one, rows::VERSION)?.unwrap_or(0)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn apply(transaction: &WriteTransaction) -> Result<()> {
    let mut made = Made { transaction, done: Ok(()) };
    each(&mut made);
    made.done?;
    let mut one = transaction.open_table(ONE)?;
    let found: u32 = rows::get(&one, rows::VERSION)?.unwrap_or(0);
    rows::put(&mut one, rows::VERSION, &found.max(VERSION))
}

/// Whether the database is `owner`'s already; `false` if it is nobody's yet.
fn is_owned_by(one: &impl redb::ReadableTable<&'static str, rows::Json>, owner: &Owner) -> Result<bool> {
    let Some(row): Option<ServiceRow> = rows::get(one, SERVICE)? else { return Ok(false) };
    owner::check(owner, &row.service, &row.generations)?;
    Ok(true)
}

fn own(transaction: &WriteTransaction, owner: &Owner) -> Result<()> {
    let mut one = transaction.open_table(ONE)?;
    if is_owned_by(&one, owner)? {
        return Ok(());
    }
    let generations = Generations::first(owner.partitions)?;
    let service = owner.service.to_string();
    rows::put(
        &mut one,
        SERVICE,
        &ServiceRow { service, generations: generations.clone(), incarnation: None },
    )?;
    rows::put(&mut one, LEADER, &rows::LeaderRow::default())?;
    rows::put(&mut one, COUNTS, &rows::CountsRow::default())?;
    drop(one);
    generations::store(transaction, &generations)
}
