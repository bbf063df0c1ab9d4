//! The identity service and a service that checks its tokens, each with its own database, over one bus.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod ground;
mod stage;
mod stub;
mod signing_in;
mod doors;
mod internal;
mod rotation;
mod blocks;
mod secrets;
mod engines;
mod crashes;
mod kills;
mod at_once;
mod languages;

/// The variable that names the server of identity's database; here it is a file.
const SERVER: Option<&str> = None;
