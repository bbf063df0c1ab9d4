//! Databases of a MongoDB replica set: one for each case.

use std::sync::Mutex;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::SqlStr;
use tombolo_db::conformance::{Abilities, Ability, Fixture, Foreign, Own};
use tombolo_db::mongodb::driver::bson::{Document, doc};
use tombolo_db::mongodb::driver::options::{ClientOptions, ReturnDocument};
use tombolo_db::mongodb::driver::{Client, Collection};
use tombolo_db::mongodb::{Mongodb, Tx};
use tombolo_db::{Build, Committed, Database, Outgoing, Views};

pub(crate) const ABILITIES: Abilities = Abilities {
    late_commits: Ability::Can,
    failures_abort: Ability::Can,
    unsafe_settings: Ability::Cannot("the suite has one server, whose settings it does not change"),
    absence: Ability::Can,
    bare_statements: Ability::Can,
    columns: Ability::Cannot("documents have no declared columns"),
    foreign: Ability::Cannot("MongoDB has no SQL, in which other programs would publish"),
};

/// Names the replica set that the tests may use.
const VARIABLE: &str = "TOMBOLO_TEST_MONGODB";

/// A document of the case's own.
#[derive(Debug, Serialize, Deserialize)]
struct Effect {
    #[serde(rename = "_id")]
    k: String,
    v: i64,
}

pub(crate) struct Server {
    options: ClientOptions,
    name: String,
    made: Mutex<Vec<String>>,
    #[cfg(feature = "mutants")]
    pub(crate) fault: Option<tombolo_db::mutant::Mutant>,
}

impl Server {
    pub(crate) async fn start(name: &str) -> Option<Self> {
        let Ok(url) = std::env::var(VARIABLE) else {
            eprintln!(
                "skipped: mongodb: a server is not to be had here; put mongod on the PATH and run cargo xtask test, or name a replica set in {VARIABLE}"
            );
            return None;
        };
        Some(Self {
            options: ClientOptions::parse(&url).await.unwrap(),
            name: format!("tombolo_{name}_{}", uuid::Uuid::now_v7().simple()),
            made: Mutex::default(),
            #[cfg(feature = "mutants")]
            fault: None,
        })
    }

    pub(crate) async fn remove(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        for name in made {
            self.client().database(&name).drop().await.unwrap();
        }
    }

    /// A client with connections of its own, as another process would have.
    fn client(&self) -> Client {
        Client::with_options(self.options.clone()).unwrap()
    }

    fn open(&self, name: &str) -> Mongodb {
        let database = Mongodb::new(self.client(), name);
        // The first has Tombolo's own prefix, the others have another.
        let is_first = name.ends_with("_0");
        let database = if is_first { database } else { database.with_prefix("inbox_").unwrap() };
        #[cfg(feature = "mutants")]
        if let Some(fault) = self.fault {
            return database.with_mutant(fault);
        }
        database
    }
}

/// A failure as the cases take it.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Configuration(error.into())
}

/// Adds 1 to the value under a key.
async fn add(
    effects: &Collection<Effect>,
    tx: &mut Tx,
    key: &str,
) -> Result<i64, tombolo_db::mongodb::driver::error::Error> {
    let add = effects.find_one_and_update(doc! { "_id": key }, doc! { "$inc": { "v": 1_i64 } });
    let add = add.upsert(true).return_document(ReturnDocument::After).session(tx.session());
    Ok(add.await?.unwrap().v)
}

#[async_trait]
impl Fixture for Server {
    type Database = Mongodb;

    async fn fresh(&self) -> Mongodb {
        let name = {
            let mut made = self.made.lock().unwrap();
            let name = format!("{}_{}", self.name, made.len());
            made.push(name.clone());
            name
        };
        let database = self.open(&name);
        database.database().create_collection("effect").await.unwrap();
        database
    }

    async fn reopen(&self, database: &Mongodb) -> Mongodb {
        self.open(database.database().name())
    }

    async fn unsafe_setting(&self) -> Mongodb {
        unreachable!("the abilities say that it cannot")
    }

