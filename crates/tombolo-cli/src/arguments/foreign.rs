//! What stands between programs in any language and the bus: `relay`, `deliver`, and what they find in the database.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use tombolo_db::ForeignParts;
use tombolo_event::ServiceName;

use super::{OfDatabase, PREFIX_DEFAULT, SCHEMA_DEFAULT};

/// What is made for programs that know nothing of Tombolo.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Parts {
    /// The table in which other programs publish, in any language, with its trigger
    #[arg(long)]
    pub(crate) outbox: bool,
    /// With --outbox on PostgreSQL: the trigger wakes the relay by NOTIFY, which makes commits of the whole server queue
    #[arg(long, requires = "outbox")]
    pub(crate) notify: bool,
    /// The procedure with which other programs apply what `tombolo deliver` brings
    #[arg(long)]
    pub(crate) inbox: bool,
}

impl From<Parts> for ForeignParts {
    fn from(Parts { outbox, notify, inbox }: Parts) -> Self {
        Self { outbox, notify, inbox }
    }
}

/// A service's database, named by an option.
#[derive(Debug, Args)]
pub(crate) struct ItsDatabase {
    /// The service's own database: sqlite:PATH, postgres://… or mysql://…
    #[arg(long, value_name = "URL", env = "TOMBOLO_DATABASE", hide_env_values = true)]
    pub(crate) database: String,
    /// The schema of Tombolo's tables, on PostgreSQL
    #[arg(long, value_name = "NAME", default_value = SCHEMA_DEFAULT)]
    pub(crate) schema: String,
    /// What the names of Tombolo's tables begin with, on MySQL and MariaDB
    #[arg(long, value_name = "PREFIX", default_value = PREFIX_DEFAULT)]
    pub(crate) prefix: String,
}

impl From<&ItsDatabase> for OfDatabase {
    fn from(its: &ItsDatabase) -> Self {
        let ItsDatabase { database, schema, prefix } = its;
        Self { url: database.clone(), schema: schema.clone(), prefix: prefix.clone() }
    }
}

/// Options of `relay`.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    #[command(flatten)]
    pub(crate) database: ItsDatabase,
    /// The service that owns the database and the topic
    #[arg(long, value_name = "NAME")]
    pub(crate) service: ServiceName,
    /// The bus
    #[arg(long, value_name = "URL", env = "TOMBOLO_BUS", hide_env_values = true)]
    pub(crate) bus: String,
    /// The archive of the bus, if its topics are trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    /// With how many partitions the topic begins [default: as the database has it, or 8]
    #[arg(long, value_name = "COUNT")]
    pub(crate) partitions: Option<u32>,
    /// Be woken by NOTIFY (PostgreSQL, after `tombolo schema apply --outbox --notify`) instead of looking every 10 ms to 1 s
    #[arg(long)]
    pub(crate) notify: bool,
    /// A type that the programs publish, for whoever asks what comes from this service; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    /// Where to answer /metrics, /ready, /tombolo/status and the operator's commands; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Which replica this is; one that is started again takes over at once what it held
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) replica: u32,
}

/// Where a new subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Begin {
    /// With the first event that there is.
    Start,
    /// With what comes next.
    Now,
}

/// Options of `deliver`.
#[derive(Debug, Args)]
pub(crate) struct Deliver {
    #[command(flatten)]
    pub(crate) database: ItsDatabase,
    /// The service that owns the database
    #[arg(long, value_name = "NAME")]
    pub(crate) service: ServiceName,
    /// The subscription, whose cursors are in that database: its name is for good
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: String,
    /// A topic to deliver; may be given several times
    #[arg(long = "topic", value_name = "TOPIC", required = true)]
    pub(crate) topics: Vec<ServiceName>,
    /// Where the program takes events: one POST for each, in the binary mode of CloudEvents
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// The bus
    #[arg(long, value_name = "URL", env = "TOMBOLO_BUS", hide_env_values = true)]
    pub(crate) bus: String,
    /// The archive of the bus, which has what was trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    /// Where a new subscription begins; one that is there goes on where its cursors stand
    #[arg(long, value_enum)]
    pub(crate) from: Begin,
    /// How many seconds the program may take for one event
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) within: u64,
    /// Which replica this is; several share the partitions, and one that is started again takes over at once what it held
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) replica: u32,
}
