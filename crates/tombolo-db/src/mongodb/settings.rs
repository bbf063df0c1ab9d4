//! The server on which the promise stands: looked at once before anything else.
//!
//! Invariant: a server without transactions, or one that could lose what it acknowledged, is refused by name with what to do.

use ::mongodb::bson::{Document, doc};

use super::Mongodb;
use crate::{Error, Kind, Result};

/// The oldest server with everything that is used here: transactions that may write to a new collection, upserts and
/// pipelines in updates, one clock.
const SERVER_MIN: (u32, u32) = (4, 4);

impl Mongodb {
    /// Refuses a server on which the promise would not hold.
    pub(super) async fn check_server(&self) -> Result<()> {
        let hello = self.database.run_command(doc! { "hello": 1 }).await?;
        check_kind(&hello)?;
        let built = self.database.run_command(doc! { "buildInfo": 1 }).await?;
        check_version(built.get_str("version").unwrap_or("of an unknown version"))?;
        // Who may not ask is not refused for it: only a member that keeps nothing on disk answers otherwise.
        let status = self.client.database("admin").run_command(doc! { "serverStatus": 1 }).await;
        status.map_or(Ok(()), |status| check_engine(&status))
    }
}

fn check_kind(hello: &Document) -> Result<()> {
    let is_member = hello.contains_key("setName");
    let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    if is_member || is_router {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsafe,
        "the MongoDB server stands alone, and has no transactions; expected a replica set, if only of one member: start it with --replSet rs0 and run rs.initiate() once",
    ))
}

fn check_version(version: &str) -> Result<()> {
    if parse(version).is_some_and(|found| found >= SERVER_MIN) {
        return Ok(());
    }
    let (major, minor) = SERVER_MIN;
    Err(Error::new(
        Kind::Unsafe,
        format!("the server is MongoDB {version}; expected {major}.{minor} or newer: use a newer one"),
    ))
}

fn check_engine(status: &Document) -> Result<()> {
    let engine = status.get_document("storageEngine");
    let is_kept = engine.map_or(true, |engine| engine.get_bool("persistent").unwrap_or(true));
    if is_kept {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsafe,
        "the server runs with storage.engine = inMemory, which loses commits when it stops; expected wiredTiger",
    ))
}

/// Reads `7.0.14`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stands_alone_is_refused_with_what_to_do() {
        let error = check_kind(&doc! { "isWritablePrimary": true }).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe);
        assert!(
            error.to_string().contains("--replSet") && error.to_string().contains("rs.initiate()"),
            "{error}"
        );
        assert!(check_kind(&doc! { "setName": "rs0" }).is_ok());
        assert!(check_kind(&doc! { "msg": "isdbgrid" }).is_ok());
    }

    #[test]
    fn old_servers_are_refused_with_what_is_expected() {
        for sound in ["4.4.29", "5.0.0", "7.0.14", "8.2.1-rc0"] {
            assert!(check_version(sound).is_ok(), "{sound}");
        }
        for old in ["4.2.25", "3.6.23", "of an unknown version"] {
            let error = check_version(old).unwrap_err().to_string();
            assert!(error.contains(old) && error.contains("4.4"), "{error}");
        }
    }

    #[test]
    fn a_server_that_keeps_nothing_on_disk_is_refused() {
        let engine = |persistent: bool| doc! { "storageEngine": { "name": "any", "persistent": persistent } };
        assert!(check_engine(&engine(true)).is_ok() && check_engine(&doc! {}).is_ok());
        assert!(check_engine(&engine(false)).unwrap_err().to_string().contains("inMemory"));
    }
}
