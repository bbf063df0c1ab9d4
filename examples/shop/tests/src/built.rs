//! The binaries under test. Invariant: they are built from what is here now, once, before the first shop starts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a MongoDB that tests may use; only for them `products` is built for it.
pub(crate) const MONGODB: &str = "TOMBOLO_TEST_MONGODB";

const PACKAGES: [&str; 8] = [
    "tombolo-cli",
    "shop-users",
    "shop-products",
    "shop-orders",
    "shop-order-history",
    "shop-mail",
    "shop-one",
    "shop-seed",
];

/// The folder of the binaries.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build)
}

/// One of them.
pub(crate) fn binary(name: &str) -> PathBuf {
    folder().join(name)
}

/// Cargo builds the binaries of other packages only when it is told to. The profile is that of this test.
fn build() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.ancestors().nth(2).expect("a test runs in target/PROFILE/deps").to_owned();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("build").arg("--quiet").arg("--target-dir").arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    if std::env::var_os(MONGODB).is_some_and(|url| !url.is_empty()) {
        cargo.args(["--features", "shop-products/mongodb"]);
    }
    let status = cargo.status().unwrap();
    assert!(status.success(), "the shop does not build: {status}");
    folder
}
