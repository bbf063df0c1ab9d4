//! The library on the embedded engines: real SQLite files, the log in memory, real sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;
mod path;
mod later;
mod moving;
mod failures;
mod effects;
mod parking;
mod operating;
mod questions;
mod positions;
mod views;
mod replicas;
mod dividing;
mod wiring;
mod weather;
mod world;
mod recovery;
#[cfg(all(feature = "bus-postgres", feature = "bus-redis"))]
mod archive;
#[cfg(all(feature = "postgres", feature = "nats"))]
mod engines;
#[cfg(feature = "mysql")]
mod mariadb;
#[cfg(feature = "documents")]
mod documents;
