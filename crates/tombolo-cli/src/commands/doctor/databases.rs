//! Each service's own database: whether it can be reached, has Tombolo's tables, and keeps what is committed.
//!
//! Invariant: a database is not made by looking at it.

use super::checks::Checks;
use super::programs::Service;
use crate::commands::schema::{self, Found};

const READY: &str = "its database is ready";
/// What MongoDB's is, besides.
const UNVERIFIED: &str = "unverified: no test of Tombolo has run against MongoDB itself";

/// Looks at the database of a service.
pub(crate) async fn look(service: &Service, checks: &mut Checks) {
    let name = service.name.as_str();
    let Some(url) = &service.database else { return };
    match schema::look(url).await {
        Ok(Found::Elsewhere) => checks.pass(
            name,
            READY,
            "its file is open in the service, which looked when it started; every commit is synced",
        ),
        Ok(Found::Ready(version)) if url.starts_with("mongodb") => {
            let fix = "run its suite on a replica set of yours (docs/mongodb.md), or use another database";
            checks.warn(name, READY, &format!("Tombolo's collections, version {version}; {UNVERIFIED}"), fix);
        }
        Ok(Found::Ready(version)) => {
            let found = format!("Tombolo's tables, version {version}; settings keep what is committed");
            checks.pass(name, READY, &found);
        }
        Ok(Found::NotMade(_)) if service.makes_tables => checks.pass(
            name,
            READY,
            "not made yet: `tombolo dev` makes it; elsewhere make the database, and run `tombolo schema apply`",
        ),
        Ok(Found::NotMade(error)) => {
            let fix = "make the database, then run `tombolo schema apply`: the manifest only has the tables checked (TOMBOLO_SCHEMA)";
            checks.fail(name, READY, &error.message, fix);
        }
        Err(error) => {
            let fix = "start it, or do what the error says; `tombolo schema check` looks again";
            checks.fail(name, READY, &error.message, fix);
        }
    }
}
