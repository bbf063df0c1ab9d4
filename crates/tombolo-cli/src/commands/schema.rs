//! `tombolo schema`: Tombolo's own tables in a service's database, for whoever decides about schemas in a deployment.
//!
//! Invariant: `print` and `check` change no table, `apply` only adds, and a database is not made by looking at it.

use std::path::Path;

use tombolo_db::documents::{self, Documents};
#[cfg(feature = "mongodb")]
use tombolo_db::mongodb::{self, Mongodb};
use tombolo_db::mysql::{self, Mysql};
use tombolo_db::postgres::{self, Postgres};
use tombolo_db::sqlite::{self, Sqlite};
use tombolo_db::{ForeignParts, Outbox, Owner};

use crate::arguments::{
    ApplySchema, CheckSchema, DatabaseKind, OfDatabase, PREFIX_DEFAULT, PrintSchema, SCHEMA_DEFAULT,
};
use crate::commands::say;
use crate::error::{Error, Result};

/// `tombolo schema print`: Tombolo's own tables, or what other programs find beside them.
pub(crate) fn print(arguments: &PrintSchema) -> Result<()> {
    let parts = ForeignParts::from(arguments.parts);
    if parts != ForeignParts::default() {
        return say(foreign(arguments, parts)?.trim());
    }
    say(&match arguments.kind {
        DatabaseKind::Sqlite => sqlite::schema_sql(),
        DatabaseKind::Postgres => postgres::schema_sql(&arguments.schema),
        DatabaseKind::Mysql => mysql::schema_sql(&arguments.prefix),
        DatabaseKind::Documents => documents::schema_text(),
        #[cfg(feature = "mongodb")]
        DatabaseKind::Mongodb => mongodb::schema_text(&arguments.prefix),
    })
}

fn foreign(arguments: &PrintSchema, parts: ForeignParts) -> Result<String> {
    if parts.notify && arguments.kind != DatabaseKind::Postgres {
        return Err(Error::usage("only PostgreSQL has NOTIFY; leave --notify out"));
    }
    match arguments.kind {
        DatabaseKind::Sqlite => Ok(sqlite::foreign_sql(parts)),
        DatabaseKind::Postgres => Ok(postgres::foreign_sql(&arguments.schema, parts)),
        DatabaseKind::Mysql => Ok(mysql::foreign_sql(&arguments.prefix, parts)),
        DatabaseKind::Documents => Err(Error::usage(
            "documents have no SQL, so other programs cannot use them; leave the options out",
        )),
        #[cfg(feature = "mongodb")]
        DatabaseKind::Mongodb => {
            Err(Error::usage("MongoDB has no SQL, so other programs cannot use it so; leave the options out"))
        }
    }
}

/// `tombolo schema apply`.
pub(crate) async fn apply(arguments: ApplySchema) -> Result<()> {
    let opened = Opened::of(&arguments.database).await?;
    let service = arguments.service.clone();
    let version = match opened {
        Opened::Sqlite(database) => {
            made(&database, arguments).await?;
            database.check().await?
        }
        Opened::Postgres(database) => {
            made(&database, arguments).await?;
            database.check().await?
        }
        Opened::Mysql(database) => {
            made(&database, arguments).await?;
            database.check().await?
        }
        Opened::Documents(database) => {
            made(&database, arguments).await?;
            database.check().await?
        }
        #[cfg(feature = "mongodb")]
        Opened::Mongodb(database) => {
            made(&database, arguments).await?;
            database.check().await?
        }
    };
    say(&format!("Tombolo's tables for service {service} are there, version {version}"))
}

async fn made(database: &impl Outbox, arguments: ApplySchema) -> Result<()> {
    let ApplySchema { service, partitions, parts, .. } = arguments;
    database.prepare(&Owner { service, partitions }, tombolo_db::Schema::Apply).await?;
    Ok(database.prepare_foreign(parts.into(), tombolo_db::Schema::Apply).await?)
}

/// `tombolo schema check`.
pub(crate) async fn check(arguments: CheckSchema) -> Result<()> {
    let version = checked(&arguments.database).await?;
    let (parts, schema) = (arguments.parts.into(), tombolo_db::Schema::Check);
    match Opened::of(&arguments.database).await? {
        Opened::Sqlite(database) => database.prepare_foreign(parts, schema).await?,
        Opened::Postgres(database) => database.prepare_foreign(parts, schema).await?,
        Opened::Mysql(database) => database.prepare_foreign(parts, schema).await?,
        Opened::Documents(database) => database.prepare_foreign(parts, schema).await?,
        #[cfg(feature = "mongodb")]
        Opened::Mongodb(database) => database.prepare_foreign(parts, schema).await?,
    }
    say(&format!("Tombolo's tables are there, version {version}, and the settings keep what is committed"))
}

/// What looking at a database came to.
pub(crate) enum Found {
    /// It is ready, with this version of Tombolo's tables.
    Ready(i64),
    /// Only the service that runs can look, because the file is open in it.
    Elsewhere,
    /// It, or Tombolo's tables in it, are not there yet.
    NotMade(Error),
}

