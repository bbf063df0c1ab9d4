//! The bus over HTTP, as its users meet it: real sockets, a real log on disk.
//!
//! Invariant: every server that a test starts ends with the test.

mod stage;
mod publishing;
mod reading;
mod refusing;
mod languages;
mod sending;
