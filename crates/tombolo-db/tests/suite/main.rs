//! The conformance suite, run against every database, and against databases that are broken on purpose: a suite
//! that claims to catch a fault is shown to catch it. Invariant: each fault of `faults::FAULTS` fails a case.

#![expect(clippy::unwrap_used, reason = "a broken test ends by panicking")]

#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "documents")]
mod documents;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "mutants")]
mod faults;

use std::sync::Arc;

use tombolo_db::conformance;

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_passes_the_suite() {
    conformance::run("sqlite", sqlite::ABILITIES, Arc::new(sqlite::Files::new())).await;
}

#[cfg(feature = "documents")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn documents_pass_the_suite() {
    conformance::run("documents", documents::ABILITIES, Arc::new(documents::Files::new())).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes_the_suite() {
    let Some(server) = postgres::Server::start("suite").await else { return };
    let server = Arc::new(server);
    let name = "postgres";
    let report = conformance::report(name, postgres::ABILITIES, server.clone(), &|_| true).await;
    server.remove().await;
    let failed: Vec<_> =
        report.iter().filter(|(_, outcome)| matches!(outcome, conformance::Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{name}: {} of {} cases failed: {failed:#?}", failed.len(), report.len());
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mariadb_passes_the_suite() {
    let Some(server) = mysql::Server::start("suite").await else { return };
    let server = Arc::new(server);
    let name = "mariadb";
    let report = conformance::report(name, mysql::ABILITIES, server.clone(), &|_| true).await;
    server.remove().await;
    let failed: Vec<_> =
        report.iter().filter(|(_, outcome)| matches!(outcome, conformance::Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{name}: {} of {} cases failed: {failed:#?}", failed.len(), report.len());
}

#[cfg(feature = "mongodb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mongodb_passes_the_suite() {
    let Some(server) = mongodb::Server::start("suite").await else { return };
    let server = Arc::new(server);
    let name = "mongodb";
    let report = conformance::report(name, mongodb::ABILITIES, server.clone(), &|_| true).await;
    server.remove().await;
    let failed: Vec<_> =
        report.iter().filter(|(_, outcome)| matches!(outcome, conformance::Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{name}: {} of {} cases failed: {failed:#?}", failed.len(), report.len());
}