/// Looks at the database at `url` and its settings.
pub(crate) async fn look(url: &str) -> Result<Found> {
    let (schema, prefix) = (SCHEMA_DEFAULT.to_owned(), PREFIX_DEFAULT.to_owned());
    match checked(&OfDatabase { url: url.to_owned(), schema, prefix }).await {
        Ok(version) => Ok(Found::Ready(version)),
        Err(Unchecked::Elsewhere(_)) => Ok(Found::Elsewhere),
        Err(Unchecked::NotMade(error)) => Ok(Found::NotMade(error)),
        Err(Unchecked::Wrong(error)) => Err(error),
    }
}

/// Why a database was not checked.
pub(super) enum Unchecked {
    /// Another process has its file open, and does not share it.
    Elsewhere(Error),
    /// It, or Tombolo's tables in it, are not there yet.
    NotMade(Error),
    /// It is not as it should be.
    Wrong(Error),
}

impl From<Error> for Unchecked {
    fn from(error: Error) -> Self {
        let is_there = error.kind != crate::error::Kind::NotFound;
        if is_there { Self::Wrong(error) } else { Self::NotMade(error) }
    }
}

impl From<tombolo_db::Error> for Unchecked {
    fn from(error: tombolo_db::Error) -> Self {
        match () {
            () if documents::is_open_elsewhere(&error) => Self::Elsewhere(error.into()),
            () if error.is_not_made() => Self::NotMade(error.into()),
            () => Self::Wrong(error.into()),
        }
    }
}

impl From<Unchecked> for Error {
    fn from(unchecked: Unchecked) -> Self {
        match unchecked {
            Unchecked::Elsewhere(error) | Unchecked::NotMade(error) | Unchecked::Wrong(error) => error,
        }
    }
}

pub(super) async fn checked(arguments: &OfDatabase) -> std::result::Result<i64, Unchecked> {
    match Opened::of(arguments).await? {
        Opened::Sqlite(database) => {
            is_there(arguments.url.trim_start_matches("sqlite:"))?;
            Ok(database.check().await?)
        }
        Opened::Documents(database) => {
            is_there(arguments.url.trim_start_matches("documents:"))?;
            Ok(database.check().await?)
        }
        Opened::Postgres(database) => Ok(database.check().await?),
        Opened::Mysql(database) => Ok(database.check().await?),
        #[cfg(feature = "mongodb")]
        Opened::Mongodb(database) => Ok(database.check().await?),
    }
}

/// A database that the program knows how to speak to.
pub(super) enum Opened {
    Sqlite(Sqlite),
    Postgres(Postgres),
    Mysql(Mysql),
    Documents(Documents),
    #[cfg(feature = "mongodb")]
    Mongodb(Mongodb),
}

impl Opened {
    pub(super) async fn of(arguments: &OfDatabase) -> Result<Self> {
        let url = arguments.url.as_str();
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(Postgres::open(url)?.with_schema(&arguments.schema)?));
        }
        if url.starts_with("mysql://") || url.starts_with("mariadb://") {
            return Ok(Self::Mysql(Mysql::open(url)?.with_prefix(&arguments.prefix)?));
        }
        if url.starts_with("sqlite:") {
            return Ok(Self::Sqlite(Sqlite::open(url)?));
        }
        if url.starts_with("documents:") {
            return Ok(Self::Documents(Documents::open(url)?));
        }
        if url.starts_with("mongodb") {
            return Self::mongodb(arguments).await;
        }
        Err(Error::usage(format!(
            "found the database {url:?}; expected sqlite:PATH, documents:PATH, postgres://…, mysql://… or mongodb://…"
        )))
    }

    #[cfg(feature = "mongodb")]
    async fn mongodb(arguments: &OfDatabase) -> Result<Self> {
        let database = Mongodb::open(&arguments.url).await?.with_prefix(&arguments.prefix)?;
        Ok(Self::Mongodb(database))
    }

    #[cfg(not(feature = "mongodb"))]
    async fn mongodb(_: &OfDatabase) -> Result<Self> {
        Err(Error::usage(
            "this program is built without MongoDB, whose driver is large; build it with `--features mongodb`",
        ))
    }

    /// Why other programs cannot use it; nothing if they can.
    pub(super) fn without_sql(&self) -> Option<&'static str> {
        match self {
            Self::Sqlite(_) | Self::Postgres(_) | Self::Mysql(_) => None,
            Self::Documents(_) => Some("documents have no SQL"),
            #[cfg(feature = "mongodb")]
            Self::Mongodb(_) => Some("MongoDB has no SQL"),
        }
    }
}

/// A file that is not there would be made.
fn is_there(place: &str) -> Result<()> {
    let path = place.trim_start_matches("//");
    let path = path.split('?').next().unwrap_or(path);
    if Path::new(path).exists() {
        return Ok(());
    }
    Err(Error::not_found(format!("there is no file {path}; `tombolo schema apply` makes it")))
}

impl From<tombolo_db::Error> for Error {
    fn from(error: tombolo_db::Error) -> Self {
        use crate::error::{Kind, with_causes};
        let kind = match error.kind() {
            tombolo_db::Kind::Unavailable => Kind::NotRunning,
            _ => Kind::Failed,
        };
        Self::new(kind, with_causes(&error))
    }
}
