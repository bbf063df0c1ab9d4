//! The door against real sockets and real processes.
//!
//! Invariant: what is asserted was seen by a subscriber or answered by the door; nothing is assumed of the inside.

mod stage;
mod subscriber;
mod plain;
mod recovery;
mod push;
