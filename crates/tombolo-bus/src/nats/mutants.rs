//! Deliberate faults of this engine, for the test that asserts that each is caught. Invariant: a connection has none
//! until a test gives it one.

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Chains messages by the stream's sequence alone.
    ChainBySequenceAlone,
    /// Refuses and acknowledges without reading the stream again.
    AnswerFromMemory,
    /// Begins to read without comparing the cursor's own record.
    BelieveTheCursor,
    /// Goes on appending after another relay raised the epoch.
    IgnoreTheEpoch,
    /// Goes on appending to a partition after its topic was divided anew.
    IgnoreTheSeals,
}
