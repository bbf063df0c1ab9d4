//! The edge of a system on Tombolo: one door in front of many services.
//!
//! Floor 3. Modules stand in the order in which a request meets them: the configuration, the connection and its guard, the route,
//! the headers, the limits, the replicas, the answer; beside them what is logged, counted and shown.
//!
//! ```text
//! client ──► guard ──► route ──► limits ──► headers ──► replica, or another where that does no harm ──► answer ──► log
//! ```
//!
//! What is deliberately not in here: a parser of HTTP (that is hyper's; the guard in front of it only refuses), a store of anything, and
//! any knowledge of what services answer.

mod config;
mod error;
mod core;
mod table;
mod server;
mod workers;
mod guard;
mod resets;
mod proxy;
mod path;
mod routes;
mod asking;
mod limits;
mod headers;
mod body;
mod forward;
mod upstream;
mod tunnel;
mod problem;
mod log;
mod metrics;
mod admin;
pub mod mutant;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use self::config::{
    AtTheDoor, Balance, Cors, HashBy, Health, Limits, Mistake, PathPrefix, Rate, RateBy, Route, Settings,
    Source, Target, Way,
};
pub use self::core::{Gateway, Outside};
pub use self::error::{Error, Kind, Result};
pub use self::log::Sink;
pub use tombolo_bus::server::Certificate;
