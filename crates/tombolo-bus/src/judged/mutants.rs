//! Deliberate faults of these engines, for the test that asserts that each is caught. Invariant: a connection has none
//! until a test gives it one.

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Leaves the epoch out of the rule: what a replaced relay sends late counts.
    TakeOlderEpochs,
    /// Leaves the place out of the rule: what does not follow the end of its partition counts.
    TakeAnyPlace,
    /// Acknowledges an append when the server confirmed it, without reading it back.
    AcknowledgeAtTheConfirm,
    /// Answers and refuses by what it saw when it first looked, whatever is in the stream by now.
    AnswerFromMemory,
    /// Begins to read without comparing the cursor's own record.
    BelieveTheCursor,
}
