//! What `products` asks of its own database, and in a file for each, how documents in a file and MongoDB do it.
//!
//! The same program runs on either; the address decides (`main.rs`). Invariant: everything that differs between the databases
//! is below here.

mod documents;
#[cfg(feature = "mongodb")]
mod mongodb;

use std::collections::BTreeSet;

use tombolo::{Database, Result};

use crate::Product;

/// A database that `products` can own.
pub trait Store: Database {
    /// Keeps a product, in the place of what was under its id.
    fn put(tx: &mut Self::Tx, product: &Product) -> impl Future<Output = Result<()>> + Send;

    /// The product as a transaction sees it, if there is one.
    fn find_in(tx: &mut Self::Tx, id: &str) -> impl Future<Output = Result<Option<Product>>> + Send;

    /// The product, if there is one.
    fn find(&self, id: &str) -> impl Future<Output = Result<Option<Product>>> + Send;

    /// Those of these products that there are, in the order of their ids.
    fn find_all(&self, ids: &BTreeSet<String>) -> impl Future<Output = Result<Vec<Product>>> + Send;

    /// The first so many products, in the order of their ids.
    fn list(&self, most: usize) -> impl Future<Output = Result<Vec<Product>>> + Send;
}
