//! Deliberate faults of this engine, for the test that asserts that each is caught. Invariant: a connection has none
//! until a test gives it one.

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Goes on appending after another relay raised the epoch.
    IgnoreTheEpoch,
    /// Leaves the earlier partitions open when a topic is divided.
    DivideWithoutSeals,
    /// Acknowledges a repeat without comparing its ids with what is stored.
    AcknowledgeAnyRepeat,
    /// Begins to read without comparing the cursor's own record.
    BelieveTheCursor,
    /// Tells every member of a group of a signal.
    TellAllOfAGroup,
}
