//! Deliberate faults, for the tests that must catch them.
//!
//! Invariant: without the feature `mutants`, `Mutation::is` is `false` for ever and costs nothing.

/// A fault of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The issuer is asked for its keys whenever a key is not known.
    AsksEachTime,
    /// Tokens are taken before it is known who was blocked.
    OpensUnloaded,
    /// An internal token is taken whomever it is for.
    TakesForOthers,
    /// What was said last of a user counts, whatever its version.
    LastWins,
}

/// Which fault a check has, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mutation(#[cfg(feature = "mutants")] pub(crate) Option<Mutant>);

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
