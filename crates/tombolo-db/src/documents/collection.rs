//! Collections: named sets of documents of one type, each document under its key.
//!
//! ```
//! # use tombolo_db::documents::Collection;
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct Product;
//! const PRODUCTS: Collection<Product> = Collection::new("products");
//! /// An index, kept by hand: `maker/id`, with nothing under it. Written and removed in the transaction of the document.
//! const BY_MAKER: Collection<()> = Collection::new("products-by-maker");
//! ```
//!
//! The store keeps no secondary index: whoever looks for documents by something else than their key keeps a second
//! collection whose keys begin with it, as above, and reads it by [`super::Keys::prefix`].
//!
//! Invariant: a name is a collection of the service or one of the view's build, never both, and never a table of Tombolo's.

use std::marker::PhantomData;

use redb::{ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failure::{unreadable, unwritable};
use super::rows::Json;
use super::{DOCUMENT_BYTES_MAX, KEY_BYTES_MAX, Keys};
use crate::{Error, Kind, Result, Tables};

/// The longest name of a collection.
const NAME_BYTES_MAX: usize = 64;

/// A named set of documents of type `T`, each under its key. Make it a `const`.
///
/// A collection of the service itself is there when its first document is.
pub struct Collection<T> {
    name: &'static str,
    is_of_view: bool,
    documents: PhantomData<fn(T) -> T>,
}

impl<T> Collection<T> {
    /// A collection of the service itself. Its name is 1 to 64 lowercase letters, digits, `-` and `_`.
    ///
    /// # Panics
    /// For another name; in a `const` that is an error of the compiler.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(is_name(name), "a collection's name is 1 to 64 lowercase letters, digits, `-` and `_`");
        Self { name, is_of_view: false, documents: PhantomData }
    }

    /// A collection of a view, which declared it with `.tables("{name}")`: each build of the view has one of its own.
    ///
    /// # Panics
    /// As [`Collection::new`].
    #[must_use]
    pub const fn of_view(name: &'static str) -> Self {
        Self { is_of_view: true, ..Self::new(name) }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether each build of a view has its own.
    pub(super) const fn is_of_view(&self) -> bool {
        self.is_of_view
    }

    /// What the store calls it: in a build of a view, if it is of one.
    pub(super) fn place(&self, tables: impl FnOnce(&str) -> Result<String>) -> Result<String> {
        if self.is_of_view { tables(self.name) } else { Ok(format!("own/{}", self.name)) }
    }
}

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Collection<T> {}

impl<T> std::fmt::Debug for Collection<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collection").field("name", &self.name).finish_non_exhaustive()
    }
}

const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty() && bytes.len() <= NAME_BYTES_MAX
}

/// The table of the store that a collection is.
pub(super) fn table(place: &str) -> TableDefinition<'_, &'static str, Json> {
    TableDefinition::new(place)
}

/// The document under a key.
pub(super) fn get<T: DeserializeOwned>(
    documents: &impl ReadableTable<&'static str, Json>,
    name: &str,
    key: &str,
) -> Result<Option<T>> {
    documents.get(key)?.map(|document| read(name, key, document.value())).transpose()
}

/// The first `most` documents of some keys.
pub(super) fn scan<T: DeserializeOwned>(
    documents: &impl ReadableTable<&'static str, Json>,
    name: &str,
    keys: &Keys,
    most: usize,
) -> Result<Vec<(String, T)>> {
    let Some(bounds) = keys.bounds() else { return Ok(Vec::new()) };
    let range = documents.range::<&str>(bounds)?;
    let pair = |found: std::result::Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, Json>), _>| {
        let (key, document) = found.map_err(|error: redb::StorageError| Error::from(error))?;
        Ok((key.value().to_owned(), read(name, key.value(), document.value())?))
    };
    if keys.is_backwards() {
        range.rev().take(most).map(pair).collect()
    } else {
        range.take(most).map(pair).collect()
    }
}

/// A document as it is stored, if its key and size may be.
pub(super) fn written(name: &str, key: &str, document: &impl Serialize) -> Result<Vec<u8>> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::new(
            Kind::Database,
            format!(
                "found a key of {} bytes for collection {name:?}; expected 1 to {KEY_BYTES_MAX}",
                key.len()
            ),
        ));
    }
    let what = format!("document {key:?} of collection {name:?}");
    let json = serde_json::to_vec(document).map_err(|error| unwritable(&what, error))?;
    if json.len() > DOCUMENT_BYTES_MAX {
        return Err(Error::new(
            Kind::Database,
            format!(
                "{what} has {} bytes; expected at most {DOCUMENT_BYTES_MAX}: keep large things as files, and where they are here",
                json.len()
            ),
        ));
    }
    Ok(json)
}

fn read<T: DeserializeOwned>(name: &str, key: &str, document: &[u8]) -> Result<T> {
    let what = || format!("document {key:?} of collection {name:?}");
    serde_json::from_slice(document).map_err(|error| unreadable(&what(), error))
}

/// The build in hand has no such collection, or no build is in hand.
pub(super) fn of_build(tables: Option<&Tables>, name: &str) -> Result<String> {
    match tables {
        Some(tables) => tables.collection(name),
        None => Err(Error::new(
            Kind::View,
            format!(
                "collection {name:?} is one of a view; read it in the view's build: `reading.of_view(app.view(…).await?.tables())`"
            ),
        )),
    }
}
