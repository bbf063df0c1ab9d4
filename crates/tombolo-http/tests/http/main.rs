//! The bus over HTTP, as its users meet it: real sockets, real processes, a real log on disk.
//!
//! Invariant: what is asserted was seen by a subscriber or answered by the bus; every server that a test starts ends with the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod stage;
mod publishing;
mod reading;
mod refusing;
mod languages;
mod subscriber;
mod plain;
mod recovery;
mod push;
mod crash;
