//! What the bus sends: plain events and push subscriptions, to subscribers on real sockets and in real processes.
//!
//! Invariant: what is asserted was seen by a subscriber or answered by the door; nothing is assumed of the inside.

mod ground;
mod subscriber;
mod plain;
mod recovery;
mod push;
mod crash;
