//! The service `products` as a program of its own.

use tombolo::documents::Documents;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let database = Documents::open(tombolo::settings::database_or("documents:products.redb"))?;
    shop_products::service(database).run().await
}
