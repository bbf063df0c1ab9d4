//! Off-the-shelf clients of other languages verify tokens, and know nothing but the issuer's name: `PyJWT` and `jose`.
//!
//! Invariant: without the packages the tests are skipped by name; `cargo xtask test` brings them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use jsonwebtoken::Algorithm;
use tokio::process::Command;
use tombolo::Settings;

use crate::stage::{Identity, Stage};

/// Names the folder that `cargo xtask test` fills: `python/bin/…`, `node_modules/…`.
const PACKAGES: &str = "TOMBOLO_TEST_PACKAGES";

fn packages() -> PathBuf {
    match std::env::var(PACKAGES) {
        Ok(folder) if !folder.is_empty() => folder.into(),
        _ => panic!(
            "{PACKAGES} is not set; `cargo xtask test` installs the packages of PyPI and npm, and sets it"
        ),
    }
}

/// Whose a token is, as the client says; none if it does not take it.
async fn verified(program: &Path, script: &str, issuer: &str, token: &str) -> Option<String> {
    let mut command = Command::new(program);
    command
        .arg(script)
        .env("ISSUER", issuer)
        .env("TOKEN", token)
        .env("NODE_PATH", packages().join("node_modules"));
    command.kill_on_drop(true).stdin(Stdio::null()).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().await.unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}{error}");
    output.status.success().then(|| said.trim().to_owned())
}

/// Identity under the name of the address that it serves on.
async fn identity(stage: &Stage, algorithm: Algorithm) -> (Identity<'_>, String) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = stage.config();
    (config.issuer, config.algorithm) = (format!("http://{free}"), algorithm);
    let issuer = config.issuer.clone();
    let settings = Settings { listen: free.to_string(), ..Settings::default() };
    (stage.identity_at(config, settings).await, issuer)
}

/// `token` with other claims under the same signature.
fn tampered(token: &str) -> String {
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let mut claims = claims.to_owned();
    let last = if claims.pop() == Some('A') { 'B' } else { 'A' };
    format!("{header}.{claims}{last}.{signature}")
}

async fn verifies(program: &Path, script: &str) {
    for algorithm in [Algorithm::ES256, Algorithm::EdDSA] {
        let stage = Stage::new();
        let (identity, issuer) = identity(&stage, algorithm).await;
        let (ada, tokens) = identity.user("ada@example.org").await;
        assert_eq!(verified(program, script, &issuer, &tokens.access).await, Some(ada), "{algorithm:?}");
        for (what, token) in [("tampered", tampered(&tokens.access)), ("a refresh token", tokens.refresh)] {
            assert_eq!(verified(program, script, &issuer, &token).await, None, "{algorithm:?}, {what}");
        }
    }
}

#[tokio::test]
#[ignore = "slow: packages of PyPI, which cargo xtask test installs"]
async fn pyjwt_verifies_a_token_by_the_discovery_document_alone() {
    verifies(&packages().join("python/bin/python"), "tests/it/languages/verify.py").await;
}

#[tokio::test]
#[ignore = "slow: packages of npm, which cargo xtask test installs"]
async fn jose_verifies_a_token_by_the_discovery_document_alone() {
    verifies(Path::new("node"), "tests/it/languages/verify.js").await;
}
