//! Tombolo's collections in MongoDB: made, brought up to date or checked before anything else.
//!
//! Collections and indexes are made outside of any transaction, each as often as anybody likes; the version is written when
//! all of them are there. So whoever comes after an interruption does the rest.
//!
//! Invariant: a version only adds to the one before it, so that version N and N−1 run together; and the collections belong to
//! one service for good.

use ::mongodb::bson::{Document, doc};
use ::mongodb::options::IndexOptions;
use ::mongodb::{ClientSession, IndexModel};
use tombolo_event::Generations;

use super::Mongodb;
use super::failure::{conflicting, is_duplicate, missing, number};
use super::rows::{
    self, BUILD, CALL, CLAIMS, CURSOR, HALT, KNOWN, LATER, LEADER, LeaderRow, MEMBER, ONE, OPENING, OUTBOX,
    PARKED, PARTITION, REQUEST, SERVICE, STRIPE, SUBSCRIPTION, ServiceRow, VIEW,
};
use super::session::Tries;
use crate::{Kind, Owner, Result, Schema, owner};

/// The version of the collections that this program makes.
pub(super) const VERSION: i64 = 1;
/// The server's answer for a collection that is there.
const IS_THERE: i32 = 48;

/// An index: its keys in order, each ascending, and whether they are unique.
type Index = (&'static [&'static str], bool);

/// Every collection with its indexes beside that of `_id`.
const COLLECTIONS: &[(&str, &[Index])] = &[
    (ONE, &[]),
    (PARTITION, &[]),
    (STRIPE, &[]),
    (OUTBOX, &[(&["sequence", "at", "nth"], false), (&["partition", "sequence"], false), (&["id"], false)]),
    (LATER, &[(&["due_us", "at", "nth"], false)]),
    (KNOWN, &[]),
    (HALT, &[]),
    (SUBSCRIPTION, &[]),
    (CURSOR, &[(&["subscription", "topic", "partition"], true)]),
    (MEMBER, &[(&["subscription", "replica"], true), (&["replica"], false)]),
    (CALL, &[(&["subscription", "topic", "partition", "sequence"], true)]),
    (
        PARKED,
        &[
            (&["subscription", "topic", "partition", "sequence"], true),
            (&["subscription", "topic", "key_hash", "partition", "sequence"], false),
        ],
    ),
    (REQUEST, &[(&["open", "subscription", "_id"], false)]),
    (VIEW, &[]),
    (BUILD, &[(&["view", "version", "number"], true), (&["subscription"], false)]),
];

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct VersionRow {
    version: i64,
}

/// What stands in the database beside the user's collections, for a shell of MongoDB: in the names that begin with `prefix`.
#[must_use]
pub fn schema_text(prefix: &str) -> String {
    let mut text = format!("// version {VERSION} of Tombolo's collections in MongoDB\n");
    for (name, indexes) in COLLECTIONS {
        text.push_str(&format!("db.createCollection(\"{prefix}{name}\")\n"));
        for (keys, unique) in *indexes {
            let keys = keys.join(": 1, ");
            let unique = if *unique { ", { unique: true }" } else { "" };
            text.push_str(&format!("db.{prefix}{name}.createIndex({{ {keys}: 1 }}{unique})\n"));
        }
    }
    text.push_str(&format!(
        "db.{prefix}{ONE}.updateOne({{ _id: \"version\" }}, {{ $max: {{ version: NumberLong({VERSION}) }} }}, {{ upsert: true }})\n"
    ));
    text
}

