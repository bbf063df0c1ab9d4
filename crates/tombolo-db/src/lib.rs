//! A service's own database, as Tombolo needs it.
//!
//! Floor 1. Object-safe halves of one port ([`Outbox`] for the relay, [`Cursors`] and [`Leases`] for subscriptions, [`Requests`] for
//! operators) and the transaction in which the user's own SQL, the outbox rows and the cursor commit together. Nothing here knows
//! the bus, and nothing here is an ORM: the user's SQL is the user's.

pub mod outgoing;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
mod foreign;
pub mod port;
pub mod effects;
pub mod tables;
pub mod views;
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
mod comparing;
pub mod transient;
mod error;
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
mod owner;
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
mod fencing;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "mongodb"))]
mod due;
pub mod mutant;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "documents")]
pub mod documents;
#[cfg(feature = "mongodb")]
pub mod mongodb;
#[cfg(feature = "conformance")]
pub mod conformance;

pub use effects::{CallState, EffectCall, Effects, LatestCall};
pub use error::{Error, Kind};
pub use outgoing::{Origin, Outgoing, Publisher};
pub use port::{
    Claim, Claimed, Committed, CursorState, Cursors, Database, Depth, ForeignParked, ForeignParts,
    HintStream, Holder, Leader, Leases, Mark, Outbox, OutboxRow, Owner, ParkedCount, ParkedEvent,
    ParkedFilter, ParkedHead, Parking, Recovery, Requests, RoundLimit, Schema, Share, Standing, StartAt,
    Transaction, Tries,
};
pub use tables::Tables;
pub use views::{
    Build, BuildId, Compared, Difference, Goal, Sample, Switch, Switched, ViewState, Views, Wanted,
};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Text of JSON for a list that goes into one statement.
#[cfg(feature = "sqlite")]
fn json_text(list: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(list)
        .map_err(|error| Error::new(Kind::Database, "a list of marks could not be written").because(error))
}
