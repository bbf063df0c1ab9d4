//! The library on the embedded engines: real SQLite files, the log in memory, real sockets.

mod support;
mod path;
mod failures;
mod questions;
mod wiring;
mod weather;
#[cfg(all(feature = "postgres", feature = "nats"))]
mod engines;
