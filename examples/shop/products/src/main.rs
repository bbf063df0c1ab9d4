//! The service `products` as a program of its own.

use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let database = Sqlite::open(tombolo::settings::database_or("sqlite:products.db"))?;
    shop_products::service(database).run().await
}