    async fn absent(&self) -> Mongodb {
        Mongodb::open("mongodb://127.0.0.1:1/nobody?serverSelectionTimeoutMS=500").await.unwrap()
    }

    async fn write(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let effects: Collection<Effect> = tx.collection("effect");
        let insert = effects.insert_one(Effect { k: key.into(), v: value }).session(tx.session());
        insert.await.map(drop).map_err(failed)
    }

    /// Whoever meets another transaction begins again, which is what a user of this server has to do.
    async fn count(&self, tx: &mut Tx, key: &str) -> i64 {
        let effects: Collection<Effect> = tx.collection("effect");
        loop {
            match add(&effects, tx, key).await {
                Ok(value) => return value,
                Err(error) => assert!(tombolo_db::mongodb::is_transient(&error), "{error}"),
            }
            tx.session().abort_transaction().await.ok();
            tx.session().start_transaction().await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    async fn write_own(
        &self,
        database: &Mongodb,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> tombolo_db::Result<Committed> {
        let mut session = database.database().client().start_session().await?;
        if how == Own::None {
            return database.write_outgoing(&mut session, outgoing).await;
        }
        session.start_transaction().await?;
        let effects: Collection<Effect> = database.database().collection("effect");
        effects.insert_one(Effect { k: key.into(), v: 1 }).session(&mut session).await?;
        let committed = database.write_outgoing(&mut session, outgoing).await?;
        match how {
            Own::Committed => session.commit_transaction().await?,
            _ => session.abort_transaction().await?,
        }
        Ok(committed)
    }

    async fn read(&self, database: &Mongodb, key: &str) -> Option<i64> {
        let effects: Collection<Effect> = database.database().collection("effect");
        effects.find_one(doc! { "_id": key }).await.unwrap().map(|effect| effect.v)
    }

    async fn insert(&self, _: &mut Tx, _: SqlStr, _: &str, _: i64) -> Result<(), sqlx::Error> {
        unreachable!("there is no SQL")
    }

    async fn sum(&self, _: &Mongodb, _: SqlStr) -> Option<i64> {
        unreachable!("there is no SQL")
    }

    fn tables(&self) -> &'static str {
        "{titles}"
    }

    async fn fold(&self, tx: &mut Tx, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let titles: Collection<Effect> = tx.view_collection("titles").map_err(failed)?;
        let insert = titles.insert_one(Effect { k: key.into(), v: value }).session(tx.session());
        insert.await.map(drop).map_err(failed)
    }

    async fn total(&self, database: &Mongodb, build: &Build) -> Option<i64> {
        let titles: Collection<Effect> = database.view_collection(&database.tables(build), "titles").unwrap();
        // A collection that is not there reads as an empty one.
        let there = database.database().list_collection_names().await.unwrap();
        there.iter().find(|name| *name == titles.name())?;
        let mut found = titles.find(doc! {}).await.unwrap();
        let mut total = 0;
        while found.advance().await.unwrap() {
            total += found.deserialize_current().unwrap().v;
        }
        Some(total)
    }

    async fn foreign(&self, _: &Mongodb) -> Box<dyn Foreign> {
        unreachable!("the abilities say that it cannot")
    }

    async fn foreign_key(&self, _: &Mongodb, _: &str) {
        unreachable!("the abilities say that it cannot")
    }

    async fn mend_foreign(&self, _: &Mongodb, _: &str, _: &str) {
        unreachable!("the abilities say that it cannot")
    }

    async fn size(&self, database: &Mongodb) -> u64 {
        let prefix = if database.database().name().ends_with("_0") { "tombolo_" } else { "inbox_" };
        let stats = doc! { "collStats": format!("{prefix}outbox") };
        let stats: Document = database.database().run_command(stats).await.unwrap();
        // How the server keeps what is free for what comes is its own affair; what it holds is ours.
        stats.get_i64("size").or_else(|_| stats.get_i32("size").map(i64::from)).unwrap().unsigned_abs()
    }
}
