//! The ground of a run, and the two services' databases of one part of it: made for it, read by the checks, dropped after it.
//!
//! Invariant: only what was made here is dropped, by the unique name that it was given.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use reqwest::Url;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};
use tombolo_servers::Engine;
use uuid::Uuid;

use crate::door::Door;
use crate::hosts::{Host, Hosts};
use crate::process::{Outcome, Which};
#[cfg(feature = "engines")]
use crate::reader;
use crate::reader::Reader;

/// The services that own a database.
const OWNERS: [Which; 2] = [Which::Producer, Which::Consumer];
/// Those, and the copy that a part may make.
const ALL: [Which; 3] = [Which::Producer, Which::Consumer, Which::CopiedProducer];

/// What SQLite's files are called besides the database's name.
const FILE_ENDINGS: [&str; 3] = ["", "-wal", "-shm"];

/// Where the databases of a service are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// SQLite: files in the part's own folder.
    Sqlite,
    /// PostgreSQL: a server.
    Postgres,
    /// MariaDB: a server.
    #[cfg(feature = "engines")]
    Mariadb,
    /// MongoDB: a server.
    #[cfg(feature = "engines")]
    Mongodb,
}

impl Kind {
    /// The engine of its server, if it has one.
    fn engine(self) -> Option<Engine> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(Engine::Postgres),
            #[cfg(feature = "engines")]
            Self::Mariadb => Some(Engine::MariaDb),
            #[cfg(feature = "engines")]
            Self::Mongodb => Some(Engine::MongoDb),
        }
    }
}

/// What carries the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BusKind {
    /// The embedded log, served by this program.
    Tombolo,
    /// PostgreSQL.
    #[cfg(feature = "engines")]
    Postgres,
    /// NATS JetStream.
    #[cfg(feature = "engines")]
    Nats,
    /// RabbitMQ streams.
    #[cfg(feature = "engines")]
    Rabbitmq,
    /// Redis streams.
    #[cfg(feature = "engines")]
    Redis,
}

impl BusKind {
    /// The engine of its server, if it is another than our own.
    fn engine(self) -> Option<Engine> {
        match self {
            Self::Tombolo => None,
            #[cfg(feature = "engines")]
            Self::Postgres => Some(Engine::Postgres),
            #[cfg(feature = "engines")]
            Self::Nats => Some(Engine::Nats),
            #[cfg(feature = "engines")]
            Self::Rabbitmq => Some(Engine::RabbitMq),
            #[cfg(feature = "engines")]
            Self::Redis => Some(Engine::Redis),
        }
    }

    /// The address for a part: a namespace of its own, and, where nothing but processes is killed, what has to be accepted.
    fn address(self, server: &str, namespace: &str) -> String {
        match self.engine() {
            Some(Engine::Nats) => format!("{server}/{namespace}?accept=unsynced"),
            Some(Engine::RabbitMq) => format!("{server}?namespace={namespace}&accept=unsynced"),
            _ => format!("{server}?namespace={namespace}"),
        }
    }
}

/// The kinds of databases and bus of a run, and the servers under them.
pub(crate) struct Ground {
    hosts: Hosts,
    bus: BusKind,
    producer: Kind,
    consumer: Kind,
}

impl Ground {
    /// Starts the servers that it takes.
    pub(crate) async fn prepare(bus: BusKind, producer: Kind, consumer: Kind) -> Outcome<Self> {
        let mut engines: Vec<Engine> = Vec::new();
        for engine in [bus.engine(), producer.engine(), consumer.engine()].into_iter().flatten() {
            if !engines.contains(&engine) {
                engines.push(engine);
            }
        }
        Ok(Self { hosts: Hosts::start(&engines).await?, bus, producer, consumer })
    }

    /// The server that is the bus, if it is one of another engine.
    pub(crate) fn bus(&self) -> Option<&Host> {
        self.bus.engine().map(|engine| self.hosts.of(engine))
    }

    /// The servers of the databases, and not that of the bus.
    pub(crate) fn database_servers(&self) -> Vec<&Host> {
        let mut engines: Vec<Engine> =
            [self.producer, self.consumer].iter().filter_map(|it| it.engine()).collect();
        engines.dedup();
        engines.retain(|engine| self.bus.engine() != Some(*engine));
        engines.into_iter().map(|engine| self.hosts.of(engine)).collect()
    }

    /// Whether everything is in files of the part's own.
    pub(crate) fn is_files(&self) -> bool {
        self.bus.engine().is_none() && self.producer.engine().is_none() && self.consumer.engine().is_none()
    }

    /// Whether the producer's database can be copied here.
    pub(crate) fn can_be_copied(&self) -> bool {
        matches!(self.producer, Kind::Sqlite | Kind::Postgres)
    }

    fn kind(&self, which: Which) -> Kind {
        if Which::Consumer.replicas().contains(&which) { self.consumer } else { self.producer }
    }

    /// The server of a service's database, if it is on one.
    fn server(&self, which: Which) -> Option<Url> {
        let url = self.hosts.of(self.kind(which).engine()?).url();
        // What starts servers writes addresses.
        Url::parse(url).ok()
    }

    /// Makes the databases of a part; SQLite's files come with their first use.
    pub(crate) async fn make(&self, folder: &Path) -> Outcome<Databases<'_>> {
        let prefix = format!("tombolo_faults_{}", Uuid::new_v4().simple());
        let door = match self.server(Which::Consumer) {
            None => None,
            Some(server) => Some(Door::to(&server).await?),
        };
        let databases = Databases { ground: self, folder: folder.to_owned(), prefix, door };
        for which in OWNERS {
            databases.on_server(which, &format!("CREATE DATABASE {}", databases.name(which))).await?;
        }
        Ok(databases)
    }
}

