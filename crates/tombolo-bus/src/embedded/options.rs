//! What can be set on a log, and what opening it found. Invariant: the defaults keep every promise.

use std::time::Duration;

/// The smallest segment that an option may ask for, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 10;
/// The largest segment that an option may ask for, in bytes: offsets in a segment fit 32 bits with room to spare.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How a log is kept. The defaults are right for nearly everybody.
#[derive(Debug, Clone)]
pub struct Options {
    /// The size of a segment file, in bytes. A group that is larger gets a segment of its own size.
    pub segment_bytes: u64,
    /// The size of the very first segment, in bytes, so that a small log is a small file.
    pub first_segment_bytes: u64,
    /// Whether the next segment is filled with zeros in the background, so that rolling costs nothing and a sync
    /// writes data only.
    pub prepare_ahead: bool,
    /// The bytes after which a commit group takes no further append; a single larger append is a group of its own.
    pub group_bytes_max: usize,
    /// The bytes of appends that may wait for the writer; who comes after waits to be let in.
    pub waiting_bytes_max: usize,
    /// The bytes of the newest groups that are kept in memory, so that live readers never touch the disk.
    pub recent_bytes_max: usize,
    /// How long the log is idle before it seals the last group with an empty one, so that later damage in it is
    /// told from a torn tail.
    pub witness_after: Duration,
    /// A deliberate fault, for the tests that must catch it.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            first_segment_bytes: 4 << 20,
            prepare_ahead: true,
            group_bytes_max: 2 << 20,
            waiting_bytes_max: 64 << 20,
            recent_bytes_max: 16 << 20,
            witness_after: Duration::from_millis(100),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

impl Options {
    #[cfg(feature = "mutants")]
    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    pub(super) const fn is(&self, _: Mutant) -> bool {
        false
    }
}

/// A deliberate fault of the engine, each of which its tests must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Acknowledges without syncing.
    NoSync,
    /// Readers see a group before it is synced.
    ServeBeforeSynced,
    /// The epoch of an append is not looked at.
    NoFencing,
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// How many segments there are.
    pub segments: u64,
    /// How many events they hold.
    pub events: u64,
    /// What was cut off the end: a write that a crash interrupted. Nothing of it had been acknowledged.
    pub cut: Option<Cut>,
}

/// The end of an interrupted write, which was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: String,
    /// Where in it the whole part ends.
    pub offset: u64,
    /// How many bytes were cut off after that.
    pub bytes: u64,
}
