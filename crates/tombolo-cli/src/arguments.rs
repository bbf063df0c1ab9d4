//! The command line. Invariant: what is written here is all that there is; every command is in `tombolo --help`.

mod archive;
mod auth;
mod foreign;
mod gateway;
mod parked;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tombolo_event::ServiceName;

use crate::output::Format;
pub(crate) use archive::Archive;
pub(crate) use auth::{Auth, Propagation};
pub(crate) use foreign::{Begin, Deliver, Parts, Relay};
pub(crate) use gateway::Gateway;
pub(crate) use parked::{Asked, Discard, How, ParkedEvents, ParkedOf, Redrive, Reset, ShowParked, Skip};
pub(crate) use views::{Compared, OfView, SwitchView, Views};

/// The schema of Tombolo's tables on PostgreSQL, unless somebody says otherwise.
pub(crate) const SCHEMA_DEFAULT: &str = "tombolo";

/// What the names of Tombolo's tables begin with on MySQL and MariaDB, unless somebody says otherwise.
pub(crate) const PREFIX_DEFAULT: &str = "tombolo_";

const EXIT_CODES: &str = "Exit codes:
  0  it worked
  1  it was understood and did not work
  2  the command line or the manifest is wrong
  3  there is no such service, topic or partition
  4  what was asked does not run or cannot be reached";

/// Runs a system of services on this machine, and answers an operator's questions about it.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the bus and every service of a manifest, and keep them running
    Dev(Dev),
    /// Show what runs, where, and whether it is ready
    Status(Shown),
    /// End a service (or `bus`) and leave it ended
    Stop(Named),
    /// Start a service (or `bus`) that was stopped, and wait until it is ready
    Start(Named),
    /// Kill a service (or `bus`) with SIGKILL; the runner starts it again, as after a crash
    Kill(Named),
    /// Run so many processes of a service; those that end finish what they have begun, and the others take over
    Scale(Scaled),
    /// End everything that `dev` started
    Down(Found),
    /// Show what a service (or `bus`) wrote
    Logs(Logs),
    /// Serve a bus over the log in a folder of this machine
    Bus(Bus),
    /// Serve one door in front of the services of a manifest: routes, balancing, limits, TLS
    Gateway(Gateway),
    /// Ship what programs in any language insert into a table of their service's own database
    Relay(Relay),
    /// Bring events to a program in any language, which applies them with a procedure of its own database
    Deliver(Deliver),
    /// Copy topics to a bus that keeps them for ever, as they grow, and remove them where they were
    Archive(Archive),
    /// Look into the topics of a bus
    #[command(subcommand)]
    Topics(Topics),
    /// See where subscriptions stand, pause them, move them
    #[command(subcommand)]
    Subscriptions(Subscriptions),
    /// See what could not be handled, try it again, or drop it
    #[command(subcommand)]
    Parked(ParkedEvents),
    /// Decide what counts where a service's database and the bus do not agree, after a restore or beside a copy
    Recover(Recover),
    /// See the builds of views, build one anew beside the live one, compare, switch, drop
    #[command(subcommand)]
    Views(Views),
    /// See what services say of themselves
    #[command(subcommand)]
    Services(Services),
    /// See where a block of a user has taken effect
    #[command(subcommand)]
    Auth(Auth),
    /// Make or check Tombolo's own tables in a service's database
    #[command(subcommand)]
    Schema(Schema),
    /// Write what a new service begins with
    #[command(subcommand)]
    New(New),
    /// Look at a manifest and at everything that it points to, and say what is wrong and what mends it
    Doctor(Doctor),
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The folder that holds tombolo.toml, or the file itself
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) place: PathBuf,
    /// Where databases, the bus and logs are kept [default: DIR/.tombolo]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) elsewhere: Elsewhere,
    /// The archive of the bus, which has what was trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// What is used in place of what the manifest says.
#[derive(Debug, Args)]
pub(crate) struct Elsewhere {
    /// Use a bus that somebody else runs: nats://…, amqp://…, redis://…, postgres://…, tombolo://…
    #[arg(long, value_name = "URL")]
    pub(crate) bus: Option<String>,
    /// Another database for a service, such as orders=postgres://user@host; may be given several times
    #[arg(long = "database", value_name = "NAME=URL", value_parser = name_and_database)]
    pub(crate) databases: Vec<(String, String)>,
}

fn name_and_database(text: &str) -> Result<(String, String), &'static str> {
    let (name, database) =
        text.split_once('=').ok_or("expected NAME=URL, such as orders=postgres://user@host")?;
    Ok((name.to_owned(), database.to_owned()))
}