/// The databases of one part, and its bus.
pub(crate) struct Databases<'a> {
    pub(crate) ground: &'a Ground,
    folder: PathBuf,
    /// What the names on servers begin with, which nobody else uses.
    prefix: String,
    /// Between the consumer and its database, on a server.
    door: Option<Door>,
}

impl Databases<'_> {
    /// Where a service finds its own.
    pub(crate) fn url(&self, which: Which) -> String {
        self.address(which, self.door.as_ref().filter(|_| which.home() == Which::Consumer.home()))
    }

    /// Where everybody finds the bus of another engine; none if it is our own.
    pub(crate) fn bus_url(&self) -> Option<String> {
        // A name that every engine takes.
        let namespace = self.prefix.trim_start_matches("tombolo_").replace('_', "-");
        Some(self.ground.bus.address(self.ground.bus()?.url(), &namespace))
    }

    /// The address of a service's own, on a server through a door if there is one.
    fn address(&self, which: Which, door: Option<&Door>) -> String {
        let Some(mut url) = self.ground.server(which) else {
            return format!("sqlite:{}", self.name(which));
        };
        url.set_path(&self.name(which));
        #[cfg(feature = "engines")]
        if self.ground.kind(which) == Kind::Mongodb {
            // Or a client goes past the door, to where the members of the set say that they are.
            url.set_query(Some("directConnection=true"));
        }
        if let Some(door) = door {
            // Addresses of servers have both.
            url.set_ip_host(door.address.ip()).ok();
            url.set_port(Some(door.address.port())).ok();
        }
        url.into()
    }

    /// Opens a service's own for reading.
    pub(crate) async fn read(&self, which: Which) -> Outcome<Reader> {
        let url = self.address(which, None);
        match self.ground.kind(which) {
            Kind::Sqlite => Reader::sqlite(&url).await,
            Kind::Postgres => Reader::postgres(&url).await,
            #[cfg(feature = "engines")]
            Kind::Mariadb => Reader::mysql(&url).await,
            #[cfg(feature = "engines")]
            Kind::Mongodb => Reader::mongodb(&url).await,
        }
    }

    /// Makes a copy of the producer's, which nobody has open now.
    pub(crate) async fn copy(&self) -> Outcome<()> {
        let (from, to) = (self.name(Which::Producer), self.name(Which::CopiedProducer));
        if self.ground.producer == Kind::Sqlite {
            for ending in FILE_ENDINGS {
                if fs::exists(format!("{from}{ending}"))? {
                    fs::copy(format!("{from}{ending}"), format!("{to}{ending}"))?;
                }
            }
            return Ok(());
        }
        // The connections of a killed process end when the server notices.
        let end =
            format!("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{from}'");
        self.on_server(Which::Producer, &end).await?;
        self.on_server(Which::Producer, &format!("CREATE DATABASE {to} TEMPLATE {from}")).await
    }

    /// Puts the copy in the place of the producer's, which nobody has open now.
    pub(crate) async fn restore(&self) -> Outcome<()> {
        let (to, from) = (self.name(Which::Producer), self.name(Which::CopiedProducer));
        if self.ground.producer == Kind::Sqlite {
            for ending in FILE_ENDINGS {
                fs::remove_file(format!("{to}{ending}")).ok();
                fs::rename(format!("{from}{ending}"), format!("{to}{ending}")).ok();
            }
            return Ok(());
        }
        self.on_server(Which::Producer, &format!("DROP DATABASE {to} WITH (FORCE)")).await?;
        self.on_server(Which::Producer, &format!("ALTER DATABASE {from} RENAME TO {to}")).await
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
        for which in ALL {
            #[cfg(feature = "engines")]
            if self.ground.kind(which) == Kind::Mongodb {
                reader::mongodb::drop_database(&self.address(which, None)).await?;
            }
            let force = if self.ground.kind(which) == Kind::Postgres { "WITH (FORCE)" } else { "" };
            self.on_server(which, &format!("DROP DATABASE IF EXISTS {} {force}", self.name(which))).await?;
        }
        Ok(())
    }

    /// What is left if they are not dropped.
    pub(crate) fn names(&self) -> String {
        OWNERS.map(|which| self.name(which)).join(" and ")
    }

    fn name(&self, which: Which) -> String {
        let owner = if which == Which::CopiedProducer { "copy" } else { which.home() };
        match self.ground.kind(which) {
            Kind::Sqlite => self.folder.join(which.home()).join(format!("{owner}.db")).display().to_string(),
            _ => format!("{}_{owner}", self.prefix),
        }
    }

    /// Runs a statement on the server of a service's own; nothing for files.
    async fn on_server(&self, which: Which, sql: &str) -> Outcome<()> {
        let (Some(server), sql) = (self.ground.server(which), AssertSqlSafe(sql.to_owned())) else {
            return Ok(());
        };
        match self.ground.kind(which) {
            Kind::Sqlite => {}
            Kind::Postgres => {
                let mut connection = PgConnection::connect(server.as_str()).await?;
                sqlx::raw_sql(sql).execute(&mut connection).await?;
                connection.close().await?;
            }
            #[cfg(feature = "engines")]
            Kind::Mariadb => {
                let mut connection = sqlx::MySqlConnection::connect(server.as_str()).await?;
                sqlx::raw_sql(sql).execute(&mut connection).await?;
                connection.close().await?;
            }
            // One is made with its first document.
            #[cfg(feature = "engines")]
            Kind::Mongodb => {}
        }
        Ok(())
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
