//! The suite that every database passes: one entry point, one list of cases.
//!
//! Each case is an `async fn` whose name is a fact about the port. [`run`] prints every one of them as `ok`,
//! `FAILED` or `skipped` with the reason, and panics at the end with what failed. Each case has a database of its own.
//!
//! Invariant: a sentence of [`crate::port`] that no case here would notice being broken is a fault of this suite;
//! its own tests run it against databases that are broken on purpose.
//!
//! `TOMBOLO_CASES=fence` runs only the cases with `fence` in their name; `TOMBOLO_SEED=7` repeats a random schedule.

mod publishing;
mod relaying;
mod dividing;
mod later;
mod foreign;
mod applying;
mod fencing;
mod following;
mod effects;
mod viewing;
mod requesting;
mod positions;
mod recovering;
mod parking;
mod sharing;
mod preparing;
mod schedule;
mod stage;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqlStr;
use uuid::Uuid;

use crate::{Build, Committed, Database, Outgoing, Transaction, Views};
pub use stage::Stage;

/// How long one case may take, in seconds, before it counts as failed.
pub const CASE_SECONDS_MAX: u64 = 120;

/// Makes databases, and does what a user would do in them: each has a plain table `effect (k primary key, v)`.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// The database under test.
    type Database: Database;

    /// A database that nobody used, not yet prepared, with an empty table `effect`.
    async fn fresh(&self) -> Self::Database;

    /// Another handle to the same database, with connections of its own, as another process would have.
    async fn reopen(&self, database: &Self::Database) -> Self::Database;

    /// A database with a setting that breaks the promise. Only called if the abilities say so.
    async fn unsafe_setting(&self) -> Self::Database;

    /// A database that is not there. Only called if the abilities say so.
    async fn absent(&self) -> Self::Database;

    /// Inserts a row into `effect`; fails if there is one with the same key.
    async fn write(&self, tx: &mut Tx<Self>, key: &str, value: i64) -> Result<(), sqlx::Error>;

    /// Adds 1 to the value under a key, from 0, and returns it, holding the row until the end of the transaction.
    async fn count(&self, tx: &mut Tx<Self>, key: &str) -> i64;

    /// Publishes `outgoing` and inserts a row into `effect` on a connection of the user's own pool: within a transaction that
    /// is committed or rolled back, or without any.
    async fn write_own(
        &self,
        database: &Self::Database,
        how: Own,
        outgoing: Outgoing,
        key: &str,
    ) -> crate::Result<Committed>;

    /// Reads a value of `effect` outside a transaction.
    async fn read(&self, database: &Self::Database, key: &str) -> Option<i64>;

    /// Inserts a row into a table `(k primary key, v)` of a view's build: `sql` is `INSERT INTO … (k, v)`.
    async fn insert(&self, tx: &mut Tx<Self>, sql: SqlStr, key: &str, value: i64) -> Result<(), sqlx::Error>;

    /// Sums the values of a table, outside a transaction: `sql` is `SELECT … sum(v) … FROM …`. None if that cannot be read.
    async fn sum(&self, database: &Self::Database, sql: SqlStr) -> Option<i64>;

    /// What declares the tables of a view: `titles`, as `insert` expects it.
    fn tables(&self) -> &'static str {
        "
CREATE TABLE {titles} (k varchar(40) PRIMARY KEY, v bigint NOT NULL);
CREATE INDEX {titles_by_value} ON {titles} (v); -- both names belong to the build
"
    }

    /// Inserts a row into the table `titles` of the view whose event is handled in the transaction. A database without
    /// SQL does it in its own way, and needs no `insert`.
    async fn fold(&self, tx: &mut Tx<Self>, key: &str, value: i64) -> Result<(), sqlx::Error> {
        let sql = tx.outgoing().sql("INSERT INTO {titles} (k, v)").expect("the view has such a table");
        self.insert(tx, sql, key, value).await
    }

    /// Sums the values of the table `titles` of a build, outside a transaction. None if that cannot be read. A database
    /// without SQL does it in its own way, and needs no `sum`.
    async fn total(&self, database: &Self::Database, build: &Build) -> Option<i64> {
        let sql = "SELECT CAST(coalesce(sum(v), 0) AS bigint) FROM {titles}";
        self.sum(database, database.tables(build).sql(sql).expect("the view has such a table")).await
    }

    /// Begins a transaction of another program, on a connection of its own. Only called if the abilities say so.
    async fn foreign(&self, database: &Self::Database) -> Box<dyn Foreign>;

    /// Inserts a row with the value 0 into `effect`, for other programs to count in. Only called if the abilities say so.
    async fn foreign_key(&self, database: &Self::Database, key: &str);

    /// What an operator does about parked rows of other programs under a key: gives them a type that they can have, and says
    /// that they are not parked. Only called if the abilities say so.
    async fn mend_foreign(&self, database: &Self::Database, key: &str, event_type: &str);

    /// What Tombolo's tables take on disk, in bytes, after what the engine can tidy up was tidied up.
    async fn size(&self, database: &Self::Database) -> u64;
}

/// A transaction of another program, which knows nothing of Tombolo but its tables.
#[async_trait]
pub trait Foreign: Send {
    /// Inserts into the foreign outbox, and leaves everything else to the database.
    async fn publish(&mut self, row: &ForeignRow) -> Result<(), sqlx::Error>;

    /// Adds 1 to the value under a key of `effect`, and returns it, holding the row until the end of the transaction.
    async fn count(&mut self, key: &str) -> i64;

    /// Calls the procedure which moves the cursor of a subscription in partition 0 of the suite's topic.
    async fn apply(&mut self, subscription: &str, sequence: i64, id: Uuid) -> Result<(), sqlx::Error>;

