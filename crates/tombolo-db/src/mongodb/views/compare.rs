//! Reading two builds of a view in MongoDB, to compare them.
//!
//! A document has no declared columns: what counts as one is each field that some document of the collection has. Its key is
//! its `_id`.
//!
//! Invariant: everything is read in one transaction, which sees one moment. The server ends it after its limit
//! (`transactionLifetimeLimitSeconds`), so a comparison that takes longer fails and changes nothing.

use std::collections::BTreeSet;

use ::mongodb::ClientSession;
use ::mongodb::bson::doc;
use async_trait::async_trait;
use serde_json::{Map, Value};

use super::super::Mongodb;
use super::tables;
use crate::comparing::{self, Column, Common, Snapshot};
use crate::{Build, Compared, Result, Sample};

/// The field by which a document is known.
const KEY: &str = "_id";

type Fields = Map<String, Value>;

pub(super) async fn compare(
    database: &Mongodb,
    old: &Build,
    new: &Build,
    sample: Sample,
) -> Result<Vec<Compared>> {
    let (tables, others) = (tables(old), tables(new));
    let names = tables.names().chain(others.names()).map(str::to_owned).collect();
    let mut moment = Moment { database: database.clone(), session: database.session().await? };
    let compared = comparing::compare(&mut moment, names, [old, new], sample).await;
    moment.session.abort_transaction().await.ok();
    compared
}

/// One moment of the database.
struct Moment {
    database: Mongodb,
    session: ClientSession,
}

impl Moment {
    /// Reads every document of a collection; `false` if the build has no such collection.
    async fn read(
        &mut self,
        build: &Build,
        name: &str,
        with: &mut (dyn FnMut(Fields) + Send),
    ) -> Result<bool> {
        let tables = tables(build);
        if !tables.names().any(|declared| declared == name) {
            return Ok(false);
        }
        let documents = self.database.database.collection::<Fields>(&tables.collection(name)?);
        let mut found = documents.find(doc! {}).session(&mut self.session).await?;
        while let Some(fields) = found.next(&mut self.session).await.transpose()? {
            with(fields);
        }
        Ok(true)
    }
}

#[async_trait]
impl Snapshot for Moment {
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>> {
        let mut names = BTreeSet::new();
        let mut add = |fields: Fields| names.extend(fields.into_iter().map(|(name, _)| name));
        if !self.read(build, table, &mut add).await? {
            return Ok(Vec::new());
        }
        names.remove(KEY);
        let fields = names.into_iter().map(|name| Column { name, key: false });
        Ok([Column { name: KEY.to_owned(), key: true }].into_iter().chain(fields).collect())
    }

    async fn each(
        &mut self,
        build: &Build,
        table: &str,
        common: &Common,
        with: &mut (dyn FnMut(String, String) + Send),
    ) -> Result<()> {
        let mut add = |mut fields: Fields| {
            let key = fields.get(KEY).cloned().unwrap_or_default();
            fields.retain(|name, _| common.columns.contains(name));
            with(Value::Array(vec![key]).to_string(), Value::Object(fields).to_string());
        };
        self.read(build, table, &mut add).await.map(drop)
    }
}
