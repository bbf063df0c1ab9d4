//! A small part of the fault run with a fixed seed, for every test run: one kill at each barrier, some at random.

use std::process::Command;

#[test]
fn a_kill_at_every_barrier_loses_nothing() {
    let run = Command::new(env!("CARGO_BIN_EXE_tombolo-faults"))
        .args(["--each", "1", "--random", "6", "--seed", "7"])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    assert!(said.contains("19 kills landed"), "{said}");
}
