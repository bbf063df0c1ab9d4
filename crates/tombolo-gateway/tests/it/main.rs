//! The gateway as its clients and its services see it: real sockets on both sides.

mod stage;
mod passing;
mod identity;
mod smuggling;
mod bounds;
mod replicas;
mod sealed;
mod changes;
mod browsers;
