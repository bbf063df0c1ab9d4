//! Deliberate faults, for the tests that must catch them.
//!
//! Invariant: without the feature `mutants`, `Mutation::is` is `false` for ever and costs nothing.

/// A fault that the conformance suite must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The relay takes rows above the highest position it saw, instead of those that are there.
    NaiveOutboxCursor,
    /// A commit does not look whether a statement of its transaction failed, where the server does not say so.
    CommitUnverified,
    /// A commit does not lock the stripes of its keys.
    NoKeyLock,
    /// The relay guesses numbers in memory instead of storing them first.
    NumberingNotDurable,
    /// Nobody compares epochs.
    NoFencing,
    /// A claim takes what another member holds.
    ClaimsHeld,
    /// A renewal does not look whether a later life of the replica is the member.
    RenewsAnyLife,
    /// A cursor moves from wherever it is.
    NoCursorCheck,
    /// A new generation of partitions is read without looking whether the earlier ones are.
    EntersEarly,
    /// A row is numbered in the partition that whoever published it knew of, though the topic was divided since.
    NumbersWhereHinted,
    /// An effect's completion is stored apart from the transaction of what goes with it.
    CompletionApart,
    /// Only the event that failed is parked, not those of its key behind it.
    ParkWithoutFollowers,
    /// A parked event is taken out without proving the lease.
    RedriveWithoutLease,
    /// A view is switched to a build without looking how far that is.
    SwitchUncompared,
    /// SQLite commits without syncing.
    NoSync,
    /// A halted database lets somebody lead all the same.
    NoHalt,
    /// After a restore, what is on the bus already is published once more.
    NoMemoryOfTheBus,
    /// The position of a foreign row is a default of its column, given before the trigger has locked its key.
    ForeignPositionByDefault,
    /// What other programs wrote is removed from where it was in a transaction of its own, after the one that took it in.
    ForeignRemovedApart,
    /// A row that no bus will take is passed over, and its key flows on.
    ForeignSteppedOver,
    /// The procedure of other programs moves the cursor from wherever it is.
    ForeignAppliesTwice,
    /// What became due is removed from where it was kept in a transaction of its own, after the one that moved it.
    LaterRemovedApart,
}

/// Which fault a database handle has, if any.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mutation(#[cfg(feature = "mutants")] pub(crate) Option<Mutant>);

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
impl Mutation {
    /// Whether the fault is `mutant`.
    #[cfg(feature = "mutants")]
    pub(crate) fn is(self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    /// Whether the fault is `mutant`: never.
    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(crate) fn is(self, _mutant: Mutant) -> bool {
        false
    }
}
