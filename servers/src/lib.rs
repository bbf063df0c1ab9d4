//! Private servers of the engines that Tombolo runs on: made in a folder of their own, on free ports of loopback, to be
//! started, killed and started again on the same files.
//!
//! What runs them is up to the caller: `cargo xtask services` keeps a record and outlives itself, a fault run kills them.
//! Invariant: nothing is reachable from outside 127.0.0.1, and every server syncs as it should in production, as far as it can.

mod address;
pub mod error;
mod mariadb;
mod mongodb;
mod nats;
mod postgres;
pub mod programs;
mod rabbitmq;
mod redis;
pub mod scratch;

use std::fmt;
use std::path::Path;
use std::process::Command;

pub use error::{Context, Error};
pub use programs::Programs;
pub use scratch::Scratch;

/// An engine of which there are servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL: a database, and a bus.
    Postgres,
    /// MariaDB: a database.
    MariaDb,
    /// NATS with JetStream: a bus.
    Nats,
    /// RabbitMQ with its streams: a bus.
    RabbitMq,
    /// Redis, whose append-only file is synced before it answers: a bus.
    Redis,
    /// MongoDB, as a replica set of one: a database. No distribution of Linux has it, so it is used where it is.
    MongoDb,
}

impl Engine {
    /// Those that every full run of the tests needs, in the order in which they are started.
    pub const ALL: [Self; 5] = [Self::Postgres, Self::MariaDb, Self::Nats, Self::RabbitMq, Self::Redis];

    /// Those, and the others whose programs are on this machine.
    #[must_use]
    pub fn here() -> Vec<Self> {
        let others = programs::has_mongodb().then_some(Self::MongoDb);
        Self::ALL.into_iter().chain(others).collect()
    }

    /// The variable by which tests find a server.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "TOMBOLO_TEST_POSTGRES",
            Self::MariaDb => "TOMBOLO_TEST_MARIADB",
            Self::Nats => "TOMBOLO_TEST_NATS",
            Self::RabbitMq => "TOMBOLO_TEST_RABBITMQ",
            Self::Redis => "TOMBOLO_TEST_REDIS",
            Self::MongoDb => "TOMBOLO_TEST_MONGODB",
        }
    }

    /// Makes a server in a folder that is not there yet, below one that the server's own user may enter. Where it takes
    /// several processes, the last is the one that clients find.
    ///
    /// # Errors
    /// If its files cannot be made.
    pub fn make(self, folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
        match self {
            Self::Postgres => postgres::make(folder, programs),
            Self::MariaDb => mariadb::make(folder, programs),
            Self::Nats => nats::make(folder, programs),
            Self::RabbitMq => rabbitmq::make(folder, programs),
            Self::Redis => redis::make(folder, programs),
            Self::MongoDb => mongodb::make(folder, programs),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadb",
            Self::Nats => "nats",
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
            Self::MongoDb => "mongodb",
        })
    }
}

/// How a server is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// By SIGINT, as PostgreSQL disconnects its clients.
    Interrupted,
    /// By SIGTERM, because it does not hear SIGINT.
    Terminated,
}

/// A server that was made, and may run or not.
pub struct Server {
    /// By what it is known.
    pub name: &'static str,
    /// Where clients find it; empty for one that only another server talks to.
    pub url: String,
    /// How it is asked to end.
    pub ends: Ends,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    ready: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Server {
    fn new(
        name: &'static str,
        url: String,
        command: impl Fn() -> Command + Send + Sync + 'static,
        ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { name, url, ends: Ends::Interrupted, command: Box::new(command), ready: Box::new(ready) }
    }

    fn terminated(self) -> Self {
        Self { ends: Ends::Terminated, ..self }
    }

    /// What starts it, on the files that it has by now. It then is that process itself, not a child of it.
    #[must_use]
    pub fn command(&self) -> Command {
        (self.command)()
    }

    /// Whether it answers; asks it, which takes a second at most.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        (self.ready)()
    }
}
