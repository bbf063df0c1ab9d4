//! `products` on documents in a file.

use std::collections::BTreeSet;

use tombolo::Result;
use tombolo::documents::{Collection, Documents, Keys, Tx};

use super::Store;
use crate::Product;

/// Every product under its id.
const PRODUCTS: Collection<Product> = Collection::new("products");

impl Store for Documents {
    async fn put(tx: &mut Tx, product: &Product) -> Result<()> {
        Ok(tx.put(&PRODUCTS, &product.id, product).await?)
    }

    async fn find_in(tx: &mut Tx, id: &str) -> Result<Option<Product>> {
        Ok(tx.get(&PRODUCTS, id).await?)
    }

    async fn find(&self, id: &str) -> Result<Option<Product>> {
        Ok(self.read().await?.get(&PRODUCTS, id).await?)
    }

    async fn find_all(&self, ids: &BTreeSet<String>) -> Result<Vec<Product>> {
        let catalogue = self.read().await?;
        let mut products = Vec::new();
        for id in ids {
            products.extend(catalogue.get(&PRODUCTS, id).await?);
        }
        Ok(products)
    }

    async fn list(&self, most: usize) -> Result<Vec<Product>> {
        let products = self.read().await?.scan(&PRODUCTS, Keys::all(), most).await?;
        Ok(products.into_iter().map(|(_, product)| product).collect())
    }
}
