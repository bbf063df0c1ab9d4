//! Reading outside a transaction. Invariant: everything read through one [`Reading`] is of one moment.

use std::sync::Arc;

use redb::ReadTransaction;
use serde::de::DeserializeOwned;

use super::collection::{self, Collection, of_build};
use super::keys::Keys;
use super::store::blocking;
use crate::{Error, Kind, Result, Tables};

/// What was committed at one moment. It waits for no writer, and none waits for it; but what is removed meanwhile takes its
/// room in the file until it is dropped, so do not keep it.
#[derive(Clone)]
pub struct Reading {
    snapshot: Arc<ReadTransaction>,
    tables: Option<Tables>,
}

impl Reading {
    pub(super) fn new(snapshot: ReadTransaction) -> Self {
        Self { snapshot: Arc::new(snapshot), tables: None }
    }

    /// The same moment with the collections of a view's build, which [`Collection::of_view`] names.
    #[must_use]
    pub fn of_view(mut self, tables: &Tables) -> Self {
        self.tables = Some(tables.clone());
        self
    }

    /// The document under `key`, if there is one.
    ///
    /// # Errors
    /// `View` for a collection that the view's build does not have; `Database` for a document that is no `T`; `Unavailable`.
    pub async fn get<T>(&self, collection: &Collection<T>, key: &str) -> Result<Option<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (name, key) = (collection.name(), key.to_owned());
        let found = self.look(collection, move |documents| collection::get(documents, name, &key));
        Ok(found.await?.flatten())
    }

    /// The first `most` documents whose keys are among `keys`, with their keys, in the order of the keys' bytes.
    ///
    /// # Errors
    /// As [`Reading::get`].
    pub async fn scan<T>(
        &self,
        collection: &Collection<T>,
        keys: Keys,
        most: usize,
    ) -> Result<Vec<(String, T)>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let name = collection.name();
        let found = self.look(collection, move |documents| collection::scan(documents, name, &keys, most));
        Ok(found.await?.unwrap_or_default())
    }

    /// Looks into a collection; one of the service's own that nothing was written to is not there.
    async fn look<T, F: Send + 'static>(
        &self,
        collection: &Collection<T>,
        look: impl FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<F> + Send + 'static,
    ) -> Result<Option<F>> {
        let is_of_view = collection.is_of_view();
        let place = collection.place(|name| of_build(self.tables.as_ref(), name))?;
        let snapshot = Arc::clone(&self.snapshot);
        blocking(move || match snapshot.open_table(collection::table(&place)) {
            Ok(documents) => look(&documents).map(Some),
            Err(redb::TableError::TableDoesNotExist(_)) if !is_of_view => Ok(None),
            Err(redb::TableError::TableDoesNotExist(_)) => Err(dropped(&place)),
            Err(error) => Err(error.into()),
        })
        .await
    }
}

fn dropped(place: &str) -> Error {
    Error::new(
        Kind::View,
        format!(
            "the collection {place:?} is gone, because the build of the view was dropped; read the live one"
        ),
    )
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("tables", &self.tables).finish_non_exhaustive()
    }
}
