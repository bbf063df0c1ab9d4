//! The two services' databases of one part of the run: made for it, read by the checks, dropped after it.
//!
//! Invariant: only what was made here is dropped, by the unique name that it was given.

use std::path::Path;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use uuid::Uuid;

use crate::process::{Outcome, Which};
use crate::verify::Rows;

/// The services that own a database.
const OWNERS: [Which; 2] = [Which::Producer, Which::Consumer];

/// Where databases are made.
pub(crate) enum Ground {
    /// SQLite: files in the part's own folder.
    Files,
    /// PostgreSQL: a server on which databases may be created.
    Server(Box<PgConnectOptions>),
}

/// The databases of one part.
pub(crate) struct Databases<'a> {
    ground: &'a Ground,
    /// What their names begin with: a folder, or a prefix that nobody else uses.
    place: String,
}

impl Ground {
    /// Makes the databases of a part; SQLite's files come with their first use.
    pub(crate) async fn make(&self, folder: &Path) -> Outcome<Databases<'_>> {
        let place = match self {
            Self::Files => folder.display().to_string(),
            Self::Server(_) => format!("tombolo_faults_{}", Uuid::new_v4().simple()),
        };
        let databases = Databases { ground: self, place };
        databases.for_each("CREATE DATABASE", "").await?;
        Ok(databases)
    }
}

impl Databases<'_> {
    /// Where a service finds its own.
    pub(crate) fn url(&self, which: Which) -> String {
        match self.ground {
            Ground::Files => format!("sqlite:{}", self.name(which)),
            Ground::Server(server) => {
                PgConnectOptions::clone(server).database(&self.name(which)).to_url_lossy().to_string()
            }
        }
    }

    /// Opens a service's own for reading.
    pub(crate) async fn read(&self, which: Which) -> Outcome<Reader> {
        Ok(match self.ground {
            Ground::Files => {
                Reader::Sqlite(SqliteConnection::connect(&format!("{}?mode=ro", self.url(which))).await?)
            }
            Ground::Server(_) => Reader::Postgres(PgConnection::connect(&self.url(which)).await?),
        })
    }

    /// Takes a service's own away from it.
    pub(crate) async fn cut_off(&self, which: Which) -> Outcome<CutOff> {
        let name = self.name(which);
        let Ground::Server(server) = self.ground else {
            let mut connection = SqliteConnection::connect(&self.url(which)).await?;
            sqlx::raw_sql("PRAGMA busy_timeout = 30000; BEGIN IMMEDIATE").execute(&mut connection).await?;
            return Ok(CutOff::Locked(connection));
        };
        let mut server = PgConnection::connect_with(server).await?;
        let sql = format!(
            "ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
        Ok(CutOff::Refused { server, name })
    }

    /// Drops them; SQLite's files go with their folder.
    pub(crate) async fn drop(self) -> Outcome<()> {
        self.for_each("DROP DATABASE", "WITH (FORCE)").await
    }

    /// What is left if they are not dropped.
    pub(crate) fn names(&self) -> String {
        OWNERS.map(|which| self.name(which)).join(" and ")
    }

    fn name(&self, which: Which) -> String {
        let owner = which.home();
        match self.ground {
            Ground::Files => format!("{}/{owner}/{owner}.db", self.place),
            Ground::Server(_) => format!("{}_{owner}", self.place),
        }
    }

    /// Runs a statement on the server for each of them; nothing for files.
    async fn for_each(&self, statement: &str, options: &str) -> Outcome<()> {
        let Ground::Server(server) = self.ground else { return Ok(()) };
        let mut connection = PgConnection::connect_with(server).await?;
        for which in OWNERS {
            let sql = format!("{statement} {} {options}", self.name(which));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }
}

/// A database that its service cannot use, until it is let again.
pub(crate) enum CutOff {
    /// A writer in another process than the service: this one.
    Locked(SqliteConnection),
    /// Connections are refused.
    Refused { server: PgConnection, name: String },
}

impl CutOff {
    pub(crate) async fn end(self) -> Outcome<()> {
        match self {
            Self::Locked(mut connection) => {
                sqlx::raw_sql("ROLLBACK").execute(&mut connection).await?;
                connection.close().await?;
            }
            Self::Refused { mut server, name } => {
                let sql = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
                server.close().await?;
            }
        }
        Ok(())
    }
}

/// A connection of the checks. Queries name Tombolo's own tables as PostgreSQL does, `tombolo.outbox`.
pub(crate) enum Reader {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Reader {
    pub(crate) async fn count(&mut self, query: &'static str) -> Outcome<i64> {
        Ok(match self {
            Self::Sqlite(connection) => sqlx::query_scalar(prefixed(query)).fetch_one(connection).await?,
            Self::Postgres(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
        })
    }

    /// Ends it before anybody does something to the files.
    pub(crate) async fn close(self) -> Outcome<()> {
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }

    pub(crate) async fn rows(&mut self, query: &'static str) -> Outcome<Rows> {
        Ok(match self {
            Self::Sqlite(connection) => sqlx::query_as(prefixed(query)).fetch_all(connection).await?,
            Self::Postgres(connection) => sqlx::query_as(query).fetch_all(connection).await?,
        })
    }
}

/// In SQLite a prefix stands for the schema.
fn prefixed(query: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(query.replace("tombolo.", "tombolo_"))
}
