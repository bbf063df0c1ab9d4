//! The service `products` as a program of its own, on the kind of database that its address names.

use tombolo::documents::Documents;
#[cfg(feature = "mongodb")]
use tombolo::mongodb::Mongodb;
use tombolo::settings::{database_kind, database_or, other_database};

/// The addresses that it takes.
const ADDRESSES: &[&str] = &[
    "documents:PATH",
    #[cfg(feature = "mongodb")]
    "mongodb://user@host/NAME",
    #[cfg(not(feature = "mongodb"))]
    "mongodb://user@host/NAME once it is built with `--features mongodb`",
];

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("documents:products.redb");
    match database_kind(&address) {
        "documents" => shop_products::service(Documents::open(&address)?).run().await,
        #[cfg(feature = "mongodb")]
        "mongodb" => shop_products::service(Mongodb::open(&address).await?).run().await,
        _ => Err(other_database(&address, ADDRESSES)),
    }
}
