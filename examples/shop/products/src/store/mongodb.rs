//! `products` on MongoDB.
//!
//! Of two who change one product at once the second is refused, nothing of it is kept, and it is answered 503: try again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tombolo::Result;
use tombolo::mongodb::driver::bson::{Document, doc};
use tombolo::mongodb::driver::{Collection, Cursor};
use tombolo::mongodb::{Mongodb, Tx};

use super::Store;
use crate::Product;

/// Every product under its id.
const PRODUCTS: &str = "products";

/// A product as its collection has it.
#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(rename = "_id")]
    id: String,
    title: String,
    price_cents: i64,
    #[serde(default)]
    details: Map<String, Value>,
}

impl From<Row> for Product {
    fn from(Row { id, title, price_cents, details }: Row) -> Self {
        Self { id, title, price_cents, details }
    }
}

fn products(database: &Mongodb) -> Collection<Row> {
    database.database().collection(PRODUCTS)
}

fn with(id: &str) -> Document {
    doc! { "_id": id }
}

async fn read(mut found: Cursor<Row>) -> Result<Vec<Product>> {
    let mut products = Vec::new();
    while found.advance().await? {
        products.push(found.deserialize_current()?.into());
    }
    Ok(products)
}

impl Store for Mongodb {
    async fn put(tx: &mut Tx, product: &Product) -> Result<()> {
        let products: Collection<Row> = tx.collection(PRODUCTS);
        let Product { id, title, price_cents, details } = product.clone();
        let row = Row { id, title, price_cents, details };
        products.replace_one(with(&product.id), row).upsert(true).session(tx.session()).await?;
        Ok(())
    }

    async fn find_in(tx: &mut Tx, id: &str) -> Result<Option<Product>> {
        let products: Collection<Row> = tx.collection(PRODUCTS);
        Ok(products.find_one(with(id)).session(tx.session()).await?.map(Product::from))
    }

    async fn find(&self, id: &str) -> Result<Option<Product>> {
        Ok(products(self).find_one(with(id)).await?.map(Product::from))
    }

    async fn find_all(&self, ids: &BTreeSet<String>) -> Result<Vec<Product>> {
        let ids: Vec<&String> = ids.iter().collect();
        let these = doc! { "_id": { "$in": ids } };
        read(products(self).find(these).sort(doc! { "_id": 1 }).await?).await
    }

    async fn list(&self, most: usize) -> Result<Vec<Product>> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        read(products(self).find(doc! {}).sort(doc! { "_id": 1 }).limit(most).await?).await
    }
}
