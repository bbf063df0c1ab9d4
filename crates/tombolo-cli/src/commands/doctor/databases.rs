//! Each service's own database: whether it can be reached, has Tombolo's tables, and keeps what is committed.
//!
//! Invariant: a database is not made by looking at it.

use super::checks::Checks;
use super::programs::Service;
use crate::commands::schema;
use crate::error::Kind;

const READY: &str = "its database is ready";

/// Looks at the database of a service.
pub(crate) async fn look(service: &Service, checks: &mut Checks) {
    let name = service.name.as_str();
    let Some(url) = &service.database else { return };
    match schema::version(url).await {
        Ok(None) => checks.pass(
            name,
            READY,
            "its file is open in the service, which looked when it started; every commit is synced",
        ),
        Ok(Some(version)) => {
            checks.pass(
                name,
                READY,
                &format!("Tombolo's tables, version {version}; settings keep what is committed"),
            );
        }
        Err(error) if error.kind == Kind::NotFound => {
            checks.pass(
                name,
                READY,
                "not made yet: `tombolo dev` makes it, `tombolo schema apply` elsewhere",
            );
        }
        Err(error) => {
            checks.fail(
                name,
                READY,
                &error.message,
                "start it, or do what the error says; `tombolo schema check` looks again",
            );
        }
    }
}
