//! Databases of documents in a temporary folder.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::SqlStr;
use tombolo_db::conformance::{Abilities, Ability, Fixture, Foreign, Own};
use tombolo_db::documents::redb::TableDefinition;
use tombolo_db::documents::{Collection, Documents, Keys, Tx};
use tombolo_db::{Build, Committed, Database, Outgoing, Views};

pub(crate) const ABILITIES: Abilities = Abilities {
    late_commits: Ability::Cannot("the store has a single writer, so no commit is late"),
    failures_abort: Ability::Cannot("what the store refuses to put changes nothing"),
    unsafe_settings: Ability::Cannot("the store has no setting by which a commit would not be synced"),
    absence: Ability::Cannot("the store makes a file that is not there"),
    bare_statements: Ability::Cannot(
        "nothing is written to the store but in a transaction, which is a value",
    ),
    columns: Ability::Cannot("documents have no declared columns"),
    foreign: Ability::Cannot("no other program can open the file while the service has it"),
};

const EFFECT: Collection<i64> = Collection::new("effect");
/// The same to whoever works with the store itself.
const OWN_EFFECT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("own/effect");
const TITLES: Collection<Title> = Collection::of_view("titles");

#[derive(Serialize, Deserialize)]
struct Title {
    v: i64,
}

pub(crate) struct Files {
    folder: tempfile::TempDir,
    made: AtomicU32,
    #[cfg(feature = "mutants")]
    pub(crate) fault: Option<tombolo_db::mutant::Mutant>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            made: AtomicU32::new(0),
            #[cfg(feature = "mutants")]
            fault: None,
        }
    }

    fn made(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("{number}.redb"))
    }

    fn broken(&self, database: Documents) -> Documents {
        #[cfg(feature = "mutants")]
        if let Some(fault) = self.fault {
            return database.with_mutant(fault);
        }
        database
    }

    /// The last that was made: the cases are played one after the other.
    fn last(&self) -> PathBuf {
        self.made(self.made.load(Ordering::Relaxed) - 1)
    }
}

#[async_trait]
impl Fixture for Files {
    type Database = Documents;

    async fn fresh(&self) -> Documents {
        let path = self.made(self.made.fetch_add(1, Ordering::Relaxed));
        self.broken(Documents::open(path.to_str().unwrap()).unwrap())
    }

    async fn reopen(&self, _database: &Documents) -> Documents {
        self.broken(Documents::open(format!("documents:{}", self.last().display())).unwrap())
    }

    async fn unsafe_setting(&self) -> Documents {
        unreachable!("the abilities say that it cannot")
    }

    async fn absent(&self) -> Documents {
        unreachable!("the abilities say that it cannot")
    }

    async fn write(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        if tx.get(&EFFECT, key).await.unwrap().is_some() {
            return Err(sqlx::Error::Protocol(format!("{key} is there")));
        }
        tx.put(&EFFECT, key, &value).await.map_err(|error| sqlx::Error::Configuration(error.into()))
    }

    async fn count(&self, tx: &mut Tx, key: &str) -> i64 {
        let value = tx.get(&EFFECT, key).await.unwrap().unwrap_or(0) + 1;
        tx.put(&EFFECT, key, &value).await.unwrap();
        value
    }

    async fn write_own(
        &self,
        database: &Documents,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> tombolo_db::Result<Committed> {
        let mut own = database.redb().await?.begin_write()?;
        own.open_table(OWN_EFFECT)?.insert(key, &b"1"[..])?;
        let committed = database.write_outgoing(&mut own, outgoing).await?;
        match how {
            Own::Committed => own.commit()?,
            _ => own.abort()?,
        }
        Ok(committed)
    }

    async fn read(&self, database: &Documents, key: &str) -> Option<i64> {
        database.read().await.unwrap().get(&EFFECT, key).await.unwrap()
    }

    async fn insert(&self, _: &mut Tx, _: SqlStr, _: &str, _: i64) -> Result<(), sqlx::Error> {
        unreachable!("there is no SQL")
    }

    async fn sum(&self, _: &Documents, _: SqlStr) -> Option<i64> {
        unreachable!("there is no SQL")
    }

    fn tables(&self) -> &'static str {
        "{titles}"
    }

    async fn fold(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let put = tx.put(&TITLES, key, &Title { v: value }).await;
        put.map_err(|error| sqlx::Error::Configuration(error.into()))
    }

    async fn total(&self, database: &Documents, build: &Build) -> Option<i64> {
        let reading = database.read().await.unwrap().of_view(&database.tables(build));
        let titles = reading.scan(&TITLES, Keys::all(), usize::MAX).await.ok()?;
        Some(titles.iter().map(|(_, title)| title.v).sum())
    }

    async fn foreign(&self, _: &Documents) -> Box<dyn Foreign> {
        unreachable!("the abilities say that it cannot")
    }

    async fn foreign_key(&self, _: &Documents, _: &str) {
        unreachable!("the abilities say that it cannot")
    }

    async fn mend_foreign(&self, _: &Documents, _: &str, _: &str) {
        unreachable!("the abilities say that it cannot")
    }

    async fn size(&self, _database: &Documents) -> u64 {
        self.last().metadata().unwrap().len()
    }
}
