//! The clock that all processes of one machine share. Stands under every figure that crosses a process.
//!
//! Invariant: monotonic, so that two readings on one machine can be subtracted whoever took them.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now_ns() -> u64 {
    // The clock is there on every Linux, and counts up from the start of the machine.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
}
