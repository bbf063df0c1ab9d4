//! The words of Tombolo, as types: events and their envelope, keys and partitions, positions, questions.
//!
//! Floor 0: everything here is pure. There is no input, no output and no runtime; the crates above act,
//! this one decides. Modules stand in the order in which an event meets them.

pub mod name;
pub mod event;
pub mod key;
pub mod generation;
pub mod trace;
pub mod envelope;
pub mod idempotency;
pub mod position;
pub mod question;
pub mod descriptor;
pub mod operator;
pub mod propagation;
pub mod retry;
pub mod barrier;
mod error;

pub use envelope::{Consequence, Envelope, EventId};
pub use error::{Error, Kind};
pub use event::{Event, Upcast};
pub use generation::Generations;
pub use idempotency::IdempotencyKey;
pub use key::{KeyHash, partition_of};
pub use name::{ServiceName, TypeName};
pub use position::{Cursor, Incarnation, Position, Positions};
pub use question::{Gathered, Missing, Question, Why};
pub use retry::Backoff;
pub use trace::TraceContext;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
