//! The bus: the logs of all topics, and the way to read them.
//!
//! Floor 1. One port ([`Bus`]), one conformance suite beside it, and the engines: the embedded log (in process
//! and as a server) and, behind features, engines that people run already. Nothing here knows what an event
//! says, who subscribes, or where a subscription stands: consumers keep their own place.

pub mod port;
pub mod record;
pub mod signal;
mod error;
#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
mod judged;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(
    feature = "nats",
    feature = "rabbitmq",
    feature = "kafka",
    feature = "postgres",
    feature = "redis"
))]
mod accept;
#[cfg(any(feature = "kafka", feature = "postgres", feature = "redis"))]
mod adapter;
mod connect;
mod copying;
pub mod moving;
pub mod archiving;
pub mod feed;
mod archived;
#[cfg(feature = "conformance")]
pub mod conformance;

pub use archived::Archived;
pub use connect::{Identity, connect};
pub use error::{Error, Kind};
pub use port::{Append, Appended, Bus, Guarantee, Read, RecordStream, Registration, Tail, Topic, TopicSpec};
pub use record::{Batch, Record};
pub use signal::{Reach, Signal, SignalStream};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