    /// Commits it, or rolls it back.
    async fn end(self: Box<Self>, how: Own);
}

/// What another program publishes.
#[derive(Debug, Clone)]
pub struct ForeignRow {
    /// Its id, unless the database is to make one.
    pub id: Option<Uuid>,
    /// Its type.
    pub event_type: String,
    /// Its key.
    pub key: String,
    /// Its data, as text.
    pub data: String,
}

/// What becomes of a transaction of the user's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// It is committed.
    Committed,
    /// It is rolled back.
    RolledBack,
    /// There is none: each statement commits by itself.
    None,
}

/// The transactions of a fixture's database.
pub type Tx<F> = <<F as Fixture>::Database as Database>::Tx;

/// Whether a database can do something that not every one must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// It can, and the suite holds it to that.
    Can,
    /// It cannot, for this reason, which is printed.
    Cannot(&'static str),
}

/// What differs between databases.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Two transactions that both write may be open at once, so that one may commit late.
    pub late_commits: Ability,
    /// A failed statement makes the commit of its transaction impossible.
    pub failures_abort: Ability,
    /// The suite can make a database with unsafe settings.
    pub unsafe_settings: Ability,
    /// A database may be missing (rather than be made when it is first used).
    pub absence: Ability,
    /// The user's own statements can run without any transaction, on what transactions run on too.
    pub bare_statements: Ability,
    /// The tables of a view have declared columns.
    pub columns: Ability,
    /// Other programs can write to the database.
    pub foreign: Ability,
}

impl Abilities {
    /// Two other programs can write at once.
    fn foreign_at_once(&self) -> Ability {
        if self.foreign == Ability::Can { self.late_commits } else { self.foreign }
    }
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The database does what the case's name says.
    Ok,
    /// It does not.
    Failed(String),
    /// It cannot, and says why.
    Skipped(&'static str),
}

/// Runs every case against a database called `name`.
///
/// # Panics
/// At the end, listing what failed.
pub async fn run<F: Fixture>(name: &str, abilities: Abilities, fixture: Arc<F>) {
    let report = report(name, abilities, fixture, &|_| true).await;
    let failed: Vec<String> = report
        .iter()
        .filter_map(|(case, outcome)| match outcome {
            Outcome::Failed(why) => Some(format!("{case}: {why}")),
            Outcome::Ok | Outcome::Skipped(_) => None,
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{name}: {} of {} cases failed:\n{}",
        failed.len(),
        report.len(),
        failed.join("\n")
    );
}

/// Runs the cases that `wanted` picks by name, and tells what became of each.
pub async fn report<F: Fixture>(
    name: &str,
    abilities: Abilities,
    fixture: Arc<F>,
    wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Vec<(&'static str, Outcome)> {
    let only = std::env::var("TOMBOLO_CASES").unwrap_or_default();
    let mut report = Vec::new();
    for case in cases::<F>().into_iter().filter(|case| wanted(case.name) && case.name.contains(&only)) {
        let outcome = match (case.needs)(&abilities) {
            Ability::Cannot(reason) => Outcome::Skipped(reason),
            Ability::Can => play(&case, Stage::new(Arc::clone(&fixture), abilities)).await,
        };
        match &outcome {
            Outcome::Ok => eprintln!("{name}: {} ... ok", case.name),
            Outcome::Failed(why) => eprintln!("{name}: {} ... FAILED: {why}", case.name),
            Outcome::Skipped(reason) => eprintln!("{name}: {} ... skipped: {reason}", case.name),
        }
        report.push((case.name, outcome));
    }
    report
}

fn cases<F: Fixture>() -> Vec<Case<F>> {
    [
        preparing::cases(),
        publishing::cases(),
        relaying::cases(),
        dividing::cases(),
        later::cases(),
        foreign::cases(),
        applying::cases(),
        fencing::cases(),
        following::cases(),
        effects::cases(),
        viewing::cases(),
        requesting::cases(),
        positions::cases(),
        recovering::cases(),
        parking::cases(),
        sharing::cases(),
        schedule::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Play = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Case<F: Fixture> {
    name: &'static str,
    needs: fn(&Abilities) -> Ability,
    play: Box<dyn Fn(Stage<F>) -> Play + Send + Sync>,
}

impl<F: Fixture> Case<F> {
    /// A case that every database must pass, named like its function.
    fn new<C, P>(function: C) -> Self
    where
        C: Fn(Stage<F>) -> P + Send + Sync + 'static,
        P: Future<Output = ()> + Send + 'static,
    {
        let path = std::any::type_name::<C>();
        let path = path.split('<').next().unwrap_or(path);
        let name = path.rsplit("::").next().unwrap_or(path);
        Self { name, needs: |_| Ability::Can, play: Box::new(move |stage| Box::pin(function(stage))) }
    }

    /// The same for the databases that can do what the case is about.
    fn needing(mut self, needs: fn(&Abilities) -> Ability) -> Self {
        self.needs = needs;
        self
    }
}

async fn play<F: Fixture>(case: &Case<F>, stage: Stage<F>) -> Outcome {
    let mut task = tokio::spawn((case.play)(stage));
    match tokio::time::timeout(Duration::from_secs(CASE_SECONDS_MAX), &mut task).await {
        Ok(Ok(())) => Outcome::Ok,
        Ok(Err(ended)) => Outcome::Failed(match ended.try_into_panic() {
            Ok(panic) => said(&*panic),
            Err(ended) => ended.to_string(),
        }),
        Err(_) => {
            task.abort();
            // Nothing of a case may go on beside the next one; how it ended no longer matters.
            drop(task.await);
            Outcome::Failed(format!("did not end within {CASE_SECONDS_MAX} s"))
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into())
}
