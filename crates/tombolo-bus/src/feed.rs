//! Who feeds a topic: the outbox of its service, or the bus itself, for services that have none.
//!
//! A topic that the bus feeds has an epoch above every relay's, so every engine refuses a relay there, and none had to learn it.
//! It is so from its first event on, and for good.
//!
//! Invariant: a topic is fed by one of the two, never by both.

use crate::archiving::ARCHIVED;

/// From here on epochs are those of a bus that feeds the topic; relays count from 1.
pub const FED_BY_BUS: u64 = 1 << 48;

/// Whether a topic with this epoch is fed by the bus.
#[must_use]
pub fn is_fed_by_bus(epoch: u64) -> bool {
    (FED_BY_BUS..ARCHIVED).contains(&epoch)
}
