//! Signals: what crosses the bus without being stored (questions, answers, wake-ups).
//!
//! Invariant: a signal is a hint or has a deadline; nothing that must not be lost travels as one.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

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
