//! The bus for everybody who speaks HTTP: no library, no SDK, any language.
//!
//! Floor 2. It stands in front of the port to the logs and knows nothing of the engine behind it. What comes in as CloudEvents or
//! as plain JSON is numbered here and appended ([`feed`]); what is in the logs is read by offset (`reading`) or pushed to
//! subscribers, whose cursors it keeps ([`push`]). Modules stand in the order in which an event meets them.
//!
//! Invariant: a publisher is answered after its event is on disk, and never after a delivery.

mod problem;
mod limits;
mod config;
mod access;
pub mod cloudevents;
mod index;
pub mod feed;
mod publish;
mod reading;
mod topics;
pub mod push;
pub mod plain;
mod door;

pub use access::{Access, Caller};
pub use config::{Config, CredentialTable, TlsTable};
pub use door::{Door, Settings};
pub use problem::{Problem, Refusal};