/// What can be done about Tombolo's tables.
#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Print the SQL that makes them in an empty database
    Print(PrintSchema),
    /// Make them, or bring them up to date: only ever adds
    Apply(ApplySchema),
    /// Check that they are there and not older than this program, and the settings; changes no table
    Check(CheckSchema),
}

/// Which SQL is meant.
#[derive(Debug, Args)]
pub(crate) struct PrintSchema {
    /// The kind of the database
    #[arg(value_enum)]
    pub(crate) kind: DatabaseKind,
    #[command(flatten)]
    pub(crate) parts: Parts,
    /// The schema of the tables, on PostgreSQL
    #[arg(long, value_name = "NAME", default_value = SCHEMA_DEFAULT)]
    pub(crate) schema: String,
    /// What the names of the tables begin with, on MySQL, MariaDB and MongoDB
    #[arg(long, value_name = "PREFIX", default_value = PREFIX_DEFAULT)]
    pub(crate) prefix: String,
}

/// The databases that Tombolo has tables for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatabaseKind {
    Sqlite,
    Postgres,
    /// MySQL and MariaDB
    #[value(alias = "mariadb")]
    Mysql,
    /// Documents by key, in one file
    Documents,
    /// MongoDB, as a replica set
    #[cfg(feature = "mongodb")]
    Mongodb,
}

/// Options of `schema check`.
#[derive(Debug, Args)]
pub(crate) struct CheckSchema {
    #[command(flatten)]
    pub(crate) database: OfDatabase,
    #[command(flatten)]
    pub(crate) parts: Parts,
}

/// Options of `schema apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplySchema {
    #[command(flatten)]
    pub(crate) database: OfDatabase,
    #[command(flatten)]
    pub(crate) parts: Parts,
    /// The service that owns the database, for good
    #[arg(long, value_name = "NAME")]
    pub(crate) service: ServiceName,
    /// The number of partitions of its topic, as in `Service::partitions`
    #[arg(long, value_name = "COUNT", default_value_t = tombolo_event::key::PARTITIONS_DEFAULT)]
    pub(crate) partitions: u32,
}

/// Which database is meant.
#[derive(Debug, Args)]
pub(crate) struct OfDatabase {
    /// sqlite:PATH, documents:PATH, postgres://…, mysql://… or mongodb://…
    #[arg(value_name = "URL", env = "TOMBOLO_DATABASE", hide_env_values = true)]
    pub(crate) url: String,
    /// The schema of the tables, on PostgreSQL
    #[arg(long, value_name = "NAME", default_value = SCHEMA_DEFAULT)]
    pub(crate) schema: String,
    /// What the names of the tables begin with, on MySQL, MariaDB and MongoDB
    #[arg(long, value_name = "PREFIX", default_value = PREFIX_DEFAULT)]
    pub(crate) prefix: String,
}

/// What can be begun.
#[derive(Debug, Subcommand)]
pub(crate) enum New {
    /// A service with a route, an event, a view and a test, that compiles and runs
    Service(NewService),
}

/// Options of `new service`.
#[derive(Debug, Args)]
pub(crate) struct NewService {
    /// Its name: lowercase letters, digits and '-'; also that of its topic and of the folder that is made
    pub(crate) name: ServiceName,
    /// The folder to make it in
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) into: PathBuf,
    /// Where Tombolo's crates are, instead of the registry
    #[arg(long, value_name = "DIR")]
    pub(crate) tombolo: Option<PathBuf>,
}

/// Options of `bus`.
#[derive(Debug, Args)]
pub(crate) struct Bus {
    /// The folder of the log
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    pub(crate) listen: SocketAddr,
    /// A Unix socket to listen on as well
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Where to answer GET /metrics, in the format of Prometheus
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// A file whose `[bus]` table says who may call and who is told: a `tombolo.toml`; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What can be seen of topics.
#[derive(Debug, Subcommand)]
pub(crate) enum Topics {
    /// List the topics
    List(OfBus),
    /// Print events as CloudEvents, one JSON object a line, up to the present end
    Read(Read),
    /// The same from now on, as events come
    Tail(Read),
    /// Read everything, and check that no event is missing or damaged
    Verify(Verify),
    /// Move topics to another bus, and seal them where they were; says which, and does it with --yes
    Copy(CopyTopics),
    /// Give a running service's topic another number of partitions, without a stop
    Divide(Divide),
}

/// Options of `topics divide`.
#[derive(Debug, Args)]
pub(crate) struct Divide {
    /// The service whose topic it is
    pub(crate) service: ServiceName,
    /// How many partitions what comes from then on is spread over
    #[arg(long, value_name = "COUNT")]
    pub(crate) partitions: u32,
    #[command(flatten)]
    pub(crate) how: How,
}

/// What can be seen of subscriptions, and done to them.
#[derive(Debug, Subcommand)]
pub(crate) enum Subscriptions {
    /// List every subscription of every running replica
    List(OfBus),
    /// Handle nothing more until it is resumed, over restarts too
    Pause(Asked),
    /// Go on after a pause
    Resume(Asked),
    /// Go back, so that events are handled again; says what that would be, and does it with --yes
    Reset(Reset),
    /// Step over events that cannot be read or handled; says which, and does it with --yes
    Skip(Skip),
}

/// What can be seen of services.
#[derive(Debug, Subcommand)]
pub(crate) enum Services {
    /// List every replica that registered at the bus, with what it publishes, handles and answers
    List(OfBus),
}

/// What to decide about a service that is halted. Without a decision: shows why it is, and what would follow.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The service
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) reached: Reached,
    /// Where this very instance of the service serves [default: where the service registered]
    #[arg(long, value_name = "URL", conflicts_with_all = ["bus", "data"])]
    pub(crate) url: Option<String>,
    /// What is on the bus counts: the database goes on behind it
    #[arg(long, value_name = "HALT", conflicts_with = "resume")]
    pub(crate) take_bus: Option<String>,
    /// Both sides agree again: go on without a change
    #[arg(long, value_name = "HALT")]
    pub(crate) resume: Option<String>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// Which bus is meant.
