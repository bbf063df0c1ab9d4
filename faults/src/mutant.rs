//! Deliberate faults in the processes of a run, which the run must catch: `--mutant NAME`.
//!
//! Invariant: without the feature `mutants` there are none.

#[cfg(feature = "mutants")]
use std::env;

use clap::ValueEnum;
#[cfg(feature = "engines")]
use tombolo::mongodb::Mongodb;
#[cfg(feature = "engines")]
use tombolo::mysql::Mysql;
use tombolo::postgres::Postgres;
use tombolo::sqlite::Sqlite;
use tombolo_bus::embedded::Options;

/// How a process is told which it has.
pub(crate) const VARIABLE: &str = "TOMBOLO_FAULTS_MUTANT";

/// A deliberate fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mutant {
    /// The log acknowledges without syncing.
    LogNoSync,
    /// The log takes appends of an older epoch.
    LogNoFencing,
    /// SQLite commits without syncing.
    DatabaseNoSync,
    /// A replaced leader, or holder of a partition, goes on.
    DatabaseNoFencing,
    /// A cursor moves from wherever it is.
    DatabaseNoCursorCheck,
    /// A new generation of partitions is read without looking whether the earlier ones are.
    DatabaseEntersEarly,
}

impl Mutant {
    /// Its name on the command line and in the environment.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The mutant that this process is told to have.
#[cfg(feature = "mutants")]
fn told() -> Option<Mutant> {
    Mutant::from_str(&env::var(VARIABLE).ok()?, true).ok()
}

#[cfg(feature = "mutants")]
pub(crate) fn in_log(mut options: Options) -> Options {
    use tombolo_bus::embedded::Mutant as InLog;
    options.mutant = told().and_then(|mutant| match mutant {
        Mutant::LogNoSync => Some(InLog::NoSync),
        Mutant::LogNoFencing => Some(InLog::NoFencing),
        _ => None,
    });
    options
}

#[cfg(feature = "mutants")]
fn of_database() -> Option<tombolo_db::mutant::Mutant> {
    use tombolo_db::mutant::Mutant as InDatabase;
    match told()? {
        Mutant::DatabaseNoSync => Some(InDatabase::NoSync),
        Mutant::DatabaseNoFencing => Some(InDatabase::NoFencing),
        Mutant::DatabaseNoCursorCheck => Some(InDatabase::NoCursorCheck),
        Mutant::DatabaseEntersEarly => Some(InDatabase::EntersEarly),
        _ => None,
    }
}

#[cfg(feature = "mutants")]
pub(crate) fn in_sqlite(database: Sqlite) -> Sqlite {
    of_database().map_or(database.clone(), |mutant| database.with_mutant(mutant))
}

#[cfg(feature = "mutants")]
pub(crate) fn in_postgres(database: Postgres) -> Postgres {
    of_database().map_or(database.clone(), |mutant| database.with_mutant(mutant))
}

#[cfg(not(feature = "mutants"))]
pub(crate) fn in_log(options: Options) -> Options {
    options
}

#[cfg(not(feature = "mutants"))]
pub(crate) fn in_sqlite(database: Sqlite) -> Sqlite {
    database
}

#[cfg(not(feature = "mutants"))]
pub(crate) fn in_postgres(database: Postgres) -> Postgres {
    database
}

#[cfg(all(feature = "engines", feature = "mutants"))]
pub(crate) fn in_mysql(database: Mysql) -> Mysql {
    of_database().map_or(database.clone(), |mutant| database.with_mutant(mutant))
}

#[cfg(all(feature = "engines", not(feature = "mutants")))]
pub(crate) fn in_mysql(database: Mysql) -> Mysql {
    database
}

#[cfg(all(feature = "engines", feature = "mutants"))]
pub(crate) fn in_mongodb(database: Mongodb) -> Mongodb {
    of_database().map_or(database.clone(), |mutant| database.with_mutant(mutant))
}

#[cfg(all(feature = "engines", not(feature = "mutants")))]
pub(crate) fn in_mongodb(database: Mongodb) -> Mongodb {
    database
}
