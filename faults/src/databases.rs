//! The two services' databases of one part of the run: made for it, read by the checks, dropped after it.
//!
//! Invariant: only what was made here is dropped, by the unique name that it was given.

use std::fs;
use std::path::Path;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use uuid::Uuid;

use crate::door::Door;
use crate::process::{Outcome, Which};
use crate::verify::Rows;

/// The services that own a database.
const OWNERS: [Which; 2] = [Which::Producer, Which::Consumer];
/// Those, and the copy that a part may make.
const ALL: [Which; 3] = [Which::Producer, Which::Consumer, Which::CopiedProducer];

/// What SQLite's files are called besides the database's name.
const FILE_ENDINGS: [&str; 3] = ["", "-wal", "-shm"];

/// What the tables of the build that is read have in front of their names.
const LIVE: &str = "SELECT namespace FROM tombolo.build JOIN tombolo.view USING (view, version, build)";

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
    /// Between the consumer and its database, on a server.
    door: Option<Door>,
}

impl Ground {
    /// Makes the databases of a part; SQLite's files come with their first use.
    pub(crate) async fn make(&self, folder: &Path) -> Outcome<Databases<'_>> {
        let place = match self {
            Self::Files => folder.display().to_string(),
            Self::Server(_) => format!("tombolo_faults_{}", Uuid::new_v4().simple()),
        };
        let door = match self {
            Self::Files => None,
            Self::Server(server) => Some(Door::to(server).await?),
        };
        let databases = Databases { ground: self, place, door };
        databases.for_each(&OWNERS, "CREATE DATABASE", "").await?;
        Ok(databases)
    }
}

impl Databases<'_> {
    /// Where a service finds its own.
    pub(crate) fn url(&self, which: Which) -> String {
        match self.ground {
            Ground::Files => format!("sqlite:{}", self.name(which)),
            Ground::Server(_) => {
                self.server_url(which, self.door.as_ref().filter(|_| which == Which::Consumer))
            }
        }
    }

    /// The address of a service's own on the server, or through a door.
    fn server_url(&self, which: Which, door: Option<&Door>) -> String {
        let Ground::Server(server) = self.ground else { return self.url(which) };
        let mut options = PgConnectOptions::clone(server).database(&self.name(which));
        if let Some(door) = door {
            options = options.host(&door.address.ip().to_string()).port(door.address.port());
        }
        options.to_url_lossy().to_string()
    }

    /// Opens a service's own for reading.
    pub(crate) async fn read(&self, which: Which) -> Outcome<Reader> {
        Ok(match self.ground {
            Ground::Files => {
                Reader::Sqlite(SqliteConnection::connect(&format!("{}?mode=ro", self.url(which))).await?)
            }
            Ground::Server(_) => {
                Reader::Postgres(PgConnection::connect(&self.server_url(which, None)).await?)
            }
        })
    }

    /// Makes a copy of the producer's, which nobody has open now.
    pub(crate) async fn copy(&self) -> Outcome<()> {
        let (from, to) = (self.name(Which::Producer), self.name(Which::CopiedProducer));
        let Ground::Server(server) = self.ground else {
            for ending in FILE_ENDINGS {
                if fs::exists(format!("{from}{ending}"))? {
                    fs::copy(format!("{from}{ending}"), format!("{to}{ending}"))?;
                }
            }
            return Ok(());
        };
        let mut server = PgConnection::connect_with(server).await?;
        // The connections of a killed process end when the server notices.
        let end =
            format!("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{from}'");
        sqlx::raw_sql(AssertSqlSafe(end)).execute(&mut server).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {to} TEMPLATE {from}")))
            .execute(&mut server)
            .await?;
        Ok(server.close().await?)
    }

    /// Puts the copy in the place of the producer's, which nobody has open now.
    pub(crate) async fn restore(&self) -> Outcome<()> {
        let (to, from) = (self.name(Which::Producer), self.name(Which::CopiedProducer));
        let Ground::Server(server) = self.ground else {
            for ending in FILE_ENDINGS {
                fs::remove_file(format!("{to}{ending}")).ok();
                fs::rename(format!("{from}{ending}"), format!("{to}{ending}")).ok();
            }
            return Ok(());
        };
        let mut server = PgConnection::connect_with(server).await?;
        for sql in
            [format!("DROP DATABASE {to} WITH (FORCE)"), format!("ALTER DATABASE {from} RENAME TO {to}")]
        {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
        }
        Ok(server.close().await?)
    }

    /// Takes a service's own away from it.
    pub(crate) async fn cut_off(&self, which: Which) -> Outcome<CutOff<'_>> {
        if let Some(door) = &self.door {
            door.shut();
            return Ok(CutOff::Shut(door));
        }
        let mut connection = SqliteConnection::connect(&self.url(which)).await?;
        sqlx::raw_sql("PRAGMA busy_timeout = 30000; BEGIN IMMEDIATE").execute(&mut connection).await?;
        Ok(CutOff::Locked(connection))
    }

    /// Drops them; SQLite's files go with their folder.
    pub(crate) async fn drop(self) -> Outcome<()> {
        self.for_each(&ALL, "DROP DATABASE IF EXISTS", "WITH (FORCE)").await
    }

    /// What is left if they are not dropped.
    pub(crate) fn names(&self) -> String {
        OWNERS.map(|which| self.name(which)).join(" and ")
    }

    fn name(&self, which: Which) -> String {
        let owner = if which == Which::CopiedProducer { "copy" } else { which.home() };
        match self.ground {
            Ground::Files => format!("{}/{}/{owner}.db", self.place, which.home()),
            Ground::Server(_) => format!("{}_{owner}", self.place),
        }
    }

    /// Runs a statement on the server for each of them; nothing for files.
    async fn for_each(&self, of: &[Which], statement: &str, options: &str) -> Outcome<()> {
        let Ground::Server(server) = self.ground else { return Ok(()) };
        let mut connection = PgConnection::connect_with(server).await?;
        for &which in of {
            let sql = format!("{statement} {} {options}", self.name(which));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }
}

