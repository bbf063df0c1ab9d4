//! What a world does to the path unasked. Invariant: nothing that a bus, a database or a crash could not do in the field.

use std::time::Duration;

/// One acknowledgement of so many is lost.
pub(super) const ACKNOWLEDGEMENTS: u64 = 8;
/// One read of so many batches breaks.
pub(super) const READS: u64 = 16;
/// The most of either that one line bears: each makes its relay or worker pause longer before it begins anew.
pub(super) const BROKEN_MAX: usize = 3;
/// A batch ends after one event of so many.
pub(super) const BATCH_ENDS: u64 = 3;
/// How long a batch is held back at most when there is nothing else to deliver, so that something may overtake it.
pub(super) const HELD_MAX: Duration = Duration::from_millis(8);

/// What a world does unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// Whatever can be done twice is done twice: every append is sent twice, every event is handled twice (once in a
    /// transaction that is undone), every effect is called twice with the same idempotency key.
    pub twice: bool,
    /// Batches of different partitions and topics arrive in an order and in sizes that the seed gives.
    pub shuffled: bool,
    /// Now and then an acknowledgement is lost, or a read breaks.
    pub broken: bool,
}

impl Weather {
    /// Everything: what a world has unless it is told otherwise.
    #[must_use]
    pub const fn rough() -> Self {
        Self { twice: true, shuffled: true, broken: true }
    }

    /// Nothing: once, as it comes, unbroken. What passes in calm weather and fails in a rough one relies on something that
    /// nobody promised.
    #[must_use]
    pub const fn calm() -> Self {
        Self { twice: false, shuffled: false, broken: false }
    }
}
