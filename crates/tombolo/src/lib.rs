//! Services that each own their database, and data that crosses between them.
//!
//! Floor 2: what a service imports. Modules stand in the order in which data flows: a [`Service`] is put together,
//! a request opens a transaction through its [`App`], the commit wakes the relay, the relay appends to the
//! bus, a subscription's worker reads, a handler folds. Beside the path stand the two other ways across:
//! `call` and `gather`.
//!
//! What is deliberately not here: how a log or a database works (floor 1), processes and manifests (floor 4).

pub mod service;
pub mod settings;
mod clock;
mod life;
mod running;
#[cfg(feature = "barriers")]
pub mod barriers;
pub mod app;
mod current;
mod relay;
pub mod recovery;
pub mod handler;
pub mod subscription;
pub mod view;
pub mod effect;
mod worker;
mod sharing;
mod progress;
pub mod freshness;
mod question;
mod directory;
pub mod problem;
#[cfg(feature = "auth")]
pub mod auth;
mod edge;
mod operator;
pub mod metrics;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;
mod error;

pub use app::App;
pub use clock::Clock;
pub use effect::{Attempt, EFFECT_BOUND, EFFECT_CALLS_MAX, Effect};
pub use error::{Error, Kind};
pub use freshness::Freshness;
pub use handler::{Handled, HandlerError, Received, State, reject};
pub use problem::Problem;
pub use question::ask::{CALL_BOUND, Call, GATHER_BOUND, Gather};
pub use running::Running;
pub use service::Service;
pub use settings::Settings;
pub use status::ServiceStatus;
pub use subscription::Reactor;
pub use tombolo_db::{Committed, Database, Outgoing, Transaction};
pub use tombolo_event::{
    Event, EventId, Gathered, IdempotencyKey, Missing, Position, Positions, Question, Upcast, Why,
};
pub use view::View;

/// SQLite as a service's database: `sqlite::Sqlite` and `sqlite::Tx`.
#[cfg(feature = "sqlite")]
pub use tombolo_db::sqlite;

/// Documents by key as a service's database: `documents::Documents`, `documents::Collection` and `documents::Tx`.
#[cfg(feature = "documents")]
pub use tombolo_db::documents;

/// MongoDB as a service's database: `mongodb::Mongodb` and `mongodb::Tx`, with the driver beside them as `mongodb::driver`.
#[cfg(feature = "mongodb")]
pub use tombolo_db::mongodb;
/// MySQL and MariaDB as a service's database: `mysql::Mysql` and `mysql::Tx`.
#[cfg(feature = "mysql")]
pub use tombolo_db::mysql;
/// PostgreSQL as a service's database: `postgres::Postgres` and `postgres::Tx`.
#[cfg(feature = "postgres")]
pub use tombolo_db::postgres;

/// A bus in the program itself, for several services in one process: the embedded log, given to each by [`Service::bus`], and
/// the server by which other processes reach it; and what a program needs that reads a topic by itself.
pub mod bus {
    pub use tombolo_bus::embedded::{Log, Options};
    #[cfg(feature = "server")]
    pub use tombolo_bus::server::{Listen, Server};
    pub use tombolo_bus::{Bus, Read, Registration};
    pub use tombolo_event::{Cursor, Envelope};
}

/// The pauses before a task of the service begins anew what the bus or the database broke off.
const RETRY: tombolo_event::Backoff =
    tombolo_event::Backoff::new(std::time::Duration::from_millis(20), std::time::Duration::from_secs(5));

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
