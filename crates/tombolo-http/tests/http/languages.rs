//! Other languages' own packages against the bus: those for CloudEvents of PyPI and npm, and a generator of requests that holds the
//! running server against its OpenAPI document.
//!
//! Invariant: without the packages the tests are skipped by name; `cargo xtask test` brings them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tokio::process::Command;

use crate::stage::{Made, Stage};
use crate::subscriber::{Does, Subscriber};

/// How the generator makes requests; the id of a parked event is filled in.
const CONFIG: &str = include_str!("languages/schemathesis.toml");
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

/// Runs a program to its end, and shows what it printed if it failed.
async fn run(program: &Path, arguments: &[&str], stage: &Stage) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("BUS", &stage.url).env("NODE_PATH", packages().join("node_modules"));
    command.kill_on_drop(true).stdin(Stdio::null()).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: packages of PyPI, which cargo xtask test installs"]
async fn the_package_of_pypi_publishes_and_reads_unchanged() {
    let stage = Stage::start().await;
    run(&packages().join("python/bin/python"), &["tests/http/languages/round_trip.py"], &stage).await;
    assert_eq!(stage.all("posts").await.len(), 3);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: packages of npm, which cargo xtask test installs"]
async fn the_package_of_npm_publishes_and_reads_unchanged() {
    let stage = Stage::start().await;
    run(Path::new("node"), &["tests/http/languages/round_trip.js"], &stage).await;
    assert_eq!(stage.all("posts").await.len(), 3);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: packages of PyPI, which cargo xtask test installs"]
async fn the_openapi_document_is_true() {
    let subscriber = Subscriber::that(|_, _| Does::Answers(500, "")).await;
    let mut made =
        Made::push(json!({"name": "mail", "topic": "a", "url": subscriber.url(), "retry": {"attempts": 1}}));
    made.webhooks.allow.push("127.0.0.0/8".parse().unwrap());
    let stage = made.start().await;
    stage.publish("a", &json!({"specversion": "1.0", "id": "1", "source": "s", "type": "t"})).await;
    stage.stands_when("mail", |it| it["parked"] == 1).await;
    let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let parked = stage.parked("mail").await[0]["id"].as_str().unwrap().to_owned();
    std::fs::write(config.path(), CONFIG.replace("PARKED", &parked)).unwrap();
    let (config, document) = (config.path().to_str().unwrap(), stage.at("/openapi.json"));
    let examples = std::env::var("TOMBOLO_TEST_REQUESTS").unwrap_or_else(|_| "50".into());
    let arguments = [
        "--config-file",
        config,
        "run",
        &document,
        "--seed",
        "7",
        "--max-examples",
        &examples,
        "--phases",
        "coverage,fuzzing",
        "--no-color",
    ];
    run(&packages().join("python/bin/schemathesis"), &arguments, &stage).await;
    stage.end().await;
}
