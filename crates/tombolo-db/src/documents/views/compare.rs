//! Reading two builds of a view in the store, to compare them.
//!
//! A document has no declared columns: what counts as one is each field that some document of the collection has, and the
//! key of the document, as `_key`. A document that is no object is a field of its own, `_value`.
//!
//! Invariant: everything is read in one snapshot. All of it is read on a thread that may block.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use redb::{ReadTransaction, ReadableTable};
use serde_json::{Map, Value};

use super::super::Documents;
use super::super::store::blocking;
use super::super::{collection, rows};
use super::tables;
use crate::comparing::{self, Column, Common, Snapshot};
use crate::{Build, Compared, Result, Sample};

/// The column of a document's key.
const KEY: &str = "_key";
/// The column of a document that is no object.
const VALUE: &str = "_value";
/// How many documents are read between two turns of whoever compares.
const PAGE: usize = 1_000;

pub(super) async fn compare(
    database: &Documents,
    old: &Build,
    new: &Build,
    sample: Sample,
) -> Result<Vec<Compared>> {
    let (tables, others) = (tables(old), tables(new));
    let names = tables.names().chain(others.names()).map(str::to_owned).collect();
    let mut moment = Moment(Arc::new(database.store.snapshot().await?));
    comparing::compare(&mut moment, names, [old, new], sample).await
}

/// One moment of the store.
struct Moment(Arc<ReadTransaction>);

impl Moment {
    /// The documents of a collection behind `after`, with their keys; none if the build has no such collection.
    async fn page(&self, build: &Build, name: &str, after: Option<String>) -> Result<Option<Vec<Document>>> {
        let tables = tables(build);
        if !tables.names().any(|declared| declared == name) {
            return Ok(None);
        }
        let (snapshot, place) = (Arc::clone(&self.0), tables.collection(name)?);
        blocking(move || {
            let documents = match snapshot.open_table(collection::table(&place)) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                opened => opened?,
            };
            let from = match &after {
                Some(after) => std::ops::Bound::Excluded(after.as_str()),
                None => std::ops::Bound::Unbounded,
            };
            let page = ReadableTable::range::<&str>(&documents, (from, std::ops::Bound::Unbounded))?;
            let page = page.take(PAGE).map(|found| {
                let (key, document) = found?;
                Ok((key.value().to_owned(), fields(rows::read(document.value())?)))
            });
            page.collect::<Result<Vec<_>>>().map(Some)
        })
        .await
    }
}

/// A key and what is under it.
type Document = (String, Map<String, Value>);

fn fields(document: Value) -> Map<String, Value> {
    match document {
        Value::Object(fields) => fields,
        other => Map::from_iter([(VALUE.to_owned(), other)]),
    }
}

#[async_trait]
impl Snapshot for Moment {
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>> {
        let (mut names, mut after) = (BTreeSet::new(), None);
        loop {
            let Some(page) = self.page(build, table, after.take()).await? else { return Ok(Vec::new()) };
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            names.extend(page.into_iter().flat_map(|(_, fields)| fields.into_iter().map(|(name, _)| name)));
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
        let mut after = None;
        while let Some(page) = self.page(build, table, after.take()).await? {
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, mut fields) in page {
                fields.retain(|name, _| common.columns.contains(name));
                let key = Value::String(key);
                fields.insert(KEY.to_owned(), key.clone());
                with(Value::Array(vec![key]).to_string(), Value::Object(fields).to_string());
            }
        }
        Ok(())
    }
}
