//! Signals: what crosses the bus without being stored (questions, answers, wake-ups).
//!
//! Invariant: a signal is a hint or has a deadline; nothing that must not be lost travels as one.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

#[cfg(any(feature = "nats", feature = "kafka", feature = "postgres", feature = "redis"))]
use crate::{Error, Kind, Result};

/// The largest signal, in bytes.
pub const SIGNAL_BYTES_MAX: usize = 1 << 20;
/// How many signals wait for a listener that is slow, before the oldest is dropped.
pub const SIGNALS_WAITING_MAX: usize = 1024;

/// A message to whoever listens now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// The subject to answer on, where an answer is wanted.
    pub reply_to: Option<String>,
    /// The content.
    pub payload: Bytes,
}

/// How far a signal reached, as far as the engine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody listens on the subject.
    Nobody,
    /// Somebody listens.
    Somebody,
    /// The engine cannot tell.
    Unknown,
}

/// What a listener receives. Ends when the bus closes; an engine that reconnects goes on by itself.
pub type SignalStream = Pin<Box<dyn Stream<Item = Signal> + Send>>;

/// The longest subject, in bytes.
#[cfg(any(feature = "nats", feature = "kafka", feature = "postgres", feature = "redis"))]
const SUBJECT_BYTES_MAX: usize = 256;

/// Refuses what no server takes for a subject, or for the name of a group.
#[cfg(any(feature = "nats", feature = "kafka", feature = "postgres", feature = "redis"))]
pub(crate) fn check_subject(subject: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let word = |word: &str| !word.is_empty() && word.chars().all(allowed);
    if subject.len() <= SUBJECT_BYTES_MAX && subject.split('.').all(word) {
        return Ok(());
    }
    let message = format!(
        "subject {subject:?} is not dotted words of letters, digits, '-' and '_' within {SUBJECT_BYTES_MAX} bytes"
    );
    Err(Error::new(Kind::InvalidName, message))
}

/// Refuses a signal over its bound.
#[cfg(any(feature = "kafka", feature = "postgres", feature = "redis"))]
pub(crate) fn check_size(subject: &str, signal: &Signal) -> Result<()> {
    let found = signal.payload.len();
    if found <= SIGNAL_BYTES_MAX {
        return Ok(());
    }
    let message = format!("signal on {subject} is {found} bytes; expected at most {SIGNAL_BYTES_MAX}");
    Err(Error::new(Kind::TooLarge, message))
}
