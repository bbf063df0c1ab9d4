//! The real shop under `tombolo dev`, with a random fault every two seconds: a test of the shop's own, run for longer.
//!
//! Invariant: what the shop must be at the end is said in its tests alone (`examples/shop/tests/src/fold.rs`).

use std::env;
use std::process::Command;

use crate::process::Outcome;

/// The test, and how it is told how long it has and what decides everything random.
const TEST: &str = "faults::with_a_random_fault_every_two_seconds_every_view_ends_as_the_fold_of_its_topics";
const SECONDS: &str = "TOMBOLO_SHOP_FAULTS_SECONDS";
const SEED: &str = "TOMBOLO_SHOP_FAULTS_SEED";

/// Runs it for so many seconds.
pub(crate) fn run(seconds: u64, seed: u64) -> Outcome<()> {
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.args(["test", "--release", "--package", "shop-tests", "--test", "shop", "--"]);
    cargo.args(["--ignored", "--nocapture", "--exact", TEST]);
    cargo.env(SECONDS, seconds.to_string()).env(SEED, seed.to_string());
    let status = cargo.status()?;
    if status.success() { Ok(()) } else { Err(format!("the shop did not come through: {status}").into()) }
}
