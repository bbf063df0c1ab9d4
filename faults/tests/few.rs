//! A small part of the fault run with a fixed seed, for every test run: one kill at each barrier, some at random.

use std::io;
use std::process::Command;

#[test]
fn a_kill_at_every_barrier_loses_nothing() -> io::Result<()> {
    check("sqlite")
}

#[test]
fn a_kill_at_every_barrier_loses_nothing_on_postgres() -> io::Result<()> {
    if std::env::var_os("TOMBOLO_TEST_POSTGRES").is_none_or(|url| url.is_empty()) {
        eprintln!("skipped: postgres: TOMBOLO_TEST_POSTGRES is not set; run cargo xtask test --install");
        return Ok(());
    }
    check("postgres")
}

fn check(database: &str) -> io::Result<()> {
    let run = Command::new(env!("CARGO_BIN_EXE_tombolo-faults"))
        .args(["--database", database, "--each", "1", "--random", "6", "--seed", "7"])
        .output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    assert!(said.contains("19 kills landed"), "{said}");
    Ok(())
}
