//! MongoDB under a role. Invariant: nothing guards against doubles.

use jiff::Timestamp;
use tombolo::Result;
use tombolo::mongodb::driver::Collection;
use tombolo::mongodb::driver::bson::{Document, doc};
use tombolo::mongodb::{Mongodb, Tx};

use super::{Placed, Store};

/// A document of an order or a copy. Documents have no order of their own: `place` is the moment in which it was written.
fn document(placed: &Placed) -> Document {
    let place = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    doc! { "place": place, "id": &placed.id, "key": &placed.key, "n": placed.n }
}

impl Store for Mongodb {
    const COPIES: &'static str = "{copies}";

    async fn make_orders(self) -> Result<()> {
        // Somebody else may have made it.
        let there = self.database().list_collection_names().await?;
        if !there.iter().any(|name| name == "orders") {
            self.database().create_collection("orders").await.ok();
        }
        Ok(())
    }

    async fn keep_order(tx: &mut Tx, placed: &Placed) -> Result<()> {
        let orders: Collection<Document> = tx.collection("orders");
        orders.insert_one(document(placed)).session(tx.session()).await?;
        Ok(())
    }

    async fn keep_copy(tx: &mut Tx, placed: &Placed) -> Result<()> {
        let copies: Collection<Document> = tx.view_collection("copies")?;
        copies.insert_one(document(placed)).session(tx.session()).await?;
        Ok(())
    }
}