#[derive(Debug, Args)]
pub(crate) struct Reached {
    /// The bus's URL [default: the bus of the system that runs]
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub(crate) bus: Option<String>,
    /// The archive of that bus, which has what was trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    #[command(flatten)]
    pub(crate) found: Found,
}

/// A list of what a bus knows.
#[derive(Debug, Args)]
pub(crate) struct OfBus {
    #[command(flatten)]
    pub(crate) reached: Reached,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// Which events are meant.
#[derive(Debug, Args)]
pub(crate) struct Read {
    /// The topic: the name of the service that owns it
    pub(crate) topic: ServiceName,
    #[command(flatten)]
    pub(crate) reached: Reached,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    pub(crate) partition: Option<u32>,
    /// Only from this sequence on, in each partition [default: read: 1; tail: what comes next]
    #[arg(long, value_name = "SEQUENCE")]
    pub(crate) from: Option<u64>,
    /// At most so many events
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Only this type; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) types: Vec<String>,
}

/// Options of `topics copy`.
#[derive(Debug, Args)]
pub(crate) struct CopyTopics {
    /// Only these topics [default: all]
    pub(crate) topics: Vec<ServiceName>,
    /// The bus that they are on
    #[arg(long, value_name = "URL")]
    pub(crate) from: String,
    /// The archive of that bus, which has what was trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    /// The bus that they go to
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// Really do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// What to verify.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The bus's URL [default: the bus of the system that runs]
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub(crate) bus: Option<String>,
    /// The archive of that bus, which has what was trimmed
    #[arg(long, value_name = "URL", env = "TOMBOLO_ARCHIVE", hide_env_values = true)]
    pub(crate) archive: Option<String>,
    /// Inspect the files of a log instead: its folder, or the data folder of a system. Changes nothing
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// Options of `dev`.
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// The folder that holds tombolo.toml, or the file itself
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) place: PathBuf,
    /// Where databases, the bus and logs are kept [default: DIR/.tombolo]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Return when everything is ready, and leave it running
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) elsewhere: Elsewhere,
    /// With --detach: how many seconds everything may take to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) ready_within: u64,
    /// Be the detached runner: report once on the standard output
    #[arg(long, hide = true)]
    pub(crate) report: bool,
}

/// Which running system is meant.
#[derive(Debug, Args)]
pub(crate) struct Found {
    /// The data folder of the system [default: that of the current folder, or the only one that runs]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// A list.
#[derive(Debug, Args)]
pub(crate) struct Shown {
    #[command(flatten)]
    pub(crate) found: Found,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// A service of a system.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The service, or `bus`
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) found: Found,
}

/// A service of a system and how many processes of it there shall be.
#[derive(Debug, Args)]
pub(crate) struct Scaled {
    /// The service and how many, such as orders=3
    #[arg(value_name = "NAME=COUNT", value_parser = name_and_count)]
    pub(crate) to: (String, u32),
    #[command(flatten)]
    pub(crate) found: Found,
}

fn name_and_count(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text.split_once('=').ok_or("expected NAME=COUNT, such as orders=3")?;
    let count = count.parse().map_err(|_| format!("{count:?} is no number of processes"))?;
    Ok((name.to_owned(), count))
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The service, or `bus`
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) found: Found,
    /// Go on with what is written from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many last lines to begin with
    #[arg(long, short = 'n', default_value_t = 100)]
    pub(crate) lines: usize,
}