impl Mongodb {
    /// Makes Tombolo's collections, or brings them up to date; returns their version.
    ///
    /// # Errors
    /// `Unsafe` for a server on which the promise would not hold; `Unavailable`, `Database`.
    pub async fn apply(&self) -> Result<i64> {
        self.check_server().await?;
        for (name, indexes) in COLLECTIONS {
            self.make_collection(&format!("{}{name}", self.prefix)).await?;
            for (keys, unique) in *indexes {
                let keys: Document = keys.iter().map(|key| ((*key).to_owned(), 1.into())).collect();
                let options = IndexOptions::builder().unique(*unique).build();
                let index = IndexModel::builder().keys(keys).options(options).build();
                self.rows::<Document>(name).create_index(index).await?;
            }
        }
        let set = doc! { "$max": { "version": VERSION } };
        let written =
            self.rows::<Document>(ONE).update_one(doc! { "_id": rows::VERSION }, set).upsert(true).await;
        // Of two that write it first at once, one is refused: it is written.
        written.map(drop).or_else(|error| if is_duplicate(&error) { Ok(()) } else { Err(error) })?;
        self.version().await
    }

    /// Checks Tombolo's collections, and changes nothing. Returns their version.
    ///
    /// # Errors
    /// `Schema` for collections that are missing or older than this program's; `Unavailable`, `Database`.
    pub async fn check(&self) -> Result<i64> {
        let found = self.version().await?;
        if found < VERSION { Err(missing(found)) } else { Ok(found) }
    }

    /// Makes a collection, unless it is there.
    pub(super) async fn make_collection(&self, name: &str) -> Result<()> {
        match self.database.create_collection(name).await {
            Err(error) if number(&error) != Some(IS_THERE) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The version that is there; 0 if there is none. A newer one than ours is fine: it only adds.
    async fn version(&self) -> Result<i64> {
        let found = self.rows::<VersionRow>(ONE).find_one(doc! { "_id": rows::VERSION }).await?;
        Ok(found.map_or(0, |found| found.version))
    }

    pub(super) async fn prepare_collections(&self, owner: &Owner, schema: Schema) -> Result<()> {
        tracing::warn!(
            "MongoDB as a service's database is unverified: no test of Tombolo has run against MongoDB itself"
        );
        self.check_server().await?;
        match self.check().await {
            Err(error) if error.kind() == Kind::Schema && schema == Schema::Apply => {
                self.apply().await?;
            }
            checked => {
                checked?;
            }
        }
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let owned = self.own(&mut session, owner).await;
            if let Some(()) = tries.end(&mut session, owned).await? {
                return Ok(());
            }
        }
    }

    /// Makes the database `owner`'s, unless it is somebody's.
    async fn own(&self, session: &mut ClientSession, owner: &Owner) -> Result<()> {
        if let Some(row) = self.one::<ServiceRow>(session, SERVICE).await? {
            return owner::check(owner, &row.service, &row.generations);
        }
        // Whoever does this at the same time is refused, and finds it done.
        self.touch(session, OPENING).await?;
        let generations = Generations::first(owner.partitions)?;
        let row = ServiceRow {
            service: owner.service.to_string(),
            generations: generations.clone(),
            incarnation: None,
        };
        self.put_one(session, SERVICE, &row).await?;
        let leader = LeaderRow { epoch: 0, holder: None, until_ms: 0, halt: None, session: None };
        self.put_one(session, LEADER, &leader).await?;
        self.touch(session, CLAIMS).await?;
        self.store_generations(session, &generations).await
    }

    pub(super) async fn put_one(
        &self,
        session: &mut ClientSession,
        name: &str,
        row: &impl serde::Serialize,
    ) -> Result<()> {
        let set = doc! { "$set": rows::fields(row)? };
        let rows = self.rows::<Document>(ONE);
        let put = rows.update_one(doc! { "_id": name }, set);
        put.upsert(true).session(session).await.map(drop).map_err(conflicting)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PREFIX;
    use super::*;

    #[test]
    fn what_is_printed_names_every_collection_and_index() {
        let text = schema_text(PREFIX);
        for expected in [
            "db.createCollection(\"tombolo_outbox\")",
            "db.tombolo_outbox.createIndex({ sequence: 1, at: 1, nth: 1 })",
            "db.tombolo_cursor.createIndex({ subscription: 1, topic: 1, partition: 1 }, { unique: true })",
            "{ $max: { version: NumberLong(1) } }",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
