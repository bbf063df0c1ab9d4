//! The gateway as its clients and its services see it: real sockets on both sides.

#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod stage;
mod passing;
mod identity;
mod smuggling;
mod frames;
mod frames_refused;
mod answers;
mod bounds;
mod replicas;
mod sealed;
mod changes;
#[cfg(feature = "dns")]
mod names;
mod browsers;
mod guests;
