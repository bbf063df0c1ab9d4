//! Deliberate faults, for the tests that must catch them.
//!
//! Invariant: without the feature `mutants`, no process has a fault, and asking costs nothing.

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// Identities that a client claims are passed on.
    PassesIdentities = 1,
    /// A replica that nobody listens at is asked again and again.
    KeepsTheDead,
    /// Heads are passed to the parser as they come.
    PassesHeads,
    /// Requests that may have been carried out are tried again.
    RepeatsUnsafe,
    /// Connections are cut when the configuration changes.
    CutsAtReload,
    /// It says that it is ready before it has heard of any replica.
    IsReadyUnheard,
    /// Fields of HTTP/2 are passed on as they come.
    PassesFields,
    /// Requests that clients reset are not counted.
    CountsNoResets,
}

#[cfg(feature = "mutants")]
static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Makes the whole process behave like this, or like no mutant.
#[cfg(feature = "mutants")]
pub fn turn(mutant: Option<Mutant>) {
    ON.store(mutant.map_or(0, |mutant| mutant as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether the process has this fault.
#[cfg(feature = "mutants")]
pub(crate) fn is_on(mutant: Mutant) -> bool {
    ON.load(std::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Whether the process has this fault: never.
#[cfg(not(feature = "mutants"))]
pub(crate) fn is_on(_mutant: Mutant) -> bool {
    false
}