/// A database that its service cannot use, until it is let again.
pub(crate) enum CutOff<'a> {
    /// A writer in another process than the service: this one.
    Locked(SqliteConnection),
    /// Connections are refused.
    Shut(&'a Door),
}

impl CutOff<'_> {
    pub(crate) async fn end(self) -> Outcome<()> {
        match self {
            Self::Locked(mut connection) => {
                sqlx::raw_sql("ROLLBACK").execute(&mut connection).await?;
                Ok(connection.close().await?)
            }
            Self::Shut(door) => door.open().await,
        }
    }
}

/// A connection of the checks. Queries name Tombolo's own tables as PostgreSQL does, `tombolo.outbox`.
pub(crate) enum Reader {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Reader {
    pub(crate) async fn count(&mut self, query: &str) -> Outcome<i64> {
        let query = self.dialect(query);
        Ok(match self {
            Self::Sqlite(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
            Self::Postgres(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
        })
    }

    /// The table of the copies, of the build that is read.
    pub(crate) async fn copies(&mut self) -> Outcome<String> {
        let query = self.dialect(LIVE);
        Ok(match self {
            Self::Sqlite(connection) => {
                let namespace: String = sqlx::query_scalar(query).fetch_one(connection).await?;
                format!("\"{namespace}_copies\"")
            }
            Self::Postgres(connection) => {
                let namespace: String = sqlx::query_scalar(query).fetch_one(connection).await?;
                format!("\"{namespace}\".copies")
            }
        })
    }

    /// How many copies there are.
    pub(crate) async fn count_copies(&mut self) -> Outcome<i64> {
        let copies = self.copies().await?;
        self.count(&format!("SELECT count(*) FROM {copies}")).await
    }

    /// Ends it before anybody does something to the files.
    pub(crate) async fn close(self) -> Outcome<()> {
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }

    pub(crate) async fn rows(&mut self, query: &str) -> Outcome<Rows> {
        let query = self.dialect(query);
        Ok(match self {
            Self::Sqlite(connection) => sqlx::query_as(query).fetch_all(connection).await?,
            Self::Postgres(connection) => sqlx::query_as(query).fetch_all(connection).await?,
        })
    }

    fn dialect(&self, query: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(if let Self::Sqlite(_) = self { prefixed(query) } else { query.to_owned() })
    }
}

/// In SQLite a prefix stands for the schema.
fn prefixed(query: &str) -> String {
    query.replace("tombolo.", "tombolo_")
}
