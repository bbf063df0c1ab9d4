//! `tombolo new service`: what is made is a service, and its own test passes.

use std::path::Path;
use std::process::Command;

use crate::stage::{Stage, text};

/// The versions that this checkout is built with, so that the new service is built from what is there already.
const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");

#[test]
fn a_folder_that_is_there_is_left_alone() {
    let stage = Stage::with_users();
    let said = stage.must(&["new", "service", "order-notes"]);
    assert!(said.contains("cargo test"), "{said}");
    let lib = stage.path("order-notes/src/lib.rs");
    assert!(std::fs::read_to_string(&lib).unwrap().contains("order-notes.noted.v1"));
    std::fs::write(&lib, "mine").unwrap();
    let said = stage.refused(&["new", "service", "order-notes"], 1);
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(std::fs::read_to_string(&lib).unwrap(), "mine");
    let said = stage.refused(&["new", "service", "7up"], 2);
    assert!(said.contains("starting with a letter"), "{said}");
}

#[test]
#[ignore = "slow: compiles a service of its own"]
fn a_new_service_compiles_and_passes_its_own_test() {
    let stage = Stage::with_users();
    stage.must(&["new", "service", "order-notes"]);
    let folder = stage.path("order-notes");
    std::fs::copy(LOCK, folder.join("Cargo.lock")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--quiet"]).current_dir(&folder);
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-service"));
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
    let output = cargo.output().unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("2 passed"), "{said}");
}
