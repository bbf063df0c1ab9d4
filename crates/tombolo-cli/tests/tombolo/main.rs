//! The binary from outside, as people and scripts use it. One crate of tests, so that what sets the stage is shared.

#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod stage;
mod runner;
mod elsewhere;
mod topics;
mod archive;
mod schema;
mod foreign;
mod new;
mod doctor;
mod publishing;
mod crowd;
mod blog;
mod gateway;
