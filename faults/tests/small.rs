//! A small part of each fault, with a fixed seed; `cargo xtask faults` does them in earnest. Invariant: a mutant is caught by
//! a broken promise, not by a run that went wrong, which fails the test as well.

use std::process::Command;

/// Runs a part; it must end well, and something must have landed unless it says why nothing can.
fn run(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_tombolo-faults")).args(arguments).output();
    let output = output.expect("the fault run was built with this test");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{said}{error}");
    for skipped in said.lines().filter(|line| line.starts_with("skipped:")) {
        println!("{skipped}");
    }
    let has_landed = !said.contains("\n0 passed");
    assert!(has_landed || said.contains("skipped:"), "nothing landed:\n{said}");
}

#[test]
fn a_process_killed_at_any_barrier_loses_and_doubles_nothing() {
    run(&["--only", "kill at", "--each", "1"]);
}

#[test]
fn a_process_killed_at_a_random_moment_loses_and_doubles_nothing() {
    run(&["--only", "kill at random", "--each", "10"]);
}

#[test]
fn a_leader_stopped_past_its_lease_finds_itself_replaced() {
    run(&["--only", "pause at `relay.before-append", "--each", "1"]);
}

#[test]
fn a_worker_stopped_past_its_lease_cannot_commit() {
    run(&["--only", "pause at `subscription.after-read", "--each", "1"]);
}

#[test]
fn a_bus_that_is_stopped_and_goes_on_loses_nothing() {
    run(&["--only", "pause at `log.after-write", "--each", "1"]);
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    run(&["--power", "5"]);
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::run;

    #[test]
    fn a_log_that_does_not_sync_is_caught_by_power_cuts() {
        run(&["--power", "20", "--mutant", "log-no-sync"]);
    }

    #[test]
    fn a_database_that_does_not_sync_is_caught_by_power_cuts() {
        run(&["--power", "20", "--mutant", "database-no-sync"]);
    }

    #[test]
    fn a_cursor_that_moves_from_anywhere_is_caught_by_pauses() {
        run(&["--only", "pause at `subscription", "--each", "3", "--mutant", "database-no-cursor-check"]);
    }
}
