//! Generates `crates/tombolo-bus/src/server/generated.rs` from `bus.proto`.
//!
//! Run it after a change of the protocol; with `--check` it writes nothing and fails if the committed code is
//! stale. Invariant: the output depends on the protocol and on this crate's lock file alone.

use std::error::Error;
use std::path::{Path, PathBuf};

const HEADER: &str = "\
//! @generated from `proto/tombolo/bus/v1/bus.proto`: the protocol's messages, client and server.
//!
//! Not edited by hand: `cargo run --manifest-path crates/tombolo-bus/proto/generate/Cargo.toml` writes it.

";

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the generator has no parent folder")?;
    let committed = proto.with_file_name("src").join("server").join("generated.rs");
    let generated = generate(proto)?;
    match std::env::args().nth(1).as_deref() {
        None => std::fs::write(&committed, generated)?,
        Some("--check") => check(&committed, &generated)?,
        Some(other) => return Err(format!("found argument {other:?}; expected none, or --check").into()),
    }
    Ok(())
}

fn generate(proto: &Path) -> Result<String, Box<dyn Error>> {
    let descriptors = protox::compile(["tombolo/bus/v1/bus.proto"], [proto])?;
    let scratch = scratch_folder()?;
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(&scratch)
        .compile_fds(descriptors)?;
    let code = std::fs::read_to_string(scratch.join("tombolo.bus.v1.rs"))?;
    std::fs::remove_dir_all(&scratch)?;
    Ok(format!("{HEADER}{code}"))
}

fn scratch_folder() -> std::io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("tombolo-bus-protocol-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn check(committed: &Path, generated: &str) -> Result<(), Box<dyn Error>> {
    if std::fs::read_to_string(committed)? == generated {
        return Ok(());
    }
    let path = committed.display();
    Err(format!("{path} is not what bus.proto says; run this without --check and commit the result").into())
}
